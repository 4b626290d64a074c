"""Methods as fused kernels: the dozens of operations that a method spends on a tile, compiled into one pass over it.

A kernel is made from the method itself: its operations are recorded on a sample and compiled by PyTorch's own compiler,
for the processor or the GPU at hand. Plain torch stays the definition. On a sample with ties, zeros and extremes, a
kernel's scores must have its bits, since cutoffs depend on them, and its merges must agree up to the last bits of fp32
(plain torch takes square roots from a library that rounds some of them wrongly). Otherwise plain torch is what runs, as
it does for a method that looks at more than values, such as the parameter's name, which random draws depend on.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.merging.pieces import entries_at_once
from harness.merging.plan import MergePlan
from methods import Cutoff, Parameter
from methods.interface import Site

log = logging.getLogger(__name__)

Compiled = Callable[..., tuple[Tensor, Tensor]]
"""What comes out, and whether it is as it should be: finite, or ≥ 0."""

_WORTH_COMPILING = 4 * 10**9
"""Entries of all experts from which on compiling, a few seconds, is made up for."""

_PROVED_ON = 1 << 16
"""Entries that a kernel is compared with plain torch on, in tiles of the plan's size. Wrongly rounded roots are rare:
a single small tile might show none, and whether a kernel is exact must not depend on the size of tiles."""

_ULPS = 8
_DISAGREES = "compiled, it gives something else"

_ABOUT_PLACE = frozenset({"name", "role", "layer", "layers", "offset"})

_OPTIONS: dict[str, Any] = {
    # Workers have one core each; and a pool of compiler processes is not worth starting for two kernels.
    "cpp.threads": 1,
    "compile_threads": 1,
    # Rounding as plain torch has it: no fused multiplications, exact divisions, its own powers.
    "emulate_precision_casts": True,
    "eager_numerics.division_rounding": True,
    "eager_numerics.use_pytorch_libdevice": True,
}


class Kernels:
    """The kernels of one plan. They are made before workers are forked, so that these have them."""

    def __init__(self, plan: MergePlan) -> None:
        self._plan = plan
        self._known: dict[tuple[Any, ...], _Kernel | None] = {}
        self._making = threading.Lock()

    def prepare(self, names: Sequence[str] | None = None) -> None:
        """Make what is worth making, for all devices.

        Args:
            names: the experts whose scores are wanted together; None makes the kernel that merges.
        """
        plan = self._plan
        kinds = plan.execution.kernels
        large = len(plan.experts) * plan.entries >= _WORTH_COMPILING
        if plan.granularity != "element" or kinds == "plain" or (kinds == "auto" and not large):
            return
        with self._making:
            for device in (torch.empty(0, device=each).device for each in plan.execution.devices):  # with its number
                if names is not None:
                    self._make(("score", tuple(names), device), tuple(names), device, None)
                else:
                    for dtype in sorted({plan.dtype or info.dtype for info in plan.parameters}, key=str):
                        self._make(("merge", dtype, device), tuple(plan.experts), device, dtype)

    def merge(self, parameter: Parameter, dtype: torch.dtype) -> Tensor | None:
        """A merged tile in the output's data type; None if plain torch must merge it, or tell what is wrong with it."""
        return _applied(self._known.get(("merge", dtype, parameter.experts.device)), parameter)

    def score(self, parameter: Parameter) -> Tensor | None:
        """The bit patterns of a tile's scores, int32, `[experts, entries]`; None if plain torch must score it."""
        return _applied(self._known.get(("score", parameter.expert_names, parameter.experts.device)), parameter)

    @property
    def compiled(self) -> bool:
        """Whether merging runs compiled."""
        return any(kernel is not None for key, kernel in self._known.items() if key[0] == "merge")

    @property
    def rounding(self) -> str:
        """What decides about a merge's last bits: `plain`, or `compiled` where that gave other bits on the sample."""
        merging = [kernel for key, kernel in self._known.items() if key[0] == "merge"]
        return "plain" if all(kernel is None or kernel.exact for kernel in merging) else "compiled"

    def _make(
        self, key: tuple[Any, ...], names: tuple[str, ...], device: torch.device, dtype: torch.dtype | None
    ) -> None:
        if key in self._known:
            return
        plan = self._plan
        entries = max(entries_at_once(info, "element", plan.execution.tile) for info in plan.parameters)
        try:
            self._known[key] = _compiled(plan, names, entries, device, dtype)
        except Exception as error:  # whatever a stranger's method, the tracer or a missing compiler comes up with
            self._known[key] = None
            level = logging.WARNING if plan.execution.kernels == "compiled" else logging.DEBUG
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.log(level, "method '%s' runs in plain torch, without a fused kernel: %s", plan.name, reason)


