"""`graftbench zoo train` at the command line, and its experts merged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from harness.cli import main
from harness.curvature.second_moments import SecondMoments
from harness.zoo.training import train as training
from tests.zoo.chats import chat_model, chats

QUICK = ["batch_size=2", "accumulation=2", "steps=4", "learning_rate=0.01"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRAFTBENCH_HOME", str(tmp_path / "home"))
    chat_model(tmp_path / "base")
    chats(tmp_path / "three.jsonl", "three")
    chats(tmp_path / "four.jsonl", "four")
    return tmp_path


def train(name: str, *more: str) -> None:
    main(["zoo", "train", "model=base", f"data={name}.jsonl", f"out={name}", *QUICK, *more])


def test_two_experts_are_trained_and_merged(folder: Path) -> None:
    train("three")
    train("four", "bf16=true")
    record = json.loads((folder / "three" / "training.json").read_text())
    assert (record["steps"], record["examples"], record["recipe"]["accumulation"]) == (4, 4, 2)
    with SecondMoments(folder / "three" / "exp_avg_sq.safetensors") as moments:
        assert (moments.metadata.step, moments.metadata.base_digest) == (4, record["base_digest"])
    assert not (folder / "three.unfinished").exists()
    question = torch.tensor([[2, 4, 8, 4, 9, 1, 3]])
    for name, answer in (("three", 6), ("four", 7)):
        before, after = (
            AutoModelForCausalLM.from_pretrained(folder / each)(question).logits[0, -1].log_softmax(0)[answer]
            for each in ("base", name)
        )
        assert after > before + 0.1
    experts = ["zoo.base=base", "zoo.experts.a=three", "zoo.experts.b=four"]
    main(["merge", "method=ota", "zoo=custom", *experts, "out=merged"])
    merged, three = (load_file(folder / each / "model.safetensors") for each in ("merged", "three"))
    assert any(not torch.equal(merged[name], three[name]) for name in three)


def test_an_interrupted_training_goes_on_to_the_same_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train("three", "save_every=2")
    shutil.move(folder / "three", folder / "whole")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training.SecondMomentsCallback, "on_train_end", stop)
        with pytest.raises(SystemExit):
            train("three", "save_every=2")
    shutil.rmtree(folder / "three.unfinished" / "checkpoint-4")
    train("three", "save_every=2", "resume=true")
    for file in ("model.safetensors", "exp_avg_sq.safetensors"):
        whole, resumed = load_file(folder / "whole" / file), load_file(folder / "three" / file)
        assert all(torch.allclose(whole[name], resumed[name], rtol=1e-5, atol=1e-9) for name in whole)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["model=nowhere", "data=three.jsonl", "out=new"], "nowhere"),
        (["model=base", "data=nowhere.jsonl", "out=new"], "data=nowhere.jsonl is no file"),
        (["model=base", "data=three.jsonl", "out=base"], "base exists already"),
        (["model=base", "data=bad.jsonl", "out=new"], "bad.jsonl:2"),
        (["model=base", "data=three.jsonl", "out=new", "resume=true"], "no checkpoint in new.unfinished"),
        (["model=base", "data=three.jsonl", "out=new", "steps=0"], "steps=0 must be 1 or more"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_loading(
    folder: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (folder / "three.jsonl").read_text().splitlines()[0]
    (folder / "bad.jsonl").write_text(good + '\n{"text": "one"}\n')
    with pytest.raises(SystemExit):
        main(["zoo", "train", *options])
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert not (folder / "new").exists() and not (folder / "new.unfinished").exists()
