"""What a worker can be asked to do. Each request is sent to it, and carried out there on what it keeps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from harness.errors import GraftbenchError
from harness.evaluation.engines import Engine
from harness.evaluation.evaluate import Evaluation, evaluate
from harness.evaluation.suite import Suite
from harness.evaluation.worker.canary import Canary, read_canary
from harness.evaluation.worker.standing import Loaded, StandingEngine
from harness.evaluation.worker.subject import FolderSubject, Opened, Subject


class LoadFailed(Exception):
    """A load went wrong: the process that tried must not be used again."""


@dataclass
class Kept:
    """What a worker keeps between requests."""

    standing: StandingEngine | None = None


class Request(Protocol):
    """Something to do in a worker."""

    def __call__(self, kept: Kept) -> Any:
        """Do it. A GraftbenchError means that the worker is as good as before, any other error that it is not."""
        ...


@dataclass(frozen=True)
class EvaluateFolder:
    """Evaluate a checkpoint in an engine of its own."""

    engine: Engine
    folder: Path
    suite: Suite

    def __call__(self, kept: Kept) -> Evaluation:
        """The evaluation."""
        return evaluate(self.folder, self.suite, self.engine)


@dataclass(frozen=True)
class ReadReference:
    """Load a checkpoint from disk in the ordinary way, for its canary."""

    engine: Engine
    folder: Path

    def __call__(self, kept: Kept) -> Canary:
        """The canary."""
        return read_canary(self.engine.load(self.folder))


@dataclass(frozen=True)
class StandUp:
    """Start the engine that will stand, and prove it on a model."""

    engine: Engine
    companions: Path
    """A folder with configuration and tokenizer, which stays."""
    folder: Path
    """The model on disk."""
    fresh: Canary
    """Its canary in a fresh engine."""

    def __call__(self, kept: Kept) -> Loaded:
        """How the model was loaded; the engine holds something else by now."""
        with FolderSubject(self.folder).open() as model:
            kept.standing = StandingEngine(self.engine, self.companions, model.table)
            try:
                return kept.standing.prove(model, self.fresh)
            except Exception as error:
                raise LoadFailed(_told(error)) from error


@dataclass(frozen=True)
class Answered:
    """The evaluation of a model in a standing engine."""

    evaluation: Evaluation
    loaded: Loaded


@dataclass(frozen=True)
class EvaluateSubject:
    """Load a model into the standing engine and evaluate it."""

    subject: Subject
    suite: Suite

    def __call__(self, kept: Kept) -> Answered:
        """The evaluation, and how the load went."""
        assert kept.standing is not None, "no engine stands"
        with self.subject.open() as model:
            loading = _Loading(kept.standing, model)
            evaluation = evaluate(kept.standing.folder, self.suite, cast(Engine, loading))
        assert loading.loaded is not None
        return Answered(evaluation, loading.loaded)


def _load(standing: StandingEngine, model: Opened) -> Loaded:
    try:
        return standing.load(model)
    except Exception as error:
        raise LoadFailed(_told(error)) from error


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, GraftbenchError) else f"{type(error).__name__}: {error}"


class _Loading:
    """The standing engine as an evaluation sees an engine: it loads the model when the tasks are ready."""

    def __init__(self, standing: StandingEngine, model: Opened) -> None:
        self._standing = standing
        self._model = model
        self.loaded: Loaded | None = None

    def load(self, model: str | Path) -> Any:
        self.loaded = _load(self._standing, self._model)
        return self._standing.lm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._standing.engine, name)