@dataclass(frozen=True)
class _Inputs:
    """What a kernel is given: tensors of tiles that all have the same number of entries."""

    entries: int
    uses_base: bool
    selects: bool
    """Whether it is given cutoffs."""

    def of(self, parameter: Parameter) -> list[Tensor]:
        """The inputs for a tile; a shorter one is filled up with zeros."""
        tensors = [parameter.experts]
        if self.uses_base:
            tensors.append(parameter.base)
        if parameter.curvatures is not None:
            tensors.append(parameter.curvatures)
        missing = self.entries - parameter.experts.shape[-1]
        if missing:
            tensors = [torch.nn.functional.pad(tensor, (0, missing)) for tensor in tensors]
        if self.selects:
            assert parameter.cutoffs is not None, f"{parameter.name}: the method did not declare its selection"
            tensors += _as_tensors(parameter.cutoffs, parameter.offset, parameter.experts.device)
        return tensors


@dataclass(frozen=True)
class _Kernel:
    """A compiled function, and what it is given."""

    inputs: _Inputs
    function: Compiled
    exact: bool
    """Whether its bits were those of plain torch."""


def _applied(kernel: _Kernel | None, parameter: Parameter) -> Tensor | None:
    """What the kernel gives for a tile, if it is as it should be."""
    entries = parameter.experts.shape[-1]
    if kernel is None or not 0 < entries <= (full := kernel.inputs.entries) or (kernel.exact and entries < full // 4):
        return None  # filling up a short tile costs more than plain torch, which gives the same bits
    result, fine = kernel.function(*kernel.inputs.of(parameter))
    return result[..., :entries] if fine else None


def _compiled(
    plan: MergePlan, names: tuple[str, ...], entries: int, device: torch.device, dtype: torch.dtype | None
) -> _Kernel:
    """The kernel that merges into a data type, or with none that scores; only if it gives what plain torch gives."""
    from torch._inductor import compile as compile_graph
    from torch._inductor import config
    from torch.fx.experimental.proxy_tensor import make_fx

    sample = _sample(plan, names, entries, device, cutoffs=dtype is not None)
    inputs = _Inputs(entries, plan.method.uses_base(), selects=sample.cutoffs is not None)
    plain = _on_tensors(plan, sample, dtype)
    with torch.inference_mode(), config.patch(_OPTIONS):
        given = inputs.of(sample)
        function = compile_graph(make_fx(plain)(*given), list(given))
        exact = True
        for seed in range(-(-_PROVED_ON // entries)):
            for parameter in _samples(plan, _sample(plan, names, entries, device, dtype is not None, seed)):
                wanted = _plainly(plan, parameter, dtype)
                found, fine = function(*inputs.of(parameter))
                exact &= torch.equal(_bits(found), _bits(wanted))
                _require(bool(fine) and (exact or (dtype is not None and _agree(found, wanted, parameter))), _DISAGREES)
    return _Kernel(inputs, function, exact)


def _on_tensors(plan: MergePlan, like: Parameter, dtype: torch.dtype | None) -> Compiled:
    """The method as a function of nothing but tensors."""
    uses_base, curvature, selects = plan.method.uses_base(), like.curvatures is not None, like.cutoffs is not None

    def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        given: Iterator[Tensor] = iter(tensors)
        experts = next(given)
        base = next(given) if uses_base else experts.new_full((), torch.nan).expand(experts.shape[1:])
        curvatures = next(given) if curvature else None
        cutoffs: Any = _TensorCutoffs(*given) if selects else None
        parameter = _Anywhere("", base, experts, like.expert_names, curvatures, cutoffs)
        if dtype is None:
            scores = plan.method.score(parameter).to(torch.float32)
            _require(scores.shape == experts.shape, "its scores have another shape than the experts")
            return scores.contiguous().view(torch.int32), (scores >= 0).all()
        merged = plan.method.merge(parameter)
        _require(merged.is_floating_point() and merged.shape == base.shape, "what it gives is no tensor like the base")
        stored = merged.to(dtype)
        return stored, torch.isfinite(stored).all()

    return function


def _plainly(plan: MergePlan, parameter: Parameter, dtype: torch.dtype | None) -> Tensor:
    if dtype is None:
        return plan.method.score(parameter).to(torch.float32).contiguous().view(torch.int32)
    return plan.method.merge(parameter).to(dtype)


def _agree(found: Tensor, wanted: Tensor, parameter: Parameter) -> bool:
    """Whether merged tiles differ by no more than rounding: some ulp of fp32 of what went in, one of what comes out."""
    scale = torch.maximum(parameter.experts.abs().amax(dim=0), wanted.abs().float())
    if not parameter.base.isnan().any():
        scale = torch.maximum(scale, parameter.base.abs())
    apart = (found.float() - wanted.float()).abs()
    one = torch.finfo(wanted.dtype).eps * wanted.float().abs() if wanted.dtype != torch.float32 else 0.0
    return bool((apart <= _ULPS * torch.finfo(torch.float32).eps * scale + one).all())


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise ValueError(reason)


class _Nowhere(Site):
    """A site of which nothing is known."""

    def __getattribute__(self, name: str) -> Any:
        if name in _ABOUT_PLACE:
            raise ValueError(f"it looks at the parameter's {name}")
        return super().__getattribute__(name)


class _Anywhere(Parameter):
    """A tile of which nothing is known but its values."""

    def __getattribute__(self, name: str) -> Any:
        if name in _ABOUT_PLACE or name == "cutoffs":
            raise ValueError(f"it looks at the parameter's {name}")
        return super().__getattribute__(name)

    @property
    def site(self) -> Site:
        return _Nowhere("")

    def surviving(self, scores: Tensor) -> Tensor:
        cutoffs = object.__getattribute__(self, "cutoffs")
        index = torch.arange(scores.shape[-1], dtype=torch.int32, device=scores.device)
        tied = (scores == cutoffs.ties) & (index < cutoffs.until)
        return ((scores > cutoffs.above) | tied).to(torch.float32)


class _TensorCutoffs(NamedTuple):
    """The cutoffs of all experts, `[experts, 1]`, as numbers that a kernel is given: one serves all of them."""

    above: Tensor
    """Scores above this survive."""
    ties: Tensor
    """Scores that tie at the cutoff; NaN for none."""
    until: Tensor
    """Index in the tile before which ties survive, int32."""


def _as_tensors(cutoffs: Sequence[Cutoff], offset: int, device: torch.device) -> _TensorCutoffs:
    """Cutoffs as `Cutoff.mask` understands them, for a tile that begins at a flat index."""
    above = [-1.0 if cutoff.threshold == -torch.inf else max(cutoff.threshold, 0.0) for cutoff in cutoffs]
    ties = [cutoff.threshold if cutoff.threshold > 0 else torch.nan for cutoff in cutoffs]
    last = torch.iinfo(torch.int32).max
    until = [last if cutoff.ties_until is None else min(max(cutoff.ties_until - offset, 0), last) for cutoff in cutoffs]
    columns = ((above, torch.float32), (ties, torch.float32), (until, torch.int32))
    return _TensorCutoffs(*(torch.tensor(column, dtype=kind, device=device)[:, None] for column, kind in columns))


def _samples(plan: MergePlan, sample: Parameter) -> Iterator[Parameter]:
    """The sample with each kind of cutoff: amid ties, all ties kept, nothing cut, and everything."""
    if sample.cutoffs is None:
        yield sample
        return
    scores = plan.method.score(sample).to(torch.float32).flatten(1)
    middle = scores.median(dim=1).values.tolist()
    half = sample.experts.shape[-1] // 2
    for kind in range(4):
        cutoffs = [
            [Cutoff(score, half), Cutoff(score), Cutoff(-torch.inf), Cutoff(torch.inf, 0)][(kind + number) % 4]
            for number, score in enumerate(middle)
        ]
        yield Parameter(
            **{name: getattr(sample, name) for name in ("name", "base", "experts", "expert_names", "curvatures")},
            cutoffs=tuple(cutoffs),
        )


def _sample(
    plan: MergePlan, names: tuple[str, ...], entries: int, device: torch.device, cutoffs: bool, seed: int = 0
) -> Parameter:
    """A tile like those of real models: most edits small, a third of them zero, many equal; curvatures of all sizes."""
    draw = torch.Generator().manual_seed(seed)
    shape = (len(names), entries)
    base = torch.randn(entries, generator=draw) * 0.02
    edits = torch.randn(shape, generator=draw) * 1e-3
    edits *= torch.rand(shape, generator=draw) > 1 / 3
    experts = (base + edits).to(torch.bfloat16).to(torch.float32)
    experts[:, : entries // 8] = base[: entries // 8]
    experts[:, -entries // 8 :] *= 10.0 ** (torch.randint(-30, 4, shape, generator=draw)[:, -entries // 8 :])
    curvatures = None
    if plan.curvature is not None:
        curvatures = 10.0 ** (torch.rand(shape, generator=draw) * 40.0 - 38.0)
        curvatures *= torch.rand(shape, generator=draw) > 0.1
        curvatures = curvatures.to(device)
    selects = cutoffs and plan.method.selection() is not None
    any_cutoffs = tuple(Cutoff(1e-4, entries // 2) for _ in names) if selects else None
    return Parameter("", base.to(device), experts.to(device), names, curvatures, any_cutoffs)
