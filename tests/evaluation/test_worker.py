"""Workers: evaluations in other processes, engines that are shared among models, and what happens when they break."""

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.errors import GraftbenchError
from harness.evaluation.engines import HFEngine, Weights
from harness.evaluation.evaluate import Evaluation, evaluate
from harness.evaluation.suite import Suite, suite_from_config
from harness.evaluation.worker import (
    FolderSubject,
    MergeSubject,
    SharedEngine,
    Worker,
    WorkerBroken,
    end_shared_engine,
    evaluate_alone,
    shared_engine,
)
from harness.evaluation.worker.subject import Opened
from harness.merging import MergeRequest, merge_to_folder
from methods.task_arithmetic import TaskArithmetic
from tests.evaluation.engine_models import random_llama


@dataclass(frozen=True)
class Echo:
    """A request that gives back what it holds, or does worse."""

    value: Any
    act: str = ""

    def __call__(self, kept: Any) -> Any:
        if self.act == "refuse":
            raise GraftbenchError(str(self.value))
        if self.act == "break":
            raise ValueError(str(self.value))
        if self.act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid() if self.act == "pid" else self.value


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as one:
        yield one


def test_a_worker_is_another_process_and_answers(worker: Worker) -> None:
    assert worker.ask(Echo({"a": [1, 2]})) == {"a": [1, 2]}
    assert worker.ask(Echo(None, "pid")) != os.getpid()


def test_a_refusal_leaves_the_worker_as_it_is(worker: Worker) -> None:
    before = worker.ask(Echo(None, "pid"))
    with pytest.raises(GraftbenchError, match="no such thing"):
        worker.ask(Echo("no such thing", "refuse"))
    with pytest.raises(WorkerBroken, match="unheard of"):
        worker.ask(Echo("unheard of", "break"))
    assert worker.ask(Echo(None, "pid")) == before


def test_a_worker_that_dies_says_how() -> None:
    with Worker() as one:
        with pytest.raises(WorkerBroken, match=r"ended by itself \(by SIGKILL\)"):
            one.ask(Echo(None, "die"))
        assert not one.alive


@dataclass(frozen=True)
class Fragile:
    """A model whose load fails until it was tried so many times: the tries are counted in a file."""

    folder: Path
    tries: Path
    failures: int
    kill: bool = False

    @contextlib.contextmanager
    def open(self) -> Iterator[Opened]:
        with FolderSubject(self.folder).open() as model:
            yield _Failing(model, self)


@dataclass(frozen=True)
class _Failing:
    model: Any
    about: Fragile

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def weights(self) -> Weights:
        tensors = iter(self.model.weights())
        yield next(tensors)
        tried = int(self.about.tries.read_text()) if self.about.tries.exists() else 0
        self.about.tries.write_text(str(tried + 1))
        if tried < self.about.failures:
            if self.about.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("the disk went away")
        yield from tensors


@dataclass(frozen=True)
class Setup:
    """A base, two experts, a suite and an engine."""

    home: Path
    base: Path
    experts: dict[str, Path]
    suite: Suite
    engine: HFEngine

    def request(self, scale: float) -> MergeRequest:
        without = {name: None for name in self.experts}
        return MergeRequest("task_arithmetic", TaskArithmetic(scale=scale), self.base, self.experts, without)

    def merge(self, scale: float) -> MergeSubject:
        with self.request(scale).plan() as plan:
            return MergeSubject(self.request(scale), plan.recipe(), self.home)


@pytest.fixture
def setup(tiny_model: Path, tmp_path: Path, mirror: Path, own_tasks: Path) -> Setup:
    base = random_llama(tmp_path / "base", tiny_model, 1, tied=True)
    experts = {
        name: random_llama(tmp_path / name, tiny_model, seed, True, like=base)
        for seed, name in enumerate(("math", "code"), start=2)
    }
    suite = suite_from_config(
        {
            "name": "own",
            "tasks": {"capitals": {}, "echo": {}},
            "include_path": [str(own_tasks)],
            "data_root": str(mirror),
        }
    )
    return Setup(tmp_path / "home", base, experts, suite, HFEngine(device="cpu", max_length=512))


def same(one: Evaluation, other: Evaluation) -> bool:
    return one.tasks == other.tasks and one.answers.equals(other.answers)


def test_a_shared_engine_scores_as_fresh_ones_do(setup: Setup, tiny_model: Path, tmp_path: Path) -> None:
    shared = SharedEngine(setup.engine)
    try:
        for scale in (0.3, 0.6):
            answered = shared.evaluate(setup.merge(scale), setup.suite, tmp_path / "room")
            with setup.request(scale).plan() as plan:
                report = merge_to_folder(plan, tmp_path / f"merge-{scale}")
            assert answered.loaded.weights_digest == report.weights_digest
            assert same(answered.evaluation, evaluate(report.folder, setup.suite, setup.engine))
            assert not (tmp_path / "room").exists()
        assert shared.started == 1
        untied = random_llama(tmp_path / "untied", tiny_model, 5, tied=False)
        answered = shared.evaluate(FolderSubject(untied), setup.suite, tmp_path / "room")
        assert shared.started == 2, "models of another configuration get another engine"
        assert same(answered.evaluation, evaluate_alone(untied, setup.suite, setup.engine))
    finally:
        shared.end()


def test_a_failed_load_is_tried_once_more_in_a_new_worker(setup: Setup, tmp_path: Path) -> None:
    shared = SharedEngine(setup.engine)
    try:
        killed_once = Fragile(setup.experts["math"], tmp_path / "once", 1, kill=True)
        shared.evaluate(FolderSubject(setup.base), setup.suite, tmp_path / "room")
        answered = shared.evaluate(killed_once, setup.suite, tmp_path / "room")
        assert shared.started == 2
        assert same(answered.evaluation, evaluate(setup.experts["math"], setup.suite, setup.engine))
        always = Fragile(setup.experts["code"], tmp_path / "always", 99)
        with pytest.raises(GraftbenchError, match="the shared engine failed twice: OSError: the disk went away"):
            shared.evaluate(always, setup.suite, tmp_path / "room")
        # The sweep goes on.
        shared.evaluate(FolderSubject(setup.experts["code"]), setup.suite, tmp_path / "room")
    finally:
        shared.end()


def test_a_merge_that_has_changed_is_refused(setup: Setup, tmp_path: Path) -> None:
    described = setup.merge(0.3)
    other = MergeSubject(setup.request(0.4), described.recipe, setup.home)
    with pytest.raises(GraftbenchError, match="have changed since this run began"):
        SharedEngine(setup.engine).evaluate(other, setup.suite, tmp_path / "room")


def test_a_process_shares_one_engine_until_another_is_asked_for() -> None:
    try:
        one = shared_engine(HFEngine(device="cpu"))
        assert shared_engine(HFEngine(device="cpu")) is one
        assert shared_engine(HFEngine(device="cpu", batch_size=2)) is not one
    finally:
        end_shared_engine()
