"""Settings of `graftbench zoo train` and `zoo decontaminate`."""

from dataclasses import dataclass, fields
from pathlib import Path

from omegaconf import DictConfig

from harness.config import settings_of
from harness.evaluation.suite import Suite
from harness.method_choice import Invocation
from harness.zoo.training import Recipe


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Recipe):
    """What `graftbench zoo train` needs to know: the recipe, and what it is applied to."""

    model: str
    data: Path
    out: Path
    home: Path
    resume: bool = False

    @property
    def recipe(self) -> Recipe:
        """How to train, without the places."""
        return Recipe(**{each.name: getattr(self, each.name) for each in fields(Recipe)})


def train_settings(config: DictConfig, _: Invocation) -> TrainSettings:
    """Settings of `graftbench zoo train`."""
    settings: TrainSettings = settings_of(TrainSettings, config)
    return settings


@dataclass(frozen=True, kw_only=True)
class DecontaminateSettings:
    """What `graftbench zoo decontaminate` needs to know."""

    data: Path
    suite: Suite
    home: Path
    words: int = 13
    report: Path | None = None

    def __post_init__(self) -> None:
        if self.words < 1:
            raise ValueError(f"words={self.words} must be at least 1")


def decontaminate_settings(config: DictConfig, _: Invocation) -> DecontaminateSettings:
    """Settings of `graftbench zoo decontaminate`."""
    settings: DecontaminateSettings = settings_of(DecontaminateSettings, config)
    return settings
