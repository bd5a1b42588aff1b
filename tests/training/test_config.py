"""Settings: every rule has a message that names the field, the value, the rule and the flag."""

import ast
import dataclasses
import json
import re
import typing
from pathlib import Path

import pytest
from zorn.training.checks import flag, without_none
from zorn.training.config import (
    BudgetConfig,
    Config,
    EstimatorConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TaskConfig,
    config_from_json,
    config_to_json,
)
from zorn.training.defaults import ADAM_RATES, SETTINGS
from zorn.training.groups import EstimatorName
from zorn.training.presets import PRESETS, PresetName

from zorn.errors import ConfigError
from zorn.training import groups, usage

GROUPS = [TaskConfig, ModelConfig, EstimatorConfig, OptimizerConfig, BudgetConfig, RunConfig]

BAD = [
    (
        TaskConfig,
        {"task": "chess"},
        "task must be one of text, copy, reverse, sort, repeat-copy, add, got chess",
    ),
    (TaskConfig, {"source": ""}, "source must be a name or a path, got an empty text"),
    (TaskConfig, {"tokenizer": "words"}, "tokenizer must be one of bytes, alphabet, bpe"),
    (
        TaskConfig,
        {"tokenizer": "bpe", "vocabulary_size": 256},
        "vocabulary_size must be at least 257, got 256",
    ),
    (TaskConfig, {"batch": 0}, "batch must be at least 1, got 0"),
    (TaskConfig, {"batch": 2**31}, "batch must be below 2**31, got 2147483648"),
    (ModelConfig, {"parameters": 10**30}, "parameters must be below 2**31"),
    (TaskConfig, {"length": 0}, "length must be at least 1"),
    (TaskConfig, {"minimum_length": 0}, "minimum_length must be at least 1"),
    (TaskConfig, {"minimum_length": 9, "maximum_length": 3}, "maximum_length must be at least the minimum"),
    (
        TaskConfig,
        {"objective": "bleu"},
        "objective must be one of cross-entropy, token-error, sequence-error",
    ),
    (TaskConfig, {"task": "repeat-copy", "maximum_repeats": 0}, "maximum_repeats must be from 1 to 9, got 0"),
    (TaskConfig, {"task": "repeat-copy", "maximum_repeats": 10}, "maximum_repeats must be from 1 to 9"),
    (
        TaskConfig,
        {"task": "copy", "maximum_repeats": 4},
        "maximum_repeats must be 3 with copy: only repeat-copy repeats, got 4",
    ),
    (TaskConfig, {"stream": 0}, "stream must be at least 1, or None, got 0"),
    (TaskConfig, {"task": "copy", "stream": 4}, "stream must be None with copy: only text streams, got 4"),
    (TaskConfig, {"overfit": True, "stream": 4}, "stream must be None with --overfit, got 4"),
    (ModelConfig, {"cell": "rnn"}, "cell must be one of lstm, gru, min-gru, dnc"),
    (ModelConfig, {"norm": "batch"}, "norm must be one of none, layer, rms"),
    (ModelConfig, {"cell": "dnc", "memory_slots": 0}, "memory_slots must be at least 1, got 0"),
    (ModelConfig, {"cell": "dnc", "memory_width": 0}, "memory_width must be at least 1, got 0"),
    (ModelConfig, {"cell": "dnc", "read_heads": 0}, "read_heads must be at least 1, got 0"),
    (ModelConfig, {"memory_slots": 8}, "memory_slots must be 16 with lstm: only dnc uses it, got 8"),
    (ModelConfig, {"cell": "gru", "memory_width": 8}, "memory_width must be 16 with gru: only dnc uses it"),
    (ModelConfig, {"cell": "min-gru", "read_heads": 2}, "read_heads must be 1 with min-gru: only dnc uses"),
    (
        ModelConfig,
        {"simple_memory": True},
        "simple_memory must be False with lstm: only dnc uses it, got True: for example --no-simple-memory",
    ),
    (ModelConfig, {"hidden_size": 0}, "hidden_size must be at least 1"),
    (ModelConfig, {"num_layers": 0}, "num_layers must be at least 1"),
    (ModelConfig, {"num_heads": 0}, "num_heads must be at least 1"),
    (ModelConfig, {"parameters": 0}, "parameters must be at least 1"),
    (ModelConfig, {"embedding_size": 0}, "embedding_size must be at least 1"),
    (
        ModelConfig,
        {"hidden_size": 10, "num_heads": 4},
        "hidden_size must be a multiple of the number of heads",
    ),
    (EstimatorConfig, {"estimator": "es"}, "estimator must be one of auto, activity, bridge, cd-rge, fd-rge"),
    (EstimatorConfig, {"structure": "sparse"}, "structure must be one of rank-one, dense"),
    (EstimatorConfig, {"noise": "uniform"}, "noise must be one of rademacher, gaussian"),
    (EstimatorConfig, {"rank": 0}, "rank must be at least 1"),
    (EstimatorConfig, {"population": 0}, "population must be at least 1, or None, got 0"),
    (EstimatorConfig, {"final_population": 0}, "final_population must be at least 1, or None, got 0"),
    (
        EstimatorConfig,
        {"estimator": "bptt", "final_population": 4},
        "final_population must be None with bptt: only cd-rge, fd-rge, spsa-1.5, pes, nres use it, got 4",
    ),
    (
        EstimatorConfig,
        {"estimator": "spsa-1.5", "curvature_power": 1.5},
        "curvature_power must be from 0 to 1, got 1.5",
    ),
    (EstimatorConfig, {"estimator": "spsa-1.5", "curvature_floor": 0.0}, "curvature_floor must be above 0"),
    (
        EstimatorConfig,
        {"estimator": "cd-rge", "curvature_power": 0.5},
        "curvature_power must be 0.1 with cd-rge: only spsa-1.5 uses it, got 0.5",
    ),
    (
        EstimatorConfig,
        {"estimator": "fd-rge", "curvature_floor": 0.5},
        "curvature_floor must be 1.0 with fd-rge: only spsa-1.5 uses it",
    ),
    (
        EstimatorConfig,
        {"estimator": "cd-rge", "truncation": 3},
        "truncation must be None with cd-rge: only bridge, tbptt, e-prop use it, got 3",
    ),
    (EstimatorConfig, {"estimator": "bridge"}, "truncation must be at least 1 with bridge, got None"),
    (EstimatorConfig, {"estimator": "tbptt"}, "truncation must be at least 1 with tbptt, got None"),
    (EstimatorConfig, {"estimator": "tbptt", "truncation": 0}, "truncation must be at least 1, or None"),
    (
        EstimatorConfig,
        {"estimator": "tbptt", "truncation": 2, "time_chunk": 4},
        "time_chunk must be None with tbptt: only cd-rge, fd-rge, spsa-1.5, activity use it, got 4",
    ),
    (
        EstimatorConfig,
        {"estimator": "bptt", "time_chunk": 4},
        "time_chunk must be None with bptt",
    ),
    (EstimatorConfig, {"group_size": -1}, "group_size must be at least 0"),
    (
        EstimatorConfig,
        {"epsilon": 0.0},
        "epsilon must be above 0 and at most 1e30, or None, got 0.0: for example --epsilon 0.02",
    ),
    (
        EstimatorConfig,
        {"epsilon": float("nan")},
        "epsilon must be above 0 and at most 1e30, or None, got nan",
    ),
    (
        EstimatorConfig,
        {"epsilon": float("inf")},
        "epsilon must be above 0 and at most 1e30, or None, got inf",
    ),
    (EstimatorConfig, {"estimator": "bptt", "epsilon": 0.1}, "epsilon must be None with bptt: only cd-rge,"),
    (
        EstimatorConfig,
        {"estimator": "cd-rge", "relative_epsilon": False},
        "relative_epsilon must be True with cd-rge: only activity, bridge use it, got False",
    ),
    (EstimatorConfig, {"draws": 0}, "draws must be at least 1, or None, got 0"),
    (EstimatorConfig, {"estimator": "nres", "draws": 2}, "draws must be None with nres: only activity, brid"),
    (EstimatorConfig, {"credit_every": 0}, "credit_every must be at least 1, or None, got 0"),
    (
        EstimatorConfig,
        {"estimator": "activity", "credit_every": 4},
        "credit_every must be None with activity: only bridge uses it, got 4",
    ),
    (EstimatorConfig, {"discount": 1.5}, "discount must be from 0 to 1, or None, got 1.5"),
    (EstimatorConfig, {"discount": -0.1}, "discount must be from 0 to 1, or None, got -0.1"),
    (EstimatorConfig, {"exact_output": "maybe"}, "exact_output must be one of auto, yes, no, got maybe"),
    (
        EstimatorConfig,
        {"estimator": "bridge", "truncation": 2, "exact_output": "no"},
        "exact_output must be auto with bridge: only activity uses it, got no",
    ),
    (
        EstimatorConfig,
        {"estimator": "activity", "separate": False},
        "separate must be True with activity: only bridge uses it, got False: for example --separate",
    ),
    (
        EstimatorConfig,
        {"estimator": "activity", "structure": "dense"},
        "structure must be None with activity",
    ),
    (EstimatorConfig, {"estimator": "tbptt", "truncation": 2, "rank": 2}, "rank must be None with tbptt"),
    (EstimatorConfig, {"estimator": "bptt", "noise": "gaussian"}, "noise must be rademacher with bptt"),
    (
        EstimatorConfig,
        {"estimator": "bptt", "shaping": "sign"},
        "shaping must be none with bptt: only cd-rge",
    ),
    (
        EstimatorConfig,
        {"estimator": "bptt", "maximum_nonfinite_share": 0.9},
        "maximum_nonfinite_share must be 0.5 with bptt",
    ),
    (EstimatorConfig, {"shaping": "rank"}, "shaping must be one of none, zscore, sign, std"),
    (EstimatorConfig, {"micro_batch": 0}, "micro_batch must be at least 1, got 0"),
    (EstimatorConfig, {"time_chunk": 0}, "time_chunk must be at least 1, or None"),
    (EstimatorConfig, {"maximum_nonfinite_share": 1.1}, "maximum_nonfinite_share must be from 0 to 1"),
    (OptimizerConfig, {"optimizer": "lion"}, "optimizer must be one of adam, adamw, sgd, fused-sgd"),
    (OptimizerConfig, {"learning_rate": -0.1}, "learning_rate must be above 0 and at most 1e30, or None"),
    (OptimizerConfig, {"credit_learning_rate": 0.0}, "credit_learning_rate must be above 0 and at most 1e30"),
    (OptimizerConfig, {"credit_momentum": 1.0}, "credit_momentum must be from 0 up to, not including, 1"),
    (OptimizerConfig, {"optimizer": "sgd", "momentum": 1.0}, "momentum must be from 0 up to"),
    (
        OptimizerConfig,
        {"optimizer": "adam", "momentum": 0.9},
        "momentum must be 0 with adam: only sgd uses it",
    ),
    (OptimizerConfig, {"weight_decay": -1.0}, "weight_decay must be from 0 to 1e30"),
    (OptimizerConfig, {"clip_norm": 0.0}, "clip_norm must be above 0 and finite, or None"),
    (OptimizerConfig, {"optimizer": "fused-sgd", "clip_norm": 1.0}, "clip_norm must be None with fused-sgd"),
    (OptimizerConfig, {"schedule": "linear"}, "schedule must be one of constant, cosine"),
    (OptimizerConfig, {"epsilon_schedule": "linear"}, "epsilon_schedule must be one of constant, cosine"),
    (OptimizerConfig, {"warmup_steps": -1}, "warmup_steps must be at least 0 steps"),
    (OptimizerConfig, {"schedule_floor": 1.5}, "schedule_floor must be from 0 to 1"),
    (OptimizerConfig, {"epsilon_schedule": "cosine", "schedule_floor": 0.0}, "epsilon must stay above 0"),
    (
        OptimizerConfig,
        {"tie_epsilon": True, "epsilon_schedule": "cosine"},
        "must be constant with --tie-epsilon",
    ),
    (
        OptimizerConfig,
        {"tie_epsilon": True, "schedule": "cosine", "schedule_floor": 0.0},
        "must stay above 0",
    ),
    (BudgetConfig, {}, "exactly one of them, got steps None and seconds None"),
    (BudgetConfig, {"steps": 3, "seconds": 3.0}, "exactly one of them, got steps 3 and seconds 3.0"),
    (BudgetConfig, {"steps": 0}, "steps must be at least 1"),
    (BudgetConfig, {"seconds": 0.0}, "seconds must be above 0"),
    (RunConfig, {"seed": -1}, "seed must be from 0 to"),
    (RunConfig, {"device": ""}, "device must be a device's name"),
    (RunConfig, {"dtype": "float16"}, "dtype must be one of float32, bfloat16"),
    (RunConfig, {"threads": 0}, "threads must be at least 1, or None"),
    (RunConfig, {"evaluations": 0}, "evaluations must be at least 1"),
    (RunConfig, {"checkpoint_seconds": -1.0}, "checkpoint_seconds must be at least 0"),
    (RunConfig, {"keep": 0}, "keep must be at least 1"),
    (RunConfig, {"journal": False, "journal_half": True}, "journal_half must be False without a journal"),
    (RunConfig, {"journal_sync": -1.0}, "journal_sync must be at least 0 and finite, or None"),
    (RunConfig, {"check_replicas": 0}, "check_replicas must be at least 1"),
    (RunConfig, {"process_timeout": 0.0}, "process_timeout must be above 0"),
]


