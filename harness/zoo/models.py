"""The set of models that a run works on: a base, its experts, references, and their curvature and data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from harness.checkpoints.opening import Source, open_checkpoint, split_adapter
from harness.checkpoints.source import is_hub_name
from harness.curvature.second_moments import FILE_NAME, FISHER_FILE_NAME, StoredKind, find_second_moments
from harness.errors import GraftbenchError, all_of, unknown_name
from harness.files import canonical_json, text_digest
from methods.interface import CurvatureKind

Found = TypeVar("Found")

DEFAULT_TOLERANCE = 2.0


@dataclass(frozen=True)
class Zoo:
    """A resolved model set. Experts and references keep the order of the configuration."""

    name: str
    base: Source | None
    """What the experts were fine-tuned from; None only for `zoo=none`."""
    experts: Mapping[str, Source] = field(default_factory=dict)
    references: Mapping[str, Source] = field(default_factory=dict)
    """Models that get a row of their own but are never merged."""
    capabilities: Mapping[str, str] = field(default_factory=dict)
    """Each expert's own capability."""
    second_moments: Mapping[str, Path | None] = field(default_factory=dict)
    """Each expert's file of Adam's second moments, or None."""
    fisher: Mapping[str, Path | None] = field(default_factory=dict)
    """Each expert's file of diagonal Fisher information, or None."""
    data_root: Path | None = None
    """Mirror of the data that the set's own suite reads."""
    stated: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Scores that models are known to have, in 0..100: by model, then by task or capability."""
    tolerance: float = DEFAULT_TOLERANCE
    """How far a measured score may lie from a stated one, in points."""
    description: str = ""
    training_seed: int | None = None
    """Seed with which base and experts were trained, where the set states one: sets of one name that differ in nothing
    else are repeats of one another."""

    @cached_property
    def digest(self) -> str:
        """Digest of all its models' weights, by name: rows of one board come from one digest."""
        digests = {}
        for name, source in self.models.items():
            with open_checkpoint(source) as checkpoint:
                digests[name] = checkpoint.weights_digest
        return text_digest(canonical_json(digests))

    @property
    def models(self) -> Mapping[str, Source]:
        """Every model of the set by name."""
        base = {} if self.base is None else {"base": self.base}
        return {**base, **self.experts, **self.references}

    def curvature_files(self, kind: CurvatureKind | None) -> Mapping[str, Path | None]:
        """Each expert's file of that kind of curvature, or None where it has none."""
        return self.fisher if kind == "fisher" else self.second_moments


KEYS = (
    "name",
    "description",
    "builder",
    "build",
    "base",
    "experts",
    "references",
    "capabilities",
    "second_moments",
    "fisher",
    "data_root",
    "stated",
    "tolerance",
    "training_seed",
)

NAMED_KEYS = ("base", "experts", "references", "capabilities", "second_moments", "fisher", "data_root")
"""Keys that name models or their files; a set that is built has its own."""


def resolve_zoo(config: Mapping[str, Any], home: Path, build: bool = True) -> Zoo:
    """The set that a configuration names, built first where it names a builder.

    Args:
        config: the group ``zoo``, as plain containers.
        home: where built sets are kept.
        build: whether a set that is not there may be built now, which takes minutes.

    Raises:
        GraftbenchError: a key or builder is unknown, a path does not exist, or a name is neither a path
            nor a hub name.
    """
    check_keys(config)
    builder = config.get("builder")
    zoo = _named(config) if builder is None else BUILDERS[builder](config, Path(home), build)
    return replace(zoo, stated=_stated(config), tolerance=_tolerance(config))


def check_keys(config: Mapping[str, Any]) -> None:
    """Refuse what the group ``zoo`` does not know, before anything is built or looked for.

    Raises:
        GraftbenchError: a key or builder is unknown (the nearest names are given), or a stated score is no score.
    """
    for key in config:
        if key not in KEYS:
            raise unknown_name("option", f"zoo.{key}", [f"zoo.{known}" for known in KEYS])
    _stated(config)
    _tolerance(config)
    _training_seed(config)
    builder = config.get("builder")
    if builder is None:
        return
    if builder not in BUILDERS:
        raise unknown_name("builder of zoo", str(builder), BUILDERS)
    if config.get("training_seed") is not None:
        raise GraftbenchError(
            f"zoo.training_seed states how checkpoints of your own were trained; zoo={config.get('name')} is built "
            "with a seed that is an option of its own, such as zoo.build.training_seed=1"
        )
    for key in NAMED_KEYS:
        if config.get(key):
            raise GraftbenchError(
                f"zoo.{key} cannot be given for zoo={config.get('name')}, which {_OWN_MODELS[builder]}; "
                "name all of them with zoo=custom zoo.base=PATH zoo.experts.NAME=PATH"
            )


