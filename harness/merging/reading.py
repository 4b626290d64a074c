"""Reads a piece of every model that a merge needs, and lays it out as a method sees it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.checkpoints import TensorSource, role_and_layer
from harness.checkpoints.layout import SCRATCH_ITEM_BYTES, not_finite
from harness.merging.pieces import Piece, row_entries
from harness.merging.plan import MergePlan
from methods import Cutoff, Parameter


class Reader:
    """Makes parameters out of pieces, each in the same memory: the one before is overwritten. For one worker."""

    def __init__(self, plan: MergePlan, experts: Sequence[str] | None = None) -> None:
        """Read for a plan.

        Args:
            plan: the merge.
            experts: the experts to read, of the plan's; None for all.
        """
        self.expert_names = tuple(plan.experts if experts is None else experts)
        self._plan = plan
        self._sources = [plan.experts[name] for name in self.expert_names]
        self._curvature = plan.curvature.only(self.expert_names) if plan.curvature is not None else None
        self._missing = None if plan.vocabulary.identity else plan.vocabulary.missing(self.expert_names)
        self._held: _Memory | None = None

    def read(self, piece: Piece, device: torch.device, cutoffs: tuple[Cutoff, ...] | None = None) -> Parameter:
        """The piece of every model, in fp32 on a device.

        Raises:
            GraftbenchError: it cannot be read, or holds NaN or Inf; file and tensor are named.
        """
        plan, entries, number = self._plan, piece.entries, len(self._sources)
        shape = piece.shape(plan.granularity)
        memory = self._memory(entries, device)
        base = memory.base[:entries]
        experts = memory.experts[: entries * number].view(number, entries)
        if plan.reads_base:
            memory.load(base, plan.base, piece, 0)
        for place, (row, source) in enumerate(zip(experts, self._sources, strict=True), 1):
            memory.load(row, source, piece, place)
        self._check_finite(piece, base if plan.reads_base else None, experts)
        curvatures = None
        if self._curvature is not None:
            host = memory.curvatures[: entries * number].view(number, entries)
            self._curvature.fetch_into(host, piece.info.name, piece.start, piece.stop, memory.scratch[-1])
            curvatures = host.to(device, non_blocking=True)
        if self._missing is not None and plan.vocabulary.covers(piece.info):
            self._missing.fill(base, experts, curvatures, piece.start, row_entries(piece.info))
        role, layer = role_and_layer(piece.info.name)
        uses_base = plan.method.uses_base()
        return Parameter(
            name=piece.info.name,
            base=base.view(shape) if uses_base else base.new_full((), torch.nan).expand(shape),
            experts=experts.view(number, *shape),
            expert_names=self.expert_names,
            curvatures=curvatures.view(number, *shape) if curvatures is not None else None,
            cutoffs=cutoffs,
            role=role,
            layer=layer,
            layers=plan.layers,
            offset=piece.start,
        )

    def announce(self, piece: Piece) -> None:
        """Tell the system that a piece will be read soon."""
        plan = self._plan
        for source in (*([plan.base] if plan.reads_base else []), *self._sources):
            source.announce(piece.info.name, piece.start, piece.stop)
        if self._curvature is not None:
            self._curvature.announce(piece.info.name, piece.start, piece.stop)

    def _memory(self, entries: int, device: torch.device) -> "_Memory":
        """Memory for so many entries, made anew where it is too small."""
        if self._held is None or self._held.entries < entries:
            self._held = None
            self._held = _Memory(entries, len(self._sources), self._curvature is not None, device)
        return self._held

    def _check_finite(self, piece: Piece, base: Tensor | None, experts: Tensor) -> None:
        """A sum is finite only if all its terms are; only where it is not, the culprit is looked for."""
        total = experts.sum() if base is None else experts.sum() + base.sum()
        if math.isfinite(total):
            return
        rows = [*([] if base is None else [base]), *experts]
        sources = [*([] if base is None else [self._plan.base]), *self._sources]
        for source, row in zip(sources, rows, strict=True):
            if not torch.isfinite(row).all():
                raise not_finite(source, piece.info.name)


class _Memory:
    """What one worker reads into: raw bytes on the host, pinned if they go on to a GPU, and fp32 on the device."""

    def __init__(self, entries: int, experts: int, curvature: bool, device: torch.device) -> None:
        self.entries = entries
        self._device = device
        on_gpu = device.type == "cuda"
        size = max(entries, 1) * SCRATCH_ITEM_BYTES
        # A copy to a GPU goes on while the next source is read, so each source needs memory of its own there.
        regions = experts + 1 if on_gpu else 1
        self.scratch = [torch.empty(size, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(regions)]
        self.base = torch.empty(entries, dtype=torch.float32, device=device)
        self.experts = torch.empty(experts * entries, dtype=torch.float32, device=device)
        self.curvatures = torch.empty(experts * entries if curvature else 0, dtype=torch.float32, pin_memory=on_gpu)

    def load(self, into: Tensor, source: TensorSource, piece: Piece, number: int) -> None:
        scratch = self.scratch[number % len(self.scratch)]
        stored = source.fetch(piece.info.name, piece.start, piece.stop, scratch)
        into.copy_(stored.to(self._device, non_blocking=True))
