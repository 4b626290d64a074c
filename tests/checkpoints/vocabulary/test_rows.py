"""Rows moved to where the output has them, and rows that some models lack."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from harness.checkpoints import Checkpoint, TensorInfo
from harness.checkpoints.vocabulary import MatchedRows, MissingRows, match_vocabularies
from tests.checkpoints.small import write_checkpoint
from tests.checkpoints.vocabulary.models import HIDDEN, ids, save, tokenizer
from tests.checkpoints.vocabulary.pieces import EMBEDDING, HEAD, completed, whole

CORE = 270


def numbered(folder: Path, rows: int, width: int, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """A model whose entry (row, column) is row + column/16, in embedding, head, head bias and another tensor."""
    values = torch.arange(rows, dtype=torch.float32)[:, None] + torch.arange(width) / 16
    tensors = {EMBEDDING: values, HEAD: values + 100, "lm_head.bias": values[:, 0].clone(), "model.norm.weight": [1.0]}
    return Checkpoint(write_checkpoint(folder, tensors, dtype))


def test_rows_are_gathered_and_missing_ones_are_zero(tmp_path: Path) -> None:
    inner = numbered(tmp_path / "m", rows=5, width=3)
    matched = MatchedRows(inner, torch.tensor([3, 4, -1, 0, 1, -1]), 5)
    assert matched.source == inner.source
    assert matched.tensors[EMBEDDING].shape == (6, 3) and matched.tensors["lm_head.bias"].shape == (6,)
    assert matched.tensors["model.norm.weight"] == inner.tensors["model.norm.weight"]
    assert whole(matched, "lm_head.bias").tolist() == [3, 4, 0, 0, 1, 0]
    assert whole(matched, EMBEDDING)[:, 0].tolist() == [3, 4, 0, 0, 1, 0]
    assert whole(matched, EMBEDDING)[1].tolist() == [4, 4 + 1 / 16, 4 + 2 / 16]
    assert whole(matched, HEAD)[3].tolist() == [100, 100 + 1 / 16, 100 + 2 / 16]
    assert whole(matched, "model.norm.weight").tolist() == [1]
    matched.announce(EMBEDDING, 1, 17)
    matched.announce("model.norm.weight", 0, 1)
    matched.close()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    rows=st.lists(st.integers(-1, 6), min_size=1, max_size=12),
    piece=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_any_map_in_any_pieces_is_indexing(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int], piece: int, dtype: torch.dtype
) -> None:
    inner = numbered(tmp_path_factory.mktemp("any") / "m", rows=7, width=3, dtype=dtype)
    matched = MatchedRows(inner, torch.tensor(rows), 7)
    for name in (EMBEDDING, "lm_head.bias"):
        there = inner.read(name).float()
        expected = torch.stack([there[row] if row >= 0 else torch.zeros_like(there[0]) for row in rows])
        assert torch.equal(whole(matched, name, piece), expected)


def test_runs_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    rows, width = 700, 200
    inner = numbered(tmp_path / "m", rows, width)
    order = torch.arange(rows).roll(-1)
    assert torch.equal(whole(MatchedRows(inner, order, rows), EMBEDDING), inner.read(EMBEDDING)[order])


def test_consecutive_rows_are_fetched_at_once(tmp_path: Path) -> None:
    class Counting(Checkpoint):
        fetched = 0

        def fetch(self, name: str, start: int, stop: int, scratch: Tensor) -> Tensor:
            self.fetched += 1
            return super().fetch(name, start, stop, scratch)

    inner = Counting(numbered(tmp_path / "m", 8, 4).folder)
    matched = MatchedRows(inner, torch.tensor([4, 5, 6, 7, 0, 1, 2, 3]), 8)
    whole(matched, EMBEDDING)
    assert inner.fetched == 2
    whole(matched, EMBEDDING, 16)
    assert inner.fetched == 4


def test_missing_rows_by_hand() -> None:
    """Rows of two entries: all have row 0, the base lacks 1 and 2, the first expert lacks 2 and 3."""
    lacking = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    base = torch.tensor([1.0, 1, 0, 0, 0, 0, 2, 2])
    experts = torch.tensor([[3.0, 3, 4, 5, 0, 0, 0, 0], [5, 5, 6, 8, 7, 9, 8, 8]])
    curvatures = torch.ones(2, 8)
    MissingRows(lacking).fill(base, experts, curvatures, 0, 2)
    assert base.tolist() == [1, 1, 5, 6.5, 7, 9, 2, 2]
    assert experts.tolist() == [[3, 3, 4, 5, 7, 9, 2, 2], [5, 5, 6, 8, 7, 9, 8, 8]]
    assert curvatures.tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [1] * 8]


@settings(deadline=None, max_examples=80)
@given(data=st.data(), models=st.integers(2, 5), rows=st.integers(1, 12), width=st.integers(1, 4))
def test_missing_rows_in_any_pieces_follow_the_rules(data: st.DataObject, models: int, rows: int, width: int) -> None:
    flags = data.draw(st.lists(st.lists(st.booleans(), min_size=models, max_size=models), min_size=rows, max_size=rows))
    lacking = torch.tensor(flags).T.contiguous()
    lacking[1] &= ~lacking.all(0)
    piece = data.draw(st.integers(1, rows * width))
    base, experts = torch.randn(rows * width), torch.randn(models - 1, rows * width)
    curvatures = torch.rand(models - 1, rows * width)
    filled = base.clone(), experts.clone(), curvatures.clone()
    missing = MissingRows(lacking)
    for start in range(0, rows * width, piece):
        cut = slice(start, start + piece)
        missing.fill(filled[0][cut], filled[1][:, cut], filled[2][:, cut], start, width)
    for entry in range(rows * width):
        lacks_base, *lacks = lacking[:, entry // width].tolist()
        held = [experts[e, entry] for e in range(models - 1) if not lacks[e]]
        start_value = sum(held[1:], held[0]) / len(held) if lacks_base else base[entry]
        assert filled[0][entry] == start_value
        for e in range(models - 1):
            assert filled[1][e, entry] == (start_value if lacks[e] else experts[e, entry])
            assert filled[2][e, entry] == (0 if lacks[e] else curvatures[e, entry])


def renumbered(model: Checkpoint, folder: Path, built: Tokenizer) -> Checkpoint:
    """The same model with a tokenizer that numbers the same tokens otherwise, and rows that follow."""
    copy = save(folder, built, rows=model.tensors[EMBEDDING].shape[0])
    before, after = ids(model), ids(copy)
    tensors = {name: model.read(name).clone() for name in model.tensors}
    for name in (EMBEDDING, HEAD):
        for token, number in after.items():
            tensors[name][number] = model.read(name)[before[token]]
    save_file(tensors, copy.folder / "model.safetensors", metadata={"format": "pt"})
    return Checkpoint(copy.folder)


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), mode=st.sampled_from(["base", "union"]), piece=st.integers(1, 3000))
def test_a_permuted_expert_gives_the_merge_of_the_unpermuted_one(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, mode: str, piece: int
) -> None:
    folder = tmp_path_factory.mktemp("permuted")
    base = save(folder / "base", tokenizer(), rows=CORE + 2)
    one = save(folder / "one", tokenizer(["<x>", "<y>"]), seed=1)
    other = save(folder / "other", tokenizer(["<z>", "<x>", "<w>"]), seed=2)
    numbers = data.draw(st.permutations(range(CORE)))
    core = dict(zip(sorted(tokenizer().get_vocab()), numbers, strict=True))
    added = data.draw(st.permutations(["<z>", "<x>", "<w>"]))
    permuted = renumbered(other, folder / "permuted", tokenizer(added, core))

    vocabulary, problems = match_vocabularies(mode, base, {"one": one, "other": other})
    again, more = match_vocabularies(mode, base, {"one": one, "other": permuted})
    assert not problems and not more
    assert vocabulary.added.keys() == again.added.keys()
    for name in (EMBEDDING, HEAD):
        experts = {"one": one, "other": other}
        expected = completed(vocabulary, base, experts, name, CORE * HIDDEN * 2, experts)
        found = completed(again, base, {"one": one, "other": permuted}, name, piece, {"one": one, "other": permuted})
        for theirs, ours in zip(expected, found, strict=True):
            assert theirs is not None and ours is not None and torch.equal(theirs, ours)


def test_a_union_by_hand(tmp_path: Path) -> None:
    base = save(tmp_path / "base", tokenizer(), rows=CORE + 1)
    one = save(tmp_path / "one", tokenizer(["<x>", "<y>"]), seed=1)
    other = save(tmp_path / "other", tokenizer(["<x>"]), seed=2)
    vocabulary, _ = match_vocabularies("union", base, {"one": one, "other": other})
    experts = {"one": one, "other": other}
    b, e, c = completed(vocabulary, base, experts, EMBEDDING, 100, experts)
    assert c is not None
    theirs, first, second = (model.read(EMBEDDING) for model in (base, one, other))
    assert torch.equal(b[:CORE], theirs[:CORE])
    assert torch.equal(b[CORE], (first[CORE] + second[CORE]) / 2)
    assert torch.equal(b[CORE + 1], first[CORE + 1])
    assert torch.equal(e[0], first)
    assert torch.equal(e[1], torch.cat([second, first[CORE + 1 :]]))
    assert torch.equal(c[1, CORE + 1], torch.zeros(HIDDEN))


def test_what_is_not_of_the_vocabulary_is_untouched(tmp_path: Path) -> None:
    base = save(tmp_path / "base", tokenizer())
    expert = save(tmp_path / "e", tokenizer(["<x>"]), seed=1)
    vocabulary, _ = match_vocabularies("base", base, {"e": expert})
    matched = vocabulary.matched(expert, "e")
    for name, info in matched.tensors.items():
        assert info.shape == base.tensors[name].shape
        if not vocabulary.covers(info):
            assert torch.equal(whole(matched, name), expert.read(name))


def test_values_that_a_source_computes_keep_their_type() -> None:
    info = TensorInfo("lm_head.weight", (4, 2), torch.bfloat16, Path("f"))

    class Computed:
        """Gives fp32 for a tensor stored as bf16, as a model with an adapter does."""

        source = "s"
        tensors: Mapping[str, TensorInfo] = {info.name: info}

        def fetch(self, name: str, start: int, stop: int, scratch: Tensor) -> Tensor:
            return torch.arange(start, stop, dtype=torch.float32)

        def announce(self, name: str, start: int, stop: int) -> None: ...

        def close(self) -> None: ...

    matched = MatchedRows(Computed(), torch.tensor([1, -1, 0]), 4)
    assert matched.tensors[info.name] == TensorInfo("lm_head.weight", (3, 2), torch.bfloat16, Path("f"))
    assert whole(matched, info.name).tolist() == [[2, 3], [0, 0], [0, 1]]
    assert whole(matched, info.name, 1).tolist() == [[2, 3], [0, 0], [0, 1]]
