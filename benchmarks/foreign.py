"""Models of others, unmodified: whether they run under weight noise, how exactly, and what it costs.

`unmodified`: 1 where an estimate of CD-RGE runs, every parameter perturbed. `exact_difference`: outputs of
members side by side against the model on weights moved by hand, relative to the noise's effect, in float64
(float32 where the model has no float64). `over_plain`: a pass of 8 members and their antithetic twins over a
plain pass of the same rows, processor time, median of rounds side by side. The way that the members run is
among the settings.

Models of transformers and adapters of peft are made from configurations; without these packages they are left
out."""

import importlib
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from harness import Record, parse_arguments, report
from matplotlib.axes import Axes
from torch import Tensor, nn

import zorn
from zorn.errors import SlowerWayWarning
from zorn.models import evaluation_mode


def optional(name: str) -> Any:
    """A package, None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


transformers, peft = optional("transformers"), optional("peft")

VOCABULARY, TIME, MEMBERS, SIGNS = 64, 32, 8, (1, -1)
LANES = MEMBERS * len(SIGNS)


class Recurrent(nn.Module):
    """Embedding, one of torch's recurrent layers or a loop over its cell, and a head."""

    def __init__(self, kind: Any, hidden: int, **options: Any) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(VOCABULARY, hidden), kind(hidden, hidden, **options)
        self.head = nn.Linear(hidden * (1 + bool(options.get("bidirectional"))), VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """[rows, time] to [rows, time, vocabulary]."""
        x = self.embedding(tokens)
        if not isinstance(self.body, nn.RNNCellBase):
            return self.head(self.body(x)[0])
        state, outputs = None, []
        for x_t in x.unbind(1):
            state = self.body(x_t, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return self.head(torch.stack(outputs, 1))


def encoder(hidden: int) -> nn.Module:
    """torch's transformer encoder."""
    layer = nn.TransformerEncoderLayer(hidden, 4, 2 * hidden, batch_first=True)
    return nn.Sequential(
        nn.Embedding(VOCABULARY, hidden), nn.TransformerEncoder(layer, 2), nn.Linear(hidden, VOCABULARY)
    )


TORCH: dict[str, Callable[[int], nn.Module]] = {
    "nn.LSTM": lambda hidden: Recurrent(nn.LSTM, hidden, batch_first=True),
    "nn.GRU": lambda hidden: Recurrent(nn.GRU, hidden, batch_first=True),
    "nn.RNN": lambda hidden: Recurrent(nn.RNN, hidden, batch_first=True),
    "nn.LSTM both ways": lambda hidden: Recurrent(nn.LSTM, hidden, batch_first=True, bidirectional=True),
    "nn.LSTMCell": lambda hidden: Recurrent(nn.LSTMCell, hidden),
    "nn.GRUCell": lambda hidden: Recurrent(nn.GRUCell, hidden),
    "nn.RNNCell": lambda hidden: Recurrent(nn.RNNCell, hidden),
    "nn.TransformerEncoder": encoder,
}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2}
NO_TOKENS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
CONFIGURATIONS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "GPT2": ("CausalLM", lambda h: {"n_embd": h, "n_layer": 2, "n_head": 4, "n_positions": TIME}),
    "Llama": ("CausalLM", lambda h: {"intermediate_size": 2 * h, **ATTENTION}),
    "Qwen2": ("CausalLM", lambda h: {"intermediate_size": 2 * h, **ATTENTION}),
    "Bert": ("MaskedLM", lambda h: {"intermediate_size": 2 * h, "num_attention_heads": 4}),
    "Mamba": ("CausalLM", lambda h: {"state_size": 8, **NO_TOKENS}),
    "Mamba2": (
        "CausalLM",
        lambda h: {"state_size": 8, "num_heads": 8, "head_dim": h // 4, "n_groups": 1, **NO_TOKENS},
    ),
    "FalconMamba": ("CausalLM", lambda h: {"state_size": 8, "pad_token_id": 0}),
    "Rwkv": (
        "CausalLM",
        lambda h: {"attention_hidden_size": h, "intermediate_size": 2 * h, "context_length": TIME},
    ),
    "RecurrentGemma": (
        "CausalLM",
        lambda h: {
            "intermediate_size": 2 * h,
            "num_hidden_layers": 3,
            "head_dim": h // 4,
            "lru_width": h,
            "attention_window_size": TIME,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "pad_token_id": 0,
        },
    ),
    "xLSTM": ("CausalLM", lambda h: {"num_blocks": 2, "num_heads": 2, "chunk_size": TIME}),
    "Jamba": (
        "CausalLM",
        lambda h: {
            "intermediate_size": 2 * h,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_d_state": 8,
            "mamba_dt_rank": 8,
            "use_mamba_kernels": False,
            "pad_token_id": 0,
            **ATTENTION,
        },
    ),
    "Qwen3Next": (
        "CausalLM",
        lambda h: {
            "intermediate_size": 2 * h,
            "head_dim": h // 4,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": h // 4,
            "linear_value_head_dim": h // 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": h,
            "shared_expert_intermediate_size": h,
            "layer_types": ["linear_attention", "full_attention"],
            **ATTENTION,
        },
    ),
    "Bamba": (
        "CausalLM",
        lambda h: {
            "intermediate_size": 2 * h,
            "mamba_n_heads": 8,
            "mamba_d_head": h // 4,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "attn_layer_indices": [1],
            **ATTENTION,
        },
    ),
    "Lfm2": (
        "CausalLM",
        lambda h: {"intermediate_size": 2 * h, "layer_types": ["conv", "full_attention"], **ATTENTION},
    ),
}
"""Kind of model, and the settings of a configuration beside vocabulary, hidden size and two layers."""


class Logits(nn.Module):
    """A model of transformers, called with tokens alone."""

    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, tokens: Tensor) -> Tensor:
        """[rows, time] to [rows, time, vocabulary]."""
        return self.model(input_ids=tokens, **self.options).logits


