"""Logging to Weights & Biases: one run per evaluated merge, and never a reason to lose one."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.results import Record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackingConfig:
    """Where results are logged besides the store."""

    name: Literal["none", "wandb"] = "none"
    """none or wandb."""
    project: str = "graftbench"
    """The project that runs go to."""
    entity: str | None = None
    """The user or team; null takes the default of the login."""
    mode: Literal["online", "offline"] = "online"
    """online, or offline to write files that `wandb sync` sends later."""
    folder: Path | None = None
    """Folder of wandb's files."""


def track(record: Record, config: TrackingConfig, sweep: str | None) -> None:
    """Log a record, if tracking is on; a failure is a warning, since the store has the result already."""
    if config.name == "none":
        return
    try:
        _log_to_wandb(record, config, sweep)
    except Exception as error:  # wandb raises whatever its transport raises
        log.warning(
            "wandb did not take %s (%s: %s); the store has the result",
            record.label,
            type(error).__name__,
            error,
        )


def _log_to_wandb(record: Record, config: TrackingConfig, sweep: str | None) -> None:
    import wandb

    folder = config.folder or Path("wandb")
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=config.project,
        entity=config.entity,
        mode=config.mode,
        dir=folder,
        id=record.key[:16],
        name=record.label,
        group=sweep,
        job_type=record.role,
        resume="allow",
        reinit="finish_previous",
        settings=wandb.Settings(silent=True),
        config={
            "recipe": record.recipe,
            "selection": record.selection,
            "zoo": record.zoo,
            "suite": record.suite,
            "engine": record.engine,
            "versions": record.versions,
        },
    )
    try:
        run.log(_scalars(record) | {"eval/results": _table(record)})
    finally:
        run.finish()


def _scalars(record: Record) -> dict[str, float]:
    """Scores in 0..100 and timings in seconds, under names that sort by what they are."""
    scores = {f"score/{capability}": score for capability, score in record.capability_scores().items()}
    tasks = {f"eval/{task.task}/{task.metric.replace(',', '/')}": task.score for task in record.tasks}
    seconds = {f"seconds/{phase}": value for phase, value in record.timings.items()}
    return {"score/average": record.objective(), **scores, **tasks, **seconds}


def _table(record: Record) -> Any:
    import wandb

    columns: list[str | int] = ["task", "capability", "metric", "items", "score"]
    rows = [[task.task, task.capability, task.metric, len(task.outcomes), task.score] for task in record.tasks]
    return wandb.Table(columns=columns, data=rows)
