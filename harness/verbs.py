"""What each verb of the command line does once its settings are read."""

import logging
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.config import (
    DataSettings,
    EvaluationSettings,
    GateSettings,
    MergeSettings,
    RunSettings,
    TuneSettings,
    ZooSettings,
)
from harness.errors import GraftbenchError
from harness.evaluation.fetch import fetch
from harness.files import write_text_atomically
from harness.merging import merge_to_folder, room_for
from harness.method_choice import MethodSettings, Unmerged, method_settings
from harness.overrides import composed
from harness.results import Record
from harness.results.record import Role
from harness.run import cutoff_store, plan_of
from harness.run import run as run_one
from harness.tracking import TrackingConfig
from harness.tuning import Trial, as_yaml, choose, unequal_trials
from harness.zoo.criteria import Criterion, check_criteria
from harness.zoo.gate import check_gate, gated_models
from harness.zoo.models import Zoo, resolve_zoo
from methods import Method

log = logging.getLogger(__name__)


def run(settings: RunSettings) -> float:
    """Merge, evaluate and record one row; returns its objective, which Hydra's sweepers maximise."""
    record = run_one(settings)
    if settings.sweep is None:
        Console().print(_scores_table([record], f"{settings.suite.name} ({settings.suite.split})"))
    return record.objective()


def merge(settings: MergeSettings) -> None:
    """Merge checkpoints into a new folder, or with `dry_run` only check that it would work."""
    method = settings.method.method
    assert isinstance(method, Method)
    out = settings.out.expanduser()
    if os.path.lexists(out):
        raise GraftbenchError(f"out={settings.out} exists already; choose another folder or remove it")
    zoo = resolve_zoo(settings.zoo, settings.home)
    console = Console()
    with plan_of(settings.method.name, method, zoo, settings.merging) as plan:
        console.print(
            f"{plan.name}: {plan.base_model.architecture} of {plan.entries:,} parameters "
            f"in {len(plan.parameters)} tensors; experts {', '.join(plan.experts)}",
            highlight=False,
            soft_wrap=True,
        )
        shard_bytes = int(settings.shard_gb * 10**9)
        if settings.dry_run:
            room_for(plan, out, shard_bytes)
            console.print("dry run: all that headers can tell is in order; nothing was written", soft_wrap=True)
            return
        report = merge_to_folder(plan, out, shard_bytes=shard_bytes, store=cutoff_store(settings.home))
    seconds = sum(report.seconds.values())
    console.print(f"wrote {report.folder} in {seconds:.1f} s; weights {report.weights_digest[:12]}", soft_wrap=True)


def zoo(settings: ZooSettings) -> None:
    """Build a model set, show it, or check it against the criteria that make it fit for comparing methods."""
    models = resolve_zoo(settings.zoo, settings.home, build=settings.action != "show")
    if settings.action == "check":
        _check_zoo(settings, models)
    else:
        Console().print(_models_table(models))


def gate(settings: GateSettings) -> None:
    """Evaluate base and experts, and check them against what the zoo states and what can be asked of any expert."""
    models = resolve_zoo(settings.zoo, settings.home)
    names = gated_models(models)
    if names == ["base"] and not models.stated:
        raise GraftbenchError(f"zoo={models.name} has no experts and states no scores, so there is nothing to check")
    records = _evaluated(settings, names, engine=settings.engine)
    Console().print(_scores_table(list(records.values()), f"{models.name}: scores on {settings.suite.name}"))
    _judge(check_gate(models, records, settings.limits), f"{models.name}: gate on {settings.suite.name}")


def data(settings: DataSettings) -> None:
    """Mirror the data of a suite in a folder."""
    root = settings.to.expanduser().absolute()
    written, present = fetch(settings.suite, root)
    Console().print(
        f"{settings.suite.name}: {len(written)} splits fetched, {present} were there already; "
        f"use them with suite.data_root={root}",
        highlight=False,
        soft_wrap=True,
    )


