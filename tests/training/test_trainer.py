"""The trainer with its real parts at tiny sizes: what it writes, and that resuming changes no bit."""

import dataclasses
import io
import json
import signal

import pytest
import torch
from rich.console import Console

from zorn.config import BudgetConfig, Choice, Config, RunConfig, change
from zorn.errors import ConfigError, NonFiniteLossError
from zorn.run import checkpoints, latest_checkpoint
from zorn.run.loggers import read_metrics
from zorn.tasks import TextTask
from zorn.training import Trainer
from zorn.training.load import load_run

TEXT = "the quick brown fox jumps over the lazy dog, again and again. " * 60


def settings(out, *, steps=6, seconds=None, task=None, model=None, estimator=None, optimizer=None, **run):
    budget = BudgetConfig(steps=steps) if seconds is None else BudgetConfig(seconds=seconds)
    start = Config(
        task=Choice("copy", batch=4, minimum_length=1, maximum_length=2),
        model=Choice("lstm", hidden_size=8),
        estimator=Choice("auto", population=8) if estimator is None else Choice("auto"),
        budget=budget,
        run=RunConfig(out=out, evaluations=2, checkpoint_seconds=0.0),
    )
    groups = (task or {}, model or {}, estimator or {}, optimizer or {}, run)
    return change(start, **{name: value for group in groups for name, value in group.items()})


COPY_SPLITS = ("validation", "validation-longer")


def trainer(config, **options):
    return Trainer(config, console=Console(file=io.StringIO()), **options)


def without_clock(folder):
    """The metrics with all that the clock decides left out."""
    return [
        {name: value for name, value in record.items() if name != "seconds"}
        for record in read_metrics(folder / "metrics.jsonl")
    ]


def tensors(folder):
    """The bytes of the newest checkpoint's tensors."""
    newest = latest_checkpoint(folder / "checkpoints")
    return {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}


def assert_same_run(one, other):
    assert tensors(one) == tensors(other)
    assert without_clock(one) == without_clock(other)


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """Leave the picture out: it takes longer to draw than these runs take to train."""
    monkeypatch.setattr("zorn.training.trainer.draw_curve", lambda *_: None)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_a_text_run_leaves_everything_in_its_folder(tmp_path, text_file, monkeypatch):
    monkeypatch.undo()  # with the picture
    out = tmp_path / "run"
    task = {"task": "text", "source": str(text_file), "batch": 4, "length": 8}
    summary = trainer(settings(out, task=task)).run()
    assert sorted(entry.name for entry in out.iterdir()) == [
        *(".lock", "checkpoints", "config.json", "curve.png", "journal.jsonl", "metrics.jsonl", "sample.txt"),
        *("summary.json", "tensorboard"),
    ]
    assert summary == json.loads((out / "summary.json").read_text())
    assert list(summary) == [
        *("validation_bits_per_byte", "unigram_bits_per_byte", "bigram_bits_per_byte", "validation_loss"),
        *("token_accuracy", "objective", "forward_passes", "dropped_members", "seconds", "steps"),
        *("parameters", "peak_memory_bytes"),
    ]
    assert summary["steps"] == 6
    assert summary["forward_passes"] == 6 * 2 * 8
    assert summary["bigram_bits_per_byte"] < summary["unigram_bits_per_byte"] < 8
    assert 1e7 < summary["peak_memory_bytes"] < 1e11
    assert (out / "sample.txt").read_text().startswith("The ")
    assert [path.name for path in checkpoints(out / "checkpoints")] == ["step-00000005", "step-00000006"]


