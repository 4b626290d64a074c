"""The house's one direction of flow: modules import downwards only, and `methods` imports no `harness`."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = [
    {"harness.errors", "harness.files", "harness.memory", "methods"},
    {"harness.schema"},
    {"harness.checkpoints", "harness.results"},
    {"harness.curvature"},
    {"harness.merging", "harness.leaderboard"},
    {"harness.evaluation"},
    {"harness.zoo"},
    {"harness.tracking", "harness.tuning"},
    {"harness.method_choice"},
    {"harness.config"},
    {"harness.run", "harness.overrides", "harness.moments_config", "harness.training_config"},
    {"harness.verbs", "harness.board_verbs", "harness.moments_verbs", "harness.training_verbs", "harness.help"},
    {"harness.cli"},
    {"harness.__main__"},
]
"""Rooms from the ground up; a room imports from lower floors, and from itself."""


def room(module: str) -> str:
    parts = module.split(".")
    return "methods" if parts[0] == "methods" else ".".join(parts[:2])


def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports, inside of functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names if node.module == "harness"}
    return {name for name in found if name.partition(".")[0] in ("harness", "methods")}


def modules() -> list[Path]:
    return sorted(path for package in ("harness", "methods") for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if module == "harness.__init__":
        assert not imports(path)
        return
    floor_of = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    here = room(module)
    assert here in floor_of, f"{here} has no floor yet; give it one"
    for name in imports(path) - {"harness", "harness.__version__"}:
        there = room(name)
        assert there == here or floor_of[there] < floor_of[here], f"{module} imports {name}, which is not below it"


def test_methods_know_torch_and_nothing_else() -> None:
    allowed = {"torch", "methods"}
    standard = {"abc", "ast", "collections", "dataclasses", "decimal", "functools", "hashlib", "importlib", "math"}
    standard |= {"pathlib", "pkgutil", "sys", "types", "typing"}
    for path in (ROOT / "methods").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                assert name.partition(".")[0] in allowed | standard, f"{path.name} imports {name}"
