"""The main job, from settings to record: merge, evaluate, remember."""

import contextlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import psutil

from harness import __version__
from harness.checkpoints import Checkpoint, require_finite
from harness.checkpoints.opening import Source, open_checkpoint
from harness.config import MergeOptions, RunSettings
from harness.errors import GraftbenchError, unknown_name
from harness.evaluation.engines import Engine, engine_from_config
from harness.evaluation.evaluate import Evaluation, evaluate
from harness.evaluation.fingerprint import fingerprint
from harness.evaluation.preflight import preflight
from harness.evaluation.suite import Suite
from harness.evaluation.worker import FolderSubject, MergeSubject, evaluate_alone, shared_engine
from harness.files import canonical_json, text_digest, write_text_atomically
from harness.merging import CutoffStore, Execution, MergePlan, MergeRequest, merge_to_folder, resolve_devices
from harness.merging.cost import needs
from harness.merging.plan import KernelChoice
from harness.method_choice import MethodSettings, Unmerged
from harness.results import Record, Store
from harness.results.record import key_of
from harness.tracking import track
from harness.zoo.existing import ExistingModel
from harness.zoo.models import Zoo, resolve_zoo
from methods import Method
from methods.linear import Linear

log = logging.getLogger(__name__)

_RUN_MARK = ".run-"


@dataclass(frozen=True)
class Model:
    """A checkpoint that is ready to be evaluated."""

    folder: Path
    weights_digest: str
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds: `merge` for all of it, of which `cutoffs` for finding where selections end."""
    peak_bytes: int | None = None
    """Largest memory while it was merged; None where it was not, or the system does not tell."""


def run(settings: RunSettings) -> Record:
    """Merge, evaluate and record one model, or read its record if the same was done before.

    Raises:
        GraftbenchError: something in the settings or the inputs is wrong.
    """
    zoo = resolve_zoo(settings.zoo, settings.home)
    suite = with_data_of(settings.suite, zoo)
    engine = engine_from_config(settings.backend)
    store = Store(settings.home / "results")
    label = settings.method.label
    if not isinstance(settings.method.method, Unmerged) and label in zoo.models:
        raise GraftbenchError(f"label={label} is the name of a model of zoo {zoo.name}; choose another with label=…")
    with opened(settings, zoo) as subject:
        recipe = subject.recipe() if isinstance(subject, MergePlan) else unmerged_recipe(subject, settings.method.name)
        about: dict[str, Any] = {"suite": suite_fields(suite), "engine": engine.describe(), "recipe": recipe}
        key = key_of(**about)
        about |= described(settings.method, zoo)
        if (known := store.get(key)) is not None:
            log.info("%s: in the store already as %s, nothing to do", label, key)
            if settings.keep:
                with materialised(subject, settings) as model:
                    log.info("%s: kept %s", label, model.folder)
            known = _kept_up(known, about, store)
            track(known, settings.tracking, settings.sweep)
            return known
        asked = subject.tokenizer_model.folder if isinstance(subject, MergePlan) else subject.folder
        preflight(suite, asked, getattr(engine, "max_length", None))
        started = time.perf_counter()
        weights, evaluation, seconds, peak_bytes = answered(subject, settings, suite, engine)
        seconds = {**evaluation.seconds_by_phase(), **seconds}
        seconds["evaluate"] = time.perf_counter() - started - seconds.get("merge", 0.0)
        costs = {}
        if isinstance(subject, MergePlan) and isinstance(settings.method.method, Method):
            costs = needs(subject) | ({} if peak_bytes is None else {"peak_memory_bytes": peak_bytes})
    record = Record(
        key=key,
        **about,
        versions={"graftbench": __version__, **evaluation.versions},
        weights_digest=weights,
        timings={phase: round(value, 3) for phase, value in seconds.items()},
        tasks=evaluation.tasks,
        circumstances=evaluation.circumstances,
        costs=costs,
    )
    store.put(record, evaluation.answers)
    scores = ", ".join(f"{name} {score:.1f}" for name, score in record.capability_scores().items())
    log.info("%s: %.1f on average (%s)", label, record.objective(), scores)
    track(record, settings.tracking, settings.sweep)
    return record


def with_data_of(suite: Suite, zoo: Zoo) -> Suite:
    """The suite on the data that came with the zoo, unless it names its own."""
    return replace(suite, data_root=suite.data_root or zoo.data_root)


def suite_fields(suite: Suite) -> dict[str, Any]:
    """A record's field `suite`: its name and split, everything that can change a score, and the digest of all that."""
    settings = fingerprint(suite)
    return {
        "name": suite.name,
        "split": suite.split,
        "digest": text_digest(canonical_json(settings)),
        **settings,
    }


