"""One assertion script on 1, 2 and 3 processes, and under torchrun: the result is that of one process."""

import os
import re
import signal
import subprocess
import sys

import pytest
import script
import torch
from processes import HERE, PATIENCE, run_processes

SIZES = (1, 2, 3)
several = pytest.mark.parametrize("size", SIZES[1:])
MEMBERS = [" ".join(case) for case in script.cases(quick=False)]
RESUMED = [f"resumed {name}" for name in MEMBERS if name.startswith(("cd-rge", "pes"))]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What every process ended with, by size and rank."""
    folder = tmp_path_factory.mktemp("processes")
    for size in SIZES:
        codes = run_processes(script.main, size, folder)
        assert codes == [0] * size
    return {
        size: [
            torch.load(folder / f"{size}-{rank}.pt") for rank in range(size) if size == 1 or rank < size - 1
        ]
        for size in SIZES
    }  # of several, the last has left before the end


def assert_same(found, expected):
    """Bit for bit, whatever it is made of."""
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for name in found:
            assert_same(found[name], expected[name])
    elif isinstance(found, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    else:
        assert found == expected


@several
@pytest.mark.parametrize("name", MEMBERS)
def test_members_over_processes_give_the_bits_of_one(outcomes, size, name):
    [alone] = outcomes[1]
    for each in outcomes[size]:
        assert_same(each[name], alone[name])


def test_the_runs_have_moved_the_weights_each_in_its_own_way(outcomes):
    [alone] = outcomes[1]
    ends = [alone[name]["weights"]["head.weight"].float() for name in MEMBERS]
    assert all(not torch.equal(one, other) for i, one in enumerate(ends) for other in ends[:i])


@several
@pytest.mark.parametrize("name", RESUMED)
def test_a_run_resumed_by_another_number_of_processes_has_the_same_bits(outcomes, size, name):
    expected = outcomes[1][0][name.removeprefix("resumed ")]["weights"]
    for each in outcomes[size]:
        assert_same(each[name]["weights"], expected)


@several
@pytest.mark.parametrize("resumed", ["", "resumed "])
@pytest.mark.parametrize("name", script.OF_ROWS)
def test_rows_over_processes_give_one_process_s_gradient_but_for_rounding(outcomes, size, name, resumed):
    """In float64: 1e-10 of a number is some 1e5 roundings. Bridge's credit of a state is float32: 1e-6 is ten
    of its roundings. A wrong noise or weight of a row is far more than either."""
    expected, bound = outcomes[1][0][name], 1e-6 if "bridge" in name else 1e-10
    for each in outcomes[size]:
        found = each[resumed + name]
        assert found["passes"] == expected["passes"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=bound)
        assert found["norm"] == pytest.approx(expected["norm"], rel=bound)
        torch.testing.assert_close(found["coefficients"], expected["coefficients"], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(found["weights"], expected["weights"], rtol=bound, atol=0.1 * bound)


@several
@pytest.mark.parametrize("name", script.OF_ROWS)
def test_all_replicas_end_with_the_same_bits(outcomes, size, name):
    first, *others = outcomes[size]
    for each in others:
        assert_same(each[name]["weights"], first[name]["weights"])


def test_one_process_sends_nothing(outcomes):
    assert outcomes[1][0]["traffic"] == (0, 0)
    assert all(each["traffic"][0] > 0 for size in SIZES[1:] for each in outcomes[size])


# ----------------------------------------------------------------------------------------------- what fails

ERRORS = {
    "raises": (
        "RuntimeError: the simulator",
        r"PeerFailedError: rank 1 failed, .* RuntimeError: the simulator of",
    ),
    "infinite": ("NonFiniteLossError: step 0", r"NonFiniteLossError: step 0"),
    "no batch": (
        "ConfigError: batch must be zorn.Batch",
        r"PeerFailedError: rank 1 failed.* batch must be zorn",
    ),
    "empty batch": (
        "ConfigError: batch must be as many rows",
        r"PeerFailedError: rank 1 failed.* at least 1",
    ),
    "rows raise": (
        "RuntimeError: the simulator",
        r"PeerFailedError: rank 1 failed, .* RuntimeError: the simulator of",
    ),
    "few rows": ("ConfigError: the rows of the batch must be at least",) * 2,
    "after them": ("none", "none"),
}
"""What rank 1 and the others raise."""


@several
@pytest.mark.parametrize("name", ERRORS)
def test_an_exception_on_one_process_is_one_on_all(outcomes, size, name):
    for rank, each in enumerate(outcomes[size]):
        own, others = ERRORS[name]
        assert_matches(each[name], own if rank == 1 else others)


DIFFERENCES = {
    "other setting": r"epsilon of CDRGE: 0\.0[45], not 0\.0[45]: give every process",
    "other structure": r"perturbation of CDRGE: (Dense\(.*, not RankOne\(|RankOne\(.*Dense\()",
    "other kind": r"estimator: (PES, not CDRGE|CDRGE, not PES)",
    "other shape": r"parameter embedding.weight: float32 \(7, [46]\), trained, not",
    "other weights": r"weights of embedding.weight: ",
    "other batch": r"values in batch.inputs: ",
    "other objective": r"objective: (score, not TokenCrossEntropy|TokenCross.*, not score)",
    "other partial": r"partial of share\(\): (True, not False|False, not True)",
    "other check_every": r"check_every of share\(\): (7, not 100|100, not 7)",
    "frozen": r"parameter head.weight: .*(frozen, not .*trained|trained, not .*frozen)",
    "later batch": r"(work|batch.inputs): ",
}


@several
@pytest.mark.parametrize("name", DIFFERENCES)
def test_processes_that_differ_are_told_in_what(outcomes, size, name):
    """Of three and more, the odd one is named; of two, the second."""
    assert len({each[name] for each in outcomes[size]}) == 1
    assert_matches(outcomes[size][0][name], "ConfigError: rank 1 differs from rank 0 in " + DIFFERENCES[name])


@several
def test_a_replica_that_diverged_is_named_with_the_first_parameter_that_differs(outcomes, size):
    for each in outcomes[size]:
        assert_matches(
            each["diverged"], "DivergedReplicaError: rank 1 differs from rank 0 in weights of head.weight: "
        )


@several
def test_members_of_a_process_that_failed_are_left_out_where_that_is_allowed(outcomes, size):
    first, *others = [each["partial"] for each in outcomes[size]]
    before, dropped, after = first["dropped"]
    assert (before, after) == (0, 0)
    assert 0 < dropped <= 2  # of 4 members
    for each in others:
        assert each["dropped"] == first["dropped"]
        assert_same(each["weights"], first["weights"])
    if size > 2:
        [text] = outcomes[size][1]["partial"]["warned"]
        assert (
            "rank 1 failed, and its members are left out of this step: RuntimeError('out of order')" in text
        )


@several
def test_a_request_to_end_the_run_reaches_all_after_the_same_step(outcomes, size):
    assert all(each["interrupted"] == [False, True, True] for each in outcomes[size])


@several
def test_the_others_notice_that_a_process_has_ended(outcomes, size):
    for each in outcomes[size]:
        assert_matches(each["abandoned"], r"WorkerError: rank . lost the other processes: .* look at what")


def assert_matches(text, pattern):
    assert re.search(pattern, text), text


# ------------------------------------------------------------------------------------------------- torchrun


def test_under_torchrun_the_bits_are_the_same(outcomes, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(
        [*command, str(HERE / "script.py"), str(tmp_path), "--quick"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = launcher.communicate(timeout=PATIENCE)
        assert launcher.returncode == 0, printed
    finally:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
            launcher.communicate()
    for rank in range(2):
        found = torch.load(tmp_path / f"2-{rank}.pt")
        assert len(found) == 4
        for name, outcome in found.items():
            assert_same(outcome, outcomes[1][0][name])
