"""Whether a merge that was timed is right: against mergekit's output, or against the formula in plain torch.

    python -m benchmarks.agreement KIND SET DENSITY OURS [MERGEKIT]

KIND is `linear` or `ties` (ours against mergekit's), `ota` or `ota_ffg` (ours against the formula). Prints JSON. An
entry agrees if the two bf16 values differ by at most one unit in the last place (ulp) of the larger, which is what
rounding to bf16 does, plus what rounding before it can do: in fp32 2⁻²¹ of the tensor's largest magnitude (it shows
where inputs cancel), in mergekit's bf16 TIES a share of the largest edit. It runs in a process of its
own, since it maps whole models.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.llama_shaped import EXPERTS, MOMENTS

_PIECE = 1 << 22
_EXAMPLES = 10
_FP32_ROUNDING = 2.0**-21
_BF16_ROUNDING = 2.0**-6
"""What bf16 arithmetic of five experts can be off by: at most 7 roundings of 2⁻⁹ (differences, products, four sums, a
quotient), as a share of the largest edit."""


@dataclass
class Agreement:
    """Counts over a whole model."""

    entries: int = 0
    differing: int = 0
    """Entries whose bf16 patterns are not the same."""
    agreeing: int = 0
    largest_difference: float = 0.0
    largest_ulps: float = 0.0
    """Largest difference in units of the last place, where neither value comes from cancellation."""
    comparable: int = 0
    """Entries where both ought to agree: not at a threshold, nor with a sign election that rounding can turn."""
    wrong: int = 0
    """Comparable entries that do not agree; any at all means that a merge is wrong."""
    examples: list[list[float]] = field(default_factory=list)
    """Some of these: found and expected."""
    notes: dict[str, object] = field(default_factory=dict)

    def add(self, found: Tensor, expected: Tensor, comparable: Tensor, tolerance: Tensor | float) -> None:
        """Count a piece: two fp32 tensors of bf16 values, which entries must agree, and the absolute tolerance."""
        difference = (found - expected).abs()
        ulp = torch.maximum(found.abs(), expected.abs()).clamp(min=2.0**-126).log2().floor().sub(7).exp2()
        agrees = difference <= ulp + tolerance
        counted = difference > tolerance
        self.entries += found.numel()
        self.differing += int((found != expected).sum())
        self.agreeing += int(agrees.sum())
        self.comparable += int(comparable.sum())
        wrong = comparable & ~agrees
        self.wrong += int(wrong.sum())
        if wrong.any():
            self.examples += torch.stack([found[wrong], expected[wrong]], dim=1)[
                : _EXAMPLES - len(self.examples)
            ].tolist()
        self.largest_difference = max(self.largest_difference, float(difference.max()))
        if counted.any():
            self.largest_ulps = max(self.largest_ulps, float((difference / ulp)[counted].max()))


def check_linear(ours: "Weights", mergekit: "Weights") -> Agreement:
    """Two outputs of the same average, each computed in fp32 and rounded once."""
    result = Agreement()
    for name in ours.names():
        one, other = ours.read(name), mergekit.read(name)
        floor = float(other.abs().max()) * _FP32_ROUNDING
        for a, b in zip(one.split(_PIECE), other.split(_PIECE), strict=True):
            a, b = a.float(), b.float()
            result.add(a, b, torch.ones_like(a, dtype=torch.bool), floor)
    return result


def check_ties(ours: "Weights", mergekit: "Weights", models: Path, density: float) -> Agreement:
    """Two outputs of TIES per tensor, mergekit's in bf16 throughout.

    bf16 edits tie by the thousand at the threshold, and mergekit keeps any of those that tie; so entries within bf16
    rounding of a threshold, or with a vote that bf16 sums can turn, are counted but not compared.
    """
    result = Agreement()
    base, experts = Weights(models / "base"), [Weights(models / expert) for expert in EXPERTS]
    for name in ours.names():
        one, other, origin = ours.read(name), mergekit.read(name), base.read(name)
        tensors = [expert.read(name) for expert in experts]
        kept = max(1, int(density * origin.numel()))
        thresholds = [_kth_largest_magnitude(tensor - origin, kept) for tensor in tensors]
        for start in range(0, origin.numel(), _PIECE):
            piece = slice(start, start + _PIECE)
            reference = origin[piece].float()
            total, size = torch.zeros_like(reference), torch.zeros_like(reference)
            largest = torch.zeros_like(reference)
            comparable = torch.ones_like(reference, dtype=torch.bool)
            for tensor, threshold in zip(tensors, thresholds, strict=True):
                edit = tensor[piece].float() - reference
                magnitude = edit.abs()
                comparable &= (magnitude - threshold).abs() > threshold * _BF16_ROUNDING
                survives = magnitude > threshold
                total += edit * survives
                size += magnitude * survives
                largest = torch.maximum(largest, magnitude * survives)
            comparable &= (size == 0) | (total.abs() > size * _BF16_ROUNDING)
            result.add(one[piece].float(), other[piece].float(), comparable, largest * _BF16_ROUNDING)
    return result


def check_ota(ours: "Weights", models: Path, thresholds: dict[str, float] | None, density: float) -> Agreement:
    """Ours against θ₀ + Σ m√v·Δ / Σ m√v, with m = 1 or, given thresholds, v·Δ² ≥ threshold, which are counted out."""
    result = Agreement()
    base, experts = Weights(models / "base"), [Weights(models / expert) for expert in EXPERTS]
    moments = [Weights(models / expert, MOMENTS) for expert in EXPERTS]
    above, reached = [0] * len(EXPERTS), [0] * len(EXPERTS)
    for name in ours.names():
        one, origin = ours.read(name), base.read(name)
        tensors, curvatures = [e.read(name) for e in experts], [m.read(name) for m in moments]
        floor = float(origin.abs().max()) * _FP32_ROUNDING
        for start in range(0, origin.numel(), _PIECE):
            piece = slice(start, start + _PIECE)
            reference = origin[piece].float()
            numerator, denominator = torch.zeros_like(reference), torch.zeros_like(reference)
            comparable = torch.ones_like(reference, dtype=torch.bool)
            for index, expert in enumerate(EXPERTS):
                edit, curvature = tensors[index][piece].float() - reference, curvatures[index][piece]
                strength = curvature.sqrt()
                if thresholds is not None:
                    score, threshold = curvature * edit.square(), thresholds[expert]
                    sure = score > threshold * (1 + _FP32_ROUNDING)
                    possible = score >= threshold * (1 - _FP32_ROUNDING)
                    above[index] += int(sure.sum())
                    reached[index] += int(possible.sum())
                    comparable &= sure == possible
                    strength = strength * sure
                numerator += strength * edit
                denominator += strength
            merged = torch.where(denominator > 0, numerator / denominator, 0.0)
            result.add(one[piece].float(), (reference + merged).bfloat16().float(), comparable, floor)
    if thresholds is not None:
        wanted = -(-round(density * 100) * result.entries // 100)
        result.notes["kept_exactly"] = all(a <= wanted <= r for a, r in zip(above, reached, strict=True))
        result.notes["undecided_at_thresholds"] = max(r - a for a, r in zip(above, reached, strict=True))
    return result


class Weights:
    """A model's tensors, flat, from one file or from shards."""

    def __init__(self, folder: Path, stem: str = "model") -> None:
        """Open every file of the folder whose name starts with `stem`."""
        self._files = {
            name: file
            for path in sorted(folder.glob(f"{stem}*.safetensors"))
            for file in [safe_open(path, framework="pt")]
            for name in file.keys()  # noqa: SIM118 - not a dict
        }

    def names(self) -> Iterator[str]:
        """The tensors' names."""
        return iter(self._files)

    def read(self, name: str) -> Tensor:
        """A tensor, flat, in its own data type."""
        return self._files[name].get_tensor(name).flatten()


