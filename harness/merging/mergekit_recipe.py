"""Reads mergekit's recipes (0.1.5): what both have becomes a method of ours, and everything else is refused by name."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from harness.errors import GraftbenchError, suggestion
from harness.merging.mergekit_parameters import Parameters, Place, within
from methods.generalized_task_arithmetic import GeneralizedTaskArithmetic

log = logging.getLogger(__name__)

METHODS: Mapping[str, GeneralizedTaskArithmetic] = {
    "linear": GeneralizedTaskArithmetic(origin="zero", normalize=True),
    "task_arithmetic": GeneralizedTaskArithmetic(),
    "ties": GeneralizedTaskArithmetic(select="magnitude", elect=True, normalize=True),
    "dare_linear": GeneralizedTaskArithmetic(select="random", rescale=True),
    "dare_ties": GeneralizedTaskArithmetic(select="random", elect=True, rescale=True),
}
"""mergekit's methods with its defaults."""

_KEYS = {
    "merge_method",
    "base_model",
    "models",
    "slices",
    "modules",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
}
_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class MergekitRecipe:
    """What a recipe says, in our terms."""

    method: GeneralizedTaskArithmetic
    base: str
    """Folder or hub name, as the recipe writes it: a relative path is relative to the working folder."""
    experts: dict[str, str]
    """The same for each expert, by the last part of its path; `model+adapter` stands as it is."""
    dtype: str | None
    """Data type of the output; None for the base's."""
    vocabulary: str | None
    """`base` or `union` where the recipe matches vocabularies so; None where it demands that they are equal."""


