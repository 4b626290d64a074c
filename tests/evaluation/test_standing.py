"""The guards of an engine that stands while models come and go: each is shown to fire, and to keep quiet."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.checkpoints import Checkpoint
from harness.errors import GraftbenchError
from harness.evaluation.engines import HFEngine, Weights
from harness.evaluation.worker.canary import Canary, read_canary
from harness.evaluation.worker.standing import StandingEngine
from harness.evaluation.worker.subject import FolderSubject, Opened
from harness.merging.merge import tensor_digest, weights_digest
from tests.evaluation.engine_models import Faulty, random_llama


@dataclass(frozen=True)
class Models:
    """Two models of one kind, and the canary of each in an engine of its own."""

    one: Path
    other: Path
    fresh: Canary
    fresh_other: Canary


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def models(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("standing")
    one = random_llama(folder / "one", tiny_model, 1, request.param)
    other = random_llama(folder / "other", tiny_model, 2, request.param, like=one)
    engine = HFEngine(device="cpu")
    return Models(one, other, read_canary(engine.load(one)), read_canary(engine.load(other)))


def standing(engine: HFEngine, models: Models) -> StandingEngine:
    with FolderSubject(models.one).open() as model:
        return StandingEngine(engine, models.one, model.table)


def faulty(fault: str = "") -> Faulty:
    engine = Faulty(device="cpu")
    engine.fault = fault
    return engine


@dataclass(frozen=True)
class Altered:
    """A model some of whose tensors are left out, put twice, or another model's."""

    model: Opened
    change: str
    source: Path | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    def weights(self) -> Weights:
        if self.source is not None:
            with FolderSubject(self.source).open() as other:
                yield from list(other.weights())
            return
        for name, tensor in self.model.weights():
            if self.change == "one left out" and name == "model.norm.weight":
                continue
            yield name, tensor.double() if self.change == "another data type" else tensor
            if self.change == "one twice" and name == "model.norm.weight":
                yield name, tensor


def test_a_model_that_comes_answers_like_a_fresh_engine(models: Models) -> None:
    engine = standing(HFEngine(device="cpu"), models)
    with FolderSubject(models.one).open() as one, FolderSubject(models.other).open() as other:
        proved = engine.prove(one, models.fresh)
        assert engine.load(other).canary.distance(models.fresh_other) == 0.0
        again = engine.load(one)
    assert again.canary.distance(models.fresh) == 0.0
    assert proved.weights_digest == again.weights_digest
    assert models.fresh.distance(models.fresh_other) > 100 * engine.tolerance


def test_the_digest_is_that_of_a_merge_on_disk(models: Models) -> None:
    engine = standing(HFEngine(device="cpu"), models)
    with Checkpoint(models.one) as checkpoint, FolderSubject(models.one).open() as one:
        by_hand = weights_digest({name: tensor_digest(checkpoint.read(name)) for name in checkpoint.tensors})
        assert engine.load(one).weights_digest == by_hand


def test_a_stale_prefix_cache(models: Models) -> None:
    engine = standing(faulty("stale prefix cache"), models)
    with FolderSubject(models.one).open() as one, pytest.raises(GraftbenchError, match="still answers 128 tokens"):
        engine.load(one)


def test_a_tensor_that_the_engine_skips(models: Models) -> None:
    quiet = standing(faulty(), models)
    engine = standing(faulty("skipped tensor"), models)
    with FolderSubject(models.one).open() as one:
        quiet.prove(one, models.fresh)
        with pytest.raises(GraftbenchError, match=r"differs by .* nats per token .* in a fresh engine"):
            engine.prove(one, models.fresh)


def test_a_tensor_that_the_engine_skips_later(models: Models) -> None:
    """Where the weights can be read back, every load is checked, not only the first."""

    class Readable(Faulty):
        held = HFEngine.held

    engine = standing(Readable(device="cpu"), models)
    with FolderSubject(models.one).open() as one, FolderSubject(models.other).open() as other:
        engine.prove(one, models.fresh)
        engine.engine.fault = "skipped tensor"  # type: ignore[attr-defined]
        with pytest.raises(GraftbenchError, match=r"holds other values of 'model.layers.1.mlp.down_proj.weight'"):
            engine.load(other)


def test_an_old_tied_head(tiny_model: Path, tmp_path: Path) -> None:
    """vLLM's build for processors keeps a copy of a tied head apart (its packed matrix), and takes a checkpoint without
    `lm_head.weight` silently."""
    tied = random_llama(tmp_path / "one", tiny_model, 1, tied=True)

    class Apart(Faulty):
        def hollow(self, folder: Path) -> object:
            lm = super().hollow(folder)
            lm.model.lm_head.weight = torch.nn.Parameter(lm.model.lm_head.weight.detach().clone())
            return lm

    class Old(Apart):
        def exchange(self, lm: object, weights: Weights) -> Sequence[Mapping[str, str]]:
            return super().exchange(lm, ((name, tensor) for name, tensor in weights if name != "lm_head.weight"))

    fresh = read_canary(HFEngine(device="cpu").load(tied))
    with FolderSubject(tied).open() as model:
        StandingEngine(Apart(device="cpu"), tied, model.table).prove(model, fresh)
        with pytest.raises(GraftbenchError, match="in a fresh engine"):
            StandingEngine(Old(device="cpu"), tied, model.table).prove(model, fresh)


