"""From a composed Hydra configuration to checked settings: the one place where options become objects."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.checkpoints.vocabulary import MODES
from harness.curvature.export import AUTO, FORMATS
from harness.errors import GraftbenchError, unknown_name
from harness.evaluation.engines import engine_from_config
from harness.evaluation.plan import reads_zoo_data
from harness.evaluation.suite import Suite, suite_from_config
from harness.merging.plan import KernelChoice
from harness.method_choice import Invocation, MethodSettings, Unmerged, taken_method
from harness.schema import build
from harness.tracking import TrackingConfig
from harness.zoo.existing import ExistingModel
from harness.zoo.gate import Limits
from harness.zoo.models import check_keys


@dataclass(frozen=True)
class MergeOptions:
    """How models are merged, whatever the method."""

    device: str = "cpu"
    dtype: str | None = None
    vocabulary: str | None = None
    tokenizer: str = "base"
    threads: int = 0
    memory_gb: float | None = None
    kernels: str = "auto"

    def __post_init__(self) -> None:
        if self.kernels not in get_args(KernelChoice):
            raise ValueError(str(unknown_name("kernels", self.kernels, get_args(KernelChoice))))
        if self.vocabulary is not None and self.vocabulary not in MODES:
            raise ValueError(str(unknown_name("vocabulary", self.vocabulary, MODES)))
        if self.threads < 0:
            raise ValueError(f"threads={self.threads} must not be negative")
        if self.memory_gb is not None and self.memory_gb <= 0:
            raise ValueError(f"memory_gb={self.memory_gb} must be positive")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What every verb that looks at evaluations needs to know."""

    zoo: dict[str, Any]
    suite: Suite
    backend: dict[str, Any]
    home: Path


@dataclass(frozen=True, kw_only=True)
class RunSettings(EvaluationSettings):
    """What `graftbench run` needs to know."""

    method: MethodSettings
    tracking: TrackingConfig
    merging: MergeOptions = field(default_factory=MergeOptions)
    engine: str = "fresh"
    keep: bool = False
    sweep: str | None = None
    """Name of the sweep that the job belongs to, to group its runs; None for a single run."""

    def __post_init__(self) -> None:
        check_engine_use(self.engine)


@dataclass(frozen=True)
class MergeSettings:
    """What `graftbench merge` needs to know."""

    method: MethodSettings
    zoo: dict[str, Any]
    home: Path
    out: Path
    merging: MergeOptions = field(default_factory=MergeOptions)
    shard_gb: float = 5.0
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.shard_gb <= 0:
            raise ValueError(f"shard_gb={self.shard_gb} must be positive")


@dataclass(frozen=True, kw_only=True)
class BoardSettings(EvaluationSettings):
    """What `graftbench leaderboard` needs to know."""

    out: Path | None = None
    records: Path | None = None
    training_seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.training_seeds and not self.zoo.get("builder"):
            raise GraftbenchError(
                f"training_seeds={list(self.training_seeds)} is for sets that are built, and "
                f"zoo={self.zoo.get('name')} is not; rank a folder of records with records=FOLDER"
            )


@dataclass(frozen=True, kw_only=True)
class CompareSettings(BoardSettings):
    """What `graftbench compare` needs to know."""

    a: str
    b: str
    show: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.show < 0:
            raise ValueError(f"show={self.show} must not be negative")


@dataclass(frozen=True)
class BoardCheckSettings:
    """What `graftbench leaderboard check` needs to know."""

    path: Path
    home: Path
    board: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ZooSettings(EvaluationSettings):
    """What `graftbench zoo` needs to know."""

    action: str = "show"

    def __post_init__(self) -> None:
        if self.action not in ZOO_ACTIONS:
            raise unknown_name("action of zoo", self.action, ZOO_ACTIONS)


@dataclass(frozen=True, kw_only=True)
class GateSettings(EvaluationSettings):
    """What `graftbench gate` needs to know."""

    empty: float = Limits.empty
    truncated: float = Limits.truncated
    engine: str = "fresh"

    @property
    def limits(self) -> Limits:
        """How many answers may be bad."""
        return Limits(self.empty, self.truncated)

    def __post_init__(self) -> None:
        check_engine_use(self.engine)
        assert self.limits  # which refuses what is no percentage


@dataclass(frozen=True)
class DataSettings:
    """What `graftbench data` needs to know."""

    suite: Suite
    home: Path
    to: Path
    action: str = "fetch"

    def __post_init__(self) -> None:
        if self.action not in DATA_ACTIONS:
            raise unknown_name("action of data", self.action, DATA_ACTIONS)


@dataclass(frozen=True, kw_only=True)
class TuneSettings(EvaluationSettings):
    """What `graftbench tune` needs to know."""

    out: Path
    split: str = "validation"
    merging: MergeOptions = field(default_factory=MergeOptions)
    engine: str = "fresh"
    grid: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_engine_use(self.engine)


@dataclass(frozen=True)
class ExportSettings:
    """What `graftbench moments export` needs to know."""

    source: Path
    out: Path
    home: Path
    model: str | None = None
    base: str | None = None
    format: str = AUTO
    frozen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.format not in (AUTO, *FORMATS):
            raise unknown_name("format", self.format, (AUTO, *FORMATS))


ENGINE_USES = ("fresh", "shared")
ZOO_ACTIONS = ("build", "check", "show")
DATA_ACTIONS = ("fetch",)
NO_ZOO = {"name": "none", "builder": "none"}
"""What conf/zoo/none.yaml says."""


