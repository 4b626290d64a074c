"""vLLM itself, on whatever it was built for: `make vllm-test` runs these where it is installed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from lm_eval.api.instance import Instance

from harness.errors import GraftbenchError
from harness.evaluation.engines import HFEngine, VLLMEngine, Weights
from harness.evaluation.engines.vllm import vllm_version
from harness.evaluation.suite import suite_from_config
from harness.evaluation.worker import FolderSubject, MergeSubject, SharedEngine, Worker, evaluate_alone
from harness.evaluation.worker.canary import PROMPTS, Canary, read_canary
from harness.evaluation.worker.standing import StandingEngine
from harness.merging import MergeRequest, merge_to_folder
from methods.task_arithmetic import TaskArithmetic
from tests.evaluation.engine_models import random_llama

pytestmark = pytest.mark.skipif(vllm_version() is None, reason="vLLM is not installed here; `make vllm-test` has it")

ZOO = sorted((Path(__file__).parents[2] / "runs" / "zoo").glob("tiny-*/experts/math"))
TOLERANCE = 1e-4
"""Of a log-likelihood in nats, summed over a continuation, in float32; 3e-5 was the most that was seen."""


def small(**options: Any) -> VLLMEngine:
    return VLLMEngine(kv_cache_gb=0.2, dtype="float32", enforce_eager=True, gpu_memory_utilization=0.3, **options)


@dataclass(frozen=True)
class Answers:
    """What a model says."""

    log_likelihoods: list[tuple[float, bool]]
    texts: list[str]


@dataclass(frozen=True)
class Ask:
    """A request: load a model and ask it for likelihoods and greedy answers."""

    engine: Any
    folder: Path

    def __call__(self, kept: Any) -> Answers:
        lm = self.engine.load(self.folder)
        pairs = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(PROMPTS)]
        options = {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False}
        contexts = [context for pair in PROMPTS for context in pair]
        prompts = [
            Instance("generate_until", {}, (context, dict(options)), number) for number, context in enumerate(contexts)
        ]
        likelihoods = lm.loglikelihood(pairs, disable_tqdm=True)
        return Answers(likelihoods, lm.generate_until(prompts, disable_tqdm=True))


@pytest.fixture(scope="module", params=["tied", "untied", "zoo"])
def model(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "zoo":
        if not ZOO:
            pytest.skip("the embedded models are not built here (runs/zoo)")
        return ZOO[-1]
    return random_llama(tmp_path_factory.mktemp("vllm") / "model", tiny_model, 1, request.param == "tied")


def test_vllm_answers_as_transformers_does(model: Path) -> None:
    with Worker() as worker:
        by_vllm: Answers = worker.ask(Ask(small(), model))
    by_hf = Ask(HFEngine(device="cpu", dtype="float32"), model)(None)
    for (ours, greedy), (theirs, theirs_greedy) in zip(by_vllm.log_likelihoods, by_hf.log_likelihoods, strict=True):
        assert ours == pytest.approx(theirs, abs=TOLERANCE)
        assert greedy == theirs_greedy
    assert len(by_hf.texts) == 16
    different = sum(ours != theirs for ours, theirs in zip(by_vllm.texts, by_hf.texts, strict=True))
    assert different == 0, [pair for pair in zip(by_vllm.texts, by_hf.texts, strict=True) if pair[0] != pair[1]]
    assert len(set(by_hf.texts)) > 4, "the answers are too much alike to compare anything"


class Faulty(VLLMEngine):
    """vLLM with what may go wrong while it stands; `fault` names it."""

    fault = ""
    silent = True
    """Whether vLLM's warnings go unheard, so that only other guards are left."""

    def exchange(self, lm: Any, weights: Weights) -> Sequence[Mapping[str, str]]:
        """Exchange the weights as the fault has it."""
        dropped = {"skipped tensor": "model.layers.1.mlp.down_proj.weight", "old head": "lm_head.weight"}
        left = ((name, tensor) for name, tensor in weights if name != dropped.get(self.fault))
        if self.fault == "cache refuses":
            with mock.patch.object(lm.model, "reset_prefix_cache", lambda: False):
                return super().exchange(lm, left)
        elif self.fault == "stale cache":
            with mock.patch.object(lm.model, "reset_prefix_cache", lambda: True):
                return super().exchange(lm, left)
        elif self.fault and self.silent:
            lm.model.collective_rpc("reload_weights", kwargs={"weights_iterator": left})
            lm.model.reset_prefix_cache()
            return ()
        else:
            return super().exchange(lm, left)


@dataclass(frozen=True)
class Stand:
    """A request: let an engine stand, load models one after the other with a fault in each, and tell what was said."""

    folders: tuple[Path, ...]
    faults: tuple[str, ...]
    fresh: Canary
    prove_with: str = ""
    silent: bool = True

    def __call__(self, kept: Any) -> list[str | Canary]:
        engine = Faulty(**vars(small()))
        engine.silent = self.silent
        said: list[str | Canary] = []
        with FolderSubject(self.folders[0]).open() as first:
            standing = StandingEngine(engine, self.folders[0], first.table)
            engine.fault = self.prove_with
            said += _attempt(lambda: standing.prove(first, self.fresh).canary)
        for folder, fault in zip(self.folders, self.faults, strict=False):
            engine.fault = fault
            with FolderSubject(folder).open() as one:
                said += _attempt(lambda opened=one: standing.load(opened).canary)  # type: ignore[misc]
        return said


