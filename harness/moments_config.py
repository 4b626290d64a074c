"""Settings of the verbs that make second moments out of models and of other second moments."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from omegaconf import DictConfig

from harness.config import settings_of
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


def compress_settings(config: DictConfig, _: Invocation) -> CompressSettings:
    """Settings of `graftbench moments compress`."""
    settings: CompressSettings = settings_of(CompressSettings, config)
    return settings