def test_a_copy_run_counts_whole_sequences(tmp_path, monkeypatch):
    monkeypatch.undo()  # with the picture
    summary = trainer(settings(tmp_path / "run")).run()
    assert list(summary) == [
        *("validation_loss", "token_accuracy", "sequence_accuracy", "validation_longer_loss"),
        *("validation_longer_token_accuracy", "validation_longer_sequence_accuracy", "objective"),
        *("forward_passes", "dropped_members", "seconds", "steps", "parameters", "peak_memory_bytes"),
    ]
    assert 0 <= summary["sequence_accuracy"] <= 1
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    evaluations = [(record["step"], record["split"]) for record in records if record["kind"] == "evaluation"]
    assert evaluations == [(step, split) for step in (0, 3, 6) for split in COPY_SPLITS]
    for record, prefix in zip(records[-2:], ("", "validation_longer_"), strict=True):
        assert summary[f"{prefix}token_accuracy"] == record["token_accuracy"]
        assert summary[f"{prefix or 'validation_'}loss"] == record["loss"]
    assert not (tmp_path / "run" / "sample.txt").exists()


def test_evaluations_are_spread_over_the_budget_and_never_see_the_test_split(
    tmp_path, text_file, monkeypatch
):
    seen = []
    evaluate = TextTask.evaluate

    def spy(self, model, split="validation", **options):
        seen.append(split)
        return evaluate(self, model, split, **options)

    monkeypatch.setattr(TextTask, "evaluate", spy)
    task = {"task": "text", "source": str(text_file), "batch": 4, "length": 8}
    trainer(settings(tmp_path / "run", task=task, evaluations=3)).run()
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records if record["kind"] == "evaluation"] == [0, 2, 4, 6]
    assert [record["step"] for record in records if record["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert set(seen) == {"validation"}


WAYS = {
    "cd-rge, adam": ({"population": 8}, {}, "float32"),
    "fd-rge, sgd with momentum and clipping": (
        {"estimator": "fd-rge", "noise": "gaussian", "population": 8},
        {"optimizer": "sgd", "momentum": 0.9, "clip_norm": 0.1},
        "float32",
    ),
    "cd-rge dense, fused": (
        {"perturbation": "dense", "group_size": None, "population": 3},
        {"optimizer": "fused-sgd", "weight_decay": 0.1},
        "bfloat16",
    ),
    "bptt, adamw with warm-up": ({"estimator": "bptt"}, {"optimizer": "adamw", "warmup_steps": 4}, "float32"),
    "spsa-1.5, adam": ({"estimator": "spsa-1.5", "curvature_power": 0.5, "population": 8}, {}, "float32"),
    "activity, adam": ({"estimator": "activity", "draws": 2}, {}, "float32"),
    "activity, fused": ({"estimator": "activity"}, {}, "bfloat16"),
    "tbptt, sgd": ({"estimator": "tbptt", "truncation": 2}, {"optimizer": "sgd"}, "float32"),
    "shaped, tied": (
        {"shaping": "zscore", "population": 8},
        {"tie_epsilon": True, "warmup_steps": 3},
        "float32",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_is_extended_is_the_longer_run_bit_for_bit(tmp_path, way):
    estimator, optimizer, dtype = WAYS[way]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {"estimator": estimator, "optimizer": optimizer, "dtype": dtype, "seed": 3}
    trainer(settings(whole, steps=6, **options)).run()
    trainer(settings(parts, steps=3, evaluations=1, **options)).run()
    Trainer.resume(parts, steps=6, console=Console(file=io.StringIO())).run()
    assert tensors(whole) == tensors(parts)
    assert [line for line in without_clock(whole) if line["kind"] == "train"] == [
        line for line in without_clock(parts) if line["kind"] == "train"
    ]
    assert Trainer.resume(parts, steps=9).config.budget.steps == 9


def test_what_was_logged_after_the_checkpoint_is_logged_once(tmp_path):
    config = settings(tmp_path / "run", checkpoint_seconds=1000.0, journal=False)
    whole = trainer(config)
    whole.run()
    before = without_clock(tmp_path / "run")
    for path in checkpoints(tmp_path / "run" / "checkpoints")[1:]:
        (path / "manifest.json").unlink()
    (tmp_path / "run" / "summary.json").unlink()
    resumed = Trainer.resume(tmp_path / "run", console=Console(file=io.StringIO()))
    assert resumed.step == 0
    resumed.run()
    assert without_clock(tmp_path / "run") == before


def test_a_signal_finishes_the_step_and_saves(tmp_path):
    out = tmp_path / "run"
    stopped = trainer(settings(out, checkpoint_seconds=1000.0))
    update = stopped._update

    def update_and_interrupt(*arguments):
        if stopped.step == 2:
            signal.raise_signal(signal.SIGINT)
        return update(*arguments)

    stopped._update = update_and_interrupt
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert latest_checkpoint(out / "checkpoints").name == "step-00000003"
    assert not (out / "summary.json").exists()
    Trainer.resume(out, console=Console(file=io.StringIO())).run()
    trainer(settings(tmp_path / "whole", checkpoint_seconds=1000.0)).run()
    assert_same_run(tmp_path / "whole", out)


def test_a_growing_population_goes_on_bit_for_bit(tmp_path):
    options = {"estimator": {"population": 4, "final_population": 32}, "checkpoint_seconds": 1000.0}
    whole, out = tmp_path / "whole", tmp_path / "run"
    trainer(settings(whole, **options)).run()
    sizes = [line["population"] for line in without_clock(whole) if line["kind"] == "train"]
    assert sizes == [4, 4, 8, 12, 16, 24], "4 · 8^(step / 6), to the nearest multiple of 4"
    assert without_clock(whole)[-1]["forward_passes"] == 2 * sum(sizes)

    stopped = trainer(settings(out, **options))
    update = stopped._update

    def update_and_interrupt(*arguments):
        if stopped.step == 3:
            signal.raise_signal(signal.SIGINT)
        return update(*arguments)

    stopped._update = update_and_interrupt
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    Trainer.resume(out, console=Console(file=io.StringIO())).run()
    assert_same_run(whole, out)


@pytest.mark.parametrize("task", ["reverse", "sort", "repeat-copy", "add"])
def test_every_task_trains_and_comes_back(tmp_path, task):
    summary = trainer(settings(tmp_path, steps=1, task={"task": task})).run()
    assert summary["validation_longer_loss"] > 0
    loaded, _ = load_run(tmp_path)
    assert loaded.name == task


@pytest.mark.parametrize(
    "model",
    [
        {"cell": "dnc", "memory_slots": 3, "memory_width": 4, "read_heads": 2},
        {"cell": "dnc", "simple_memory": True},
        {"cell": "min-gru", "norm": "rms", "residual": True, "num_layers": 2},
    ],
    ids=["dnc", "simple dnc", "min-gru"],
)
def test_every_model_trains_and_comes_back(tmp_path, model):
    run = trainer(settings(tmp_path, steps=1, model=model))
    run.run()
    _, loaded = load_run(tmp_path)
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_the_models_settings_reach_it(tmp_path):
    def shapes(**model):
        made = trainer(settings(tmp_path, model=model)).model
        return {name: tuple(parameter.shape) for name, parameter in made.named_parameters()}

    plain = shapes(cell="dnc")
    for changed in (
        {"memory_slots": 5, "simple_memory": True},
        {"memory_width": 5},
        {"read_heads": 3},
        {"simple_memory": True},
        {"norm": "layer"},
    ):
        assert shapes(cell="dnc", **changed) != plain, changed
    normed = trainer(settings(tmp_path, model={"norm": "rms", "residual": True})).model
    bare = trainer(settings(tmp_path, model={"norm": "rms"})).model
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    assert not torch.equal(normed(tokens)[0], bare(tokens)[0])


def test_overfitting_evaluates_the_one_batch(tmp_path):
    run = trainer(settings(tmp_path, task={"overfit": True}))
    assert torch.equal(run.task.training_batch(0).inputs, run.task.training_batch(5).inputs)
    summary = run.run()
    assert "validation_longer_loss" not in summary
    evaluations = [line for line in without_clock(tmp_path) if line["kind"] == "evaluation"]
    assert {line["split"] for line in evaluations} == {"overfit batch"}


def test_too_many_non_finite_losses_stop_with_the_last_good_weights_saved(tmp_path):
    out = tmp_path / "run"
    broken = trainer(settings(out, checkpoint_seconds=1000.0))
    objective = broken.task.objective

    class Breaks:
        """Cross-entropy, and NaN from the third step on."""

        def token_losses(self, outputs, targets):
            losses = objective.token_losses(outputs, targets)
            return losses * torch.nan if broken.step >= 2 else losses

        counts = staticmethod(objective.counts)

    broken.task.objective = Breaks()
    with pytest.raises(
        NonFiniteLossError, match=r"8 of 8 members.*last good weights are saved in .*step-00000002"
    ):
        broken.run()
    assert broken.forward_passes == 2 * 16
    Trainer.resume(out, console=Console(file=io.StringIO())).run()
    trainer(settings(tmp_path / "whole", checkpoint_seconds=1000.0)).run()
    assert_same_run(tmp_path / "whole", out)


def test_dropped_members_are_counted(tmp_path):
    run = trainer(settings(tmp_path / "run", estimator={"population": 8, "maximum_nonfinite_share": 0.9}))
    objective = run.task.objective

    class DropsOneRow:
        """Cross-entropy, with the first row of a forward pass infinite: one member of 8."""

        def token_losses(self, outputs, targets):
            losses = objective.token_losses(outputs, targets).clone()
            losses[0] = torch.inf
            return losses

        counts = staticmethod(objective.counts)

    run.task.objective = DropsOneRow()
    summary = run.run()
    assert summary["dropped_members"] == 6
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["dropped"] for record in records if record["kind"] == "train"] == [1] * 6


def test_schedules_reach_the_optimizer_and_the_estimator(tmp_path):
    optimizer = {
        "learning_rate": 0.1,
        "schedule": "cosine",
        "schedule_floor": 0.5,
        "epsilon_schedule": "cosine",
    }
    run = trainer(
        settings(tmp_path, steps=2, optimizer=optimizer, estimator={"population": 8, "epsilon": 0.04})
    )
    seen = []
    (inner,) = run.optimizers
    step = inner.step

    def spy():
        seen.append((inner.param_groups[0]["lr"], run.estimator.epsilon))
        step()

    inner.step = spy
    run.run()
    assert seen == [(0.1, 0.04), (pytest.approx(0.075), pytest.approx(0.03))]
    logged = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    assert [(line["learning_rate"], line["epsilon"]) for line in logged] == seen


def test_a_budget_in_seconds_ends_on_time(tmp_path):
    summary = trainer(settings(tmp_path, seconds=0.5)).run()
    assert summary["seconds"] >= 0.5
    records = [record for record in read_metrics(tmp_path / "metrics.jsonl") if record["kind"] == "train"]
    assert all(record["seconds"] < 0.5 for record in records[:-1])
    with pytest.raises(ConfigError, match=r"is finished after .* extend it with --steps or --seconds"):
        Trainer.resume(tmp_path)


def test_nothing_random_is_global(tmp_path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    trainer(settings(tmp_path / "one")).run()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    trainer(settings(tmp_path / "other")).run()
    assert_same_run(tmp_path / "one", tmp_path / "other")
    trainer(settings(tmp_path / "seeded", seed=1)).run()
    assert tensors(tmp_path / "one") != tensors(tmp_path / "seeded")


def test_the_seed_reaches_weights_data_and_directions(tmp_path):
    one, other = trainer(settings(tmp_path, seed=1)), trainer(settings(tmp_path, seed=2))
    assert not torch.equal(one.model.head.weight, other.model.head.weight)
    assert not torch.equal(one.task.training_batch(0).inputs, other.task.training_batch(0).inputs)
    assert (one.estimator.seed, other.estimator.seed) == (1, 2)


def test_nothing_is_differentiated(tmp_path):
    run = trainer(settings(tmp_path))
    objective = run.task.objective

    class NoBackward(torch.autograd.Function):
        """The identity, whose derivative does not exist."""

        @staticmethod
        def forward(_context, losses):
            return losses.clone()

        @staticmethod
        def backward(_context, *_gradients):
            raise AssertionError("something was differentiated")

    class BlackBox:
        """Cross-entropy that cannot be differentiated."""

        def token_losses(self, outputs, targets):
            return NoBackward.apply(objective.token_losses(outputs, targets))

        counts = staticmethod(objective.counts)

    run.task.objective = BlackBox()
    run.run()
    exact = trainer(settings(tmp_path / "bptt", estimator={"estimator": "bptt"}))
    exact.task.objective = BlackBox()
    with pytest.raises(AssertionError, match="something was differentiated"):
        exact.run()


def test_making_a_trainer_writes_nothing(tmp_path):
    out = tmp_path / "runs" / "run"
    trainer(settings(out))
    for bad in (
        settings(out, task={"task": "text", "source": str(tmp_path / "absent")}, estimator={"population": 4}),
        settings(out, device="cuda:99"),
        settings(out, device="abacus"),
        settings(out, device="meta"),
        settings(out, threads=10_000),
        settings(out, optimizer={"optimizer": "fused-sgd", "learning_rate": 0.5, "weight_decay": 9.0}),
    ):
        with pytest.raises(ConfigError) as caught:
            trainer(bad)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_taken_stays_as_it_is(tmp_path):
    trainer(settings(tmp_path)).run()
    before = tensors(tmp_path)
    with pytest.raises(ConfigError, match="is not empty"):
        trainer(settings(tmp_path, seed=1))
    replaced = trainer(settings(tmp_path, seed=1), overwrite=True)
    assert tensors(tmp_path) == before
    replaced.run()
    assert tensors(tmp_path) != before
    assert [line["step"] for line in without_clock(tmp_path) if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("tokenizer", ["alphabet", "bpe"])
def test_a_tokenizer_and_the_place_of_the_text_are_kept(tmp_path, text_file, tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = {"task": "text", "source": "text.txt", "tokenizer": tokenizer, "batch": 4, "length": 8}
    if tokenizer == "bpe":
        task["vocabulary_size"] = 270
    run = trainer(settings(tmp_path / "run", task=task))
    run.run()
    monkeypatch.chdir("/")
    loaded, model = load_run(tmp_path / "run")
    assert loaded.tokenizer.to_json() == run.task.tokenizer.to_json()
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_a_run_folder_can_be_moved(tmp_path):
    trainer(settings(tmp_path / "here", steps=2)).run()
    (tmp_path / "here").rename(tmp_path / "there")
    Trainer.resume(tmp_path / "there", steps=3, console=Console(file=io.StringIO())).run()
    assert not (tmp_path / "here").exists()
    assert latest_checkpoint(tmp_path / "there" / "checkpoints").name == "step-00000003"


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run = trainer(settings(tmp_path))
    run.run()
    run.folder.write_config(run.asked, change(run.config, hidden_size=16))
    with pytest.raises(ConfigError, match=r"config\.json was changed .*: hidden_size is 16, was 8; put"):
        Trainer.resume(tmp_path, steps=9)


def test_parameters_choose_the_size(tmp_path):
    config = settings(tmp_path)
    config = dataclasses.replace(config, model=Choice("gru", parameters=5000))
    summary = trainer(config).run()
    assert 4500 < summary["parameters"] < 5500


def test_clipping_bounds_the_step(tmp_path):
    options = {"optimizer": {"optimizer": "sgd", "learning_rate": 1.0, "clip_norm": 1e-3}, "steps": 1}
    run = trainer(settings(tmp_path / "run", **options))
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    run.run()
    moved = [(new - old).detach().norm() for new, old in zip(run.model.parameters(), before, strict=True)]
    assert float(torch.stack(moved).norm()) == pytest.approx(1e-3, rel=1e-3)
