"""What a task's scoring code needs beyond the core packages, read from its imports without running it."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from harness.evaluation.declaration import Declaration, module_file

_INSTALL = {
    "math_verify": "math-verify",
    "langdetect": "lm-eval[ifeval]",
    "immutabledict": "lm-eval[ifeval]",
    "nltk": "lm-eval[ifeval]",
}
_ANTLR = "antlr4-python3-runtime"


def missing_requirements(declaration: Declaration) -> Iterator[str]:
    """What the task's scoring code needs and is not there, and what to do about it."""
    files = scoring_files(declaration)
    packages = {name.partition(".")[0] for file in files for name in _imported(file) if not _beside(file, name)}
    missing = sorted(package for package in packages if not _is_there(package))
    if missing:
        wanted = " ".join(f"'{each}'" for each in sorted({_INSTALL.get(name, name) for name in missing}))
        yield f"task '{declaration.name}' needs {', '.join(missing)}; install with: pip install {wanted}"
        return
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    if f'version("{_ANTLR}").startswith("4.11")' in source and not _antlr().startswith("4.11"):
        yield (
            f"task '{declaration.name}' insists on {_ANTLR} 4.11, where Hydra needs {_antlr()}.\n"
            "math_500 and the group math_verify ask the same problems, and work with it."
        )
    if "punkt_tab" in source:
        yield from _missing_punkt_tab(declaration)


def scoring_files(declaration: Declaration) -> list[Path]:
    """The files of the functions that a declaration names, and those beside them or in lm-eval's tasks that they
    import."""
    found: list[Path] = []
    pending = [each.module for each in declaration.functions() if each.module is not None]
    while pending:
        file = pending.pop()
        if file in found:
            continue
        found.append(file)
        for name in _imported(file):
            stock = module_file(name) if name.startswith("lm_eval.tasks.") else None
            pending += [each for each in (stock, _beside(file, name)) if each is not None]
    return sorted(found)


def _imported(file: Path) -> set[str]:
    """The modules that a file imports, wherever in it; `from a import b` may mean a module a.b."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {
                f"{node.module}.{alias.name}" for alias in node.names if node.module.startswith("lm_eval.tasks")
            }
    return names


def _beside(file: Path, name: str) -> Path | None:
    """The file of a module that lies in the same folder."""
    path = (file.parent / f"{name.replace('.', '/')}.py").resolve()
    return path if path.is_file() else None


def _is_there(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


def _antlr() -> str:
    try:
        return importlib.metadata.version(_ANTLR)
    except importlib.metadata.PackageNotFoundError:
        return "another version"


def _missing_punkt_tab(declaration: Declaration) -> Iterator[str]:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        # Without it lm-eval fails only when an item that counts sentences is scored: after the whole
        # generation.
        yield (
            f"task '{declaration.name}' needs NLTK's tokenizer 'punkt_tab', which is in none of NLTK's folders.\n"
            "Fetch it with `python -m nltk.downloader punkt_tab`, or let NLTK_DATA name a folder that holds "
            "tokenizers/punkt_tab."
        )
