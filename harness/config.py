"""From a composed Hydra configuration to checked settings: the one place where options become objects."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.checkpoints.vocabulary import MODES
from harness.errors import GraftbenchError, unknown_name
from harness.evaluation.engines import engine_from_config
from harness.evaluation.suite import Suite, suite_from_config
from harness.merging.mergekit_recipe import MergekitRecipe, read_mergekit_recipe
from harness.results.record import Role
from harness.schema import build
from harness.tracking import TrackingConfig
from harness.zoo.models import check_keys
from methods import Method, available, load_file

log = logging.getLogger(__name__)

RESERVED = ("name", "path", "role")
"""Keys of a method's configuration that are not hyper-parameters."""

RECIPE_METHOD = "mergekit"
"""The configuration whose method and models come from the file that `recipe` names."""


@dataclass(frozen=True)
class Invocation:
    """What a command line says beyond the composed configuration."""

    choices: Mapping[str, str]
    """The name chosen in each group."""
    given: Mapping[str, str]
    """The hyper-parameters that were given by hand, as they were written."""
    sweep: str | None = None
    """Name of the sweep that the job belongs to."""


@dataclass(frozen=True)
class Unmerged:
    """A model of the zoo as it is, for `method=none`."""

    model: str = "base"
    """base, or the name of an expert or of a reference."""


@dataclass(frozen=True)
class MethodSettings:
    """A method with its hyper-parameters, and how they were chosen."""

    name: str
    """The method's name: its file's."""
    label: str
    """The row's name: the configuration's, and the hyper-parameters that were given by hand."""
    role: Role
    method: Method | Unmerged
    selection: dict[str, Any]
    """`how` the hyper-parameters were chosen (default, tuned, given), in how many `trials`, on which `split`."""


@dataclass(frozen=True)
class MergeOptions:
    """How models are merged, whatever the method."""

    device: str = "cpu"
    dtype: str | None = None
    vocabulary: str | None = None
    tokenizer: str = "base"
    threads: int = 0
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        if self.vocabulary is not None and self.vocabulary not in MODES:
            raise ValueError(str(unknown_name("vocabulary", self.vocabulary, MODES)))
        if self.threads < 0:
            raise ValueError(f"threads={self.threads} must not be negative")
        if self.memory_gb is not None and self.memory_gb <= 0:
            raise ValueError(f"memory_gb={self.memory_gb} must be positive")


@dataclass(frozen=True)
class RunSettings:
    """What `graftbench run` needs to know."""

    method: MethodSettings
    zoo: dict[str, Any]
    suite: Suite
    backend: dict[str, Any]
    tracking: TrackingConfig
    home: Path
    merging: MergeOptions = field(default_factory=MergeOptions)
    keep: bool = False
    sweep: str | None = None
    """Name of the sweep that the job belongs to, to group its runs; None for a single run."""


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


@dataclass(frozen=True)
class BoardSettings:
    """What `graftbench leaderboard` needs to know."""

    zoo: dict[str, Any]
    suite: Suite
    backend: dict[str, Any]
    home: Path
    out: Path | None = None
    records: Path | None = None


@dataclass(frozen=True)
class ZooSettings:
    """What `graftbench zoo` needs to know."""

    zoo: dict[str, Any]
    suite: Suite
    backend: dict[str, Any]
    home: Path
    action: str = "show"

    def __post_init__(self) -> None:
        if self.action not in ZOO_ACTIONS:
            raise unknown_name("action of zoo", self.action, ZOO_ACTIONS)


@dataclass(frozen=True)
class TuneSettings:
    """What `graftbench tune` needs to know."""

    zoo: dict[str, Any]
    suite: Suite
    backend: dict[str, Any]
    home: Path
    out: Path
    split: str = "validation"
    merging: MergeOptions = field(default_factory=MergeOptions)
    grid: dict[str, dict[str, list[float]]] = field(default_factory=dict)


ZOO_ACTIONS = ("build", "check", "show")


def config_folder() -> Path:
    """The folder of configurations: in the package when installed, at the top of the repository otherwise."""
    package = Path(__file__).parent
    return next(folder for folder in (package / "conf", package.parent / "conf") if folder.is_dir())


def known_methods(files: Iterable[Path] = ()) -> dict[str, type[Method]]:
    """The methods of the package and of a user's files, by name.

    Raises:
        GraftbenchError: a file is no method, or hides one of ours.
    """
    found = dict(available())
    for file in files:
        try:
            name, method = load_file(file)
        except ValueError as error:
            raise GraftbenchError(str(error)) from error
        if name in found or (config_folder() / "method" / f"{name}.yaml").exists():
            raise GraftbenchError(f"{file}: there is a method '{name}' already; give the file another name")
        found[name] = method
    return found


def register_methods(files: Iterable[Path] = ()) -> list[str]:
    """Tell Hydra about every method: `method=NAME`, with its hyper-parameters. Returns the names from the files."""
    files = list(files)
    for name, method in known_methods(files).items():
        clash = {option.name for option in fields(method)} & set(RESERVED)
        if clash:
            raise GraftbenchError(f"method '{name}': a hyper-parameter cannot be called {sorted(clash)[0]}")
        try:
            defaults = {option: getattr(method(), option) for option in (f.name for f in fields(method))}
        except (TypeError, ValueError) as error:
            raise GraftbenchError(f"method '{name}': every hyper-parameter needs a default ({error})") from error
        path = next((str(Path(file).resolve()) for file in files if Path(file).stem == name), None)
        node = {"name": name, "path": path, "role": "method", **defaults}
        ConfigStore.instance().store(group="method", name=name, node=node)
    return [Path(file).stem for file in files]


