"""The parameters of a mergekit recipe: values by layer or by filter, from the model's own to the recipe's general ones.

A parameter is looked for in several places in turn: the model's entry, its slice, the top of the recipe. Where the
filters of one place leave a tensor out, the next place counts, and at last the default.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import suggestion
from methods.schedules import Rule, Schedule

EVERY_TENSOR = (None, "*")
"""Filters that hold for every tensor."""

_PARAMETERS = ("weight", "density", "lambda", "normalize", "rescale", "int8_mask", "gamma", "epsilon")
_ENTRY = ("value", "filter")
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

Place = tuple[str, Any]
"""A key path of the recipe, and the parameters that stand there."""


@dataclass
class Parameters:
    """Reads parameters, and collects what is wrong with them."""

    problems: list[str]
    """One text per mistake, with its key path."""

    def unused(self, place: Place, used: Sequence[str], why: str) -> list[str]:
        """Texts about parameters that have no effect where they stand; those that mergekit does not have are mistakes.

        Args:
            place: where the parameters stand.
            used: the names that have an effect there.
            why: the reason, if another name has none.
        """
        where, parameters = place
        if parameters is not None and not isinstance(parameters, dict):
            self.problems.append(f"{where}: {parameters!r} is no mapping of parameters")
        names = [str(name) for name in parameters] if isinstance(parameters, dict) else []
        for name in names:
            if name not in _PARAMETERS:
                near = suggestion(name, _PARAMETERS)
                self.problems.append(f"{where}.{name}: there is no such parameter; {near}")
        return [f"{where}.{name} has no effect: {why}" for name in names if name in _PARAMETERS and name not in used]

    def schedule(self, name: str, places: Sequence[Place], default: float | None) -> Schedule:
        """A number, a gradient or rules, from the first place that has them; further places fill in what filters leave.

        Args:
            name: the parameter.
            places: where to look, the closest first.
            default: what holds otherwise; None if the parameter is required.
        """
        rules: list[Rule] = []
        for where, parameters in places:
            if isinstance(parameters, dict) and name in parameters:
                rules += self._rules(parameters[name], f"{where}.{name}")
            if any(rule.filter in EVERY_TENSOR for rule in rules):
                break
        else:
            if default is None:
                text = (
                    "there is no value for tensors that no filter fits; add one without filter" if rules else "missing"
                )
                self.problems.append(f"{places[0][0]}.{name}: {text}")
                return 0.0
            rules.append(Rule(default))
        last = next(index for index, rule in enumerate(rules) if rule.filter in EVERY_TENSOR)
        return rules[: last + 1] if last else rules[0].value

    def truth(self, name: str, places: Sequence[Place], default: bool) -> bool:
        """Yes or no, the same for all tensors."""
        for where, parameters in places:
            if isinstance(parameters, dict) and name in parameters:
                return self._truth(parameters[name], f"{where}.{name}")
        return default

    def _rules(self, setting: Any, where: str) -> list[Rule]:
        if isinstance(setting, dict):
            return [self._rule(setting, where)]
        if isinstance(setting, list) and any(isinstance(entry, dict) for entry in setting):
            return [self._rule(entry, f"{where}[{index}]") for index, entry in enumerate(setting)]
        return [Rule(self._value(setting, where))]

    def _rule(self, entry: Any, where: str) -> Rule:
        if not isinstance(entry, dict) or "value" not in entry or not set(entry) <= set(_ENTRY):
            self.problems.append(f"{where}: {entry!r} is no entry of the form value: …, filter: …")
            return Rule(0.0)
        given = entry.get("filter")
        if given is not None and not isinstance(given, str):
            self.problems.append(f"{where}.filter: {given!r} is no text")
        # The empty text is part of every name.
        return Rule(self._value(entry["value"], f"{where}.value"), None if given in (None, "*", "") else str(given))

    def _value(self, setting: Any, where: str) -> float | list[float]:
        if not isinstance(setting, list):
            return self._number(setting, where)
        if not setting:
            self.problems.append(f"{where} is an empty list")
            return 0.0
        numbers = [self._number(each, f"{where}[{index}]") for index, each in enumerate(setting)]
        return numbers if len(numbers) > 1 else numbers[0]

    def _number(self, setting: Any, where: str) -> float:
        try:
            number = float(setting)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            self.problems.append(f"{where}: {setting!r} is no finite number")
            return 0.0
        return number

    def _truth(self, setting: Any, where: str) -> bool:
        if isinstance(setting, list) and len(setting) == 1:
            return self._truth(setting[0], f"{where}[0]")
        if isinstance(setting, dict) and setting.get("filter") in EVERY_TENSOR and set(setting) <= set(_ENTRY):
            return self._truth(setting.get("value"), f"{where}.value")
        if isinstance(setting, list | dict):
            self.problems.append(f"{where}: it cannot differ by layer or by filter here; give true or false")
            return False
        if isinstance(setting, bool | int | float) and setting in (0, 1):
            return bool(setting)
        if str(setting).lower() not in _WORDS:
            self.problems.append(f"{where}: {setting!r} is neither true nor false")
        return _WORDS.get(str(setting).lower(), False)


def within(schedule: Schedule, holds: Callable[[float], bool]) -> bool:
    """Whether every number of a schedule, and so every value between them, holds."""
    if not isinstance(schedule, list):
        return holds(schedule)
    return all(within(part.value if isinstance(part, Rule) else part, holds) for part in schedule)
