"""Typed options: a dataclass is the schema, and its fields' docstrings are the manual."""

import ast
import inspect
import math
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from harness.errors import GraftbenchError, unknown_name

Options = TypeVar("Options")


@dataclass(frozen=True)
class Option:
    """One option as help shows it."""

    name: str
    default: str
    text: str


def build(cls: type[Options], values: Mapping[str, Any], where: str) -> Options:
    """An instance of a dataclass from plain values, types checked.

    Args:
        cls: the dataclass.
        values: its fields; those that are missing take their defaults.
        where: how the user writes the group, to name an option in an error.

    Raises:
        GraftbenchError: an option does not exist (the nearest are named), lacks a value, or has a bad one.
    """
    _refuse_unknown(cls, values, where)
    _refuse_infinite(values, where)
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        problems = {problem["loc"][:1]: problem for problem in reversed(error.errors())}
        raise GraftbenchError("; ".join(_explain(problem, where) for problem in problems.values())) from error


def options_of(cls: type) -> list[Option]:
    """The options that a dataclass declares, with their documentation."""
    texts = _field_texts(cls)
    return [Option(field.name, _default(field), texts.get(field.name, "")) for field in fields(cls)]


def summary_of(cls: type) -> str:
    """The first line of a class's docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _refuse_unknown(cls: Any, values: Mapping[str, Any], where: str) -> None:
    """Unknown options, here and in nested dataclasses: before types are looked at, and with the nearest names."""
    hints = get_type_hints(cls)
    for name, value in values.items():
        if name not in hints:
            raise unknown_name("option", f"{where}.{name}", [f"{where}.{field.name}" for field in fields(cls)])
        if is_dataclass(hints[name]) and isinstance(value, Mapping):
            _refuse_unknown(hints[name], value, f"{where}.{name}")
        elif (nested := _dataclass_within(hints[name])) is not None:
            _refuse_unknown_within(nested, value, f"{where}.{name}")


def _refuse_unknown_within(cls: Any, value: Any, where: str) -> None:
    """The same for a mapping or list of such dataclasses."""
    entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        if isinstance(entry, Mapping):
            _refuse_unknown(cls, entry, f"{where}.{key}")
        else:
            _refuse_unknown_within(cls, entry, f"{where}.{key}")


def _dataclass_within(hint: Any) -> Any:
    """The dataclass that a type such as `dict[str, list[Rule]] | None` is made of; None if there is none."""
    if is_dataclass(hint):
        return hint
    return next((found for part in getattr(hint, "__args__", ()) if (found := _dataclass_within(part))), None)


def _refuse_infinite(value: Any, where: str) -> None:
    """No option means anything at NaN or infinity, and no record could hold it."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            _refuse_infinite(entry, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for entry in value:
            _refuse_infinite(entry, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise GraftbenchError(f"{where}={value}: input should be a finite number")


def _explain(problem: Mapping[str, Any], where: str) -> str:
    """One of pydantic's findings in a user's words; its path names the branches of a union too, which ours does not."""
    branches = ("dict[", "float", "int", "str", "bool", "list[", "tuple[")
    path = ".".join([where, *(str(part) for part in problem["loc"] if not str(part).startswith(branches))])
    if problem["type"] == "missing":
        return f"option {path} needs a value"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{where}: {message}"
    return f"{path}={problem['input']}: {message[0].lower()}{message[1:]}"


def _default(field: Any) -> str:
    if field.default is not MISSING:
        return "null" if field.default is None else str(field.default)
    if field.default_factory is not MISSING:
        return str(field.default_factory() or "{}")
    return "required"


def _field_texts(cls: type) -> dict[str, str]:
    """The string under each field, of the class and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = following.value if isinstance(following, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    texts[statement.target.id] = " ".join(text.value.split())
    return texts
