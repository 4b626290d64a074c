"""Which method a command line chooses: its hyper-parameters and how they were chosen, the row's name and role."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from harness.errors import GraftbenchError, unknown_name
from harness.merging.mergekit_recipe import MergekitRecipe, read_mergekit_recipe
from harness.results.record import Role
from harness.schema import build
from harness.zoo.existing import ExistingModel, existing_model
from methods import Method, available, load_file

RESERVED = ("name", "path", "role", "published")
"""Keys of a method's configuration that are not hyper-parameters."""

SELECTION_KEYS = ("trials", "split", "seconds")
"""What a record keeps of a tuned choice."""

SEED = "seed"
"""The hyper-parameter that repeats a method rather than changes it: giving one is no choice of a better value."""

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
    named: frozenset[str] = frozenset()
    """The groups and options that it names."""


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
    method: Method | Unmerged | ExistingModel
    selection: dict[str, Any]
    """`how` the hyper-parameters were chosen: default; published, with the `source`; given by hand; or tuned, in
    how many `trials`, on which `split`, in how many `seconds`."""


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
    published = values.pop("published", None)
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
    selection: dict[str, Any] = {"how": "given" if given.keys() - {SEED} else "default"}
    if published is not None and selection["how"] == "default":
        selection = {"how": "published", "source": str(published)}
    chosen = _tuned_values(tuned or {}, choice, name, role)
    if chosen is not None:
        values |= {key: value for key, value in chosen["values"].items() if key not in given}
        if not set(chosen["values"]) & set(given):
            selection = {"how": "tuned", **{key: chosen[key] for key in SELECTION_KEYS if key in chosen}}
    return MethodSettings(name, label or choice + suffix, role, build(methods[name], values, "method"), selection)


def taken_method(values: dict[str, Any], invocation: Invocation) -> MethodSettings:
    """The method of a verb's values, taken out of them with all that chooses it.

    A recipe puts its models and data type there; a model that exists already (`model`) stands in a method's place.

    Raises:
        GraftbenchError: there is no such method, recipe or model, or what chooses it contradicts itself.
    """
    label, model = values.pop("label", None), values.pop("model", None)
    if model is not None:
        return _joining(model, values, invocation, label)
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


def _joining(given: Any, values: dict[str, Any], invocation: Invocation, label: str | None) -> MethodSettings:
    """The row of a model that exists already: nothing is merged for it, so nothing may say how."""
    named = sorted(name for name in invocation.named if name == "method" or name.startswith("method."))
    if values.pop("recipe", None) is not None:
        named.append("recipe")
    if named:
        raise GraftbenchError(
            f"{named[0]} cannot be given with model={given}, which is evaluated as it is; leave one of them out"
        )
    for key in ("method", "tuned"):
        values.pop(key, None)
    model = existing_model(given)
    # How its hyper-parameters were chosen is not known here, whatever its merge.json says they are.
    return MethodSettings("model", label or model.label, "method", model, {"how": "unknown"})


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


def _tuned_values(tuned: Mapping[str, Any], choice: str, name: str, role: str) -> Any:
    """A control is compared at its method's density and scale, so it takes the values chosen for that."""
    return tuned.get(name if role == "control" and choice not in tuned else choice)
