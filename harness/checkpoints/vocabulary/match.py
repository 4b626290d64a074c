"""Which embedding row of each model belongs to which token of the output."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import AddedToken
from torch import Tensor

from harness.checkpoints.layout import TensorInfo, TensorSource, role_and_layer
from harness.checkpoints.vocabulary.differences import differences, foreign_tokens, some_of
from harness.checkpoints.vocabulary.rows import MatchedRows, MissingRows, has_vocabulary_rows
from harness.checkpoints.vocabulary.tokens import Tokens, flags, read_tokens, tokens_digest
from harness.errors import GraftbenchError, unknown_name
from harness.files import canonical_json, text_digest

log = logging.getLogger(__name__)

MODES = {
    "strict": "every expert gives the same numbers to the same tokens as the base",
    "base": "the output has the base's tokens; an expert's rows are found by token, and tokens of its own are dropped",
    "union": "as base, and tokens that only experts have are added after the base's",
}
"""What `vocabulary=` may be."""


class Model(Protocol):
    """What is asked of a model here; a `Checkpoint` has it."""

    @property
    def source(self) -> str:
        """The folder or hub name as the user gave it."""

    @property
    def folder(self) -> Path:
        """Where the tokenizer's files lie."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's configuration."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The model's tensors."""


@dataclass(frozen=True, eq=False)
class RowMap:
    """Where a model holds the output's rows."""

    source: Tensor
    """The model's row for each row of the output, int64 `[rows]`; −1 where the model has none."""
    rows_there: int
    """Number of embedding rows of the model."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """How the rows of the models come together. A model without a map has the output's rows as they are."""

    mode: str
    rows: int | None
    """Number of embedding rows of the output; None for a model without an embedding."""
    base: RowMap | None = None
    experts: Mapping[str, RowMap] = field(default_factory=dict)
    added: Mapping[int, AddedToken] = field(default_factory=dict)
    """The tokens that the output's tokenizer has beyond the base's, by their new numbers."""
    added_by_expert: Mapping[str, int] = field(default_factory=dict)
    """How many of the added tokens an expert has, if any."""

    @property
    def identity(self) -> bool:
        """Whether every model has the output's rows as they are, so that nothing needs to be done."""
        return self.base is None and not self.experts

    def matched(self, source: TensorSource, expert: str | None = None) -> TensorSource:
        """A model's weights or second moments with the output's rows.

        Args:
            source: the tensors as the model has them.
            expert: the model's name; None for the base.
        """
        row_map = self.base if expert is None else self.experts.get(expert)
        return source if row_map is None else MatchedRows(source, row_map.source, row_map.rows_there)

    def missing(self, experts: Sequence[str]) -> MissingRows | None:
        """The rows that the base or an expert lacks, for filling in; None if there are none.

        Args:
            experts: the experts in the order of the pieces that will be filled.
        """
        assert self.identity or self.rows is not None
        present = torch.zeros(self.rows or 0, dtype=torch.int64)
        maps = [self.base, *(self.experts.get(name) for name in experts)]
        lacking = torch.stack([(present if row_map is None else row_map.source) < 0 for row_map in maps])
        return MissingRows(lacking) if lacking.any() else None

    def covers(self, info: TensorInfo) -> bool:
        """Whether an output tensor has one row for each token: embedding and head."""
        return has_vocabulary_rows(info, self.rows)

    def described(self) -> dict[str, Any]:
        """What determines the merged rows and the added tokens, for a recipe."""
        maps = {"base": self.base} if self.base else {}
        named = [*maps.items(), *((f"expert {name}", row_map) for name, row_map in sorted(self.experts.items()))]
        digest = hashlib.sha256()
        for name, row_map in named:
            digest.update(f"{name} {row_map.rows_there} {len(row_map.source)} ".encode())
            digest.update(row_map.source.numpy().tobytes())
        tokens = [[number, token.content, flags(token)] for number, token in sorted(self.added.items())]
        return {
            "mode": self.mode,
            "rows": self.rows,
            "maps": digest.hexdigest() if named else None,
            "added": len(self.added),
            "added_tokens": text_digest(canonical_json(tokens)) if tokens else None,
            "added_by_expert": dict(sorted(self.added_by_expert.items())),
        }


def embedding_rows(tensors: Mapping[str, TensorInfo]) -> int | None:
    """Number of rows of the token embedding; None where there is no embedding."""
    embeddings = [
        name for name, info in tensors.items() if len(info.shape) == 2 and role_and_layer(name)[0] == "embedding"
    ]
    return tensors[min(embeddings)].shape[0] if embeddings else None


