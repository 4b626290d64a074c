"""Names of rows: records that share a label are told apart by what differs in their recipes."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from harness.files import canonical_json
from harness.results import Record

_DIGEST = re.compile(r"[0-9a-f]{16,}")


def row_labels(records: Sequence[Record]) -> dict[str, str]:
    """A label for each record, by key, unique within its role.

    Records that share one get their differing hyper-parameters, such as `ties (density=0.2)`; where the
    recipes differ only in digests or not at all, the beginning of the key.
    """
    sharing: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        sharing[record.role, record.label].append(record)
    labels: dict[str, str] = {}
    for (_, label), namesakes in sharing.items():
        remarks = _remarks(namesakes) if len(namesakes) > 1 else [""]
        for record, remark in zip(namesakes, remarks, strict=True):
            labels[record.key] = f"{label} ({remark})" if remark else label
    return labels


def _remarks(records: Sequence[Record]) -> list[str]:
    """What tells records of one label apart, one remark each."""
    recipes = [flattened(record.recipe) for record in records]
    paths = sorted({path for recipe in recipes for path in recipe if not _DIGEST.fullmatch(recipe[path])})
    differing = [path for path in paths if len({recipe.get(path) for recipe in recipes}) > 1]
    names = _short_names(differing)
    remarks = [", ".join(f"{names[path]}={recipe[path]}" for path in differing if path in recipe) for recipe in recipes]
    if len(set(remarks)) == len(remarks):
        return remarks
    return [
        ", ".join(part for part in (remark, record.key[:8]) if part)
        for remark, record in zip(remarks, records, strict=True)
    ]


def flattened(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted paths to texts."""
    flat: dict[str, str] = {}
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            flat |= flattened(entry, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = entry if isinstance(entry, str) else canonical_json(entry)
    return flat


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """The last part of each dotted path, or all of it where two paths end alike."""
    last = [path.rpartition(".")[2] for path in paths]
    return {path: name if last.count(name) == 1 else path for path, name in zip(paths, last, strict=True)}