class Encoded(nn.Module):
    """T5, its decoder fed with the same tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """[rows, time] to [rows, time, vocabulary]."""
        return self.model(input_ids=tokens, decoder_input_ids=tokens, use_cache=False).logits


def from_configuration(name: str, hidden: int) -> nn.Module:
    """A model of transformers with weights of its initialisation."""
    kind, settings = CONFIGURATIONS[name]
    common = {"vocab_size": VOCABULARY, "hidden_size": hidden, "num_hidden_layers": 2}
    if name == "GPT2":
        common = {"vocab_size": VOCABULARY}
    config = getattr(transformers, f"{name}Config")(**(common | settings(hidden)))
    model = getattr(transformers, f"{name}{'LMHeadModel' if name == 'GPT2' else 'For' + kind}")(config)
    return Logits(model) if name == "Bert" else Logits(model, use_cache=False)


def t5(hidden: int) -> nn.Module:
    """An encoder and a decoder that share their embedding."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=hidden,
        d_kv=hidden // 4,
        d_ff=2 * hidden,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    return Encoded(transformers.T5ForConditionalGeneration(config))


def adapted(name: str, hidden: int) -> nn.Module:
    """Llama with an adapter of peft, which alone is trained."""
    base = from_configuration("Llama", hidden)
    config = {
        "LoRA": lambda: peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False),
        "DoRA": lambda: peft.LoraConfig(target_modules=["q_proj"], use_dora=True, init_lora_weights=False),
        "IA3": lambda: peft.IA3Config(target_modules=["v_proj"], feedforward_modules=[]),
    }[name]()
    return Logits(peft.get_peft_model(base.model, config), use_cache=False)


def models() -> dict[str, Callable[[int], nn.Module]]:
    """By name, a function of the hidden size."""
    found = dict(TORCH)
    if transformers is not None:
        transformers.logging.set_verbosity_error()
        found |= {name: lambda h, name=name: from_configuration(name, h) for name in CONFIGURATIONS}
        found["T5"] = t5
    if transformers is not None and peft is not None:
        found |= {f"Llama, {name}": lambda h, name=name: adapted(name, h) for name in ("LoRA", "DoRA", "IA3")}
    return found


def tokens_of(rows: int) -> Tensor:
    """Random tokens [rows, time]."""
    return torch.randint(1, VOCABULARY, (rows, TIME), generator=torch.Generator().manual_seed(0))