def make(group, settings):
    """`group(**settings)` without the type check that pytest's jaxtyping hook puts into `__init__`."""
    made = object.__new__(group)
    for field in dataclasses.fields(group):
        object.__setattr__(made, field.name, settings.get(field.name, field.default))
    made.__post_init__()


@pytest.mark.parametrize(
    ("group", "settings", "message"),
    BAD,
    ids=[f"{list(bad)}-{index}" for index, (_, bad, _) in enumerate(BAD)],
)
def test_a_bad_value_is_named_with_its_rule_and_flag(group, settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        make(group, settings)
    assert re.search(r"for example --[a-z-]+", str(caught.value))
    assert "\n" not in str(caught.value)


def test_every_field_is_in_the_table():
    """A new field must come with a bad value above, or be named here as one that takes any value."""
    anything_goes = {"overfit", "residual", "tie_embedding", "out", "partial_steps"}
    tested = {name for _, settings, _ in BAD for name in settings}
    assert {field.name for group in GROUPS for field in dataclasses.fields(group)} == tested | anything_goes


def test_groups_that_contradict_each_other():
    budget = BudgetConfig(steps=1)
    with pytest.raises(ConfigError, match="group_size must be a divisor of the batch, 8 sequences"):
        Config(budget=budget, task=TaskConfig(batch=8), estimator=EstimatorConfig(group_size=3))
    with pytest.raises(ConfigError, match="population must be a multiple of 4"):
        Config(budget=budget, task=TaskConfig(batch=8), estimator=EstimatorConfig(group_size=2, population=6))
    with pytest.raises(ConfigError, match=r"final_population must be a multiple of 4 .*, got 6"):
        Config(
            budget=budget,
            task=TaskConfig(batch=8),
            estimator=EstimatorConfig(group_size=2, population=4, final_population=6),
        )
    for exact in (
        EstimatorConfig(estimator="bptt"),
        EstimatorConfig(estimator="tbptt", truncation=2),
    ):
        message = f"objective must be cross-entropy with --estimator {exact.estimator}, which differentiates"
        with pytest.raises(ConfigError, match=message):
            Config(budget=budget, task=TaskConfig(objective="edit-distance"), estimator=exact)
    Config(budget=budget, task=TaskConfig(batch=8), estimator=EstimatorConfig(group_size=0, population=3))
    Config(
        budget=budget, task=TaskConfig(batch=8), estimator=EstimatorConfig(estimator="bridge", truncation=2)
    )
    Config(budget=budget, task=TaskConfig(batch=7), estimator=EstimatorConfig(estimator="bptt"))


BRIDGE = EstimatorConfig(estimator="bridge", truncation=2)
JOINT = EstimatorConfig(estimator="bridge", truncation=2, separate=False)
ACTIVITY = EstimatorConfig(estimator="activity")

CONTRADICTIONS = [
    (
        {"task": TaskConfig(objective="edit-distance"), "estimator": BRIDGE},
        "cross-entropy with --estimator brid",
    ),
    (
        {
            "task": TaskConfig(objective="edit-distance"),
            "estimator": EstimatorConfig(estimator="activity", discount=0.5),
        },
        "discount must be 1 with --objective edit-distance, which is one number a sequence, got 0.5",
    ),
    (
        {
            "task": TaskConfig(objective="token-error"),
            "estimator": EstimatorConfig(estimator="activity", exact_output="yes"),
        },
        "exact_output must be no with --objective token-error",
    ),
    (
        {"estimator": EstimatorConfig(estimator="pes")},
        "stream must be at least 1 with --estimator pes, got None",
    ),
    (
        {"task": TaskConfig(stream=4), "estimator": EstimatorConfig(estimator="cd-rge")},
        "stream must be None with cd-rge: only activity, bridge, tbptt, e-prop, pes, nres use it, got 4",
    ),
    (
        {"estimator": BRIDGE, "optimizer": OptimizerConfig(optimizer="fused-sgd")},
        "separate must be False with fused-sgd, which keeps no gradient, and so no two parts of one, got",
    ),
    (
        {"estimator": dataclasses.replace(JOINT, credit_every=4)},
        "credit_every must be 1, or None, unless the two parts of the gradient are separate, got 4",
    ),
    (
        {"estimator": JOINT, "optimizer": OptimizerConfig(credit_momentum=0.9)},
        "credit_momentum must be 0.96 with bridge unless its two parts are separate, got 0.9",
    ),
    (
        {"estimator": ACTIVITY, "optimizer": OptimizerConfig(credit_learning_rate=0.1)},
        "credit_learning_rate must be None with activity: only bridge uses it, got 0.1",
    ),
    (
        {"estimator": EstimatorConfig(estimator="bptt"), "optimizer": OptimizerConfig(tie_epsilon=True)},
        "tie_epsilon must be False with bptt: only cd-rge",
    ),
    (
        {"run": RunConfig(dtype="bfloat16"), "optimizer": OptimizerConfig(optimizer="adam")},
        "dtype must be float32",
    ),
]


@pytest.mark.parametrize(
    ("groups_", "message"), CONTRADICTIONS, ids=[text[:20] for _, text in CONTRADICTIONS]
)
def test_an_estimator_that_is_named_asks_something_of_the_other_groups(groups_, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Config(budget=BudgetConfig(steps=1), **groups_)


def test_what_is_used_by_some_estimators_is_in_one_table():
    """Every name in the table is a field, and every estimator in it a choice."""
    names = {field.name for group in GROUPS for field in dataclasses.fields(group)}
    assert usage.USED_BY.keys() <= names
    choices = set(typing.get_args(EstimatorName)) - {"auto"}
    assert {user for users in usage.USED_BY.values() for user in users} <= choices
    assert SETTINGS.keys() == ADAM_RATES.keys() == choices


def test_field_names_are_unique_because_flags_are_flat():
    names = [field.name for group in GROUPS for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))
    assert flag("tie_epsilon") == "--tie-epsilon"


def test_every_field_has_a_docstring_with_a_full_sentence():
    tree = ast.parse(Path(groups.__file__).read_text(encoding="utf-8"))
    for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for index, statement in enumerate(node.body):
            if isinstance(statement, ast.AnnAssign):
                following = node.body[index + 1]
                assert isinstance(following, ast.Expr), f"{node.name}.{ast.unparse(statement.target)}"
                assert isinstance(following.value, ast.Constant)
                assert str(following.value.value).endswith((".", ")"))


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    assert config_from_json(config_to_json(PRESETS[name])) == PRESETS[name]


def test_json_is_read_strictly():
    text = config_to_json(PRESETS["quickstart"])

    def altered(change):
        groups = json.loads(text)
        change(groups)
        return json.dumps(groups)

    def swap(groups):
        groups["model"]["hiden_size"] = groups["model"].pop("hidden_size")

    with pytest.raises(ConfigError, match=r"missing model\.hidden_size, unknown model\.hiden_size"):
        config_from_json(altered(swap))
    with pytest.raises(ConfigError, match="missing budget, unknown nothing"):
        config_from_json(altered(lambda groups: groups.pop("budget")))
    with pytest.raises(ConfigError, match=r"model\.hidden_size must be of type int, got 'x'"):
        config_from_json(altered(lambda groups: groups["model"].update(hidden_size="x")))
    with pytest.raises(ConfigError, match=r"model\.tie_embedding must be of type bool, got 1"):
        config_from_json(altered(lambda groups: groups["model"].update(tie_embedding=1)))
    with pytest.raises(ConfigError, match="population must be at least 1"):
        config_from_json(altered(lambda groups: groups["estimator"].update(population=0)))
    with pytest.raises(ConfigError, match=r"old\.json: model must be an object, got 3"):
        config_from_json(altered(lambda groups: groups.update(model=3)), "old.json")
    with pytest.raises(ConfigError, match="not valid JSON"):
        config_from_json(text[:-20])
    with pytest.raises(ConfigError, match=r"chosen\.estimator must name settings that .*, got epsilom: take"):
        config_from_json(altered(lambda groups: groups["chosen"]["estimator"].update(epsilom=1)))
    with pytest.raises(ConfigError, match=r"chosen\.run must be of type dict, got 3"):
        config_from_json(altered(lambda groups: groups["chosen"].update(run=3)))
    earlier = config_from_json(altered(lambda groups: groups.pop("chosen")))
    assert earlier.reopened() == earlier == PRESETS["quickstart"]
    whole = config_from_json(altered(lambda groups: groups["estimator"].update(epsilon=1)))
    assert whole.estimator.epsilon == 1.0
    assert type(whole.estimator.epsilon) is float


def test_groups_hold_only_types_that_json_and_flags_can_carry():
    allowed = {int, float, str, bool, Path}
    for group in GROUPS:
        for name, annotation in typing.get_type_hints(group).items():
            kind, _ = without_none(annotation)
            assert typing.get_origin(kind) is typing.Literal or kind in allowed, name


def test_progress_is_the_share_of_the_budget_and_stops_at_one():
    assert BudgetConfig(steps=4).progress(1, 1e9) == 0.25
    assert BudgetConfig(seconds=4.0).progress(10**9, 1.0) == 0.25
    assert BudgetConfig(steps=4).progress(9, 0.0) == 1.0


def test_preset_names_are_those_of_the_flag():
    assert typing.get_args(PresetName) == tuple(PRESETS)


def test_presets_train_into_a_folder_of_their_name():
    assert {name: preset.run.out for name, preset in PRESETS.items()} == {
        name: Path("runs") / name for name in PRESETS
    }
