"""Activity noise: the output of every map of a model is perturbed at every time step; no weight is.

y_t = W x_t + σ ξ_t, where ξ_t has mean 0 and variance 1 and differs for each sequence, unit and time step.
Antithetic pairs run the same sequence under +ξ and −ξ. The credit C_t of the noise at time t is estimated
from the losses after it. The gradient of W is Σ_t C_t ξ_t x_tᵀ. A second run without noise gives x_t again,
and the counter gives ξ_t again, so that memory does not grow with time. The noise of a sequence has
units × T dimensions, where noise on the weights has as many dimensions as there are weights.

Node perturbation (Williams 1992, REINFORCE; Werfel, Xie & Seung 2005), through time: Fernández et al. 2024,
arXiv 2405.08967.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from zorn.noise.activity.cells import CellRule, find_cell_rule
from zorn.noise.activity.output_layer import OutputLayer
from zorn.noise.activity.site import (
    Measuring,
    NoiseTape,
    Perturbing,
    Replaying,
    SiteActivity,
    Surveying,
    check_steps,
)
from zorn.noise.attach import refuse_silent, replaced_methods
from zorn.noise.draw import ACTIVITY_FACTOR, Draw, NoiseKind, check_noise_kind, stream_of
from zorn.noise.open_blocks import open_block
from zorn.noise.targets import Site, StructuredTarget, structured_sites
from zorn.noise.weights.gradient_blocks import gradient_blocks
from zorn.noise.weights.structure import GradientBlock

SMALLEST_SIZE = 1e-3
"""Least running size of a site's output that a relative scale is taken of: a site that is silent at first
must not stay without noise."""


@dataclass(frozen=True, kw_only=True)
class Activity:
    """Noise at the output of every map. The rules of `register_rule` name these outputs and their pullbacks.

    Args:
        relative: scale the noise of each site by the root mean square of its output, as last measured: ε is
            then a share of it. False: the scale is ε, in the output's unit. An LSTM has a unit of its own in
            both cases.
        noise: "rademacher" (signs, the default) or "gaussian".

    Raises:
        ConfigError: an argument outside its range.

    Example:
        >>> import zorn
        >>> bound = Activity().bind(zorn.LanguageModel(29, 16))
        >>> [site.name for site in bound.sites]
        ['embedding', 'cells.0', 'head']
    """

    relative: bool = True
    noise: NoiseKind = "rademacher"

    def __post_init__(self) -> None:
        check_noise_kind(self.noise)

    def bind(self, model: nn.Module) -> "BoundActivity":
        """Find the sites of `model`.

        Raises:
            UncoveredParameterError: a parameter that requires a gradient has no rule, or nothing requires
                one.
            ConfigError: a rule refuses its module.
        """
        return BoundActivity(self, model)


def active_sites(model: nn.Module) -> tuple[list[StructuredTarget], list[Site]]:
    """The trained parameters, and the sites of the noise; a known recurrent cell is one site as a whole.

    Raises:
        UncoveredParameterError: a parameter that requires a gradient has no rule, or nothing requires one.
        ConfigError: a rule refuses its module.
    """
    targets, sites = structured_sites(model)
    cells = {name: rule for name, module in model.named_modules() if (rule := find_cell_rule(module))}
    found: dict[str, Site] = {}
    for site in sites:
        cell = next((name for name in cells if site.name.startswith(f"{name}." if name else "")), None)
        name, rule = (site.name, site.rule) if cell is None else (cell, cells[cell])
        inside = "" if cell is None else f"{site.name[len(cell) :].lstrip('.')}."
        entry = found.setdefault(name, Site(name, model.get_submodule(name), rule, {}))
        entry.targets.update({f"{inside}{own}": target for own, target in site.targets.items()})
    return targets, list(found.values())


class BoundActivity:
    """The structure bound to one model for the length of one estimate. Weights are only ever read.

    Attributes:
        targets: the parameters that are trained.
        sites: the modules that hold them.
        sizes: root mean square of each site's output, by its name, that a relative scale is taken of.
        gradients: what the replays have added up, by the parameter's number.
    """

    def __init__(self, structure: Activity, model: nn.Module) -> None:
        self._structure = structure
        self._model = model
        self.targets, self.sites = active_sites(model)
        names = [name for name, _ in model.named_modules()]
        self._streams = {site.name: stream_of(names.index(site.name), ACTIVITY_FACTOR) for site in self.sites}
        self._steps: dict[str, int] = {}
        self._squares: dict[str, list[float]] = {}
        self.sizes: dict[str, float] = {}
        self.gradients: dict[int, Tensor] = {}

    @contextmanager
    def _attached(
        self, make: Callable[[Site], SiteActivity], output: tuple[str, OutputLayer | None] | None = None
    ) -> Iterator[dict[str, SiteActivity]]:
        """Pass every site's output through the object that `make` gives for it; replace the output layer."""
        modules = [site.module for site in self.sites]
        parameters = [target.parameter for target in self.targets]
        attached: dict[str, SiteActivity] = {}
        with open_block(written=modules, read=parameters), replaced_methods() as replace:
            for site in self.sites:
                if output is not None and site.name == output[0]:
                    forward = _unchanged if output[1] is None else output[1].forward
                    replace(site.module, {"forward": forward})
                    continue
                attached[site.name] = make(site)
                replace(site.module, site.rule.active(site.module, attached[site.name]))
            yield attached
        silent = [site for site in self.sites if site.name in attached and attached[site.name].time == 0]
        refuse_silent([target.name for site in silent for target in site.targets.values()])

    @contextmanager
    def measured(self) -> Iterator[dict[str, Surveying]]:
        """Within the `with` block the model computes as it is; afterwards `measured_sizes` are known, and
        what the block was given holds what each site has seen, by name."""
        seen: dict[str, Surveying] = {}
        with self._attached(lambda site: Surveying(site.module)) as attached:
            yield seen
        for name, site in attached.items():
            assert isinstance(site, Surveying)
            self._note_size(name, site)
            seen[name] = site

    def module(self, name: str) -> nn.Module:
        """The module of a site."""
        return self._site(name).module

    def _site(self, name: str) -> Site:
        return next(site for site in self.sites if site.name == name)

    def measured_sizes(self) -> dict[str, float]:
        """The root mean square of each site's output, over all blocks without noise so far."""
        return {name: (squares / max(1, count)) ** 0.5 for name, (squares, count) in self._squares.items()}

    def forget_sizes(self) -> None:
        """Measure from here on."""
        self._squares.clear()

    def _note_size(self, name: str, site: Measuring) -> None:
        squares, count = self._squares.get(name, (0.0, 0.0))
        self._squares[name] = [squares + float(site.squares), count + site.count]

    def scale(self, name: str, epsilon: float) -> float:
        """σ of a site's noise; ε itself where its rule has a unit of its own."""
        rule = self._site(name).rule
        relative = self._structure.relative and not (isinstance(rule, CellRule) and rule.own_unit)
        return epsilon * max(self.sizes[name], SMALLEST_SIZE) if relative else epsilon

    @contextmanager
    def perturbed(
        self,
        draw: Draw,
        members: range,
        signs: tuple[int, ...],
        steps: int,
        *,
        clean: int = 0,
        output: tuple[str, OutputLayer] | None = None,
    ) -> Iterator[None]:
        """Within the `with` block the model computes with s σ ξ added at every site.

        Rows lie as [signs, members], flattened, along the first dimension of the model's input, after `clean`
        rows without noise; their sequences have `steps` time steps, in one call or in chunks one after
        another.

        Args:
            draw: seed, step and ε.
            members: number of each sequence's draw in the whole batch: sequence · draws + draw.
            signs: ±1.
            output: the name of the output layer, which has no noise, and what stands in for it.

        Raises:
            ConfigError: the model is perturbed in another block or thread, or a site does not go along with
                time.
            UncoveredParameterError: on leaving, a site was never called.
        """

        def make(site: Site) -> SiteActivity:
            tape, scale = self._tape(site, draw, members, steps), self.scale(site.name, draw.epsilon)
            return Perturbing(tape, clean, signs, scale)

        with self._attached(make, output) as attached:
            yield
        self._steps = {name: site.time for name, site in attached.items()}
        for name, found in self._steps.items():
            check_steps(name, found, steps)
        if output is not None:
            self._add(output[0], output[1].gradients)

    @contextmanager
    def replay(
        self, draw: Draw, members: range, credit: Tensor, steps: int, output: str | None
    ) -> Iterator[None]:
        """Within the `with` block the model computes as it is, on the sequences alone, and its sites add up
        gradients from the noise of the last `perturbed` block.

        Args:
            draw, members, steps: as in `perturbed`.
            credit: of each time step's noise, [sequences, draws, steps], with all that a mean divides by in
                it but the scale of the noise; members = sequences × draws.
            output: the output layer, whose gradient is known: it returns its input.
        """

        def make(site: Site) -> SiteActivity:
            once = self._steps[site.name] != steps  # its noise came before every loss
            scaled = (credit[:, :, :1] if once else credit) / self.scale(site.name, draw.epsilon)
            tape, pullback = self._tape(site, draw, members, steps), partial(site.rule.pullback, site.module)
            return Replaying(tape, scaled, pullback, keep=isinstance(site.rule, CellRule))

        with self._attached(make, None if output is None else (output, None)) as attached:
            yield
            for site in attached.values():
                assert isinstance(site, Replaying)
                site.flush()
        for name, site in attached.items():
            assert isinstance(site, Replaying)
            self._note_size(name, site)
            self._add(name, site.gradients)

    def _add(self, name: str, gradients: Mapping[str, Tensor]) -> None:
        """Add a site's gradients to those of its parameters that are trained."""
        site = self._site(name)
        for parameter, target in site.targets.items():
            value = gradients[parameter].reshape(target.parameter.shape)
            earlier = self.gradients.get(target.number)
            self.gradients[target.number] = value if earlier is None else earlier + value

    def blocks(self) -> Iterator[GradientBlock]:
        """The gradient, parameter by parameter, block by block; zero where nothing has flowed."""
        for target in self.targets:
            nothing = target.parameter.new_zeros(1).expand(target.parameter.shape)
            yield from gradient_blocks(target, self.gradients.get(target.number, nothing))

    def _tape(self, site: Site, draw: Draw, members: range, steps: int) -> NoiseTape:
        return NoiseTape(self._structure.noise, draw, members, self._streams[site.name], steps)


def _unchanged(x: Tensor) -> Tensor:
    return x
