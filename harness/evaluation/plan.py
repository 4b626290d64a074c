"""What a suite comes down to: for each task its declaration, its data, and the settings that replace its
own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.errors import GraftbenchError
from harness.evaluation.declaration import Declaration, find_declaration
from harness.evaluation.groups import leaf_tasks
from harness.evaluation.mirror import ZOO_DATA, MirroredData, mirror_folder, mirrored_data
from harness.evaluation.partition import Partition
from harness.evaluation.suite import Suite, TaskSpec


@dataclass(frozen=True)
class TaskPlan:
    """One task as it will be run. Made without a network, a model or any of the task's code."""

    declaration: Declaration
    entry: str
    """Its name in the suite: its own, or that of the group that it belongs to, under which it is reported."""
    capability: str
    metric: str | None
    """`metric,filter`; None only where the task's own code names its results, and the suite chose none."""
    chance: float
    split: str
    """The name that the data give to the split whose items are evaluated."""
    partition: Partition | None
    """The part of that split that is evaluated; None for all of it."""
    num_fewshot: int
    fewshot_split: str | None
    """Where few-shot examples come from; None if there are none, or the declaration lists them itself."""
    limit: int | None
    generation_kwargs: dict[str, Any]
    repeats: int
    """Answers drawn for each item."""
    apply_chat_template: bool
    cluster: Mapping[str, str]
    """The `family` and the `field` of the data by which items belong together; empty where each stands alone."""
    data: MirroredData | None
    """Data in the mirror; None leaves them to the `datasets` library."""

    @property
    def name(self) -> str:
        return self.declaration.name

    @property
    def max_gen_toks(self) -> int | None:
        """The longest answer in tokens, by any of the names that lm-eval knows for it; None leaves it to the engine."""
        names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
        return next((int(self.generation_kwargs[name]) for name in names if name in self.generation_kwargs), None)

    @property
    def pass_at(self) -> int | None:
        """The k of a metric `pass@k`; None for any other."""
        named = re.match(r"pass@(\d+),", self.metric or "")
        return int(named[1]) if named else None

    def needed_splits(self) -> list[str]:
        return sorted({self.split, self.fewshot_split or self.split})

    def write_declaration(self, folder: Path) -> Path:
        """Write the YAML file that lm-eval runs: it includes the task's own and replaces what the plan
        replaces. Where part of a split is evaluated, that part is written beside it."""
        own: dict[str, Any] = {
            "include": str(self.declaration.path.resolve()),
            "task": self.name,
            "test_split": self.split,
            "num_fewshot": self.num_fewshot,
        }
        if self.declaration.output_type == "generate_until" and self.generation_kwargs:
            own["generation_kwargs"] = self.generation_kwargs
        if self.repeats != 1:
            own["repeats"] = self.repeats
        reader, files = self._files(folder)
        if files:
            # A cache of its own, so that nothing is read that an earlier state of the same file has left in
            # the user's.
            kwargs = {"data_files": files, "cache_dir": str(folder / "datasets")}
            own |= {"dataset_path": reader, "dataset_name": None, "dataset_kwargs": kwargs}
            unneeded = {"training_split", "validation_split", "fewshot_split"}
            own |= {key: None for key in unneeded if self.declaration.fields.get(key) not in files}
        path = folder / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(own, sort_keys=False), encoding="utf-8")
        return path

    def _files(self, folder: Path) -> tuple[str, dict[str, list[str]]]:
        """What reads the data, and the files of each split; none where the task's own declaration loads them."""
        if self.partition is None:
            if self.data is None:
                return "", {}
            parts = {split: self.data.files[split] for split in self.needed_splits()}
            return self.data.reader, {split: [str(file.resolve()) for file in files] for split, files in parts.items()}
        return "parquet", {split: [self._written(split, self.partition, folder)] for split in self.needed_splits()}

    def _written(self, split: str, partition: Partition, folder: Path) -> str:
        import datasets

        declared = self.declaration.fields
        if self.data is not None:
            files = [str(file.resolve()) for file in self.data.files[split]]
            cache = str(folder / "datasets")
            items = datasets.load_dataset(self.data.reader, data_files={split: files}, split=split, cache_dir=cache)
        else:
            kwargs = declared.get("dataset_kwargs") or {}
            items = datasets.load_dataset(declared["dataset_path"], declared.get("dataset_name"), split=split, **kwargs)
        path = folder / f"{split}.parquet"
        if split == self.split:
            partition.write(items, path)
        else:
            items.to_parquet(str(path))
        return str(path)


def reads_zoo_data(suite: Suite) -> bool:
    """Whether a task reads data that come with a model set, and the suite does not say where else they are.

    Raises:
        GraftbenchError: there is no such task, or its declaration cannot be read.
    """
    if suite.data_root is not None:
        return False
    leaves = [leaf for entry in suite.asked() for leaf in leaf_tasks(entry, suite.include_path)]
    declared = (find_declaration(leaf, suite.include_path).fields.get("dataset_path") for leaf in leaves)
    return any(str(data_set).startswith(ZOO_DATA) for data_set in declared)


