"""The command that makes a row again."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from harness.leaderboard.board import Board, Row


def command(board: Board, row: Row) -> str:
    """What to type to make the row again, every hyper-parameter spelt out; a sweep over seeds where it has several."""
    words = ["graftbench", "run"]
    seeds = [*board.training_seeds] if row.seeds.count > 1 else []
    if seeds or len(row.seeds.masks) > 1:
        words.append("-m")
    words += _subject(row)
    words += [f"zoo={board.zoo}", f"suite={board.suite}", f"backend={board.engine.get('name', 'auto')}"]
    if board.split != "test":
        words.append(f"suite.split={board.split}")
    if any(seeds):
        words.append(f"zoo.build.training_seed={_values(seeds)}")
    if row.role in ("method", "control"):
        words.append(f"label={row.label}")
    return " ".join(shlex.quote(word) for word in words)


def _subject(row: Row) -> list[str]:
    name = str(row.recipe.get("method"))
    if name == "none":
        return ["method=none", f"method.model={row.label}"]
    if name == "model":
        return ["model=PATH", f"label={row.label}"]
    options = {option: value for option, value in row.hyperparameters.items() if value not in ({}, None)}
    if len(row.seeds.masks) > 1:
        options["seed"] = list(row.seeds.masks)
    if row.role == "control":  # a configuration of its own, after which the row is called
        name = row.label.split()[0]
    return [f"method={name}", *(f"method.{option}={_written(value)}" for option, value in options.items())]


def _written(value: Any) -> str:
    """A value as Hydra reads it; several are a sweep."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_written(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return _values(value)
    return value if isinstance(value, str) else json.dumps(value)


def _values(values: Any) -> str:
    return ",".join(_written(value) for value in values)