def method_settings(
    node: Mapping[str, Any],
    invocation: Invocation,
    tuned: Mapping[str, Any] | None = None,
    label: str | None = None,
) -> MethodSettings:
    """A method from its configuration.

    Args:
        node: the composed group: `name`, `role`, hyper-parameters.
        invocation: the command line that chose it.
        tuned: what an earlier tuning chose, by configuration; a control takes what was chosen for its method.
        label: the row's name, instead of the one derived from the above.

    Raises:
        GraftbenchError: there is no such method or hyper-parameter, or a value is bad.
    """
    if not isinstance(node, Mapping) or "name" not in node or "method" not in invocation.choices:
        raise GraftbenchError("no method is chosen; write method=NAME, such as method=ties")
    choice, given = invocation.choices["method"], invocation.given
    values = {str(key): value for key, value in node.items()}
    name, path, role = values.pop("name"), values.pop("path", None), values.pop("role", "method")
    suffix = "".join(f" {key}={value}" for key, value in sorted(given.items()))
    if name == "none":
        unmerged = build(Unmerged, values, "method")
        kind: Role = "base" if unmerged.model == "base" else "expert"
        return MethodSettings("none", label or unmerged.model, kind, unmerged, {"how": "default"})
    if name == RECIPE_METHOD:
        raise GraftbenchError("method=mergekit reads its method from a file; name it with recipe=FILE.yaml")
    methods = known_methods([Path(path)] if path else [])
    if name not in methods:
        raise unknown_name("method", name, methods)
    selection: dict[str, Any] = {"how": "given" if given else "default"}
    chosen = _tuned_values(tuned or {}, choice, name, role)
    if chosen is not None:
        values |= {key: value for key, value in chosen["values"].items() if key not in given}
        if not set(chosen["values"]) & set(given):
            selection = {"how": "tuned", "trials": chosen["trials"], "split": chosen["split"]}
    return MethodSettings(name, label or choice + suffix, role, build(methods[name], values, "method"), selection)


def run_settings(config: DictConfig, invocation: Invocation) -> RunSettings:
    """Settings of `graftbench run`."""
    values = _plain(config)
    label = values.pop("label", None)
    for group in ("experiment", "sweep"):
        values.pop(group, None)
    method = _taken_method(values, invocation, label)
    return _settings(RunSettings, values, method=method, sweep=invocation.sweep)


def merge_settings(config: DictConfig, invocation: Invocation) -> MergeSettings:
    """Settings of `graftbench merge`."""
    values = _plain(config)
    method = _taken_method(values, invocation)
    if isinstance(method.method, Unmerged):
        raise GraftbenchError("method=none merges nothing; choose a method")
    return _settings(MergeSettings, values, method=method)


def board_settings(config: DictConfig, _: Invocation) -> BoardSettings:
    """Settings of `graftbench leaderboard`."""
    return _settings(BoardSettings, _plain(config))


def zoo_settings(config: DictConfig, _: Invocation) -> ZooSettings:
    """Settings of `graftbench zoo`."""
    return _settings(ZooSettings, _plain(config))


def tune_settings(config: DictConfig, _: Invocation) -> TuneSettings:
    """Settings of `graftbench tune`."""
    return _settings(TuneSettings, _plain(config))


def _taken_method(values: dict[str, Any], invocation: Invocation, label: str | None = None) -> MethodSettings:
    """The method, taken out of the values with all that chooses it; a recipe puts its models and data type there."""
    tuned, node, file = values.pop("tuned", {}), values.pop("method", None), values.pop("recipe", None)
    if not isinstance(node, Mapping) or node.get("name") != RECIPE_METHOD or file is None:
        if file is not None:
            raise GraftbenchError(f"recipe={file} is read by method=mergekit; add it, or leave the recipe out")
        return method_settings(node, invocation, tuned.get("choices"), label)
    unknown = [str(key) for key in node if key not in (*RESERVED, "seed")]
    if unknown:
        raise GraftbenchError(f"method.{unknown[0]} cannot be given with method=mergekit: the recipe gives everything")
    if not isinstance(seed := node.get("seed", 0), int):
        raise GraftbenchError(f"method.seed={seed}: input should be a valid integer")
    recipe = read_mergekit_recipe(Path(str(file)).expanduser(), seed)
    _fill_in(values, recipe)
    suffix = "".join(f" {key}={value}" for key, value in sorted(invocation.given.items()))
    label = label or f"{RECIPE_METHOD} {Path(str(file)).stem}{suffix}"
    name = next(name for name, method in available().items() if isinstance(recipe.method, method))
    return MethodSettings(name, label, "method", recipe.method, {"how": "given"})


def _fill_in(values: dict[str, Any], recipe: MergekitRecipe) -> None:
    """Models, data type and vocabulary from the recipe; a data type or vocabulary given by hand wins."""
    zoo = values["zoo"]
    for key in ("builder", "base", "experts"):
        if zoo.get(key):
            given = f"zoo={zoo.get('name')}" if key == "builder" else f"zoo.{key}"
            raise GraftbenchError(f"{given} cannot be given with method=mergekit: the recipe names the models")
    values["zoo"] = {**zoo, "base": recipe.base, "experts": recipe.experts}
    values["dtype"] = values.get("dtype") or recipe.dtype
    values["vocabulary"] = values.get("vocabulary") or recipe.vocabulary


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


def _tuned_values(tuned: Mapping[str, Any], choice: str, name: str, role: str) -> Any:
    """A control is compared at its method's density and scale, so it takes the values chosen for that."""
    return tuned.get(name if role == "control" and choice not in tuned else choice)


def _plain(config: DictConfig) -> dict[str, Any]:
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise GraftbenchError(f"option {key} needs a value: {key}=…" if key else str(error).splitlines()[0]) from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key != "hydra"}
