"""lm-eval task declarations, found by name and read without running any of their code.

lm-eval's own index takes some fifteen seconds to build and resolving a declaration imports its scoring code,
which may download things. Here a name leads to its YAML file by a scan of texts, and `!function` entries stay
references, which is what digests and checks need.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.errors import GraftbenchError

EMBEDDED_TASKS = Path(__file__).with_name("tasks")

# Metrics whose aggregation is a mean where a declaration does not say so (lm_eval/api/metrics.py).
MEANS_BY_DEFAULT = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"})
# What lm-eval scores where a declaration has no metric_list (DEFAULT_METRIC_REGISTRY in
# lm_eval/api/registry.py).
DEFAULT_METRICS = {
    "multiple_choice": ("acc", "acc_norm"),
    "generate_until": ("exact_match",),
    "loglikelihood": ("acc",),
}


@dataclass(frozen=True)
class FunctionReference:
    """A `!function module.name` of a declaration: the file of the module, and the name."""

    module: Path | None
    name: str

    def __str__(self) -> str:
        return f"!function {self.module.stem if self.module else '?'}.{self.name}"


@dataclass(frozen=True)
class Declaration:
    """One task as its YAML file declares it, `include`s merged in."""

    name: str
    path: Path
    fields: dict[str, Any]

    @property
    def output_type(self) -> str:
        return str(self.fields.get("output_type", "generate_until"))

    @property
    def unsafe_code(self) -> bool:
        """Whether scoring runs code that the model wrote."""
        return bool(self.fields.get("unsafe_code", False))

    @property
    def test_split(self) -> str | None:
        """The split that lm-eval evaluates on."""
        split = self.fields.get("test_split") or self.fields.get("validation_split")
        return str(split) if split else None

    def filters(self) -> list[str]:
        return [each["name"] for each in self.fields.get("filter_list") or ()] or ["none"]

    def metrics(self) -> list[str]:
        """Names (`metric,filter`) of the metrics that can count: means over items where higher is better; the
        task's first one first."""
        names = []
        for entry in self._metric_list():
            name = entry["metric"]
            mean = entry["aggregation"] == "mean" if "aggregation" in entry else name in MEANS_BY_DEFAULT
            if isinstance(name, str) and mean and entry.get("higher_is_better", True):
                names.append(name)
        return [f"{name},{each}" for each in self.filters() for name in names]

    def computes_metric_names(self) -> bool:
        """Whether a metric is a function that names its results itself (humaneval's pass@1), so that they are
        not known beforehand."""
        return any(isinstance(entry["metric"], FunctionReference) for entry in self._metric_list())

    def functions(self) -> list[FunctionReference]:
        """The functions that the declaration names."""
        return list(_functions(self.fields))

    def code_files(self) -> list[Path]:
        """The Python files beside the functions that the declaration names, which they may import."""
        folders = {each.module.parent for each in self.functions() if each.module is not None}
        return sorted(file for folder in folders for file in folder.glob("*.py"))

    def _metric_list(self) -> list[dict[str, Any]]:
        listed = self.fields.get("metric_list")
        if listed is None:
            return [{"metric": name} for name in DEFAULT_METRICS.get(self.output_type, ())]
        return list(listed)


def find_declaration(name: str, include_path: Iterable[str] = ()) -> Declaration:
    """The declaration of task `name`: from the user's folders, else the embedded tasks, else lm-eval's stock
    tasks.

    Raises:
        GraftbenchError: no such task (with the nearest names), a task that is a Python class, an unreadable
            file.
    """
    roots = task_folders(include_path)
    for root in roots:
        files = declaring_files(root, "task", name)
        if files:
            return _checked(name, files[0])
    known = sorted(set().union(*(names_of(root, kind) for root in roots for kind in ("task", "group", "tag"))))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    meant = f"did you mean {' or '.join(map(repr, near))}?" if near else "`lm-eval ls tasks` lists the stock ones."
    raise GraftbenchError(
        f"unknown lm-eval task '{name}'; {meant}\nTasks of your own are found through suite.include_path."
    )


def task_folders(include_path: Iterable[str] = ()) -> list[Path]:
    """The folders of declarations, those that win first.

    Raises:
        GraftbenchError: a folder of `include_path` does not exist.
    """
    for folder in include_path:
        if not Path(folder).is_dir():
            raise GraftbenchError(f"suite.include_path names '{folder}', which is not a folder")
    return [*map(Path, include_path), EMBEDDED_TASKS, stock_tasks()]


