"""What every process of the tests runs: `python script.py FOLDER`, under torchrun or with its environment.

Leaves FOLDER/SIZE-RANK.pt: by the name of each case, what it ended with.
"""

import os
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from zorn.distributed import DivergedReplicaError, Group, WorkerError, share, start
from zorn.errors import ConfigError, NonFiniteLossError
from zorn.estimators import BPTT, CDRGE, FDRGE, NRES, PES, SPSA15, TBPTT, ActivityCredit, Bridge, EProp
from zorn.estimators.update import FusedSGD
from zorn.models import Batch, LanguageModel
from zorn.noise import Dense, RankOne
from zorn.tasks import TokenCrossEntropy

STEPS, STOP, SEGMENT = 20, 10, 8
"""Of a run, the step that another number of processes goes on from, and windows between two resets."""

ROWS_STEPS, ROWS_STOP = 5, 3
ROWS, TIME, VOCABULARY = 4, 3, 7

WEIGHT_SPACE = {"cd-rge": CDRGE, "fd-rge": FDRGE, "1.5-spsa": SPSA15, "pes": PES, "nres": NRES}
STRUCTURES = {"rank one": RankOne(), "dense": Dense()}

OF_ROWS = {
    "activity": partial(ActivityCredit, epsilon=0.1, draws=2, discount=0.8, carry=True, micro_batch=6),
    "activity of scores": partial(ActivityCredit, epsilon=0.1),
    "bridge": partial(Bridge, truncation=2, epsilon=0.1, draws=2, separate=False, carry=True, micro_batch=2),
    "bridge in two parts": partial(Bridge, truncation=1, epsilon=0.1, draws=2, credit_every=1),
    "tbptt": partial(TBPTT, truncation=2, carry=True),
    "e-prop": EProp,
    "bptt": BPTT,
}