def difference(model: nn.Module) -> float:
    """Members side by side against weights moved by hand, over the noise's effect."""
    draw = zorn.noise.Draw(seed=1, step=0, epsilon=0.01)
    bound, tokens = zorn.RankOne().bind(model), tokens_of(2 * 3)
    bound.prove(tokens)
    with torch.inference_mode(), evaluation_mode(model):
        with bound.members(draw, range(3), SIGNS, 1):
            found = model(tokens)
        expected, plain = [], model(tokens)
        originals = [(parameter, parameter.data) for parameter in model.parameters()]
        for lane in range(6):
            chosen = torch.zeros(3, dtype=torch.float64)
            chosen[lane % 3] = SIGNS[lane // 3] * draw.epsilon
            moved = {id(parameter): data.clone() for parameter, data in originals}
            for block in bound.fold(draw, chosen):
                flat, stop = moved[id(block.target.parameter)].view(-1), block.start + len(block.values)
                flat[block.start : stop] += block.values
            for parameter, _ in originals:
                parameter.data = moved[id(parameter)]
            expected.append(model(tokens[lane : lane + 1]))
            for parameter, data in originals:
                parameter.data = data
    expected = torch.cat(expected)
    return float((found - expected).norm() / (expected - plain).norm())


def over_plain(model: nn.Module, rounds: int) -> tuple[float, float, float]:
    """Processor time of a pass under noise over that of a plain pass: median and quartiles of the rounds."""
    draw = zorn.noise.Draw(seed=1, step=0, epsilon=0.01)
    bound, tokens = zorn.RankOne().bind(model), tokens_of(LANES)
    ratios = []
    with torch.inference_mode(), evaluation_mode(model):
        for number in range(rounds + 1):
            started = time.process_time()
            model(tokens)
            between = time.process_time()
            with bound.members(draw, range(MEMBERS), SIGNS, 1):
                model(tokens)
            if number:  # the first warms up
                ratios.append((time.process_time() - between) / (between - started))
    lower, median, upper = statistics.quantiles(ratios, n=4)
    return median, lower, upper


def measure(name: str, make: Callable[[int], nn.Module], sizes: list[int], rounds: int) -> list[Record]:
    """All records of a model."""
    settings: dict[str, object] = {"model": name, "estimator": "cd-rge", "structure": "rank-one"}
    batch = zorn.Batch(tokens_of(8), tokens_of(8).roll(-1, 1))
    torch.manual_seed(0)
    try:
        zorn.CDRGE(population=8, epsilon=0.01).estimate(make(32), batch, zorn.TokenCrossEntropy())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        settings["error"] = f"{type(error).__name__}: {error}"[:200]
        return [Record("unmodified", 0, "ratio", settings)]
    records = [Record("unmodified", 1, "ratio", settings)]
    torch.manual_seed(0)
    model = make(32).double()
    try:
        found, dtype = difference(model), "float64"
    except RuntimeError:  # it has an operation without float64
        found, dtype = difference(model.float()), "float32"
    way = zorn.RankOne().bind(model).way
    records.append(Record("exact_difference", found, "ratio", settings | {"dtype": dtype, "way": way}))
    for hidden in sizes:
        torch.manual_seed(0)
        model = make(hidden)
        bound = zorn.RankOne().bind(model)
        bound.prove(tokens_of(8))
        median, lower, upper = over_plain(model, rounds)
        more = {"hidden": hidden, "way": bound.way, "lower": lower, "upper": upper, "lanes": LANES}
        records.append(Record("over_plain", median, "ratio", settings | more))
    return records


def draw(axes: Axes, records: list[Record]) -> None:
    """The cost of each model at its largest size."""
    found = {str(r.settings["model"]): r.value for r in records if r.name == "over_plain"}
    axes.barh(list(found), list(found.values()), color="tab:blue")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("a pass under noise over a plain pass")


def main() -> None:
    arguments = parse_arguments("foreign", __doc__)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", SlowerWayWarning)  # the way is in the records
    warnings.simplefilter("ignore", UserWarning)
    sizes, rounds = ([64], 3) if arguments.quick else ([64, 512], 5)
    records = []
    for name, make in models().items():
        records += measure(name, make, sizes, rounds)
        print(name, *(f"{r.name} {r.value:.2g}" for r in records if r.settings["model"] == name), flush=True)
    report("foreign", records, arguments, lambda axes: draw(axes, records))


if __name__ == "__main__":
    main()
