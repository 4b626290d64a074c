"""vLLM over several processes (tensor parallel) that stand while a sweep's models come and go: `make vllm-test`."""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from harness.errors import GraftbenchError
from harness.evaluation.engines import VLLMEngine, Weights
from harness.evaluation.engines.ranks import taken_by_ranks
from harness.evaluation.engines.vllm import vllm_version
from harness.evaluation.suite import suite_from_config
from harness.evaluation.worker import FolderSubject, MergeSubject, SharedEngine, WorkerBroken, evaluate_alone
from harness.merging import MergeRequest, merge_to_folder
from methods.task_arithmetic import TaskArithmetic
from tests.evaluation.engine_models import random_llama

pytestmark = pytest.mark.skipif(vllm_version() is None, reason="vLLM is not installed here; `make vllm-test` has it")

RANKS = 2


@dataclass
class Faulty(VLLMEngine):
    """vLLM with what may go wrong in one of its ranks."""

    fault: str = ""

    def exchange(self, lm: Any, weights: Weights) -> Sequence[Mapping[str, str]]:
        """Exchange the weights as the fault has it."""
        rpc = lm.model.collective_rpc
        if self.fault == "rank altered":
            arrived = super().exchange(lm, weights)
            rpc(alter_on, args=(1,))
            return arrived
        if self.fault == "rank skips":
            return [{} if rank else digests for rank, digests in enumerate(super().exchange(lm, weights))]
        if self.fault == "stale cache":
            return [taken.digests for taken in taken_by_ranks(lm.model, weights, RANKS)]
        if self.fault == "rank killed":
            (*_, last) = rpc(process_of)

            def cut() -> Weights:
                for number, (name, tensor) in enumerate(weights):
                    if number == 2:
                        os.kill(last, signal.SIGKILL)
                    yield name, tensor

            return super().exchange(lm, cut())
        return super().exchange(lm, weights)


def process_of(worker: Any) -> int:
    """In a rank: its process."""
    return os.getpid()


def alter_on(worker: Any, rank: int) -> None:
    """In a rank: if it is that one, change a weight that can be read back."""
    from vllm.distributed import get_tensor_model_parallel_rank

    if get_tensor_model_parallel_rank() == rank:
        with torch.no_grad():
            worker.get_model().model.norm.weight.add_(1.0)


@dataclass(frozen=True)
class Attempt:
    """A request: load a model into the standing engine with a fault; tells what was said, or the processes."""

    folder: Path
    fault: str

    def __call__(self, kept: Any) -> Any:
        kept.standing.engine.fault = self.fault
        if self.fault == "processes":
            return kept.standing.lm.model.collective_rpc(process_of)
        with FolderSubject(self.folder).open() as model:
            try:
                return kept.standing.load(model)
            except GraftbenchError as error:
                return str(error)


def group_of(worker: psutil.Process) -> list[psutil.Process]:
    """The processes of a worker that run."""
    members = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == worker.pid and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return members


def shared_names() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith(("psm_", "vllm_dist_", "sem."))}


def gone(worker: psutil.Process) -> bool:
    """Whether no process of a worker is left, after at most ten seconds."""
    for _ in range(100):
        if not group_of(worker):
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def shared() -> Iterator[SharedEngine]:
    engine = Faulty(
        kv_cache_gb=0.1,
        dtype="float32",
        enforce_eager=True,
        gpu_memory_utilization=0.3,
        tensor_parallel_size=RANKS,
        max_length=512,
    )
    shared = SharedEngine(engine)
    try:
        yield shared
    finally:
        shared.end()


def test_a_model_over_several_processes_is_shared(
    shared: SharedEngine,
    tiny_model: Path,
    mirror: Path,
    own_tasks: Path,
    tmp_path: Path,
) -> None:
    """One test, since a start takes half a minute: scores as fresh, every guard on every rank, and what is left behind
    after a rank, and then the engine itself, is killed."""
    base = random_llama(tmp_path / "base", tiny_model, 1, tied=True)
    experts = {
        name: random_llama(tmp_path / name, tiny_model, seed, True, like=base)
        for seed, name in enumerate(("math", "code"), start=2)
    }
    settings = {"tasks": {"capitals": {}, "echo": {}}, "include_path": [str(own_tasks)], "data_root": str(mirror)}
    suite = suite_from_config(settings)
    before = shared_names()

    # Other weights than those that the engine was proved on, so that they came through shared memory alone.
    for scale in (0.3, 0.6):
        request = MergeRequest(
            "task_arithmetic", TaskArithmetic(scale=scale), base, experts, {name: None for name in experts}
        )
        with request.plan() as plan:
            subject = MergeSubject(request, plan.recipe(), tmp_path / "home")
            report = merge_to_folder(plan, tmp_path / f"merge-{scale}")
        answered = shared.evaluate(subject, suite, tmp_path / "room")
        assert answered.loaded.weights_digest == report.weights_digest
    alone = evaluate_alone(report.folder, suite, shared.engine)
    assert answered.evaluation.tasks == alone.tasks
    assert answered.evaluation.answers.equals(alone.answers)
    assert shared.started == 1

    worker = shared._worker
    assert worker is not None
    process = psutil.Process(worker._process.pid)
    ranks = worker.ask(Attempt(base, "processes"))
    assert len(set(ranks)) == RANKS and process.pid not in ranks
    assert shared_names() <= before, "names of shared memory outlive a killed process, so there must be none"

    assert "arrived in process 1 of 2 of the engine otherwise" in worker.ask(Attempt(base, "rank skips"))
    assert "holds other values of 'model.norm.weight'" in worker.ask(Attempt(base, "rank altered"))
    assert "the prefix cache still answers" in worker.ask(Attempt(experts["math"], "stale cache"))
    assert worker.ask(Attempt(base, "")).weights_digest, "what failed in these ways can be made good"

    assert "a process of the engine failed while it took weights" in worker.ask(Attempt(base, "rank killed"))
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(WorkerBroken, match="by SIGKILL"):
        worker.ask(Attempt(base, ""))
    shared.end()
    assert gone(process)
    assert shared_names() <= before
