"""Settings of the verbs that make second moments out of models and of other second moments."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from omegaconf import DictConfig

from harness.config import settings_of
from harness.curvature.batched_fisher import LabelSource
from harness.curvature.estimating import EstimateKind
from harness.curvature.low_rank import DEFAULT_RANK
from harness.curvature.stored import Form
from harness.errors import unknown_name
from harness.merging.overlap import DENSITIES
from harness.method_choice import Invocation


@dataclass(frozen=True)
class CompressSettings:
    """What `graftbench moments compress` needs to know."""

    source: Path
    out: Path
    home: Path
    format: str = "sums"
    rank: int = DEFAULT_RANK
    base: str | None = None
    expert: str | None = None
    densities: list[float] = field(default_factory=lambda: list(DENSITIES))
    report: Path | None = None

    def __post_init__(self) -> None:
        if self.format not in get_args(Form):
            raise unknown_name("format", self.format, get_args(Form))
        if self.rank < 1:
            raise ValueError(f"rank={self.rank} must be 1 or more")
        if (self.base is None) != (self.expert is None):
            missing = "base" if self.base is None else "expert"
            raise ValueError(f"{missing} is not set; masks are compared for an expert and its base, so name both")
        if wrong := next((density for density in self.densities if not 0 <= density <= 1), None):
            raise ValueError(f"densities: {wrong} must lie in 0..1")


@dataclass(frozen=True)
class EstimateSettings:
    """What `graftbench moments estimate` needs to know."""

    model: str
    out: Path
    home: Path
    kind: str = "fisher"
    base: str | None = None
    data: Path | None = None
    labels: str = "data"
    batch_size: int = 8
    max_length: int = 1024
    limit: int | None = None
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(EstimateKind):
            raise unknown_name("kind", self.kind, get_args(EstimateKind))
        if self.labels not in get_args(LabelSource):
            raise unknown_name("labels", self.labels, get_args(LabelSource))
        for name in ("batch_size", "max_length", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")
        if self.kind == "fisher" and self.data is None:
            raise ValueError("data is not set; Fisher information is estimated from examples: data=FILE.jsonl")
        if self.kind == "delta" and self.base is None:
            raise ValueError("base is not set; a task vector is the difference to it: base=PATH")
        if self.kind == "delta" and self.data is not None:
            raise ValueError(f"data={self.data} cannot be given with kind=delta, which needs no examples")


def compress_settings(config: DictConfig, _: Invocation) -> CompressSettings:
    """Settings of `graftbench moments compress`."""
    settings: CompressSettings = settings_of(CompressSettings, config)
    return settings


def estimate_settings(config: DictConfig, _: Invocation) -> EstimateSettings:
    """Settings of `graftbench moments estimate`."""
    settings: EstimateSettings = settings_of(EstimateSettings, config)
    return settings