@contextlib.contextmanager
def opened(settings: RunSettings, zoo: Zoo) -> Iterator[MergePlan | Checkpoint]:
    """The merge's plan, or the checkpoint that is evaluated as it is."""
    method = settings.method.method
    if not isinstance(method, Method):
        alone = _alone(method, zoo)
        with open_checkpoint(next(iter(alone.experts.values()))) as model:
            if isinstance(model, Checkpoint):
                yield model
                return
        # An adapter on its base, or an average, is nowhere on disk: the average of it alone is the model itself.
        with plan_of("linear", Linear(), alone, settings.merging) as plan:
            yield plan
        return
    with plan_of(settings.method.name, method, zoo, settings.merging) as plan:
        yield plan


def _alone(model: Unmerged | ExistingModel, zoo: Zoo) -> Zoo:
    """The zoo with that model as its only expert, and the base that it belongs to."""
    if isinstance(model, ExistingModel):
        return replace(zoo, base=model.base, experts={"model": model.source})
    return replace(zoo, experts={model.model: model_of(zoo, model.model)})


def plan_of(name: str, method: Method, zoo: Zoo, options: MergeOptions) -> MergePlan:
    """The plan of merging a zoo's experts, with the curvature that the method asks for.

    Raises:
        GraftbenchError: the zoo has no models, or they cannot be merged.
    """
    if zoo.base is None:
        raise GraftbenchError(
            f"zoo={zoo.name} has no models to merge; name a set with zoo=NAME, or your own checkpoints with "
            "zoo=custom zoo.base=PATH zoo.experts.NAME=PATH"
        )
    request = MergeRequest(
        name,
        method,
        zoo.base,
        zoo.experts,
        zoo.curvature_files(method.curvature_kind()),
        dtype=options.dtype,
        execution=Execution(
            devices=resolve_devices(options.device),
            threads=options.threads,
            memory_bytes=int(options.memory_gb * 10**9) if options.memory_gb else None,
            kernels=cast(KernelChoice, options.kernels),
        ),
        vocabulary=options.vocabulary or "strict",
        tokenizer=options.tokenizer,
    )
    return request.plan()


def cutoff_store(home: Path) -> CutoffStore:
    """Where the cutoffs of whole-model selections are kept for later merges of the same experts."""
    return CutoffStore(home / "cutoffs")


def model_of(zoo: Zoo, name: str) -> Source:
    """Where a model of the zoo is.

    Raises:
        GraftbenchError: the zoo has no model of that name.
    """
    if name not in zoo.models:
        raise unknown_name(f"model of zoo {zoo.name}", name, zoo.models)
    return zoo.models[name]


def unmerged_recipe(checkpoint: Checkpoint, method: str = "none") -> dict[str, Any]:
    """What determines the answers of a model that is evaluated as it is: one of the zoo (`none`), or another (`model`).

    The two never share a record, so that a copy of the base that joins the board does not take the base's row.
    """
    return {
        "method": method,
        "weights": checkpoint.weights_digest,
        "config": checkpoint.config_digest,
        "tokenizer": checkpoint.tokenizer_digest,
    }


def described(method: MethodSettings, zoo: Zoo) -> dict[str, Any]:
    """The fields of a record that say what it is called and how it came about, but determine no score."""
    role, capability = method.role, None
    if isinstance(method.method, Unmerged):
        capability = zoo.capabilities.get(method.method.model)
        role = "reference" if method.method.model in zoo.references else role
    seed = {} if zoo.training_seed is None else {"training_seed": zoo.training_seed}
    return {
        "label": method.label,
        "role": role,
        "capability": capability,
        "selection": method.selection,
        "zoo": {"name": zoo.name, "digest": zoo.digest, **seed},
    }