def stock_tasks() -> Path:
    """The folder of lm-eval's own declarations, found without importing it."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise GraftbenchError("lm-eval is not installed; install it with: pip install 'lm-eval[hf]'")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def read_declaration(path: Path) -> dict[str, Any]:
    """A declaration's fields, `include`s merged as lm-eval does it: local keys win whole, functions belong to
    the file that names them."""
    return _read(path.resolve(), ())


def _read(path: Path, outer: tuple[Path, ...]) -> dict[str, Any]:
    if path in outer:
        raise GraftbenchError(f"{path}: it includes itself")
    try:
        with path.open("rb") as file:
            own = yaml.load(file, Loader=_loader(path.parent))
    except (OSError, yaml.YAMLError) as error:
        raise GraftbenchError(
            f"{path}: cannot be read as a task declaration: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(own, dict):
        raise GraftbenchError(f"{path}: a task declaration is a YAML mapping, this is a {type(own).__name__}")
    included = own.pop("include", None) or []
    merged: dict[str, Any] = {}
    for each in included if isinstance(included, list) else [included]:
        merged.update(_read((path.parent / each).resolve(), (*outer, path)))
    return {**merged, **own}


def _loader(folder: Path) -> type[yaml.SafeLoader]:
    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    def function(loader: Any, node: Any) -> FunctionReference:
        module, _, name = str(loader.construct_scalar(node)).rpartition(".")
        beside = folder / f"{module.replace('.', '/')}.py"
        return FunctionReference(beside.resolve() if beside.is_file() else module_file(module), name)

    yaml.add_constructor("!function", function, Loader=Loader)
    return Loader


def module_file(module: str) -> Path | None:
    """The file of an installed module; found by its package's folder, because asking for a submodule would import the
    package."""
    package, *parts = module.split(".")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not parts:
        return Path(spec.origin).resolve() if spec.origin else None
    files = (Path(folder, *parts).with_suffix(".py") for folder in spec.submodule_search_locations or ())
    return next((file.resolve() for file in files if file.is_file()), None)


def _functions(value: Any) -> Iterator[FunctionReference]:
    if isinstance(value, FunctionReference):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _functions(each)
    elif isinstance(value, list):
        for each in value:
            yield from _functions(each)


def _checked(name: str, path: Path) -> Declaration:
    fields = read_declaration(path)
    if "class" in fields:
        raise GraftbenchError(f"task '{name}' is a Python class ({path}); graftbench runs declared tasks only")
    return Declaration(name, path, fields)


def declaring_files(root: Path, key: str, name: str) -> list[Path]:
    """The files under a folder that declare a `task` or `group` of that name, by path; where files bear the name
    themselves, the others are not read."""
    pattern = _declares(key, re.escape(name))
    found = [
        file
        for file in _by_stem(root).get(name, ())
        if pattern.search(file.read_text(encoding="utf-8", errors="replace"))
    ]
    return found or _index(root, key).get(name, [])


def names_of(root: Path, key: str) -> set[str]:
    """The names of the kind `task`, `group` or `tag` that files under a folder declare; of a list of tags, the
    first."""
    return set(_index(root, key))


@functools.lru_cache(maxsize=32)
def _index(root: Path, key: str) -> dict[str, list[Path]]:
    pattern = _declares(key, r"[\w.\-+]+")
    index: dict[str, list[Path]] = {}
    for file in _yaml_files(root):
        for name in pattern.findall(file.read_text(encoding="utf-8", errors="replace")):
            index.setdefault(name, []).append(file)
    return index


def _declares(key: str, name: str) -> re.Pattern[str]:
    first_of_list = r"(?:\n[ ]*-[ ]*)?" if key == "tag" else ""
    return re.compile(rf"""^["']?{key}["']?[ ]*:[ ]*{first_of_list}["']?({name})["']?[ ]*(?:\#.*)?$""", re.MULTILINE)


@functools.lru_cache(maxsize=8)
def _by_stem(root: Path) -> dict[str, list[Path]]:
    """The files by their name without suffix, and without the underscore that lm-eval's groups begin with."""
    files: dict[str, list[Path]] = {}
    for file in _yaml_files(root):
        files.setdefault(file.stem.lstrip("_"), []).append(file)
    return files


@functools.lru_cache(maxsize=8)
def _yaml_files(root: Path) -> tuple[Path, ...]:
    found = [Path(folder, file) for folder, _, files in os.walk(root) for file in files if file.endswith(".yaml")]
    return tuple(sorted(found, key=Path.as_posix))