def check_engine_use(engine: str) -> None:
    """Refuse what `engine=` does not know.

    Raises:
        GraftbenchError: it is neither `fresh` nor `shared`.
    """
    if engine not in ENGINE_USES:
        raise unknown_name("engine", engine, ENGINE_USES)


def run_settings(config: DictConfig, invocation: Invocation) -> RunSettings:
    """Settings of `graftbench run`."""
    values = _plain(config)
    for group in ("experiment", "sweep"):
        values.pop(group, None)
    method = taken_method(values, invocation)
    settings: RunSettings = _settings(RunSettings, values, method=method, sweep=invocation.sweep)
    return replace(settings, zoo=NO_ZOO) if _needs_no_zoo(settings, invocation) else settings


def _needs_no_zoo(settings: RunSettings, invocation: Invocation) -> bool:
    """Whether the zoo is the default alone, and would be built for nothing: a model that exists already needs none."""
    experiment = invocation.choices.get("experiment", "None")
    named = experiment not in ("None", "null") or any(name.partition(".")[0] == "zoo" for name in invocation.named)
    joins = isinstance(settings.method.method, ExistingModel)
    return joins and not named and "builder" in settings.zoo and not reads_zoo_data(settings.suite)


def merge_settings(config: DictConfig, invocation: Invocation) -> MergeSettings:
    """Settings of `graftbench merge`."""
    values = _plain(config)
    method = taken_method(values, invocation)
    if isinstance(method.method, Unmerged):
        raise GraftbenchError("method=none merges nothing; choose a method")
    return _settings(MergeSettings, values, method=method)


def check_outputs(jobs: Sequence[MergeSettings]) -> None:
    """Refuse jobs that would write to one folder, before the first of them.

    Raises:
        GraftbenchError: two jobs of a sweep have the same `out`.
    """
    folders = [os.path.abspath(job.out.expanduser()) for job in jobs]
    if shared := next((job.out for job, folder in zip(jobs, folders, strict=True) if folders.count(folder) > 1), None):
        raise GraftbenchError(
            f"{len(folders)} merges, and several would be written to out={shared}; put what varies into the name, in "
            f"quotes for the shell: 'out={shared}/${{method.name}}' for a sweep over methods, "
            f"'out={shared}/density-${{method.density}}' for one over an option"
        )


def board_settings(config: DictConfig, _: Invocation) -> BoardSettings:
    """Settings of `graftbench leaderboard`."""
    return _settings(BoardSettings, _plain(config))


def compare_settings(config: DictConfig, _: Invocation) -> CompareSettings:
    """Settings of `graftbench compare`."""
    return _settings(CompareSettings, _plain(config))


def board_check_settings(config: DictConfig, _: Invocation) -> BoardCheckSettings:
    """Settings of `graftbench leaderboard check`."""
    return _settings(BoardCheckSettings, _plain(config))


def zoo_settings(config: DictConfig, _: Invocation) -> ZooSettings:
    """Settings of `graftbench zoo`."""
    return _settings(ZooSettings, _plain(config))


def gate_settings(config: DictConfig, _: Invocation) -> GateSettings:
    """Settings of `graftbench gate`."""
    return _settings(GateSettings, _plain(config))


def data_settings(config: DictConfig, _: Invocation) -> DataSettings:
    """Settings of `graftbench data`."""
    return _settings(DataSettings, _plain(config))


def tune_settings(config: DictConfig, _: Invocation) -> TuneSettings:
    """Settings of `graftbench tune`."""
    return _settings(TuneSettings, _plain(config))


def export_settings(config: DictConfig, _: Invocation) -> ExportSettings:
    """Settings of `graftbench moments export`."""
    return _settings(ExportSettings, _plain(config))


def settings_of(cls: Any, config: DictConfig) -> Any:
    """Settings of a verb that has no groups of its own reading.

    Raises:
        GraftbenchError: an option is unknown, missing, or has a bad value.
    """
    return _settings(cls, _plain(config))


def _settings(cls: Any, values: Mapping[str, Any], **built: Any) -> Any:
    """Settings of a verb: each group through its own schema, the rest through the verb's."""
    parts = {key: read(values[key]) for key, read in _GROUPS.items() if key in values}
    scalars = {key: value for key, value in values.items() if key not in parts}
    if "merging" in (option.name for option in fields(cls)):
        names = [option.name for option in fields(MergeOptions)]
        parts["merging"] = build(
            MergeOptions, {name: scalars.pop(name) for name in names if name in scalars}, "options"
        )
        values = {key: value for key, value in values.items() if key not in names}
    if not values.get("home"):
        raise GraftbenchError("home= is empty; name a folder for models and results")
    known = {option.name for option in fields(cls)}
    for key in values:
        if key not in known:
            raise unknown_name("option", key, known)
    return build(cls, {**scalars, **parts, **built}, "options")


def _checked_zoo(values: Mapping[str, Any]) -> Mapping[str, Any]:
    check_keys(values)
    return values


def _checked_backend(values: Mapping[str, Any]) -> Mapping[str, Any]:
    engine_from_config(values)
    return values


_GROUPS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "zoo": _checked_zoo,
    "suite": suite_from_config,
    "backend": _checked_backend,
    "tracking": lambda values: build(TrackingConfig, values, "tracking"),
}
"""What checks each group of a configuration."""


def _plain(config: DictConfig) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise GraftbenchError(f"option {key} needs a value: {key}=…" if key else str(error).splitlines()[0]) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key != "hydra"}