def match_vocabularies(mode: str, base: Model, experts: Mapping[str, Model]) -> tuple[Vocabulary, list[str]]:
    """Find each token's row in every model.

    Rows are matched by token string. A token counts if its number is below the model's number of embedding rows. Rows
    beyond any token (padding) match by position; a model that has too few takes the base's. A model whose folder holds
    no tokenizer matches by position, and must have as many rows as the base.

    - `strict`: same tokens, same numbers, same number of rows as the base (as the first expert by name with a
      tokenizer, if the base has none), else there is a problem.
    - `base`: the output has the base's tokens, numbers and rows. Tokens that only experts have are dropped. An expert
      takes no part in a row that it lacks.
    - `union`: the base's tokens keep their numbers; tokens that only experts have follow, sorted by token string,
      numbered as `add_tokens` of tokenizers does: from the end of the base's tokenizer on, so that they first fill the
      base's padding. They must be added tokens of the experts' tokenizers, whose flags they keep (the first expert's by
      name). A row that the base lacks starts from the mean of the experts that have it.

    Args:
        mode: one of `MODES`.
        base: the base model.
        experts: the experts by name.

    Returns:
        The vocabulary, and what is wrong, as texts; with problems the vocabulary is of no use.

    Raises:
        GraftbenchError: there is no such mode.
    """
    if mode not in MODES:
        raise unknown_name("vocabulary", mode, MODES)
    rows = embedding_rows(base.tensors)
    unmatched = Vocabulary(mode, rows)
    models: dict[str | None, Model] = {None: base}
    models |= {name: experts[name] for name in sorted(experts)}
    digests = {name: tokens_digest(model.folder) for name, model in models.items()}
    counts = {name: embedding_rows(model.tensors) for name, model in models.items()}
    if len(set(digests.values())) == 1 and set(counts.values()) == {rows}:
        return unmatched, []
    tokens, problems = _read_all(mode, models, digests)
    if problems:
        return unmatched, problems
    named = {name: f"expert '{name}' ({model.source})" for name, model in models.items() if name is not None}
    if mode == "strict":
        return unmatched, differences(tokens, counts, named)
    if set(counts.values()) == {None}:
        return unmatched, []  # Without an embedding there are no rows to match.
    return _matched(mode, tokens, counts, named, models)


def _read_all(
    mode: str, models: Mapping[str | None, Model], digests: Mapping[str | None, str | None]
) -> tuple[dict[str | None, Tokens | None], list[str]]:
    """Each model's tokens; equal files are read once."""
    read: dict[str | None, Tokens | None] = {None: None}
    problems = []
    for name, digest in digests.items():
        if digest in read:
            continue
        try:
            read[digest] = read_tokens(models[name].folder)
        except GraftbenchError as error:
            read[digest] = None
            if mode == "strict":
                log.warning("%s; its rows are taken to be those of the others", error)
            else:
                problems.append(f"{error}; vocabulary={mode} needs it")
    return {name: read[digest] for name, digest in digests.items()}, problems