def test_the_wrong_model(models: Models) -> None:
    """Other weights come than those whose canary was read from disk."""
    engine = standing(faulty(), models)
    with (
        FolderSubject(models.one).open() as one,
        pytest.raises(GraftbenchError, match="does not hold what was sent"),
    ):
        engine.prove(Altered(one, "", models.other), models.fresh)


def test_the_engine_goes_back_to_an_older_model(models: Models) -> None:
    """The same weights must answer the same each time that they come."""
    engine = standing(faulty(), models)
    with FolderSubject(models.one).open() as one, FolderSubject(models.other).open() as other:
        engine.load(one)
        engine.load(other)
        engine.engine.exchange = lambda lm, weights: [_ for _ in weights if False]  # type: ignore[method-assign, assignment]
        with pytest.raises(GraftbenchError, match=r"what the same weights answered before"):
            engine.load(one)


class Ranks(Faulty):
    """As if the tensors went to two other processes: what each says that it got is altered."""

    wrong: Mapping[str, str] = {}

    def exchange(self, lm: Any, weights: Weights) -> Sequence[Mapping[str, str]]:
        digests = {}

        def passing() -> Weights:
            for name, tensor in weights:
                digests[name] = tensor_digest(tensor)
                yield name, tensor

        super().exchange(lm, passing())
        return [digests, {name: digest for name, digest in {**digests, **self.wrong}.items() if digest}]


def test_what_arrives_in_another_process_must_be_what_was_sent(models: Models) -> None:
    """Altered, lost or surplus on the way to one of the ranks; a tied head's copy counts like any tensor."""
    engine = standing(Ranks(device="cpu"), models)
    with FolderSubject(models.one).open() as one:
        engine.load(one)
        for wrong in ({"lm_head.weight": ""}, {"model.norm.weight": "other"}, {"model.more.weight": "one"}):
            engine.engine.wrong = wrong  # type: ignore[attr-defined]
            (name,) = wrong
            with pytest.raises(GraftbenchError, match=rf"1 tensors, such as '{name}', arrived in process 1 of 2 of"):
                engine.load(one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("one left out", r"1 tensors did not come, such as 'model.norm.weight'"),
        ("one twice", r"'model.norm.weight' came as .*, but came already"),
        ("another data type", r"came as \[.*\] float64, but should be \[.*\] float32"),
    ],
)
def test_a_stream_that_is_not_the_model(models: Models, change: str, message: str) -> None:
    engine = standing(faulty(), models)
    with FolderSubject(models.one).open() as one, pytest.raises(GraftbenchError, match=message):
        engine.load(Altered(one, change))


def test_a_model_of_other_tensors_is_refused_before_the_engine_is_touched(models: Models) -> None:
    engine = standing(HFEngine(device="cpu"), models)
    engine.table.pop("model.norm.weight")
    before = read_canary(engine.lm)
    with (
        FolderSubject(models.one).open() as one,
        pytest.raises(
            GraftbenchError, match=r"'model.norm.weight' is \[64\] float32 in this model, but missing in the"
        ),
    ):
        engine.load(one)
    assert read_canary(engine.lm) == before


def test_a_canary_that_sees_nothing_is_not_relied_on(models: Models) -> None:
    engine = standing(HFEngine(device="cpu"), models)
    with FolderSubject(models.one).open() as one, pytest.raises(GraftbenchError, match="cannot tell"):
        engine.prove(one, read_canary(engine.lm))


def test_numbers_that_are_none_are_far_from_all_others() -> None:
    reading = Canary((-1.0, -2.0))
    assert reading.distance(replace(reading, log_likelihoods=(-1.25, -2.5))) == 0.5
    assert reading.distance(Canary((float("nan"), -2.0))) == float("inf")


def test_the_tolerance_is_that_of_the_format_that_answers(models: Models) -> None:
    assert standing(HFEngine(device="cpu"), models).tolerance == 1e-4
    assert standing(HFEngine(device="cpu", dtype="bfloat16"), models).tolerance == 2e-2


def nothing(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    yield from ()


def test_transformers_takes_no_partial_set(models: Models) -> None:
    engine = HFEngine(device="cpu")
    lm = engine.hollow(models.one)
    with pytest.raises(GraftbenchError, match="tensors of the model were not replaced"):
        engine.exchange(lm, nothing([]))
    with pytest.raises(GraftbenchError, match=r"no tensor 'model.norm.weight' of shape \[3\]"):
        engine.exchange(lm, [("model.norm.weight", torch.ones(3))])