def _attempt(act: Any) -> Iterator[str | Canary]:
    try:
        yield act()
    except GraftbenchError as error:
        yield str(error)


@dataclass(frozen=True)
class ReadFresh:
    """A request: the canary of a model in an engine of its own."""

    folder: Path

    def __call__(self, kept: Any) -> Canary:
        return read_canary(small().load(self.folder))


@dataclass(frozen=True)
class Pair:
    """Two models of one kind with their canaries."""

    folders: tuple[Path, Path]
    fresh: tuple[Canary, Canary]


def pair_of(folder: Path, tokenizer: Path, tied: bool) -> Pair:
    one = random_llama(folder / "one", tokenizer, 1, tied)
    other = random_llama(folder / "other", tokenizer, 2, tied, like=one)
    return Pair((one, other), (asked(ReadFresh(one)), asked(ReadFresh(other))))


@pytest.fixture(scope="module")
def pair(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_of(tmp_path_factory.mktemp("tied"), tiny_model, tied=True)


@pytest.fixture(scope="module")
def untied(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_of(tmp_path_factory.mktemp("untied"), tiny_model, tied=False)


def asked(request: Any) -> Any:
    with Worker() as worker:
        return worker.ask(request)


@pytest.mark.parametrize("heads", ["pair", "untied"])
def test_a_standing_vllm_holds_what_it_was_sent(heads: str, request: pytest.FixtureRequest) -> None:
    pair: Pair = request.getfixturevalue(heads)
    one, other = pair.folders
    proved, *loaded = asked(Stand((one, other, one), ("", "", ""), pair.fresh[0]))
    assert proved.distance(pair.fresh[0]) <= TOLERANCE
    for canary, fresh in zip(loaded, (pair.fresh[0], pair.fresh[1], pair.fresh[0]), strict=True):
        assert canary.distance(fresh) <= TOLERANCE
    assert pair.fresh[0].distance(pair.fresh[1]) > 100 * TOLERANCE


def test_a_stale_prefix_cache_is_seen(pair: Pair) -> None:
    """vLLM answers from it without a word."""
    one, other = pair.folders
    _, first, stale, refused = asked(Stand((one, other, one), ("", "stale cache", "cache refuses"), pair.fresh[0]))
    assert isinstance(first, Canary)
    assert "the prefix cache still answers" in stale
    assert "did not drop its prefix cache" in refused


def test_a_skipped_tensor_is_seen(pair: Pair) -> None:
    """First by what vLLM warns of, then with that silenced by the canary."""
    warned, *_ = asked(Stand(pair.folders, (), pair.fresh[0], "skipped tensor", silent=False))
    assert "vLLM did not take all weights" in warned
    unheard, *_ = asked(Stand(pair.folders, (), pair.fresh[0], "skipped tensor"))
    assert "in a fresh engine" in unheard


def test_an_old_tied_head_is_seen(pair: Pair) -> None:
    warned, *_ = asked(Stand(pair.folders, (), pair.fresh[0], "old head", silent=False))
    unheard, *_ = asked(Stand(pair.folders, (), pair.fresh[0], "old head"))
    assert "in a fresh engine" in unheard
    assert "ParallelLMHead: Failed to load weights" in warned


def test_the_wrong_model_is_seen(pair: Pair) -> None:
    wrong, *_ = asked(Stand(pair.folders, (), pair.fresh[1]))
    assert "the engine does not hold what was sent to it" in wrong


def test_fresh_and_shared_score_alike(tiny_model: Path, mirror: Path, own_tasks: Path, tmp_path: Path) -> None:
    base = random_llama(tmp_path / "base", tiny_model, 1, tied=True)
    experts = {
        name: random_llama(tmp_path / name, tiny_model, seed, True, like=base)
        for seed, name in enumerate(("math", "code"), start=2)
    }
    settings = {"tasks": {"capitals": {}, "echo": {}}, "include_path": [str(own_tasks)], "data_root": str(mirror)}
    suite, engine = suite_from_config(settings), small(max_length=512)
    shared = SharedEngine(engine)
    try:
        for scale in (0.3, 0.6):
            without = {name: None for name in experts}
            request = MergeRequest("task_arithmetic", TaskArithmetic(scale=scale), base, experts, without)
            with request.plan() as plan:
                subject = MergeSubject(request, plan.recipe(), tmp_path / "home")
                report = merge_to_folder(plan, tmp_path / f"merge-{scale}")
            answered = shared.evaluate(subject, suite, tmp_path / "room")
            alone = evaluate_alone(report.folder, suite, engine)
            assert answered.loaded.weights_digest == report.weights_digest
            assert answered.evaluation.tasks == alone.tasks
            assert answered.evaluation.answers.equals(alone.answers)
        assert shared.started == 1
    finally:
        shared.end()


def test_describes_what_can_change_a_score() -> None:
    described = VLLMEngine().describe()
    assert described["versions"].keys() == {"vllm", "torch", "transformers"}
    assert described["versions"]["vllm"] == vllm_version()
    assert {"dtype", "tensor_parallel_size", "max_num_seqs", "enforce_eager", "seed", "device"} <= described.keys()


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with Worker() as worker, pytest.raises(GraftbenchError, match="vLLM cannot start with this model"):
        worker.ask(Ask(VLLMEngine(dtype="float32"), tmp_path))
