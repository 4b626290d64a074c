"""What `graftbench zoo train` and `zoo decontaminate` do once their settings are read."""

import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.files import write_text_atomically
from harness.training_config import DecontaminateSettings, TrainSettings

SHOWN = 3
"""Overlaps of a task that are printed; the report has all."""


def train(settings: TrainSettings) -> None:
    """Fine-tune an expert."""
    from harness.zoo.training.train import train_expert  # transformers' Trainer takes seconds to import

    trained = train_expert(
        settings.model, settings.data.expanduser(), settings.out.expanduser(), settings.recipe, settings.resume
    )
    if trained is not None:
        Console().print(
            f"wrote {trained.folder}: trained on {trained.examples} examples for {trained.steps} steps, mean loss "
            f"{trained.loss:.3f}, with exp_avg_sq.safetensors",
            highlight=False,
            soft_wrap=True,
        )


def decontaminate(settings: DecontaminateSettings) -> None:
    """Count the items of a suite that training data hold."""
    from harness.evaluation.decontamination import overlaps  # lm-eval takes seconds to import

    found = overlaps(settings.suite, settings.data.expanduser(), settings.words)
    console = Console()
    table = Table("task", "items", "comparable", "found", title=f"{settings.words} words in a row in {settings.data}")
    for task in found:
        table.add_row(task.task, f"{task.items:,}", f"{task.comparable:,}", f"{len(task.overlaps):,}")
    console.print(table)
    for task in found:
        for overlap in task.overlaps[:SHOWN]:
            console.print(Text(f"{task.task}, item {overlap.item}, line {overlap.line}: {overlap.words}"))
    if settings.report is not None:
        about = {"data": str(settings.data), "suite": settings.suite.name, "words": settings.words}
        content = {**about, "tasks": [asdict(task) for task in found]}
        write_text_atomically(settings.report.expanduser(), json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        console.print(f"wrote {settings.report}", soft_wrap=True)