def plan_suite(suite: Suite) -> tuple[list[TaskPlan], list[str]]:
    """Plan every task of the suite, groups task by task; returns the plans, and what is wrong with the tasks that
    could not be planned."""
    plans: dict[str, TaskPlan] = {}
    problems = []
    for entry in suite.asked():
        try:
            for plan in _plans_of(suite, entry):
                if plan.name in plans:
                    other = plans[plan.name].entry
                    raise GraftbenchError(f"suite.tasks names the task '{plan.name}' twice: by '{other}' and '{entry}'")
                plans[plan.name] = plan
        except GraftbenchError as error:
            problems.append(str(error))
    if not suite.asked():
        problems.append(f"all tasks of suite '{suite.name}' are held out; choose hyper-parameters on another suite")
    return list(plans.values()), problems


def _plans_of(suite: Suite, entry: str) -> list[TaskPlan]:
    """One plan, or one for each task of a group. Tasks of a group tend to lack the same thing, so that the first
    problem stands for all."""
    plans = [plan_task(suite, entry, name) for name in leaf_tasks(entry, suite.include_path)]
    metrics = sorted({str(plan.metric) for plan in plans})
    if len(metrics) > 1:
        raise GraftbenchError(
            f"the tasks of '{entry}' count by different metrics ({', '.join(metrics)}); name one that all of them have "
            f"with suite.tasks.{entry}.metric"
        )
    return plans


def plan_task(suite: Suite, entry: str, name: str) -> TaskPlan:
    """Plan one task.

    Args:
        suite: what asks for it.
        entry: its name in the suite: its own, or that of a group that it belongs to.
        name: the task's own name.

    Raises:
        GraftbenchError: no such task, a metric that it does not have, or a split that it or its data do not
            have.
    """
    spec = suite.tasks[entry]
    declaration = find_declaration(name, suite.include_path)
    data = mirrored_data(suite.data_root, declaration)
    num_fewshot = spec.num_fewshot if spec.num_fewshot is not None else int(declaration.fields.get("num_fewshot") or 0)
    chat = spec.apply_chat_template
    plan = TaskPlan(
        declaration=declaration,
        entry=entry,
        capability=spec.capability or entry,
        metric=_metric(declaration, spec.metric),
        chance=spec.chance,
        split=_split(suite, spec, declaration, data),
        partition=_partition(suite, spec, declaration),
        num_fewshot=num_fewshot,
        fewshot_split=_fewshot_split(declaration, num_fewshot),
        limit=spec.limit if spec.limit is not None else suite.limit,
        generation_kwargs={**(declaration.fields.get("generation_kwargs") or {}), **spec.gen_kwargs},
        repeats=spec.repeats or int(declaration.fields.get("repeats") or 1),
        apply_chat_template=suite.apply_chat_template if chat is None else chat,
        cluster=spec.cluster,
        data=data,
    )
    _check_repeats(plan)
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


def _check_repeats(plan: TaskPlan) -> None:
    """Many answers to an item tell something only where they differ, and where the task's score uses them all."""
    k = plan.pass_at
    if k is not None and k > plan.repeats:
        raise GraftbenchError(
            f"task '{plan.name}': pass@{k} needs {k} answers to each item; set suite.tasks.{plan.entry}.repeats={k} or "
            "more"
        )
    if plan.repeats == 1:
        return
    if not plan.declaration.computes_metric_names() or not plan.declaration.fields.get("filter_list"):
        raise GraftbenchError(f"task '{plan.name}' scores the first answer alone; leave out its repeats")
    settings = plan.generation_kwargs
    if settings.get("do_sample") is False or not float(settings.get("temperature") or 0.0) > 0.0:
        raise GraftbenchError(
            f"task '{plan.name}': {plan.repeats} answers to an item are all the same without sampling; set "
            f"suite.tasks.{plan.entry}.gen_kwargs={{do_sample: true, temperature: 0.8}}"
        )


def _split(suite: Suite, spec: TaskSpec, declaration: Declaration, data: MirroredData | None) -> str:
    test = declaration.test_split
    if suite.split == "test" or "hash" in spec.validation:
        if test is None:
            raise GraftbenchError(f"task '{declaration.name}' declares no test_split ({declaration.path})")
        return test
    chosen = validation_split(spec, declaration)
    if chosen == test and "split" in spec.validation:
        raise GraftbenchError(f"task '{declaration.name}' tests on '{test}'; its validation items must be others")
    if chosen is not None:
        return chosen
    if data is not None and "validation" in data.files and test != "validation":
        return "validation"
    raise GraftbenchError(
        f"task '{declaration.name}' has no validation items beside its test items"
        + (f" (in {data.folder})" if data is not None else "")
        + f"; set suite.tasks.{declaration.name}.validation={{hash: 0.2}} to set a part of them aside (scores on the "
        "rest compare with no others), or held_out: true to choose hyper-parameters without it"
    )


def validation_split(spec: TaskSpec, declaration: Declaration) -> str | None:
    """The split that the suite names for choosing hyper-parameters, or else the one that the task declares beside its
    test split."""
    declared = declaration.fields.get("validation_split") if declaration.fields.get("test_split") else None
    chosen = spec.validation.get("split") or declared
    return str(chosen) if chosen else None


def _partition(suite: Suite, spec: TaskSpec, declaration: Declaration) -> Partition | None:
    share = spec.validation.get("hash")
    if share is None:
        return None
    if declaration.fields.get("custom_dataset") is not None:
        raise GraftbenchError(
            f"task '{declaration.name}' makes its items in code, so that they cannot be parted by hash; leave out "
            "validation={hash: …}"
        )
    return Partition(share, validation=suite.split == "validation")


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
