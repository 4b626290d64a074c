"""Groups and tags of lm-eval: one name that stands for many tasks, such as `mmlu` for its 57 subjects."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import GraftbenchError
from harness.evaluation.declaration import declaring_files, read_declaration, task_folders


def leaf_tasks(name: str, include_path: Iterable[str] = ()) -> list[str]:
    """The tasks that a name of a suite stands for: itself if it is a task or unknown, else those of the group or tag,
    each once, in the order in which the group lists them (a tag's by name).

    Raises:
        GraftbenchError: a group that contains itself, or that changes the settings of its tasks, which lm-eval
            allows but this harness leaves to the suite.
    """
    return list(dict.fromkeys(_leaves(name, tuple(task_folders(include_path)), ())))


def _leaves(name: str, folders: tuple[Path, ...], outer: tuple[str, ...]) -> Iterator[str]:
    if name in outer:
        raise GraftbenchError(f"the group '{name}' of lm-eval tasks contains itself ({' > '.join((*outer, name))})")
    for folder in folders:
        if declaring_files(folder, "task", name):
            yield name
            return
        for file in declaring_files(folder, "group", name):
            yield from _members(name, read_declaration(file).get("task"), folders, outer)
            return
        tagged = _tagged(folder, name)
        if tagged:
            yield from tagged
            return
    yield name


def _members(name: str, listed: Any, folders: tuple[Path, ...], outer: tuple[str, ...]) -> Iterator[str]:
    for member in listed if isinstance(listed, list) else [listed]:
        if isinstance(member, str):
            yield from _leaves(member, folders, (*outer, name))
        elif isinstance(member, Mapping) and "group" in member:
            yield from _members(str(member["group"]), member.get("task"), folders, (*outer, name))
        elif isinstance(member, Mapping) and set(member) <= {"task", "task_alias"} and member.get("task"):
            yield from _leaves(str(member["task"]), folders, (*outer, name))
        else:
            shown = member.get("task", member) if isinstance(member, Mapping) else member
            raise GraftbenchError(
                f"the group '{name}' of lm-eval tasks changes the settings of '{shown}'; "
                "name its tasks in suite.tasks with the settings that you want"
            )


@functools.lru_cache(maxsize=64)
def _tagged(folder: Path, tag: str) -> tuple[str, ...]:
    """The tasks under a folder that bear the tag, in their own file or in one that they include."""
    named = re.compile(rf"(?<![\w.+-]){re.escape(tag)}(?![\w.+-])")
    mentioning = [file for file in _texts(folder) if named.search(_texts(folder)[file])]
    sources = {file.name for file in mentioning}
    neighbours = {file.parent for file in mentioning}
    found = []
    for file, text in _texts(folder).items():
        included = re.search(r"^[\"']?include[\"']?\s*:\s*(.+)$", text, re.MULTILINE)
        if file not in mentioning and not (
            file.parent in neighbours and included and included[1].strip("\"' ") in sources
        ):
            continue
        fields = read_declaration(file)
        tags = fields.get("tag") or ()
        if isinstance(fields.get("task"), str) and tag in ([tags] if isinstance(tags, str) else tags):
            found.append(fields["task"])
    return tuple(sorted(found))


@functools.lru_cache(maxsize=8)
def _texts(folder: Path) -> dict[Path, str]:
    """The text of every YAML file under a folder; templates may lack the suffix `.yaml`."""
    files = sorted(file for file in folder.rglob("*yaml") if file.is_file())
    return {file: file.read_text(encoding="utf-8", errors="replace") for file in files}
