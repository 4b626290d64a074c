"""The digest of a method's source code: a merge is the same only if the code that made it is."""

import ast
import sys
from pathlib import Path

from harness.files import file_digest, text_digest
from methods import Method


def method_source_digest(method: type[Method]) -> str:
    """Digest of the file that defines a method and of the files of `methods` that it imports, directly or not."""
    module = sys.modules[method.__module__]
    pending = [Path(str(module.__file__))]
    package = Path(str(sys.modules["methods"].__file__)).parent
    files: set[Path] = set()
    while pending:
        file = pending.pop()
        if file not in files:
            files.add(file)
            pending += _imported_from(package, file)
    return text_digest("\n".join(sorted(f"{file.name} {file_digest(file)}" for file in files)))


def _imported_from(package: Path, file: Path) -> list[Path]:
    """The files of the package that a file imports by name."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    inside = [name.removeprefix("methods.") for name in sorted(names) if name.startswith("methods.")]
    return [path for name in inside if (path := package / f"{name}.py").is_file()]
