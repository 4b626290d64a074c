"""Settings of `graftbench zoo train`."""

from dataclasses import dataclass, fields
from pathlib import Path

from omegaconf import DictConfig

from harness.config import settings_of
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
