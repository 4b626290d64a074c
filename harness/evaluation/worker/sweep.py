"""One engine for a sweep: its process is started when the first model comes, and again when it fails."""

import atexit
import json
import logging
import shutil
import tempfile
import time
from pathlib import Path

from harness.errors import GraftbenchError
from harness.evaluation.engines import Engine
from harness.evaluation.evaluate import Evaluation
from harness.evaluation.suite import Suite
from harness.evaluation.worker.process import Worker, WorkerBroken
from harness.evaluation.worker.requests import Answered, EvaluateFolder, EvaluateSubject, ReadReference, StandUp
from harness.evaluation.worker.standing import Loaded
from harness.evaluation.worker.subject import Opened, Subject, companions_digest

log = logging.getLogger(__name__)


def evaluate_alone(folder: Path, suite: Suite, engine: Engine) -> Evaluation:
    """Evaluate a checkpoint in a process that ends with it.

    Raises:
        GraftbenchError: something in the settings is wrong, or the process failed.
    """
    with Worker() as worker:
        try:
            evaluation: Evaluation = worker.ask(EvaluateFolder(engine, folder, suite))
        except WorkerBroken as error:
            raise GraftbenchError(f"the engine failed: {error}") from error
    return evaluation


class SharedEngine:
    """A worker in which an engine stands, for models of one configuration, tokenizer and set of tensors."""

    def __init__(self, engine: Engine) -> None:
        """Nothing is started yet.

        Raises:
            GraftbenchError: with these settings of the engine, weights cannot be exchanged.
        """
        engine.check_exchange()
        self.engine = engine
        self.started = 0
        """Number of times that an engine was started to stand."""
        self._worker: Worker | None = None
        self._shape = ""
        """What models must have in common to share the worker."""
        self._companions: tempfile.TemporaryDirectory[str] | None = None

    def evaluate(self, subject: Subject, suite: Suite, room: Path) -> Answered:
        """Load a model and evaluate it; where that breaks the worker, once more in a new one.

        Args:
            subject: the model.
            suite: what it is asked.
            room: a folder that does not exist yet, for the first model, which is written to disk once.

        Raises:
            GraftbenchError: something in the settings or the inputs is wrong, or it failed twice.
        """
        try:
            return self._evaluate(subject, suite, room)
        except WorkerBroken as error:
            log.warning("%s; once more in a new engine", error)
            self.end()
        try:
            return self._evaluate(subject, suite, room)
        except WorkerBroken as error:
            self.end()
            raise GraftbenchError(f"the shared engine failed twice: {error}") from error

    def end(self) -> None:
        """End the worker, if there is one."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None
        if self._companions is not None:
            self._companions.cleanup()
            self._companions = None

    def _evaluate(self, subject: Subject, suite: Suite, room: Path) -> Answered:
        proved: Loaded | None = None
        with subject.open() as model:
            shape = _shape(model)
            if self._worker is None or not self._worker.alive or shape != self._shape:
                self.end()
                proved = self._stand_up(model, room)
                self._shape = shape
        assert self._worker is not None
        answered: Answered = self._worker.ask(EvaluateSubject(subject, suite))
        if proved is not None and proved.weights_digest != answered.loaded.weights_digest:
            raise WorkerBroken(
                f"the stream gave other weights ({answered.loaded.weights_digest[:12]}) than the same merge on disk "
                f"({proved.weights_digest[:12]})"
            )
        return answered

    def _stand_up(self, model: Opened, room: Path) -> Loaded:
        """Start an engine and prove it on a model, for which that is read in a fresh engine, too."""
        started = time.perf_counter()
        self._companions = tempfile.TemporaryDirectory(prefix="graftbench-engine-")
        companions = Path(self._companions.name)
        model.write_companions(companions)
        try:
            folder = model.checkpoint(room)
            self._worker = Worker()
            if self.engine.own_process:
                with Worker() as other:
                    fresh = other.ask(ReadReference(self.engine, folder))
            else:
                fresh = self._worker.ask(ReadReference(self.engine, folder))
            proved: Loaded = self._worker.ask(StandUp(self.engine, companions, folder, fresh))
        except GraftbenchError:
            self.end()
            raise
        finally:
            shutil.rmtree(room, ignore_errors=True)
        self.started += 1
        log.info("an engine stands for the sweep, proved in %.0f s", time.perf_counter() - started)
        return proved


def _shape(model: Opened) -> str:
    with tempfile.TemporaryDirectory(prefix="graftbench-engine-") as folder:
        model.write_companions(Path(folder))
        table = {name: [list(shape), str(dtype)] for name, (shape, dtype) in sorted(model.table.items())}
        return companions_digest(Path(folder)) + json.dumps(table)


_current: SharedEngine | None = None


def shared_engine(engine: Engine) -> SharedEngine:
    """The engine that this process shares among its models; another configuration of it takes the place of one."""
    global _current
    if _current is None or _current.engine != engine:
        end_shared_engine()
        _current = SharedEngine(engine)
    return _current


def end_shared_engine() -> None:
    """End the engine that this process shares, if there is one."""
    global _current
    if _current is not None:
        _current.end()
        _current = None


atexit.register(end_shared_engine)
