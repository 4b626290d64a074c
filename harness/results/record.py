"""The record of one evaluated model: what it is, how it was scored, and the outcome of every item."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

from harness.errors import GraftbenchError
from harness.files import canonical_json, text_digest
from harness.schema import build

FORMAT_VERSION = 3
READABLE_VERSIONS = (1, 2, 3)
"""Version 1 has no `circumstances`, and of a task neither `prompts`, `counts` nor `timings`; versions 1 and 2 have no
`costs`, and of a task no `clusters`. They are read as empty, which is to say unknown."""

Role = Literal["base", "expert", "reference", "method", "control"]


@dataclass(frozen=True)
class TaskOutcome:
    """The outcomes of one task, item by item, in the order of the data."""

    task: str
    """Name of the lm-eval task."""
    capability: str
    """The capability that it measures."""
    metric: str
    """The metric that counts, as lm-eval names it: `metric,filter`."""
    chance: float
    """Expected score of guessing, in 0..1."""
    item_ids: tuple[str, ...]
    """Stable ids: the same item has the same id in every record."""
    outcomes: tuple[float, ...]
    """The metric of each item, in 0..1."""
    other_metrics: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Further metrics of the same items, by `metric,filter`."""
    prompts: str | None = None
    """Digest of every item with the prompt that the model saw and the target, few-shot examples and chat template
    included: lm-eval's task hash."""
    counts: dict[str, int] = field(default_factory=dict)
    """Of the generated answers, how many were `empty` and how many `truncated` (ran into the limit of new tokens)."""
    timings: dict[str, float] = field(default_factory=dict, compare=False)
    """Seconds: `prepare` (building prompts), `answer` (the model at work), `score`."""
    clusters: tuple[str, ...] = ()
    """The cluster of each item, where items share a passage or are one problem in two tasks; empty where every item
    stands alone. Tasks may have clusters in common."""

    def __post_init__(self) -> None:
        lengths = {len(self.item_ids), len(self.outcomes), *map(len, self.other_metrics.values())}
        if len(lengths) != 1:
            raise GraftbenchError(
                f"task '{self.task}': {len(self.item_ids)} item ids, but {len(self.outcomes)} outcomes"
            )
        if self.clusters and len(self.clusters) != len(self.item_ids):
            raise GraftbenchError(
                f"task '{self.task}': {len(self.item_ids)} item ids, but {len(self.clusters)} clusters"
            )
        if not self.outcomes:
            raise GraftbenchError(f"task '{self.task}' has no items")
        if len(set(self.item_ids)) != len(self.item_ids):
            raise GraftbenchError(f"task '{self.task}': item ids repeat")
        if not all(0.0 <= outcome <= 1.0 for outcome in self.outcomes):
            raise GraftbenchError(f"task '{self.task}': an outcome lies outside 0..1")

    @property
    def score(self) -> float:
        """Mean outcome, in 0..100."""
        return 100.0 * fmean(self.outcomes)


@dataclass(frozen=True)
class Record:
    """One evaluated model, whole enough to recompute a board from records alone."""

    key: str
    """Digest of everything that determines the scores, computed before merging."""
    label: str
    """The row's name: the method's configuration, or the model's name in the zoo."""
    role: Role
    capability: str | None
    """An expert's own capability; None for every other role."""
    recipe: dict[str, Any]
    """The method, its hyper-parameters and its inputs."""
    selection: dict[str, Any]
    """How the hyper-parameters were chosen: `how` (default, published, tuned, given, unknown), `source` of what was
    published, and of what was tuned `trials`, `split` and `seconds`."""
    zoo: dict[str, Any]
    suite: dict[str, Any]
    engine: dict[str, Any]
    versions: dict[str, str]
    weights_digest: str | None
    """Digest of the evaluated weights; None where a model was evaluated as it came."""
    timings: dict[str, float]
    """Seconds by phase: `merge` (of which `cutoffs`), and `evaluate` (of which `load`, and the tasks' `prepare`,
    `answer` and `score`)."""
    tasks: tuple[TaskOutcome, ...]
    circumstances: dict[str, Any] = field(default_factory=dict)
    """What the evaluation found where it ran, and could not know beforehand: the model's number format and longest
    context, the chat template's digest, the machine, how far model-written code was shut in."""
    costs: dict[str, Any] = field(default_factory=dict)
    """What the merge took besides time: `peak_memory_bytes`, `extra_bytes_per_expert` (files that an expert must come
    with besides its weights) and `data_needed` (none, second moments, labelled examples). No part of the key."""

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise GraftbenchError(f"record {self.key}: role '{self.role}' is none of {', '.join(get_args(Role))}")
        if not self.tasks:
            raise GraftbenchError(f"record {self.key} has no tasks")

    def capability_scores(self) -> dict[str, float]:
        """Score of each capability, in 0..100: the mean of its tasks."""
        scores: dict[str, list[float]] = {}
        for task in self.tasks:
            scores.setdefault(task.capability, []).append(task.score)
        return {capability: fmean(values) for capability, values in scores.items()}

    def objective(self) -> float:
        """Mean over capabilities (not over tasks), in 0..100: what a sweep maximises."""
        return fmean(self.capability_scores().values())


def key_of(suite: Mapping[str, Any], engine: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """The key of a record: the digest of everything that can change a score, known before anything is merged."""
    return text_digest(canonical_json({"suite": suite, "engine": engine, "recipe": recipe}))[:32]


def to_json(record: Record) -> str:
    """The record as JSON text, one key a line at the top level, the same text for the same record."""
    fields = {"format_version": FORMAT_VERSION, **asdict(record)}
    lines = [
        f"{json.dumps(name)}: {json.dumps(value, sort_keys=True, allow_nan=False)}" for name, value in fields.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_record(path: Path) -> Record:
    """The record in a file.

    Raises:
        GraftbenchError: the file is not a valid record; it is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GraftbenchError(f"{path}: cannot be read as a record ({error})") from error
    return from_json(text, source=str(path))


def from_json(text: str, source: str = "record") -> Record:
    """Read a record back.

    Raises:
        GraftbenchError: the text is not JSON, not a record of this format version, or contradicts itself;
            `source` (a file's path) is named.
    """
    try:
        fields = json.loads(text)
        version = fields.pop("format_version")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise GraftbenchError(f"{source}: not a Graftbench record ({error})") from error
    if version not in READABLE_VERSIONS:
        readable = " and ".join(map(str, READABLE_VERSIONS))
        raise GraftbenchError(f"{source}: record format {version}, but this version reads {readable}")
    try:
        return build(Record, fields, "record")
    except GraftbenchError as error:
        raise GraftbenchError(f"{source}: not a valid record: {error}") from error
