"""What a suite comes down to: for each task its declaration, its data, and the settings that replace its
own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.errors import GraftbenchError
from harness.evaluation.declaration import Declaration, find_declaration
from harness.evaluation.mirror import MirroredData, mirror_folder, mirrored_data
from harness.evaluation.suite import Suite


@dataclass(frozen=True)
class TaskPlan:
    """One task as it will be run. Made without a network, a model or any of the task's code."""

    declaration: Declaration
    capability: str
    metric: str | None
    """`metric,filter`; None only where the task's own code names its results, and the suite chose none."""
    chance: float
    split: str
    """The name that the data give to the split whose items are evaluated."""
    num_fewshot: int
    fewshot_split: str | None
    """Where few-shot examples come from; None if there are none, or the declaration lists them itself."""
    limit: int | None
    generation_kwargs: dict[str, Any]
    data: MirroredData | None
    """Data in the mirror; None leaves them to the `datasets` library."""

    @property
    def name(self) -> str:
        return self.declaration.name

    def needed_splits(self) -> list[str]:
        return sorted({self.split, self.fewshot_split or self.split})

    def write_declaration(self, folder: Path) -> Path:
        """Write the YAML file that lm-eval runs: it includes the task's own and replaces what the plan
        replaces."""
        own: dict[str, Any] = {
            "include": str(self.declaration.path.resolve()),
            "task": self.name,
            "test_split": self.split,
            "num_fewshot": self.num_fewshot,
        }
        if self.declaration.output_type == "generate_until" and self.generation_kwargs:
            own["generation_kwargs"] = self.generation_kwargs
        if self.data is not None:
            files = {split: str(self.data.files[split].resolve()) for split in self.needed_splits()}
            # A cache of its own, so that nothing is read that an earlier state of the same file has left in
            # the user's.
            kwargs = {"data_files": files, "cache_dir": str(folder / "datasets")}
            own |= {"dataset_path": self.data.reader, "dataset_name": None, "dataset_kwargs": kwargs}
            unneeded = {"training_split", "validation_split", "fewshot_split"}
            own |= {key: None for key in unneeded if self.declaration.fields.get(key) not in files}
        path = folder / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(own, sort_keys=False), encoding="utf-8")
        return path


def plan_suite(suite: Suite) -> tuple[list[TaskPlan], list[str]]:
    """Plan every task of the suite; returns the plans, and what is wrong with the tasks that could not be
    planned."""
    plans, problems = [], []
    for name in suite.tasks:
        try:
            plans.append(plan_task(suite, name))
        except GraftbenchError as error:
            problems.append(str(error))
    return plans, problems


def plan_task(suite: Suite, name: str) -> TaskPlan:
    """Plan one task.

    Raises:
        GraftbenchError: no such task, a metric that it does not have, or a split that it or its data do not
            have.
    """
    spec = suite.tasks[name]
    declaration = find_declaration(name, suite.include_path)
    data = mirrored_data(suite.data_root, declaration)
    num_fewshot = spec.num_fewshot if spec.num_fewshot is not None else int(declaration.fields.get("num_fewshot") or 0)
    plan = TaskPlan(
        declaration=declaration,
        capability=spec.capability or name,
        metric=_metric(declaration, spec.metric),
        chance=spec.chance,
        split=_split(suite, declaration, data),
        num_fewshot=num_fewshot,
        fewshot_split=_fewshot_split(declaration, num_fewshot),
        limit=spec.limit if spec.limit is not None else suite.limit,
        generation_kwargs={**(declaration.fields.get("generation_kwargs") or {}), **spec.gen_kwargs},
        data=data,
    )
    if data is not None:
        for split in plan.needed_splits():
            if split not in data.files:
                raise GraftbenchError(
                    f"task '{name}' needs the split '{split}', but {data.folder} has only {', '.join(data.files)}"
                )
    return plan


def _metric(declaration: Declaration, wanted: str | None) -> str | None:
    valid = declaration.metrics()
    if declaration.computes_metric_names():
        return wanted or (valid[0] if valid else None)
    if not valid:
        raise GraftbenchError(
            f"task '{declaration.name}' has no metric that is a mean over items with higher meaning better"
        )
    if wanted is None:
        return valid[0]
    if wanted not in valid:
        raise GraftbenchError(
            f"task '{declaration.name}' has no metric '{wanted}' that is a mean over items; it has: {'; '.join(valid)}"
        )
    return wanted


def _split(suite: Suite, declaration: Declaration, data: MirroredData | None) -> str:
    if suite.split == "test":
        if declaration.test_split is None:
            raise GraftbenchError(f"task '{declaration.name}' declares no test_split ({declaration.path})")
        return declaration.test_split
    declared = declaration.fields.get("validation_split")
    if declared and declaration.fields.get("test_split"):
        return str(declared)
    if data is not None and "validation" in data.files and declaration.test_split != "validation":
        return "validation"
    raise GraftbenchError(
        f"task '{declaration.name}' has no validation items beside its test items"
        + (f" (in {data.folder})" if data is not None else "")
        + "; choose hyper-parameters on a suite that has them"
    )


def _fewshot_split(declaration: Declaration, num_fewshot: int) -> str | None:
    config = declaration.fields.get("fewshot_config") or {}
    if config.get("split"):  # lm-eval reads this one even when no example is wanted
        return str(config["split"])
    if num_fewshot == 0 or config.get("samples") is not None:
        return None
    for kind in ("fewshot", "training", "validation"):
        if declaration.fields.get(f"{kind}_split"):
            return str(declaration.fields[f"{kind}_split"])
    raise GraftbenchError(
        f"task '{declaration.name}' declares nowhere to take few-shot examples from; set its num_fewshot to 0"
    )


def missing_mirror_note(suite: Suite, declaration: Declaration) -> str:
    """Where the mirror was looked into, as a clause of an error message."""
    folder = mirror_folder(suite.data_root, declaration)
    return f"not in the mirror ({folder})" if folder is not None else "suite.data_root names no mirror"
