"""Which row of each model belongs to which token."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken

from harness.checkpoints import Checkpoint
from harness.checkpoints.vocabulary import embedding_rows, match_vocabularies
from harness.errors import GraftbenchError
from tests.checkpoints.small import write_checkpoint
from tests.checkpoints.vocabulary.models import save, save_as_gpt2, tokenizer

CORE = 270


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    return save(tmp_path / "base", tokenizer())


def turned(by: int = 1) -> dict[str, int]:
    """The trained tokens with their numbers turned round by a few."""
    return {token: (number + by) % CORE for token, number in tokenizer().get_vocab().items()}


@pytest.mark.parametrize("mode", ["strict", "base", "union"])
def test_equal_vocabularies_need_no_map(tmp_path: Path, base: Checkpoint, mode: str) -> None:
    expert = save(tmp_path / "e", tokenizer(), seed=1)
    vocabulary, problems = match_vocabularies(mode, base, {"e": expert})
    assert not problems
    assert vocabulary.identity and vocabulary.rows == CORE
    assert vocabulary.matched(expert, "e") is expert
    assert vocabulary.missing(["e"]) is None
    assert vocabulary.described()["maps"] is None


@pytest.mark.parametrize("mode", ["strict", "base", "union"])
def test_equal_vocabularies_are_not_even_read(tmp_path: Path, base: Checkpoint, mode: str) -> None:
    (base.folder / "tokenizer.json").write_text("no tokenizer at all")
    shutil.copytree(base.folder, tmp_path / "e")
    assert match_vocabularies(mode, base, {"e": Checkpoint(tmp_path / "e")})[1] == []


def test_another_chat_template_is_no_other_vocabulary(tmp_path: Path, base: Checkpoint) -> None:
    expert = save(tmp_path / "e", tokenizer(), seed=1)
    (expert.folder / "chat_template.jinja").write_text("other")
    assert match_vocabularies("strict", base, {"e": Checkpoint(expert.folder)})[1] == []


def test_strict_names_what_differs_and_what_would_help(tmp_path: Path, base: Checkpoint) -> None:
    experts = {
        "adds": save(tmp_path / "adds", tokenizer(["<x>"])),
        "numbers": save(tmp_path / "numbers", tokenizer(numbers=turned())),
        "pads": save(tmp_path / "pads", tokenizer(), rows=CORE + 2),
        "same": save(tmp_path / "same", tokenizer()),
        "unnamed": save(tmp_path / "unnamed", None, rows=CORE),
        "unnamed_longer": save(tmp_path / "unnamed_longer", None, rows=CORE + 1),
    }
    _, problems = match_vocabularies("strict", base, experts)
    adds, numbers, pads, unnamed_longer = problems
    assert "expert 'adds'" in adds and "has 271 embedding rows where the base has 270" in adds
    assert "on the numbers of 1 token ('<x>' is 270, there missing)" in adds
    assert "vocabulary=base or vocabulary=union" in adds
    assert "disagrees with the base on the numbers of 270 tokens ('!' is 3, there 2; " in numbers
    assert "expert 'pads'" in pads and "has 272 embedding rows" in pads and "disagrees" not in pads
    assert "it has no tokenizer to match rows by" in unnamed_longer


def test_strict_counts_an_added_token_in_a_padding_row(tmp_path: Path) -> None:
    base = save(tmp_path / "base", tokenizer(), rows=CORE + 10)
    expert = save(tmp_path / "e", tokenizer(["<x>"]), rows=CORE + 10)
    (problem,) = match_vocabularies("strict", base, {"e": expert})[1]
    assert "disagrees with the base on the numbers of 1 token ('<x>' is 270, there missing)" in problem


def test_strict_ignores_tokens_that_have_no_row(tmp_path: Path, base: Checkpoint) -> None:
    expert = save(tmp_path / "e", tokenizer(["<pad>"]), rows=CORE)
    assert match_vocabularies("strict", base, {"e": expert})[1] == []


@pytest.mark.parametrize("mode", ["strict", "base", "union"])
def test_experts_must_agree_where_the_base_has_no_tokenizer(tmp_path: Path, mode: str) -> None:
    base = save(tmp_path / "base", None, rows=CORE)
    one, other = save(tmp_path / "one", tokenizer()), save(tmp_path / "other", tokenizer(numbers=turned()))
    assert match_vocabularies(mode, base, {"one": one})[1] == []
    (problem,) = match_vocabularies(mode, base, {"other": other, "one": one})[1]
    assert "expert 'other'" in problem and "disagrees with expert 'one'" in problem


def test_base_finds_rows_by_token(tmp_path: Path, base: Checkpoint) -> None:
    expert = save(tmp_path / "e", tokenizer(numbers=turned(3)))
    vocabulary, problems = match_vocabularies("base", base, {"e": expert})
    assert not problems and vocabulary.base is None and vocabulary.rows == CORE
    source = vocabulary.experts["e"].source
    assert source.tolist() == [(number + 3) % CORE for number in range(CORE)]


def test_base_drops_what_only_the_expert_has(
    tmp_path: Path, base: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    expert = save(tmp_path / "e", tokenizer(["<x>", "<y>"]))
    with caplog.at_level(logging.WARNING):
        vocabulary, problems = match_vocabularies("base", base, {"e": expert})
    assert not problems and not vocabulary.added
    assert vocabulary.rows == CORE
    assert vocabulary.experts["e"].source.tolist() == list(range(CORE))
    assert vocabulary.missing(["e"]) is None
    assert "2 tokens that the base lacks are dropped ('<x>', '<y>')" in caplog.text


def test_base_tells_which_tokens_an_expert_lacks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = save(tmp_path / "base", tokenizer(["<x>", "<y>"]))
    expert = save(tmp_path / "e", tokenizer(["<y>"]))
    with caplog.at_level(logging.WARNING):
        vocabulary, problems = match_vocabularies("base", base, {"e": expert})
    assert not problems
    assert vocabulary.experts["e"].source.tolist() == [*range(CORE), -1, CORE]
    assert "lacks 1 of the base's tokens ('<x>')" in caplog.text


@pytest.mark.parametrize(("expert_rows", "expected"), [(CORE, [-1, -1, -1]), (CORE + 2, [CORE, CORE + 1, -1])])
def test_padding_matches_by_position(tmp_path: Path, expert_rows: int, expected: list[int]) -> None:
    base = save(tmp_path / "base", tokenizer(), rows=CORE + 3)
    expert = save(tmp_path / "e", tokenizer(), rows=expert_rows)
    for mode in ("base", "union"):
        vocabulary, problems = match_vocabularies(mode, base, {"e": expert})
        assert not problems and vocabulary.base is None
        assert vocabulary.experts["e"].source.tolist() == [*range(CORE), *expected]


def test_union_adds_tokens_in_their_own_order(tmp_path: Path, base: Checkpoint) -> None:
    one = save(tmp_path / "one", tokenizer(["<z>", "<x>"]))
    other = save(tmp_path / "other", tokenizer(["<y>", "<x>"]))
    vocabulary, problems = match_vocabularies("union", base, {"one": one, "other": other})
    assert not problems and vocabulary.rows == CORE + 3
    assert {number: token.content for number, token in vocabulary.added.items()} == {270: "<x>", 271: "<y>", 272: "<z>"}
    assert vocabulary.base is not None
    assert vocabulary.base.source.tolist() == [*range(CORE), -1, -1, -1]
    assert vocabulary.experts["one"].source.tolist() == [*range(CORE), 271, -1, 270]
    assert vocabulary.experts["other"].source.tolist() == [*range(CORE), 271, 270, -1]
    assert vocabulary.added_by_expert == {"one": 2, "other": 2}
    swapped, _ = match_vocabularies("union", base, {"other": other, "one": one})
    assert swapped.described() == vocabulary.described()


def test_union_fills_the_padding_first(tmp_path: Path) -> None:
    base = save(tmp_path / "base", tokenizer(), rows=CORE + 4)
    expert = save(tmp_path / "e", tokenizer(["<x>"]), rows=CORE + 2)
    vocabulary, problems = match_vocabularies("union", base, {"e": expert})
    assert not problems and vocabulary.rows == CORE + 4
    assert vocabulary.base is not None
    assert vocabulary.base.source.tolist()[CORE:] == [-1, CORE + 1, CORE + 2, CORE + 3]
    assert vocabulary.experts["e"].source.tolist()[CORE:] == [CORE, CORE + 1, -1, -1]


def test_union_takes_no_padding_row_of_one_expert_for_the_new_token_of_another(tmp_path: Path) -> None:
    base = save(tmp_path / "base", tokenizer(), rows=CORE + 2)
    adds = save(tmp_path / "adds", tokenizer(["<x>"]), rows=CORE + 2)
    experts = {
        "adds": adds,
        "padded": save(tmp_path / "padded", tokenizer(), rows=CORE + 2),
        "unnamed": save(tmp_path / "unnamed", None, rows=CORE + 2),
    }
    vocabulary, problems = match_vocabularies("union", base, experts)
    assert not problems
    assert vocabulary.experts["padded"].source.tolist()[CORE:] == [-1, CORE + 1]
    assert vocabulary.experts["unnamed"].source.tolist()[CORE:] == [-1, CORE + 1]
    assert "adds" not in vocabulary.experts


def test_union_gives_a_row_to_a_token_of_the_base_that_had_none(tmp_path: Path) -> None:
    base = save(tmp_path / "base", tokenizer(["<pad>"]), rows=CORE)
    expert = save(tmp_path / "e", tokenizer(["<pad>"]), rows=CORE + 1)
    vocabulary, problems = match_vocabularies("union", base, {"e": expert})
    assert not problems and vocabulary.rows == CORE + 1 and not vocabulary.added
    assert vocabulary.base is not None and vocabulary.base.source.tolist()[CORE:] == [-1]


def test_union_refuses_a_row_that_nobody_has(tmp_path: Path) -> None:
    base = save(tmp_path / "base", tokenizer(["<pad>"]), rows=CORE)
    expert = save(tmp_path / "e", tokenizer(["<x>"]))
    (problem,) = match_vocabularies("union", base, {"e": expert})[1]
    assert "no model has an embedding row for '<pad>'" in problem


def test_union_refuses_a_base_that_leaves_gaps_in_its_numbers(tmp_path: Path) -> None:
    numbers = tokenizer().get_vocab() | {"Ġthe": CORE + 5}
    base = save(tmp_path / "base", tokenizer(numbers=numbers), rows=CORE + 6)
    expert = save(tmp_path / "e", tokenizer(["<x>"]))
    (problem,) = match_vocabularies("union", base, {"e": expert})[1]
    assert "leaves gaps in the numbers of its tokens" in problem


def test_union_refuses_another_core_vocabulary(tmp_path: Path, base: Checkpoint) -> None:
    expert = save(tmp_path / "e", tokenizer(numbers=tokenizer().get_vocab() | {"Ġthq": CORE}))
    (problem,) = match_vocabularies("union", base, {"e": expert})[1]
    assert "the base lacks 1 of the tokenizer's own tokens ('Ġthq')" in problem
    assert "vocabulary=base" in problem
    assert match_vocabularies("base", base, {"e": expert})[1] == []
    (strict,) = match_vocabularies("strict", base, {"e": expert})[1]
    assert (
        "vocabulary=base would match rows by token and leave out its own ('Ġthq')" in strict
        and "vocabulary=union" not in strict
    )


def test_union_takes_flags_of_the_first_expert_by_name(
    tmp_path: Path, base: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    a = save(tmp_path / "a", tokenizer([AddedToken("<x>", special=True)]))
    b = save(tmp_path / "b", tokenizer([AddedToken("<x>", lstrip=True)]))
    with caplog.at_level(logging.WARNING):
        vocabulary, _ = match_vocabularies("union", base, {"b": b, "a": a})
    assert vocabulary.added[CORE].special and not vocabulary.added[CORE].lstrip
    assert "disagree in the flags of token '<x>'" in caplog.text
    other, _ = match_vocabularies("union", base, {"a": b, "b": a})
    assert other.added[CORE].lstrip
    assert other.described()["added_tokens"] != vocabulary.described()["added_tokens"]


def test_a_tokenizer_without_tokenizer_json_is_read_by_transformers(tmp_path: Path, base: Checkpoint) -> None:
    expert = save(tmp_path / "e", None, rows=CORE + 1)
    save_as_gpt2(expert.folder, {"<x>": CORE})
    vocabulary, problems = match_vocabularies("union", base, {"e": expert})
    assert not problems
    assert vocabulary.added[CORE].content == "<x>"
    assert "e" not in vocabulary.experts


def test_an_unreadable_tokenizer_is_a_problem_where_rows_move(
    tmp_path: Path, base: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    expert = save(tmp_path / "e", tokenizer(), seed=1)
    (expert.folder / "tokenizer.json").write_text("{")
    for mode in ("base", "union"):
        (problem,) = match_vocabularies(mode, base, {"e": expert})[1]
        assert "tokenizer.json is not a tokenizer that can be read" in problem
    with caplog.at_level(logging.WARNING):
        assert match_vocabularies("strict", base, {"e": expert})[1] == []
    assert "its rows are taken to be those of the others" in caplog.text


def test_models_without_embedding_have_nothing_to_match(tmp_path: Path) -> None:
    base = Checkpoint(write_checkpoint(tmp_path / "base", {"p": [1.0, 2.0]}))
    expert = Checkpoint(write_checkpoint(tmp_path / "e", {"p": [1.0, 2.0]}))
    assert embedding_rows(base.tensors) is None
    for mode in ("strict", "base", "union"):
        vocabulary, problems = match_vocabularies(mode, base, {"e": expert})
        assert not problems and vocabulary.identity and vocabulary.missing(["e"]) is None
        assert not vocabulary.covers(base.tensors["p"])


@pytest.mark.parametrize("mode", ["base", "union"])
def test_a_head_must_be_as_long_as_the_embedding(tmp_path: Path, base: Checkpoint, mode: str) -> None:
    tensors = {"model.embed_tokens.weight": torch.zeros(CORE + 1, 2), "lm_head.weight": torch.zeros(CORE, 2)}
    expert = write_checkpoint(tmp_path / "e", tensors)
    tokenizer(["<x>"]).save(str(expert / "tokenizer.json"))
    (problem,) = match_vocabularies(mode, base, {"e": Checkpoint(expert)})[1]
    assert "has 271 embedding rows, as many as none of its heads has" in problem


def test_an_expert_without_embedding_is_refused(tmp_path: Path, base: Checkpoint) -> None:
    expert = Checkpoint(write_checkpoint(tmp_path / "e", {"p": [1.0]}))
    (problem,) = match_vocabularies("union", base, {"e": expert})[1]
    assert "some models have a token embedding and some have none" in problem


def test_an_unknown_mode_is_named(base: Checkpoint) -> None:
    with pytest.raises(GraftbenchError, match="unknown vocabulary 'uniom'; did you mean 'union'"):
        match_vocabularies("uniom", base, {})


def test_heads_and_embeddings_are_covered(base: Checkpoint) -> None:
    vocabulary, _ = match_vocabularies("strict", base, {})
    covered = [name for name, info in base.tensors.items() if vocabulary.covers(info)]
    assert sorted(covered) == ["lm_head.weight", "model.embed_tokens.weight"]