def batch_of(step: int, rows: int = ROWS) -> Batch:
    """Random tokens; how many of them count differs from row to row."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCABULARY, (rows, TIME + 1), generator=generator)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
    for row in range(rows):
        targets[row, 1 + row % TIME :] = -100
    return Batch(inputs, targets)


def score(outputs, targets):
    """A loss a row that no token has a part of."""
    return outputs.logsumexp(-1).amax(1) - outputs[:, -1, 0] + 0.0 * targets[:, 0]


def small_model(dtype=torch.float32, seed=0, hidden=4) -> LanguageModel:
    return LanguageModel(VOCABULARY, hidden, seed=seed).to(dtype)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def weight_space(kind, structure, **options):
    """With rows of a micro-batch so few that there are some for every process."""
    rows = {"micro_batch": 2} if kind in ("pes", "nres") else {"micro_batch": 6, "group_size": None}
    options = {"population": 4, "epsilon": 0.05, "seed": 3} | rows | options
    return WEIGHT_SPACE[kind](perturbation=STRUCTURES[structure], **options)


def train(estimator, model, steps, *, rows=ROWS, objective=None, update=None, optimizer=None):
    """Steps of a range; new sequences begin where the number of the step says so."""
    for step in steps:
        if step % SEGMENT == 0 and hasattr(estimator, "reset"):
            estimator.reset()
        found = estimator.estimate(model, batch_of(step, rows), objective or TokenCrossEntropy(), update)
        if optimizer is not None:
            optimizer.step()
    return found


def run_members(group, kind, structure, form, saved: Path) -> dict:
    """A run of STEPS; on the way, all that another one needs to go on from STOP is saved."""
    model = small_model(torch.bfloat16 if form == "bfloat16 fused" else torch.float32)
    estimator = share(weight_space(kind, structure), group)
    fused, plain = {"update": FusedSGD(learning_rate=0.3)}, torch.optim.SGD(model.parameters(), lr=0.3)
    how = fused if form == "bfloat16 fused" else {"optimizer": plain}
    train(estimator, model, range(STOP), **how)
    state = {"estimator": estimator.state_dict(), "model": model.state_dict()}
    if group.is_main:
        torch.save(state, saved)
    found = train(estimator, model, range(STOP, STEPS), **how)
    return {
        "weights": weights(model),
        "loss": found.loss,
        "coefficients": found.coefficients,
        "norm": found.gradient_norm,
        "passes": found.forward_passes,
    }


def resume_members(group, kind, structure, form, saved: Path) -> dict:
    model = small_model(torch.bfloat16 if form == "bfloat16 fused" else torch.float32, seed=1)
    state = torch.load(saved)
    model.load_state_dict(state["model"])
    estimator = share(weight_space(kind, structure), group)
    estimator.load_state_dict(state["estimator"])
    fused, plain = {"update": FusedSGD(learning_rate=0.3)}, torch.optim.SGD(model.parameters(), lr=0.3)
    train(
        estimator, model, range(STOP, STEPS), **(fused if form == "bfloat16 fused" else {"optimizer": plain})
    )
    return {"weights": weights(model)}


def run_rows(group, name, saved: Path, resumed: Path | None = None) -> dict:
    """Float64, so that rounding is far below what a wrong noise or weight of a row would do. 5 rows: no even
    share of 2 or 3 processes."""
    model = small_model(torch.float64, hidden=6)
    estimator = share(OF_ROWS[name](), group)
    how = {"rows": 5, "objective": score if "scores" in name else None, "update": FusedSGD(learning_rate=0.1)}
    if "parts" in name:
        how["update"] = None
    first = 0
    if resumed is not None:
        state, first = torch.load(resumed), ROWS_STOP
        model.load_state_dict(state["model"])
        estimator.load_state_dict(state["estimator"])
    else:
        train(estimator, model, range(ROWS_STOP), **how)
        state = {"estimator": estimator.state_dict(), "model": model.state_dict()}
        if group.is_main:
            torch.save(state, saved)
        first = ROWS_STOP
    found = train(estimator, model, range(first, ROWS_STEPS), **how)
    parts = {
        f"part {number} of {name}": parameter.grad.clone()
        for number, part in enumerate(estimator.parts(model))
        for (name, _), parameter in zip(model.named_parameters(), part, strict=True)
        if parameter.grad is not None
    }
    return {
        "weights": weights(model) | parts,
        "loss": found.loss,
        "coefficients": found.coefficients,
        "norm": found.gradient_norm,
        "passes": found.forward_passes,
    }


# ----------------------------------------------------------------------------------------------- what fails


def told(action) -> str:
    """The error of an action, in one line."""
    try:
        action()
    except (ConfigError, DivergedReplicaError, WorkerError, NonFiniteLossError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def failing(group: Group) -> dict[str, object]:
    """By name, the error of each case on this process; rank 1 is the one that differs or fails."""
    odd = group.rank == 1
    found: dict[str, object] = {}

    def estimating(estimator=None, model=None, batch=None, objective=None, **options):
        estimator = estimator or weight_space("cd-rge", "rank one")
        shared = share(estimator, group, **options)
        model, objective = model or small_model(), objective or TokenCrossEntropy()
        return told(lambda: shared.estimate(model, batch_of(0) if batch is None else batch, objective))

    def broken(outputs, targets):
        if odd:
            raise RuntimeError("the simulator of rank 1 crashed")
        return outputs.mean((1, 2))

    def infinite(outputs, targets):
        return outputs.mean((1, 2)) * torch.nan

    other = weight_space("cd-rge", "rank one", epsilon=0.04) if odd else None
    found["raises"] = estimating(objective=broken)
    found["infinite"] = estimating(objective=infinite)
    found["no batch"] = estimating(batch="nothing" if odd else None)
    found["empty batch"] = estimating(batch=Batch(*(p[:0] for p in batch_of(0))) if odd else None)
    found["other setting"] = estimating(other)
    found["other structure"] = estimating(weight_space("cd-rge", "dense") if odd else None)
    found["other kind"] = estimating(weight_space("pes", "rank one") if odd else None)
    found["other shape"] = estimating(model=small_model(hidden=6) if odd else None)
    found["other weights"] = estimating(model=small_model(seed=1) if odd else None)
    found["other batch"] = estimating(batch=batch_of(1) if odd else None)
    found["other objective"] = estimating(objective=score if odd else None)
    for option, value in {"partial": True, "check_every": 7}.items():
        found[f"other {option}"] = estimating(**({option: value} if odd else {}))
    frozen = small_model()
    frozen.head.weight.requires_grad_(not odd)
    found["frozen"] = estimating(model=frozen)
    found["few rows"] = estimating(BPTT(), batch=batch_of(0, rows=1))
    found["rows raise"] = estimating(BPTT(), objective=broken)
    found["after them"] = estimating()
    found["diverged"] = told(lambda: diverge(group, odd))
    found["later batch"] = told(lambda: later(group, odd))
    found["partial"] = left_out(group, odd)
    found["interrupted"] = interrupt(group, odd)
    return found


def diverge(group, odd) -> None:
    model, estimator = small_model(), share(weight_space("cd-rge", "rank one"), group, check_every=2)
    for step in range(4):
        estimator.estimate(model, batch_of(step), TokenCrossEntropy(), FusedSGD(learning_rate=0.1))
        if step == 2 and odd:
            with torch.no_grad():
                model.head.weight[0, 0] += 1e-6
    estimator.estimate(model, batch_of(4), TokenCrossEntropy())


def later(group, odd) -> None:
    """The batch of one process gets longer, after the first agreement."""
    model, estimator = small_model(), share(weight_space("cd-rge", "rank one"), group)
    estimator.estimate(model, batch_of(0), TokenCrossEntropy())
    estimator.estimate(model, batch_of(1, rows=8 if odd else 4), TokenCrossEntropy())


def left_out(group, odd) -> dict:
    model, estimator = small_model(), share(weight_space("cd-rge", "rank one"), group, partial=True)

    def objective(outputs, targets):
        if odd and estimator.step == 2:
            raise RuntimeError("out of order")
        return outputs.logsumexp(-1).mean(1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [
            estimator.estimate(model, batch_of(step), objective, FusedSGD(learning_rate=0.1))
            for step in range(3)
        ]
    return {
        "dropped": [estimate.dropped for estimate in found],
        "weights": weights(model),
        "warned": [str(warning.message) for warning in caught],
    }


def interrupt(group, odd) -> list[bool]:
    model, estimator = small_model(), share(weight_space("cd-rge", "rank one"), group)
    seen = []
    for step in range(3):
        if odd and step == 1:
            group.request_interrupt()
        estimator.estimate(model, batch_of(step), TokenCrossEntropy())
        seen.append(group.interrupted)
    return seen


def gathering(folder: Path) -> None:
    """Leaves RANK.pt: what messages and objects of several sizes brought, and the rounds that each took."""
    torch.set_num_threads(1)
    rounds, took, all_heard, exchange = [], [], [], dist.batch_isend_irecv
    dist.batch_isend_irecv = lambda operations: rounds.append(len(operations)) or exchange(operations)
    with start(timeout=60) as group:
        for count in (3, 0, 2):  # of rank 0; each other has one value more than the one before
            own = 100.0 * group.rank + torch.arange(count + group.rank, dtype=torch.float64)
            rounds.clear()
            all_heard.append([note.values for note in group.message(own)])
            took.append(len(rounds))
        found = {"heard": all_heard, "rounds": took, "bytes": group.bytes_sent}
        found["objects"] = group.collect("rank " * group.rank)
        torch.save(found, folder / f"{group.rank}.pt")


def abandoned(group) -> str:
    """The last process ends without a word."""
    model, estimator = small_model(), share(weight_space("cd-rge", "rank one"), group)
    estimator.estimate(model, batch_of(0), TokenCrossEntropy())
    if group.rank == group.size - 1:
        os._exit(0)
    return told(lambda: estimator.estimate(model, batch_of(1), TokenCrossEntropy()))


# -------------------------------------------------------------------------------------------------- the run


def cases(quick: bool):
    """The runs of members: every estimator, structure and number format."""
    return [
        (kind, structure, form)
        for kind in (["cd-rge", "pes"] if quick else WEIGHT_SPACE)
        for structure in STRUCTURES
        for form in (["bfloat16 fused"] if quick else ["float32", "bfloat16 fused"])
    ]


def run(group: Group, folder: Path, *, quick: bool = False) -> dict[str, object]:
    """All cases; those of a group of N go on from what one of N − 1 has saved."""
    found: dict[str, object] = {}
    for case in cases(quick):
        name = " ".join(case)
        found[name] = run_members(group, *case, folder / f"{group.size} {name}.state")
    if quick:
        return found
    spare = folder / f"{group.size} spare.state"
    for name in OF_ROWS:
        found[name] = run_rows(group, name, folder / f"{group.size} {name}.state")
    if group.size > 1:
        for kind, structure, form in cases(quick):
            if kind in ("cd-rge", "pes"):
                name = f"{kind} {structure} {form}"
                saved = folder / f"{group.size - 1} {name}.state"
                found[f"resumed {name}"] = resume_members(group, kind, structure, form, saved)
        for name in OF_ROWS:
            saved = folder / f"{group.size - 1} {name}.state"
            found[f"resumed {name}"] = run_rows(group, name, spare, saved)
        found |= failing(group)
    found["traffic"] = (group.bytes_sent, group.collectives)
    return found


def main(folder: Path, *, quick: bool = False) -> None:
    """Run this process's part, and leave what it ended with."""
    torch.set_num_threads(1)
    with start(timeout=60) as group:
        found = run(group, folder, quick=quick)
        if group.size > 1 and not quick:
            found["abandoned"] = abandoned(group)
        torch.save(found, folder / f"{group.size}-{group.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), quick="--quick" in sys.argv)