def _matched(
    mode: str,
    tokens: Mapping[str | None, Tokens | None],
    counts: Mapping[str | None, int | None],
    named: Mapping[str, str],
    models: Mapping[str | None, Model],
) -> tuple[Vocabulary, list[str]]:
    """The modes that move rows."""
    base_tokens, base_rows = tokens[None], counts[None]
    if base_tokens is None:
        return Vocabulary(mode, base_rows), differences(tokens, counts, named)
    if base_rows is None or None in counts.values():
        text = "some models have a token embedding and some have none; are they of one architecture?"
        return Vocabulary(mode, base_rows), [text]
    problems = [
        f"{label} has {counts[name]} embedding rows where the base has {base_rows}, and it has no tokenizer to match "
        "them by; put its tokenizer beside the weights"
        for name, label in named.items()
        if tokens[name] is None and counts[name] != base_rows
    ]
    problems += [
        f"{named[name] if name else 'the base'} has {counts[name]} embedding rows, as many as none of its heads has; "
        "its rows cannot be matched"
        for name, model in models.items()
        if not _head_fits(model.tensors, counts[name])
    ]
    if problems:
        return Vocabulary(mode, base_rows), problems

    with_row = {name: None if found is None else found.with_row(counts[name]) for name, found in tokens.items()}
    added: dict[str, AddedToken] = {}
    if mode == "union":
        added, problems = _to_add(base_tokens, tokens, counts, named)
    for name, label in named.items():
        _log_differences(base_tokens.with_row(base_rows), with_row[name], label, mode)

    new = {token: base_tokens.next_id + index for index, token in enumerate(added)}
    if new and base_tokens.next_id <= max(base_tokens.ids.values(), default=-1):
        problems.append(
            f"the base ({models[None].source}) leaves gaps in the numbers of its tokens, where added tokens would "
            "collide with others; choose vocabulary=base"
        )
    # Sorted, since a tokenizer lists its tokens in no particular order, and two may share a number.
    numbers = {**dict(sorted(base_tokens.ids.items())), **new}
    rows = base_rows
    if mode == "union":
        beyond = {token: number for token, number in numbers.items() if number >= base_rows}
        ends = [end + 1 for token, end in beyond.items() if any(token in (held or ()) for held in with_row.values())]
        rows = max([base_rows, *ends])
    order: list[str | None] = [None] * rows
    for token, number in numbers.items():
        if number < rows:
            order[number] = token

    maps: dict[str | None, RowMap] = {}
    for model, held in with_row.items():
        count = counts[model]
        assert count is not None
        maps[model] = RowMap(_sources(order, held, count, set(new)), count)
    nowhere = torch.stack([row_map.source < 0 for row_map in maps.values()]).all(0).nonzero().flatten().tolist()
    if nowhere:
        problems.append(
            f"no model has an embedding row for {some_of([order[row] or f'number {row}' for row in nowhere])}, though "
            "the base's tokenizer knows it; enlarge the base's embedding, or choose vocabulary=base"
        )
    moved = {name: row_map for name, row_map in maps.items() if not _is_identity(row_map, rows)}
    return (
        Vocabulary(
            mode=mode,
            rows=rows,
            base=moved.pop(None, None),
            experts={name: row_map for name, row_map in moved.items() if name is not None},
            added={new[token]: flagged for token, flagged in added.items()},
            added_by_expert={
                name: count for name in named if (count := sum(token in (with_row[name] or {}) for token in added))
            },
        ),
        problems,
    )


def _sources(order: Sequence[str | None], held: Mapping[str, int] | None, count: int, new: set[str]) -> Tensor:
    """A model's row for each row of the output, whose tokens are `order`; by position if the model has no tokenizer."""
    if held is None:
        found = [row if row < count and token not in new else -1 for row, token in enumerate(order)]
    else:
        taken = set(held.values())
        found = [
            held.get(token, -1) if token is not None else row if row < count and row not in taken else -1
            for row, token in enumerate(order)
        ]
    return torch.tensor(found, dtype=torch.int64)


def _is_identity(row_map: RowMap, rows: int) -> bool:
    return row_map.rows_there == rows and torch.equal(row_map.source, torch.arange(rows))


def _to_add(
    base: Tokens,
    tokens: Mapping[str | None, Tokens | None],
    counts: Mapping[str | None, int | None],
    named: Mapping[str, str],
) -> tuple[dict[str, AddedToken], list[str]]:
    """The tokens that only experts have, in their order in the output."""
    first: dict[str, tuple[AddedToken, str]] = {}
    problems = []
    for name, label in named.items():
        found = tokens[name]
        if found is None:
            continue
        if foreign := foreign_tokens(found, counts[name], base):
            problems.append(
                f"{label}: the base lacks {len(foreign):,} of the tokenizer's own tokens "
                f"({some_of(foreign)}), so it was trained with another tokenizer; vocabulary=base would leave them out"
            )
        for token in sorted(found.with_row(counts[name]).keys() - base.ids.keys()):
            flagged = found.added.get(token)
            if flagged is None:
                continue
            chosen, whose = first.setdefault(token, (flagged, label))
            if flags(chosen) != flags(flagged):
                log.warning("%s and %s disagree in the flags of token %r; the first's are taken", whose, label, token)
    return {token: first[token][0] for token in sorted(first)}, problems


def _log_differences(base: Mapping[str, int], held: Mapping[str, int] | None, label: str, mode: str) -> None:
    if held is None:
        return
    if mode == "base" and (dropped := sorted(held.keys() - base.keys())):
        log.warning("%s: %d tokens that the base lacks are dropped (%s)", label, len(dropped), some_of(dropped))
    if lacking := sorted(base.keys() - held.keys()):
        text = "%s lacks %d of the base's tokens (%s) and takes no part in their rows"
        log.warning(text, label, len(lacking), some_of(lacking))


def _head_fits(tensors: Mapping[str, TensorInfo], rows: int | None) -> bool:
    heads = [info for name, info in tensors.items() if role_and_layer(name)[0] == "head" and len(info.shape) == 2]
    return not heads or any(info.shape[0] == rows for info in heads)