def _kth_largest_magnitude(edits: Tensor, k: int) -> float:
    """The k-th largest magnitude of bf16 values, by counting their 2¹⁵ patterns."""
    counts = torch.zeros(1 << 15, dtype=torch.int64)
    for piece in edits.split(_PIECE):
        counts += torch.bincount(piece.abs().view(torch.int16).int(), minlength=1 << 15)
    steps = int(torch.searchsorted(counts.flip(0).cumsum(0), k))
    return float(torch.tensor((1 << 15) - 1 - steps, dtype=torch.int16).view(torch.bfloat16))


def _thresholds(folder: Path) -> dict[str, float]:
    """The thresholds that a merge recorded."""
    recipe = json.loads((folder / "merge.json").read_text(encoding="utf-8"))
    recorded = recipe["cutoffs"]
    return {expert: float(recorded[expert]["threshold"]) for expert in EXPERTS}


def main() -> None:
    """Check one merge and print the counts."""
    kind, models, density, ours = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
    with torch.inference_mode():
        if kind == "linear":
            result = check_linear(Weights(ours), Weights(Path(sys.argv[5])))
        elif kind == "ties":
            result = check_ties(Weights(ours), Weights(Path(sys.argv[5])), models, density)
        elif kind in ("ota", "ota_ffg"):
            thresholds = _thresholds(ours) if kind == "ota_ffg" else None
            result = check_ota(Weights(ours), models, thresholds, density)
        else:
            raise SystemExit(f"'{kind}' cannot be checked; use linear, ties, ota or ota_ffg")
    print(json.dumps(vars(result)))


if __name__ == "__main__":
    main()