def answered(
    subject: MergePlan | Checkpoint, settings: RunSettings, suite: Suite, engine: Engine
) -> tuple[str, Evaluation, dict[str, float], int | None]:
    """The digest of a model's weights, its evaluation, seconds by phase, merging included, and the merge's memory.

    A merge goes through a checkpoint on disk into an engine of its own; or straight into the one that a sweep shares.
    """
    merges, label = settings.home / "merges", settings.method.label
    log.info("%s: evaluating on %s (%s)", label, suite.name, suite.split)
    room = merges / f".engine{_our_mark()}"
    if settings.engine == "shared" and isinstance(subject, MergePlan) and not settings.keep:
        _sweep(merges)
        assert subject.request is not None
        whole = MergeSubject(subject.request, subject.recipe(), settings.home)
        given = shared_engine(engine).evaluate(whole, suite, room)
        ledger = merges / f"{_merge_name(subject, settings)}.json"
        _check_reproduced(ledger, given.loaded.arithmetic, given.loaded.weights_digest)
        return given.loaded.weights_digest, given.evaluation, given.loaded.seconds, None
    with materialised(subject, settings) as model:
        if settings.engine == "shared":
            given = shared_engine(engine).evaluate(FolderSubject(model.folder), suite, room)
            return model.weights_digest, given.evaluation, {**given.loaded.seconds, **model.timings}, model.peak_bytes
        evaluation = (evaluate_alone if engine.own_process else evaluate)(model.folder, suite, engine)
        return model.weights_digest, evaluation, model.timings, model.peak_bytes


@contextlib.contextmanager
def materialised(subject: MergePlan | Checkpoint, settings: RunSettings) -> Iterator[Model]:
    """The checkpoint to evaluate: merged into a folder, which is removed afterwards unless it shall be kept."""
    if isinstance(subject, Checkpoint):
        require_finite(subject)  # NaN and Inf would only look like a bad model
        yield Model(subject.folder, subject.weights_digest)
        return
    merges = settings.home / "merges"
    _sweep(merges)
    name = _merge_name(subject, settings)
    folder = merges / f".{name}{_our_mark()}"
    shutil.rmtree(folder, ignore_errors=True)  # a killed run's that had our number, as in containers
    try:
        report = merge_to_folder(subject, folder, store=cutoff_store(settings.home))
        _check_reproduced(merges / f"{name}.json", subject.arithmetic, report.weights_digest)
        if settings.keep:
            shutil.rmtree(merges / name, ignore_errors=True)
            folder = folder.rename(merges / name)
        cutoffs, whole = report.seconds["cutoffs"], sum(report.seconds.values())
        yield Model(folder, report.weights_digest, {"cutoffs": cutoffs, "merge": whole}, report.peak_bytes)
    finally:
        if not settings.keep:
            shutil.rmtree(folder, ignore_errors=True)


def _merge_name(plan: MergePlan, settings: RunSettings) -> str:
    return f"{settings.method.name}-{text_digest(canonical_json(plan.recipe()))[:16]}"


def _our_mark() -> str:
    """What marks folders of this run; another run may merge the same at the same time. Asked for each time, since a
    launcher may have forked this process."""
    return f"{_RUN_MARK}{socket.gethostname()}-{os.getpid()}"


def _sweep(merges: Path) -> None:
    """Remove what killed runs of this machine have left: models that nobody will evaluate any more."""
    for folder in merges.glob(f".*{_RUN_MARK}{socket.gethostname()}-*"):
        number = folder.name.removesuffix(".unfinished").rpartition("-")[2].lstrip(".")
        if number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _check_reproduced(ledger: Path, arithmetic: str, digest: str) -> None:
    """A recipe gives the same weights each time by one arithmetic; anything else must not reach a board."""
    known: dict[str, str] = json.loads(ledger.read_text(encoding="utf-8")) if ledger.exists() else {}
    if known.setdefault(arithmetic, digest) != digest:
        raise GraftbenchError(
            f"the same recipe gave other weights than before ({digest[:12]}, not {known[arithmetic][:12]}, "
            f"see {ledger}): the method is not deterministic. Draw random numbers from methods.randomness, or delete "
            "that file"
        )
    write_text_atomically(ledger, json.dumps(known, sort_keys=True) + "\n")


def _kept_up(known: Record, about: dict[str, Any], store: Store) -> Record:
    """The stored record under the name that it was asked for now, which may be another than the first time."""
    renamed = replace(known, **{name: about[name] for name in ("label", "role", "capability", "selection", "zoo")})
    if renamed != known:
        if renamed.label != known.label:
            log.info("%s: the row was called %s so far", renamed.label, known.label)
        store.put(renamed)
    return renamed