def _tiny(config: Mapping[str, Any], home: Path, may_build: bool) -> Zoo:
    """The embedded set. Its builder is imported only here, since it needs torch and transformers."""
    from harness.zoo.tiny.build import MULTITASK, build, is_built
    from harness.zoo.tiny.items import CAPABILITIES
    from harness.zoo.tiny.settings import settings_from_mapping

    settings = settings_from_mapping(config.get("build") or {})
    if not may_build and not is_built(settings, home):
        raise GraftbenchError(f"zoo={config['name']} is not built in {home}; run graftbench zoo build first")
    folders = build(settings, home)
    return Zoo(
        name=str(config["name"]),
        base=folders.base,
        experts={capability: folders.expert(capability) for capability in CAPABILITIES},
        references={MULTITASK: folders.multitask},
        capabilities={capability: capability for capability in CAPABILITIES},
        second_moments={capability: folders.expert(capability) / FILE_NAME for capability in CAPABILITIES},
        fisher={capability: folders.expert(capability) / FISHER_FILE_NAME for capability in CAPABILITIES},
        data_root=folders.data,
        training_seed=settings.training_seed,
        description=str(config.get("description") or ""),
    )


def _none(config: Mapping[str, Any], home: Path, may_build: bool) -> Zoo:
    """No models, so nothing to build or to look for."""
    return Zoo(name=str(config["name"]), base=None, description=str(config.get("description") or ""))


def _gguf(config: Mapping[str, Any], home: Path, may_build: bool) -> Zoo:
    """A single model out of a GGUF file, as a set without experts."""
    from harness.zoo.gguf import GGUFSource, build

    given = _mapping(config, "build")
    known = [each.name for each in fields(GGUFSource)]
    for key in given:
        if key not in known:
            raise unknown_name("option", f"zoo.build.{key}", [f"zoo.build.{name}" for name in known])
    for key in ("source", "licence"):
        if not given.get(key):
            raise GraftbenchError(f"zoo.build.{key} is not set; see conf/zoo/smollm2_gguf.yaml")
    base = build(GGUFSource(**given), home / "zoo" / str(config["name"]))
    return Zoo(name=str(config["name"]), base=base, description=str(config.get("description") or ""))


def _named(config: Mapping[str, Any]) -> Zoo:
    """A set of checkpoints that exist already; everything that is wrong with their names is told at once."""
    if not config.get("base"):
        raise GraftbenchError("zoo.base is not set; give a checkpoint's folder or hub name: zoo.base=PATH")
    problems: list[str] = []

    def sources(key: str) -> dict[str, Source]:
        where = {name: f"zoo.{key}.{name}" for name in _mapping(config, key)}
        found = {name: _or_problem(named_source, config[key][name], where[name], problems) for name in where}
        return {name: source for name, source in found.items() if source is not None}

    base = _or_problem(named_source, config["base"], "zoo.base", problems)
    experts, references = sources("experts"), sources("references")
    if "base" in _mapping(config, "experts"):
        problems.append("zoo.experts.base: an expert cannot be called base, which is the base model's name")
    for key in ("capabilities", "second_moments", "fisher"):
        for name in _mapping(config, key):
            if name not in _mapping(config, "experts"):
                problems.append(str(unknown_name(f"expert in zoo.{key}", name, _mapping(config, "experts"))))
    second_moments = _curvature(config, "second_moments", "adam", experts, problems)
    fisher = _curvature(config, "fisher", "fisher", experts, problems)
    data_root = config.get("data_root") and _or_problem(_existing, config["data_root"], "zoo.data_root", problems)
    if problems or base is None:
        raise all_of(problems)
    capabilities = _mapping(config, "capabilities")
    return Zoo(
        name=str(config.get("name") or "unnamed"),
        base=base,
        experts=experts,
        references=references,
        capabilities={name: str(capabilities.get(name) or name) for name in experts},
        second_moments=second_moments,
        fisher=fisher,
        data_root=data_root or None,
        training_seed=_training_seed(config),
        description=str(config.get("description") or ""),
    )