def tune(settings: TuneSettings) -> None:
    """Choose hyper-parameters on validation items and write them as a configuration of the group `tuned`."""
    suite = replace(settings.suite, split=settings.split)
    options: dict[str, Any] = {"merging": settings.merging, "engine": settings.engine}
    for configuration, grid in settings.grid.items():
        for option, values in grid.items():
            for value in values:
                config, invocation = composed("run", [f"method={configuration}", f"++method.{option}={value}"])
                method_settings(config["method"], invocation)
    experts = list(resolve_zoo(settings.zoo, settings.home).experts)
    choices = {}
    for configuration, grid in settings.grid.items():

        def trial(values: dict[str, Any], configuration: str = configuration) -> Trial:
            given = [f"method.{option}={value}" for option, value in values.items()]
            records = []
            for one in _experts_in_turn(configuration, experts):
                config, invocation = composed("run", [f"method={configuration}", *given, *one])
                method = method_settings(config["method"], invocation)
                records.append(run_one(_run_settings(settings, method, suite=suite, **options)))
            seconds = sum(record.timings.get(phase, 0.0) for record in records for phase in ("merge", "evaluate"))
            return Trial(fmean(record.objective() for record in records), seconds)

        config, _ = composed("run", [f"method={configuration}"])
        choices[configuration] = choose(grid, config["method"], trial)
        log.info("%s: chose %s", configuration, choices[configuration])
    about = {
        "zoo": settings.zoo["name"],
        "suite": suite.name,
        "split": settings.split,
        "command": f"graftbench tune zoo={settings.zoo['name']} suite={suite.name}",
    }
    if problem := unequal_trials(choices):
        log.warning("%s", problem)
    write_text_atomically(settings.out, as_yaml(choices, about))
    Console().print(f"wrote {settings.out}", soft_wrap=True)


def _experts_in_turn(configuration: str, experts: list[str]) -> list[list[str]]:
    """The overrides of a method that grafts one expert: each in turn, so that its mean counts; none for the others."""
    config, _ = composed("run", [f"method={configuration}"])
    return [[f"method.expert={expert}"] for expert in experts] if "expert" in config["method"] else [[]]


def _check_zoo(settings: ZooSettings, models: Zoo) -> None:
    records = _evaluated(settings, ["base", *models.experts, *models.references])
    config, invocation = composed("run", ["method=linear"])
    average = run_one(_run_settings(settings, method_settings(config["method"], invocation)))
    Console().print(_scores_table([*records.values(), average], f"{models.name}: scores on {settings.suite.name}"))
    criteria = check_criteria(
        records["base"].capability_scores(),
        {name: records[name].capability_scores() for name in models.experts},
        average.capability_scores(),
    )
    _judge(criteria, f"{models.name}: criteria")


def _evaluated(settings: EvaluationSettings, names: Sequence[str], **options: Any) -> dict[str, Record]:
    """The records of models of the zoo as they are, from the store where they are there."""
    records = {}
    for name in names:
        role: Role = "base" if name == "base" else "expert"
        method = MethodSettings("none", name, role, Unmerged(name), {"how": "default"})
        records[name] = run_one(_run_settings(settings, method, **options))
    return records


def _judge(criteria: Sequence[Criterion], title: str) -> None:
    """Show what holds and what does not.

    Raises:
        GraftbenchError: something does not hold.
    """
    table = Table("criterion", "measured", "holds", title=title)
    for criterion in criteria:
        table.add_row(criterion.text, criterion.measured, "[green]yes[/]" if criterion.holds else "[bold red]NO[/]")
    Console().print(table)
    if failed := [f"{criterion.text}: {criterion.measured}" for criterion in criteria if not criterion.holds]:
        raise GraftbenchError(f"{title}: {len(failed)} of {len(criteria)} do not hold:\n  " + "\n  ".join(failed))


def _run_settings(settings: EvaluationSettings, method: MethodSettings, **changed: Any) -> RunSettings:
    """Settings of one run with the zoo, suite, backend and home of another verb."""
    same = {option.name: getattr(settings, option.name) for option in fields(EvaluationSettings)}
    return RunSettings(method=method, tracking=TrackingConfig(), **{**same, **changed})


def _scores_table(records: list[Record], title: str) -> Table:
    capabilities = list(records[0].capability_scores())
    table = Table("model", *capabilities, "average", title=title)
    for record in records:
        scores = record.capability_scores()
        table.add_row(record.label, *(f"{scores[c]:.1f}" for c in capabilities), f"{record.objective():.1f}")
    return table


def _models_table(models: Zoo) -> Table:
    table = Table("model", "role", "where", "second moments", title=models.name)
    if models.base is not None:
        table.add_row("base", "base", str(models.base), "")
    for name, source in models.experts.items():
        table.add_row(name, "expert", str(source), "yes" if models.second_moments.get(name) else "no")
    for name, source in models.references.items():
        table.add_row(name, "reference", str(source), "")
    return table
