"""The groups of settings of a run, each checked when it is made.

Field names are unique over the groups, because each is one flat flag of `zorn train` (`hidden_size` is
`--hidden-size`). The string under a field is its help text and states unit and range.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zorn.errors import ConfigError
from zorn.training.checks import check_types, require, require_default, require_positive_or_none
from zorn.training.usage import check_used

LARGEST = 1e30
"""The largest step size or perturbation scale: beyond it float32 overflows."""


EstimatorName = Literal[
    "auto", "activity", "bridge", "cd-rge", "fd-rge", "spsa-1.5", "pes", "nres", "bptt", "tbptt", "e-prop"
]
"""The estimators by the names that settings use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """What is learned, and the batches it is learned from."""

    task: Literal["text", "copy", "reverse", "sort", "repeat-copy", "add"] = "text"
    """text: predict the next token of a text. The others: read symbols, then write the answer."""
    objective: Literal["cross-entropy", "token-error", "sequence-error", "edit-distance"] = "cross-entropy"
    """What is minimised. All but cross-entropy have no derivative: not for bptt, tbptt and e-prop."""
    source: str = "python-docs"
    """text: python-docs (the documentation that ships with Python), or the path of a text file."""
    tokenizer: Literal["bytes", "alphabet", "bpe"] = "bytes"
    """text: bytes (256 tokens), alphabet (the bytes that occur, and an escape), or bpe (learned pairs)."""
    vocabulary_size: int = 512
    """text with bpe: number of tokens, at least 257."""
    batch: int = 256
    """Sequences in a batch, at least 1."""
    length: int = 32
    """text: tokens predicted per sequence, at least 1."""
    minimum_length: int = 2
    """All but text: fewest symbols to read (add: digits of a number), at least 1."""
    maximum_length: int = 10
    """All but text: most symbols to read in training, at least the minimum length."""
    maximum_repeats: int = 3
    """repeat-copy: most times that the symbols are written, 1 to 9."""
    overfit: bool = False
    """Train on one batch, the same at every step, instead of fresh ones."""
    stream: int | None = None
    """text: windows of --length tokens that follow each other, at least 1, with the model's state carried
    from each to the next. None: every window starts anywhere, from the initial state."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.source != "", "source", self.source, "a name or a path", "python-docs")
        if self.tokenizer == "bpe":
            require(self.vocabulary_size > 256, "vocabulary_size", self.vocabulary_size, "at least 257", 512)
        require(self.batch >= 1, "batch", self.batch, "at least 1", 256)
        require(self.length >= 1, "length", self.length, "at least 1", 32)
        require(self.minimum_length >= 1, "minimum_length", self.minimum_length, "at least 1", 1)
        require(1 <= self.maximum_repeats <= 9, "maximum_repeats", self.maximum_repeats, "from 1 to 9", 3)
        repeats = self.task == "repeat-copy"
        why = f"with {self.task}: only repeat-copy repeats"
        require_default(self, ("maximum_repeats",), repeats, why)
        rule = f"at least the minimum length, {self.minimum_length}"
        fits = self.maximum_length >= self.minimum_length
        require(fits, "maximum_length", self.maximum_length, rule, self.minimum_length)
        require_positive_or_none("stream", self.stream, 32)
        flows = self.task == "text" and not self.overfit
        why = f"with {self.task}: only text streams" if self.task != "text" else "with --overfit"
        require_default(self, ("stream",), flows, why)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The recurrent language model."""

    cell: Literal["lstm", "gru", "min-gru", "dnc"] = "lstm"
    """The recurrent cell. dnc: a controller with a memory that it reads and writes."""
    hidden_size: int = 64
    """Units per layer, at least 1, a multiple of the number of heads."""
    parameters: int | None = None
    """Aim at this many trained parameters, at least 1: chooses the hidden size in place of --hidden-size."""
    embedding_size: int | None = None
    """Size of a token's vector, at least 1. None: the hidden size."""
    num_layers: int = 1
    """Recurrent layers, at least 1."""
    num_heads: int = 1
    """Blocks of the recurrent matrix, at least 1. 1: dense recurrence."""
    norm: Literal["none", "layer", "rms"] = "none"
    """Normalise what goes into each recurrent layer: by mean and variance, or by root mean square."""
    residual: bool = False
    """Add what goes into each recurrent layer to what comes out of it."""
    tie_embedding: bool = False
    """Use the embedding as the output matrix too (needs embedding size = hidden size)."""
    memory_slots: int = 16
    """dnc: rows of the memory, at least 1."""
    memory_width: int = 16
    """dnc: numbers in a row of the memory, at least 1."""
    read_heads: int = 1
    """dnc: rows read at a step, at least 1."""
    simple_memory: bool = False
    """dnc: the paper's simplified memory with layer norms, in place of the whole DNC."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.hidden_size >= 1, "hidden_size", self.hidden_size, "at least 1", 64)
        require(self.num_layers >= 1, "num_layers", self.num_layers, "at least 1", 1)
        require(self.num_heads >= 1, "num_heads", self.num_heads, "at least 1", 1)
        require(self.memory_slots >= 1, "memory_slots", self.memory_slots, "at least 1", 16)
        require(self.memory_width >= 1, "memory_width", self.memory_width, "at least 1", 16)
        require(self.read_heads >= 1, "read_heads", self.read_heads, "at least 1", 1)
        memory = ("memory_slots", "memory_width", "read_heads", "simple_memory")
        require_default(self, memory, self.cell == "dnc", f"with {self.cell}: only dnc uses it")
        require_positive_or_none("parameters", self.parameters, 50_000)
        require_positive_or_none("embedding_size", self.embedding_size, 64)
        one_dial = self.parameters is None or self.embedding_size is None
        rule = "None with --parameters, which chooses all sizes"
        require(one_dial, "embedding_size", self.embedding_size, rule, None)
        if self.parameters is None:
            rule = f"a multiple of the number of heads, {self.num_heads}"
            fits = self.hidden_size % self.num_heads == 0
            require(fits, "hidden_size", self.hidden_size, rule, self.num_heads * 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorConfig:
    """How the gradient is estimated. What is None is chosen for the task and the model when the run starts.

    A setting that the estimator does not use must stay at its default.
    """

    estimator: EstimatorName = "auto"
    """auto: what suits the task, and the other settings that are given.
    Forward passes only: activity, noise on what the layers put out, credited with the losses that follow.
    cd-rge, fd-rge: noise on the weights, central or forward differences. spsa-1.5: central, over the
    curvature. pes, nres: noise on the weights over the windows of a stream, fresh or kept.
    bridge: exact within a few steps, forward passes across them.
    bptt: exact, by backpropagation. tbptt: backpropagation cut every few steps. e-prop: without the paths
    through recurrent matrices."""
    structure: Literal["rank-one", "dense"] | None = None
    """Noise on the weights. rank-one: all members in one forward pass. dense: one member at a time, the
    paper's (slow). None: rank-one."""
    noise: Literal["rademacher", "gaussian"] = "rademacher"
    """Distribution of a perturbation's elements: signs, or normal numbers."""
    rank: int | None = None
    """rank-one: outer products summed per matrix, at least 1. None: 1."""
    population: int | None = None
    """Noise on the weights: members in a step, at least 1. None: 1024 or a little more, so that all
    sequences are used equally often."""
    final_population: int | None = None
    """Members at the end of the budget, at least 1: grows (or shrinks) geometrically from --population, in
    whole multiples of batch / group size. None: constant."""
    group_size: int | None = None
    """Noise on the weights: sequences that each member is evaluated on, 1 to the batch. 0: the whole batch.
    None: 1."""
    epsilon: float | None = None
    """Perturbation scale, above 0: the standard deviation of the noise on one weight, or on one output of a
    layer (activity), or on one number of the state (bridge). None: chosen for the estimator."""
    relative_epsilon: bool = True
    """activity, bridge: epsilon is a share of the root mean square of what is perturbed."""
    draws: int | None = None
    """activity, bridge: perturbations of each sequence, at least 1, each with both signs. None: 4 (activity);
    8, or 1 where the parts are not separate (bridge)."""
    credit_every: int | None = None
    """bridge: steps from one with credit to the next, at least 1; those between are tbptt's. None: as many as
    draws, or 1 where the parts are not separate."""
    discount: float | None = None
    """activity, bridge: a loss s steps after a noise counts for it by this to the power s, 0 to 1; below 1
    biased, with less noise. None: chosen for the task."""
    exact_output: Literal["auto", "yes", "no"] = "auto"
    """activity: take the gradient of the output layer from the error of its logits, without noise. auto:
    where the objective is cross-entropy."""
    separate: bool = True
    """bridge: the exact part and the credit part have optimizers of their own (adam for the credit)."""
    curvature_power: float = 0.1
    """spsa-1.5: power of the curvature that a coefficient is divided by, 0 to 1. 0: none, as cd-rge."""
    curvature_floor: float = 1.0
    """spsa-1.5: least that a coefficient is divided by, above 0."""
    truncation: int | None = None
    """bridge, tbptt, e-prop: time steps that gradients flow back through, at least 1; state is carried on.
    None, for e-prop: all."""
    shaping: Literal["none", "zscore", "sign", "std"] = "none"
    """Noise on the weights: what the coefficients go through before the fold."""
    micro_batch: int = 512
    """Most rows in one forward pass, at least 1; changes nothing but memory and speed."""
    time_chunk: int | None = None
    """Time steps run at once, at least 1; changes nothing but memory and speed. None: all."""
    maximum_nonfinite_share: float = 0.5
    """Stop when more than this share of the members has a NaN or infinite loss, 0 to 1."""

    def __post_init__(self) -> None:
        check_types(self)
        require_positive_or_none("rank", self.rank, 1)
        require_positive_or_none("population", self.population, 1024)
        require_positive_or_none("final_population", self.final_population, 1024)
        whole = self.group_size is None or self.group_size >= 0
        require(whole, "group_size", self.group_size, "at least 0 (0: the whole batch), or None", 1)
        scale = self.epsilon is None or 0 < self.epsilon <= LARGEST
        require(scale, "epsilon", self.epsilon, "above 0 and at most 1e30, or None", 0.02)
        require_positive_or_none("draws", self.draws, 1)
        require_positive_or_none("credit_every", self.credit_every, 8)
        fades = self.discount is None or 0 <= self.discount <= 1
        require(fades, "discount", self.discount, "from 0 to 1, or None", 0.9)
        power, floor = self.curvature_power, self.curvature_floor
        require(0 <= power <= 1, "curvature_power", power, "from 0 to 1", 0.1)
        require(0 < floor <= LARGEST, "curvature_floor", floor, "above 0 and at most 1e30", 1.0)
        require_positive_or_none("truncation", self.truncation, 10)
        require(self.micro_batch >= 1, "micro_batch", self.micro_batch, "at least 1", 512)
        require_positive_or_none("time_chunk", self.time_chunk, 100)
        share = self.maximum_nonfinite_share
        require(0 <= share <= 1, "maximum_nonfinite_share", share, "from 0 to 1", 0.5)
        if self.estimator != "auto":
            check_used(self, self.estimator)
            cuts = self.truncation is not None or self.estimator not in ("bridge", "tbptt")
            require(cuts, "truncation", None, f"at least 1 with {self.estimator}", 10)

    @property
    def exact(self) -> bool:
        """Whether the gradient comes from backpropagation alone.

        >>> EstimatorConfig(estimator="bridge", truncation=4).exact
        False
        """
        return self.estimator in ("bptt", "tbptt", "e-prop")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """How the weights follow the gradient, and how the step sizes move over the run."""

    optimizer: Literal["adam", "adamw", "sgd", "fused-sgd"] | None = None
    """adam, adamw, sgd: torch's. fused-sgd: in place, without a gradient buffer (least memory). None: adam,
    or fused-sgd for bfloat16 weights."""
    learning_rate: float | None = None
    """Step size, above 0. None: chosen for the estimator and the optimizer."""
    momentum: float = 0.0
    """sgd: share of the last update that is kept, from 0 up to 1."""
    credit_learning_rate: float | None = None
    """bridge: Adam's step size for the credit part, above 0; the schedule is the same. None: as the exact
    part's; with sgd: chosen."""
    credit_momentum: float = 0.96
    """bridge: share of the last update of its credit part that is kept, Adam's first beta, from 0 up to 1."""
    weight_decay: float = 0.0
    """Pull towards zero, at least 0; decoupled from the gradient for adamw and fused-sgd."""
    clip_norm: float | None = None
    """Scale the gradient down to this norm when it is longer, above 0. None: never."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How the learning rate moves over the budget. cosine: falls along half a cosine to the floor."""
    warmup_steps: int = 0
    """Steps in which the learning rate climbs in a line from near 0, at least 0."""
    epsilon_schedule: Literal["constant", "cosine"] = "constant"
    """How epsilon moves over the budget. cosine: falls along half a cosine to the floor."""
    schedule_floor: float = 0.1
    """Where a cosine ends, as a share of where it began, 0 to 1 (above 0 for epsilon)."""
    tie_epsilon: bool = False
    """Set epsilon to the learning rate at every step, as in the paper; --epsilon is then not used."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("learning_rate", "credit_learning_rate"):
            rate = getattr(self, name)
            steps = rate is None or 0 < rate <= LARGEST
            require(steps, name, rate, "above 0 and at most 1e30, or None", 0.01)
        kept = self.credit_momentum
        require(0 <= kept < 1, "credit_momentum", kept, "from 0 up to, not including, 1", 0.96)
        require(0 <= self.momentum < 1, "momentum", self.momentum, "from 0 up to, not including, 1", 0.9)
        decays = 0 <= self.weight_decay <= LARGEST
        require(decays, "weight_decay", self.weight_decay, "from 0 to 1e30", 0.0)
        clips = self.clip_norm is None or 0 < self.clip_norm < math.inf
        require(clips, "clip_norm", self.clip_norm, "above 0 and finite, or None", 1.0)
        require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "at least 0 steps", 0)
        require(0 <= self.schedule_floor <= 1, "schedule_floor", self.schedule_floor, "from 0 to 1", 0.1)
        only_sgd = self.momentum == 0 or self.optimizer == "sgd"
        rule = f"0 with {self.optimizer or 'adam'}: only sgd uses it"
        require(only_sgd, "momentum", self.momentum, rule, 0.0)
        fused_clip = self.optimizer == "fused-sgd" and self.clip_norm is not None
        rule = "None with fused-sgd, which holds no gradient to clip"
        require(not fused_clip, "clip_norm", self.clip_norm, rule, None)
        two_rules = self.tie_epsilon and self.epsilon_schedule != "constant"
        rule = "constant with --tie-epsilon: epsilon follows the learning rate"
        require(not two_rules, "epsilon_schedule", self.epsilon_schedule, rule, "constant")
        epsilon_falls = self.epsilon_schedule == "cosine" or (self.tie_epsilon and self.schedule == "cosine")
        rule = "above 0 where epsilon follows a cosine: epsilon must stay above 0"
        require(not (epsilon_falls and self.schedule_floor == 0), "schedule_floor", 0.0, rule, 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetConfig:
    """How long to train: steps or seconds, not both.

    With a budget in steps a run is reproducible bit for bit, also over a stop and a resume. With a budget in
    seconds the number of steps depends on the clock, and so does what a cosine schedule sets.
    """

    steps: int | None = None
    """Train for this many steps in all, at least 1."""
    seconds: float | None = None
    """Train for this many seconds in all, above 0, with evaluations and saving counted in."""

    def __post_init__(self) -> None:
        check_types(self)
        if (self.steps is None) == (self.seconds is None):
            raise ConfigError(
                "the budget must be steps or seconds, exactly one of them, "
                f"got steps {self.steps} and seconds {self.seconds}: for example --steps 1000"
            )
        require_positive_or_none("steps", self.steps, 1000)
        runs = self.seconds is None or 0 < self.seconds < math.inf
        require(runs, "seconds", self.seconds, "above 0 and finite", 180)

    def progress(self, steps: int, seconds: float) -> float:
        """Share of the budget that is used, from 0 to 1.

        >>> BudgetConfig(steps=200).progress(50, 9.0)
        0.25
        """
        used = seconds / self.seconds if self.seconds is not None else steps / (self.steps or 1)
        return min(1.0, used)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Where the run lives, and how it computes, evaluates and saves."""

    out: Path | None = None
    """The run's folder. None: runs/ and the time of the start."""
    seed: int = 0
    """Determines weights, batches and perturbations, 0 to 2**64 - 1."""
    device: str = "cpu"
    """Where to compute, in torch's words: cpu, cuda, cuda:1."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights."""
    threads: int | None = None
    """CPU threads, at least 1. None: torch's choice."""
    evaluations: int = 20
    """Evaluations on the validation split, at least 1, spread over the budget (and one at the start)."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints, at least 0. 0: one after every step. The end is always saved."""
    keep: int = 2
    """Checkpoints to keep, at least 1: the newest."""
    journal: bool = True
    """cd-rge, fd-rge, spsa-1.5, pes, nres: write the few numbers of every step, from which the run goes on
    where it was killed (pes and nres: where the segment began) and zorn replay makes any step again; 100
    bytes a step and 4 for each member."""
    journal_half: bool = False
    """Round what the members' losses come to, to 16 bits, in the run itself: 2 bytes a member in the
    journal."""
    journal_sync: float | None = 1.0
    """Seconds until a step in the journal is forced to the disk, at least 0; what a machine that dies can
    lose (a process that dies loses nothing). 0: at once. None: as the system likes."""
    partial_steps: bool = False
    """cd-rge, fd-rge, spsa-1.5: go on without the members of a process that fails in its evaluation."""
    check_replicas: int = 100
    """Steps between two comparisons of all processes' weights, at least 1."""
    process_timeout: float = 600.0
    """Seconds to wait for another process, above 0: longer than an evaluation or a checkpoint takes."""

    def __post_init__(self) -> None:
        check_types(self)
        require(0 <= self.seed < 2**64, "seed", self.seed, "from 0 to 2**64 - 1", 0)
        require(self.device != "", "device", self.device, "a device's name", "cpu")
        require_positive_or_none("threads", self.threads, 1)
        require(self.evaluations >= 1, "evaluations", self.evaluations, "at least 1", 20)
        waits = 0 <= self.checkpoint_seconds < math.inf
        require(waits, "checkpoint_seconds", self.checkpoint_seconds, "at least 0 and finite", 60)
        require(self.keep >= 1, "keep", self.keep, "at least 1", 2)
        waits = self.journal_sync is None or 0 <= self.journal_sync < math.inf
        require(waits, "journal_sync", self.journal_sync, "at least 0 and finite, or None", 1.0)
        require(self.check_replicas >= 1, "check_replicas", self.check_replicas, "at least 1", 100)
        waits = 0 < self.process_timeout < math.inf
        require(waits, "process_timeout", self.process_timeout, "above 0 and finite", 600)
        halved = self.journal or not self.journal_half
        require(halved, "journal_half", self.journal_half, "False without a journal", False)
