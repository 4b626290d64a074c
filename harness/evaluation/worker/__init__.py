"""Engines in processes of their own: one for each model, or one that stands while a sweep's models come and go."""

from harness.evaluation.worker.process import Worker, WorkerBroken
from harness.evaluation.worker.requests import Answered
from harness.evaluation.worker.subject import FolderSubject, MergeSubject
from harness.evaluation.worker.sweep import SharedEngine, end_shared_engine, evaluate_alone, shared_engine

__all__ = [
    "Answered",
    "FolderSubject",
    "MergeSubject",
    "SharedEngine",
    "Worker",
    "WorkerBroken",
    "end_shared_engine",
    "evaluate_alone",
    "shared_engine",
]
