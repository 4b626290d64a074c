"""The tokenizer that a merge's output gets."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, processors
from transformers import AutoTokenizer

from harness.checkpoints import Checkpoint
from harness.checkpoints.vocabulary import (
    Vocabulary,
    match_vocabularies,
    tokenizer_problems,
    write_tokenizer,
)
from harness.errors import GraftbenchError
from tests.checkpoints.vocabulary.models import ids, save, save_as_gpt2, tokenizer
from tests.checkpoints.vocabulary.pieces import EMBEDDING, completed

CORE = 270
TURN = AddedToken("<|turn|>", special=True, normalized=False)


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    return save(tmp_path / "base", tokenizer())


@pytest.fixture
def out(tmp_path: Path, base: Checkpoint) -> Path:
    """The output's folder with its config.json."""
    (tmp_path / "out").mkdir()
    shutil.copyfile(base.folder / "config.json", tmp_path / "out" / "config.json")
    return tmp_path / "out"


def matched(mode: str, base: Checkpoint, **experts: Checkpoint) -> Vocabulary:
    vocabulary, problems = match_vocabularies(mode, base, experts)
    assert not problems
    return vocabulary


def change(file: Path, settings: Mapping[str, Any]) -> None:
    """Change settings in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(settings)))


def holds_the_files_of(out: Path, source: Checkpoint) -> bool:
    names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
    return all((out / name).read_bytes() == (source.folder / name).read_bytes() for name in names)


@pytest.mark.parametrize("mode", ["strict", "base", "union"])
def test_the_base_is_copied_byte_for_byte(base: Checkpoint, out: Path, mode: str) -> None:
    assert write_tokenizer(out, matched(mode, base), base, base) == {}
    assert holds_the_files_of(out, base)


def test_the_base_is_copied_where_the_tokens_of_experts_are_dropped(
    tmp_path: Path, base: Checkpoint, out: Path
) -> None:
    expert = save(tmp_path / "e", tokenizer([TURN]))
    assert write_tokenizer(out, matched("base", base, e=expert), base, base) == {}
    assert holds_the_files_of(out, base)


def test_added_tokens_are_one_number_whose_row_is_the_experts(tmp_path: Path, base: Checkpoint, out: Path) -> None:
    """The embedding row of every text is that of the model which knows the token."""
    one = save(tmp_path / "one", tokenizer(["<zeta>", TURN]), seed=1)
    other = save(tmp_path / "other", tokenizer(["<alpha>"]), seed=2)
    vocabulary = matched("union", base, one=one, other=other)
    assert write_tokenizer(out, vocabulary, base, base) == {}
    written = AutoTokenizer.from_pretrained(out)
    rows, _, _ = completed(vocabulary, base, {"one": one, "other": other}, EMBEDDING, 1000)
    for token, expert in (("<zeta>", one), ("<|turn|>", one), ("<alpha>", other)):
        (number,) = written(token, add_special_tokens=False)["input_ids"]
        assert torch.equal(rows[number], expert.read(EMBEDDING)[ids(expert)[token]])
    assert len(written) == vocabulary.rows == CORE + 3
    text = "the cat<|turn|> ran<zeta>"
    assert written.decode(written(text)["input_ids"]) == text
    assert written.decode(written(text)["input_ids"], skip_special_tokens=True) == "the cat ran<zeta>"
    assert all(written.get_vocab()[token] == number for token, number in ids(base).items())
    assert (out / "chat_template.jinja").read_bytes() == (base.folder / "chat_template.jinja").read_bytes()


def test_lists_of_added_tokens_in_older_files_grow(tmp_path: Path, base: Checkpoint, out: Path) -> None:
    (base.folder / "added_tokens.json").write_text("{}")
    change(base.folder / "tokenizer_config.json", {"added_tokens_decoder": {}})
    vocabulary = matched("union", base, e=save(tmp_path / "e", tokenizer([TURN])))
    write_tokenizer(out, vocabulary, base, base)
    assert json.loads((out / "added_tokens.json").read_text()) == {"<|turn|>": CORE}
    listed = json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert listed[str(CORE)]["content"] == "<|turn|>" and listed[str(CORE)]["special"] is True


def test_a_base_without_tokenizer_json_is_extended_by_transformers(tmp_path: Path, out: Path) -> None:
    base = save(tmp_path / "gpt2", None, rows=CORE)
    save_as_gpt2(base.folder, {})
    expert = save(tmp_path / "e", None, rows=CORE + 1)
    save_as_gpt2(expert.folder, {"<x>": CORE})
    write_tokenizer(out, matched("union", base, e=expert), base, base)
    written = AutoTokenizer.from_pretrained(out)
    assert written("<x>")["input_ids"] == [CORE]
    assert written("the cat")["input_ids"] == AutoTokenizer.from_pretrained(base.folder)("the cat")["input_ids"]


def test_an_expert_with_the_same_numbers_is_copied(tmp_path: Path, base: Checkpoint, out: Path) -> None:
    expert = save(tmp_path / "e", tokenizer())
    (expert.folder / "chat_template.jinja").write_text("{{ 'another' }}")
    change(expert.folder / "config.json", {"eos_token_id": [1, 7]})
    expert = Checkpoint(expert.folder)
    numbers = write_tokenizer(out, matched("strict", base, e=expert), base, expert)
    assert holds_the_files_of(out, expert)
    assert numbers["eos_token_id"] == [1, 7] and numbers["bos_token_id"] == 0


def test_an_expert_with_the_unions_numbers_is_copied(tmp_path: Path, base: Checkpoint, out: Path) -> None:
    expert = save(tmp_path / "e", tokenizer([TURN]))
    write_tokenizer(out, matched("union", base, e=expert), base, expert)
    assert holds_the_files_of(out, expert)


def chatty(tmp_path: Path) -> Checkpoint:
    """An expert that ends its turns with an added token, and numbers its tokens otherwise than the base."""
    numbers = {token: (number + 5) % CORE for token, number in tokenizer().get_vocab().items()}
    expert = save(tmp_path / "chatty", tokenizer(["<zeta>", TURN], numbers))
    (expert.folder / "chat_template.jinja").write_text("{{ messages[0]['content'] + '<|turn|>' }}")
    end, bos = ids(expert)["<|turn|>"], ids(expert)["<bos>"]
    change(expert.folder / "tokenizer_config.json", {"eos_token": "<|turn|>", "model_max_length": 77})
    change(expert.folder / "config.json", {"eos_token_id": end, "bos_token_id": bos, "pad_token_id": -1})
    generation = {"eos_token_id": [end, bos], "bos_token_id": bos, "temperature": 0.5, "bad_words_ids": [[bos, end]]}
    change(expert.folder / "generation_config.json", generation)
    return Checkpoint(expert.folder)


def test_an_expert_may_give_template_and_special_tokens_to_a_union(tmp_path: Path, base: Checkpoint, out: Path) -> None:
    expert = chatty(tmp_path)
    numbers = write_tokenizer(out, matched("union", base, e=expert), base, expert)
    written = AutoTokenizer.from_pretrained(out)
    end = written.convert_tokens_to_ids("<|turn|>")
    assert end == CORE + 1, "after <zeta>"
    assert written.eos_token == "<|turn|>" and written.eos_token_id == end and written.bos_token_id == 0
    assert written.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False) == "the<|turn|>"
    assert numbers["eos_token_id"] == end and numbers["bos_token_id"] == 0 and numbers["pad_token_id"] == -1
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [end, 0] and generation["bad_words_ids"] == [[0, end]]
    assert generation["temperature"] == 0.5
    assert all(written.get_vocab()[token] == number for token, number in ids(base).items())
    ours, theirs = AutoTokenizer.from_pretrained(base.folder), written
    assert ours("the cat sat")["input_ids"] == theirs("the cat sat")["input_ids"]


def test_what_the_stated_source_lacks_does_not_come_from_the_base(tmp_path: Path, base: Checkpoint, out: Path) -> None:
    expert = chatty(tmp_path)
    for name in ("chat_template.jinja", "generation_config.json"):
        (expert.folder / name).unlink()
    write_tokenizer(out, matched("union", base, e=expert), base, expert)
    assert not (out / "chat_template.jinja").exists() and not (out / "generation_config.json").exists()
    assert AutoTokenizer.from_pretrained(out).chat_template is None


def test_an_expert_that_only_pads_its_embedding_is_copied(tmp_path: Path, base: Checkpoint, out: Path) -> None:
    expert = save(tmp_path / "e", tokenizer(), rows=CORE + 2)
    write_tokenizer(out, matched("base", base, e=expert), base, expert)
    assert holds_the_files_of(out, expert)


def test_an_expert_with_other_numbers_is_refused_without_union(tmp_path: Path, base: Checkpoint) -> None:
    expert = save(tmp_path / "e", tokenizer([TURN]))
    (problem,) = tokenizer_problems(matched("base", base, e=expert), base, expert)
    assert "gives other numbers to tokens than the output" in problem and "vocabulary=union" in problem


def test_an_expert_that_cuts_texts_otherwise_is_refused(tmp_path: Path, base: Checkpoint, out: Path) -> None:
    expert = chatty(tmp_path)
    built = Tokenizer.from_file(str(expert.folder / "tokenizer.json"))
    bos = ids(expert)["<bos>"]
    built.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    built.save(str(expert.folder / "tokenizer.json"))
    vocabulary = matched("union", base, e=expert)
    (problem,) = tokenizer_problems(vocabulary, base, expert)
    assert "the post_processor in tokenizer.json" in problem and "tokenizer=base" in problem
    with pytest.raises(GraftbenchError, match="post_processor"):
        write_tokenizer(out, vocabulary, base, expert)
    # The same treatment under other numbers is the same.
    same = Tokenizer.from_file(str(base.folder / "tokenizer.json"))
    same.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    same.save(str(base.folder / "tokenizer.json"))
    assert tokenizer_problems(vocabulary, base, expert) == []


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("tokenizer_config.json", {"pad_token": "<pad>"}, "names '<pad>' as pad_token"),
        ("tokenizer_config.json", {"pad_token": {"content": "<pad>"}}, "names '<pad>' as pad_token"),
        ("tokenizer_config.json", {"additional_special_tokens": ["<q>"]}, "names '<q>' as additional_special_tokens"),
        ("generation_config.json", {"eos_token_id": [500]}, "eos_token_id=500, 'no token'"),
        ("generation_config.json", {"forced_decoder_ids": [[1, 2]]}, "forced_decoder_ids"),
        ("config.json", {"pad_token_id": 999}, "pad_token_id=999"),
    ],
)
def test_special_tokens_that_the_output_lacks_are_refused(
    tmp_path: Path, base: Checkpoint, file: str, settings: dict[str, Any], message: str
) -> None:
    expert = chatty(tmp_path)
    change(expert.folder / file, settings)
    expert = Checkpoint(expert.folder)
    (problem,) = tokenizer_problems(matched("union", base, e=expert), base, expert)
    assert message in problem


def test_an_expert_without_tokenizer_is_refused_as_source(tmp_path: Path, base: Checkpoint) -> None:
    expert = save(tmp_path / "e", None, rows=CORE)
    (problem,) = tokenizer_problems(matched("strict", base, e=expert), base, expert)
    assert "has no tokenizer to give" in problem


def test_an_expert_may_name_the_tokens_of_a_base_without_tokenizer(tmp_path: Path, out: Path) -> None:
    base = save(tmp_path / "nameless", None, rows=CORE)
    expert = save(tmp_path / "e", tokenizer())
    write_tokenizer(out, matched("strict", base, e=expert), base, expert)
    assert holds_the_files_of(out, expert)


def test_a_tokenizer_that_would_give_other_numbers_is_refused(tmp_path: Path, base: Checkpoint, out: Path) -> None:
    vocabulary = matched("union", base, e=save(tmp_path / "e", tokenizer([TURN])))
    elsewhere = Vocabulary("union", CORE + 3, added={CORE + 2: vocabulary.added[CORE]})
    with pytest.raises(GraftbenchError, match=r"gives token '<\|turn\|>' the number 270, though its row is 272"):
        write_tokenizer(out, elsewhere, base, base)


def test_a_broken_tokenizer_is_a_problem_where_the_output_would_take_it(tmp_path: Path, base: Checkpoint) -> None:
    """Whether it was cut short, is none at all, or is the same in every model, so that no rows need matching."""
    expert = save(tmp_path / "e", tokenizer(), seed=1)
    whole = (base.folder / "tokenizer.json").read_text()
    for broken in (whole[: len(whole) // 2], "{}", ""):
        (base.folder / "tokenizer.json").write_text(broken)
        for mode in ("strict", "base"):
            (problem,) = tokenizer_problems(Vocabulary(mode, None), base, base)
            assert f"{base.folder / 'tokenizer.json'} is not a tokenizer that can be read" in problem
        (problem,) = tokenizer_problems(Vocabulary("strict", None), base, expert)
        assert "is not a tokenizer that can be read" in problem, "nobody knows whether the numbers agree"
    shutil.copyfile(base.folder / "tokenizer.json", expert.folder / "tokenizer.json")
    vocabulary, problems = match_vocabularies("union", base, {"e": expert})
    assert not problems and len(tokenizer_problems(vocabulary, base, base, {"e": expert})) == 2


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"])
def test_a_broken_settings_file_is_a_problem(tmp_path: Path, base: Checkpoint, name: str) -> None:
    expert = save(tmp_path / "e", tokenizer([TURN]), seed=1)
    (expert.folder / name).write_text('{"cut": ')
    experts = {"e": expert}
    (problem,) = tokenizer_problems(matched("union", base, **experts), base, base, experts)
    assert f"{expert.folder / name} is not valid JSON" in problem and "export it again" in problem
    assert tokenizer_problems(matched("base", base, **experts), base, base, experts) == []
    (problem,) = tokenizer_problems(Vocabulary("strict", None), base, expert, experts)
    assert f"{expert.folder / name} is not valid JSON" in problem