def _or_problem(read: Callable[[Any, str], Found], given: Any, where: str, problems: list[str]) -> Found | None:
    """What is named, or None and a problem."""
    try:
        return read(given, where)
    except GraftbenchError as error:
        problems.append(str(error))
        return None


def _curvature(
    config: Mapping[str, Any], key: str, kind: StoredKind, experts: Mapping[str, Source], problems: list[str]
) -> dict[str, Path | None]:
    """The file that is named, or else the one of the usual name in the expert's folder, or else None."""
    given = _mapping(config, key)
    found: dict[str, Path | None] = {
        name: _or_problem(_existing, file, f"zoo.{key}.{name}", problems) for name, file in given.items() if file
    }
    for name, source in experts.items():
        if name not in found:
            last = source[-1] if isinstance(source, list) else source  # of several checkpoints of a run, the last
            found[name] = find_second_moments(last, kind) if isinstance(last, Path) else None
    return {name: found[name] for name in experts}


def named_source(given: Any, where: str) -> Source:
    """Folders made absolute, and hub names; `base+adapter`, or a list of checkpoints of one run, part by part.

    Args:
        given: what the user wrote.
        where: the option that it was written for.

    Raises:
        GraftbenchError: it is neither a folder nor a hub name.
    """
    if isinstance(given, list | tuple):
        if not given:
            raise GraftbenchError(f"{where} is an empty list; name at least one checkpoint")
        return [_one_source(each, where) for each in given]
    return _one_source(given, where)


def _one_source(given: Any, where: str) -> Path | str:
    base, adapter = split_adapter(str(given))
    if adapter is not None:
        return f"{_folder_or_hub_name(base, where)}+{_folder_or_hub_name(adapter, where)}"
    return _folder_or_hub_name(base, where)


def _folder_or_hub_name(text: str, where: str) -> Path | str:
    path = Path(text).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise GraftbenchError(f"{where}={text} is a file; name the folder of the checkpoint that holds it")
    if not is_hub_name(text):
        raise GraftbenchError(
            f"{where}={text}: there is no such folder; give a checkpoint's folder or a hub name owner/name"
        )
    return text


def _stated(config: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Scores by model and by task or capability."""
    stated: dict[str, dict[str, float]] = {}
    for model, scores in _mapping(config, "stated").items():
        if not isinstance(scores, Mapping):
            raise GraftbenchError(
                f"zoo.stated.{model}={scores}: it takes scores by task or capability, such as {{gsm8k: 71.2}}"
            )
        for measured, score in scores.items():
            if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 100:
                raise GraftbenchError(f"zoo.stated.{model}.{measured}={score}: a score is a number of percent, 0..100")
        stated[str(model)] = {str(measured): float(score) for measured, score in scores.items()}
    return stated


def _tolerance(config: Mapping[str, Any]) -> float:
    given = config.get("tolerance")
    if given is None:
        return DEFAULT_TOLERANCE
    if isinstance(given, bool) or not isinstance(given, int | float) or not given >= 0:
        raise GraftbenchError(f"zoo.tolerance={given}: it is a number of points, 0 or more")
    return float(given)


def _training_seed(config: Mapping[str, Any]) -> int | None:
    given = config.get("training_seed")
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or given < 0:
        raise GraftbenchError(f"zoo.training_seed={given}: it is a whole number, 0 or more")
    return given


def _existing(given: Any, where: str) -> Path:
    path = Path(str(given)).expanduser()
    if not path.exists():
        raise GraftbenchError(f"{where}={given} does not exist")
    return path.resolve()


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise GraftbenchError(f"zoo.{key} is {value!r}, not a mapping of names")
    return value


BUILDERS: dict[str, Callable[[Mapping[str, Any], Path, bool], Zoo]] = {"tiny": _tiny, "gguf": _gguf, "none": _none}
"""What makes a set that is not one of named checkpoints, by the name that ``zoo.builder`` gives."""

_OWN_MODELS = {"tiny": "builds its own models", "gguf": "builds its own models", "none": "has no models"}