def read_mergekit_recipe(path: Path, seed: int = 0) -> MergekitRecipe:
    """The recipe in a file.

    Args:
        path: a YAML file as `mergekit-yaml` takes it.
        seed: of the random masks of DARE, which a recipe does not give.

    Raises:
        GraftbenchError: the file is no recipe, or it asks for what is not available here; one message names it all.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GraftbenchError(f"recipe={path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise GraftbenchError(f"recipe={path} is no YAML file of one document: {reason}") from error
    if not isinstance(values, dict) or values.get("merge_method") is None:
        raise GraftbenchError(f"recipe={path} is no mergekit recipe: it has no key merge_method")
    reader = _Reader({key: value for key, value in values.items() if value is not None})
    recipe = reader.read(seed)
    if recipe is None or reader.problems:
        listed = "\n".join(f"  {problem}" for problem in dict.fromkeys(reader.problems))
        raise GraftbenchError(f"recipe={path} asks for what graftbench does not do:\n{listed}")
    for note in reader.notes:
        _warn_once(f"{path}: {note}")
    return recipe


@dataclass(frozen=True)
class _Input:
    """One model that a recipe names."""

    source: str
    where: str
    places: list[Place]
    """Where its parameters stand, the closest first."""


@dataclass
class _Reader:
    """One reading: what is wrong is collected, so that all of it can be said at once."""

    values: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def read(self, seed: int) -> MergekitRecipe | None:
        for key in self.values:
            if key not in _KEYS:
                self.problems.append(f"{key}: mergekit has no such key; {suggestion(str(key), _KEYS)}")
        for key, instead in _REFUSED.items():
            if key in self.values:
                self.problems.append(f"{key}: {instead}")
        name = str(self.values["merge_method"])
        if name not in METHODS:
            self.problems.append(f"merge_method: there is no {name!r} here; {suggestion(name, METHODS)}")
        dtype = self._dtype("out_dtype") or self._dtype("dtype")
        base = self._model(self.values["base_model"], "base_model") if "base_model" in self.values else None
        inputs, shared, base = self._inputs(base)
        vocabulary = self._vocabulary(base or (inputs[0].source if inputs else None))
        if name not in METHODS or not inputs:
            return None
        return self._recipe(name, inputs, shared, base, seed, dtype, vocabulary)

    def _recipe(
        self,
        name: str,
        inputs: list[_Input],
        shared: list[Place],
        base: str | None,
        seed: int,
        dtype: str | None,
        vocabulary: str | None,
    ) -> MergekitRecipe | None:
        preset = METHODS[name]
        if base is not None and base not in [each.source for each in inputs]:
            inputs = [*inputs, _Input(base, "base_model", shared)]
        # An average has no base: what the recipe calls so is one input more.
        experts = [each for each in inputs if preset.origin == "zero" or each.source != base]
        if base is None and preset.origin == "base":
            self.problems.append(f"base_model is missing, which {name} needs")
        elif not experts:
            self.problems.append(f"models: there is none besides the base, so that {name} has nothing to merge")
        names = _names([expert.source for expert in experts])
        parameters = Parameters(self.problems)
        self._check_names(parameters, name, inputs, experts, shared)
        weight, density = {}, {}
        for expert, each in zip(names, experts, strict=True):
            weight[expert] = parameters.schedule("weight", each.places, None)
            if preset.select != "none":
                density[expert] = parameters.schedule("density", each.places, 1.0)
                if not within(density[expert], lambda number: 0.0 <= number <= 1.0):
                    self.problems.append(f"{each.where}: its density must lie in 0..1")
        normalize = parameters.truth("normalize", shared, preset.normalize)
        rescale = parameters.truth("rescale", shared, preset.rescale) if preset.select != "none" else False
        scale = parameters.schedule("lambda", shared, 1.0) if preset.origin == "base" else 1.0
        parameters.truth("int8_mask", shared, False)  # The type of a temporary, without an effect on any number.
        if self.problems:
            return None
        method = GeneralizedTaskArithmetic(
            weight=weight,
            density=density or 1.0,
            select=preset.select,
            rescale=rescale,
            elect=preset.elect,
            normalize=normalize,
            scale=scale,
            origin=preset.origin,
            seed=seed if preset.select == "random" else 0,
        )
        sources = dict(zip(names, (expert.source for expert in experts), strict=True))
        return MergekitRecipe(method, base or inputs[0].source, sources, dtype, vocabulary)

    def _check_names(
        self, parameters: Parameters, name: str, inputs: list[_Input], experts: list[_Input], shared: list[Place]
    ) -> None:
        """Refuse parameters that do not exist, and note those that mergekit silently ignores."""
        own = ["weight", "density"] if METHODS[name].select != "none" else ["weight"]
        general = ["normalize"] if name == "linear" else ["normalize", "lambda", "int8_mask"]
        general += ["rescale"] if METHODS[name].select != "none" else []
        for place in shared:
            self.notes += parameters.unused(place, [*own, *general], f"{name} does not use it")
        for each in inputs:
            used, why = own, f"for {name} mergekit does not read it from a single model"
            if each not in experts:
                used, why = [], "this model is the base"
            for place in each.places:
                if place not in shared:
                    self.notes += parameters.unused(place, used, why)

    def _inputs(self, base: str | None) -> tuple[list[_Input], list[Place], str | None]:
        """The models, where parameters of all of them stand, and the base."""
        shared: list[Place] = [("parameters", self.values.get("parameters"))]
        entries, where = self.values.get("models"), "models"
        if ("models" in self.values) + ("slices" in self.values) + ("modules" in self.values) != 1:
            self.problems.append("models: give exactly one of models, slices and modules")
        elif "slices" in self.values:
            entries, where, shared, base = self._slice(shared, base)
        if entries is not None and (not isinstance(entries, list) or not entries):
            self.problems.append(f"{where}: {entries!r} is no list of models")
        inputs = []
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            here = f"{where}[{index}]"
            allowed = ("model", "parameters", "layer_range") if where != "models" else ("model", "parameters")
            if not isinstance(entry, dict) or "model" not in entry or not set(entry) <= set(allowed):
                self.problems.append(
                    f"{here}: {entry!r} is no entry of the form {', '.join(f'{k}: …' for k in allowed)}"
                )
                continue
            source = self._model(entry["model"], f"{here}.model")
            inputs.append(_Input(source, here, [(f"{here}.parameters", entry.get("parameters")), *shared]))
        for source, count in Counter(each.source for each in inputs).items():
            if count > 1:
                self.problems.append(f"{where}: {source} stands there {count} times, which mergekit refuses too")
        return inputs, shared, base

    def _slice(self, shared: list[Place], base: str | None) -> tuple[Any, str, list[Place], str | None]:
        """The sources of the only slice, if it is the whole model with its layers in place."""
        slices = self.values["slices"]
        if not isinstance(slices, list) or len(slices) != 1 or not isinstance(slices[0], dict):
            self.problems.append("slices: stacking or reordering layers is not available; write models: instead")
            return None, "slices", shared, base
        only, where = slices[0], "slices[0]"
        for key in only:
            if key not in ("sources", "base_model", "parameters"):
                self.problems.append(f"{where}.{key}: it is not available")
        if only.get("base_model") is not None:
            base = self._model(only["base_model"], f"{where}.base_model")
        sources = only.get("sources")
        for index, source in enumerate(sources if isinstance(sources, list) else []):
            found = source.get("layer_range") if isinstance(source, dict) else None
            model = base or (isinstance(source, dict) and source.get("model"))
            if not isinstance(found, list) or found != [0, _layers(model)]:
                self.problems.append(
                    f"{where}.sources[{index}].layer_range: {found} is not, or cannot be checked to be, all layers in "
                    "their order; if it is, write models: instead of slices:"
                )
        return sources or [], f"{where}.sources", [(f"{where}.parameters", only.get("parameters")), *shared], base

    def _model(self, reference: Any, where: str) -> str:
        """A model as text: `path`, `path@revision`, `model+adapter`."""
        if isinstance(reference, dict) and "model" in reference and set(reference) <= {"model", "lora"}:
            parts = [reference["model"], *([reference["lora"]] if reference.get("lora") is not None else [])]
            return "+".join(self._path(part, where) for part in parts)
        return self._path(reference, where)

    def _path(self, path: Any, where: str) -> str:
        if isinstance(path, dict) and "path" in path and set(path) <= {"path", "revision"}:
            return f"{path['path']}@{path['revision']}" if path.get("revision") else str(path["path"])
        if not isinstance(path, str) or not path:
            self.problems.append(f"{where}: {path!r} is no model; give a folder, a hub name or model+adapter")
        return str(path)

    def _dtype(self, key: str) -> str | None:
        if key not in self.values:
            return None
        name = str(self.values[key]).removeprefix("torch.")
        if name not in _DTYPES:
            self.problems.append(f"{key}: there is no {name!r} here; {suggestion(name, _DTYPES)}")
        return name

    def _vocabulary(self, base: str | None) -> str | None:
        """How vocabularies are matched, from either of the keys that may say so."""
        if "tokenizer_source" in self.values and "tokenizer" in self.values:
            self.problems.append("tokenizer: mergekit refuses it beside tokenizer_source")
        where, source = "tokenizer_source", self.values.get("tokenizer_source")
        tokenizer = self.values.get("tokenizer")
        if isinstance(tokenizer, dict):
            where, source = "tokenizer.source", tokenizer.get("source", "union")
            for key, value in tokenizer.items():
                if key != "source" and value:
                    self.problems.append(f"tokenizer.{key}: changing tokens by hand is not available")
        elif tokenizer is not None:
            self.problems.append(f"tokenizer: {tokenizer!r} is no mapping")
        if source is None or source in ("base", "union"):
            return source
        if self._model(source, where) != base:
            self.problems.append(f"{where}: the tokenizer of {source} is not available; give base or union")
        return "base"


_REFUSED = {
    "modules": "merging parts of a model each in its way is not available",
    "chat_template": "it is taken from a tokenizer here; leave it out and give tokenizer=… on the command line",
}


def _names(sources: Sequence[str]) -> list[str]:
    """A name for each expert: the last part of its path, two parts where that is not unique, then a number."""
    parts = [_parts(source) for source in sources]
    short = Counter(each[-1] for each in parts)
    wanted = [each[-1] if short[each[-1]] == 1 and each[-1] != "base" else "-".join(each[-2:]) for each in parts]
    names: list[str] = []
    for name in wanted:
        numbered = (name if number == 1 else f"{name}-{number}" for number in range(1, len(wanted) + 2))
        names.append(next(each for each in numbered if each not in (*names, "base")))
    return names


def _parts(source: str) -> list[str]:
    """The parts of a model's path, or of its adapter's, without the revision."""
    path = source.rpartition("+")[2]
    if not Path(path).exists():
        path = path.partition("@")[0]
    return [part for part in Path(path).parts if part not in ("/", "..", ".")] or ["expert"]


def _layers(model: Any) -> int | None:
    """The number of blocks that a model's configuration states, if it lies in a folder."""
    path = Path(str(model).partition("+")[0]) / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("num_hidden_layers")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, int) else None


@cache
def _warn_once(message: str) -> None:
    """A recipe is read more than once: when the command line is checked, and for the job."""
    log.warning("%s", message)
