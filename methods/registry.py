"""Finds methods: one file, one method, named like the file."""

import importlib
import importlib.util
import pkgutil
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import methods
from methods.interface import Method


@cache
def available() -> dict[str, type[Method]]:
    """The methods of this package, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(methods.__path__))
    modules = {name: importlib.import_module(f"methods.{name}") for name in names}
    return {name: found for name, module in modules.items() if (found := _method_in(module)) is not None}


def load_file(path: Path) -> tuple[str, type[Method]]:
    """The method in a file outside of the package, and its name (the file's).

    Raises:
        ValueError: the file does not exist, cannot be imported, or does not hold exactly one method.
    """
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"method file {path} does not exist")
    name = f"graftbench_method_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"method file {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"method file {path} cannot be imported: {type(error).__name__}: {error}") from error
    found = _method_in(module)
    if found is None:
        raise ValueError(f"method file {path} defines no subclass of methods.Method")
    return path.stem, found


def _method_in(module: ModuleType) -> type[Method] | None:
    """The one concrete method that a module defines itself, or None."""
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
        and not getattr(value, "__abstractmethods__", None)
    ]
    if len(found) > 1:
        raise ValueError(f"{module.__file__} defines {len(found)} methods; a file holds one")
    return found[0] if found else None
