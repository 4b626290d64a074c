"""Help texts, read off the configuration: a comment there is the sentence here."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.errors import unknown_name
from harness.method_choice import config_folder, known_methods, register_methods
from harness.overrides import config_name, group_options
from harness.schema import options_of, summary_of

_EXAMPLES = {
    "run": (
        "graftbench run method=ota_ffg zoo=tiny suite=tiny",
        "graftbench run -m method=linear,ties,dare,fisher,ota_ffg",
        "graftbench run method=ties method.density=0.3",
        "graftbench run method.path=my_method.py",
        "graftbench run method=none method.model=base",
        "graftbench run -m model=PATH,OWNER/NAME@REVISION      (models that exist already)",
        "graftbench run method=ties --help      (the options of TIES)",
    ),
    "merge": (
        "graftbench merge method=ties zoo.base=PATH zoo.experts.math=PATH zoo.experts.code=PATH out=DIR",
        "graftbench merge method=ota_ffg zoo=tiny out=DIR dtype=bfloat16 dry_run=true",
        "graftbench merge method=mergekit recipe=FILE.yaml out=DIR",
    ),
    "leaderboard": (
        "graftbench leaderboard zoo=tiny suite=tiny",
        "graftbench leaderboard records=leaderboards/tiny/records",
        "graftbench leaderboard zoo=tiny training_seeds=[0,1,2] out=leaderboards/tiny-seeds",
    ),
    "leaderboard check": (
        "graftbench leaderboard check leaderboards/tiny",
        "graftbench leaderboard check leaderboards/tiny/records/KEY.json",
        "graftbench leaderboard check mine.json board=leaderboards/tiny",
    ),
    "compare": (
        "graftbench compare ota_ffg ties zoo=tiny suite=tiny",
        "graftbench compare ota_ffg ties records=leaderboards/tiny/records show=3",
    ),
    "zoo": ("graftbench zoo build zoo=tiny", "graftbench zoo check zoo=tiny", "graftbench zoo show zoo=tiny"),
    "zoo decontaminate": (
        "graftbench zoo decontaminate data=chats.jsonl suite=core suite.data_root=MIRROR",
        "graftbench zoo decontaminate data=chats.jsonl suite=stock report=overlaps.json words=8",
    ),
    "zoo train": (
        "graftbench zoo train model=PATH data=chats.jsonl out=EXPERT bf16=true",
        "graftbench zoo train model=PATH data=chats.jsonl out=EXPERT steps=500 save_every=100 resume=true",
    ),
    "gate": (
        "graftbench gate zoo=tiny suite=tiny",
        "graftbench gate zoo.base=PATH zoo.experts.math=PATH zoo.stated.math.gsm8k=71.2 zoo=custom suite=stock",
    ),
    "tune": ("graftbench tune zoo=tiny suite=tiny",),
    "moments export": (
        "graftbench moments export source=checkpoint-500 out=DIR",
        "graftbench moments export source=global_step500 model=DIR base=PATH out=FILE.safetensors",
        "graftbench moments export source=optimizer.pt model=DIR 'frozen=[model.embed_tokens.*]' out=DIR",
    ),
    "moments estimate": (
        "graftbench moments estimate model=EXPERT data=examples.jsonl out=EXPERT device=cuda",
        "graftbench moments estimate model=EXPERT data=examples.jsonl labels=sampled limit=256 out=FILE.safetensors",
        "graftbench moments estimate kind=delta model=EXPERT base=PATH out=FILE.safetensors",
    ),
    "moments compress": (
        "graftbench moments compress source=EXPERT out=FILE.safetensors format=blocks",
        "graftbench moments compress source=FILE out=DIR format=rank rank=8 base=PATH expert=PATH report=report.json",
    ),
    "data": ("graftbench data fetch suite=core to=DIR", "graftbench data fetch suite=smoke to=DIR"),
}
_GROUP_LINE = re.compile(r"\s*- (?:optional )?(\w+): (\w+)\s*#\s*(.+)")
_OPTION_LINE = re.compile(r"(\w+): (.+)")


def print_overview(verbs: Sequence[str]) -> None:
    """What there is to type."""
    console = Console()
    console.print("[bold]graftbench[/]: merge language models, evaluate the merges, rank the methods\n")
    table = Table.grid(padding=(0, 2))
    for verb in verbs:
        table.add_row(f"  graftbench {verb}", _first_comment(_root(verb)))
    console.print(table)
    console.print(
        "\n'graftbench VERB --help' lists a verb's groups and options; options are written name=value.",
        highlight=False,
    )


def print_verb_help(verb: str, arguments: Sequence[str]) -> None:
    """A verb's groups with their choices, its options, and the options of the choices named on the command line."""
    console = Console()
    path = _root(verb)
    console.print(f"[bold]graftbench {verb}[/]: {_first_comment(path)}\n", highlight=False)
    console.print("\n".join(f"  {example}" for example in _EXAMPLES[verb]) + "\n", highlight=False, markup=False)
    chosen = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    files = [Path(chosen["method.path"])] if "method.path" in chosen else []
    register_methods(files)
    if files and "method" not in chosen:
        chosen["method"] = files[0].stem
    text = path.read_text(encoding="utf-8")
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        for match in map(_GROUP_LINE.match, text.splitlines()):
            if match:
                group, default, sentence = match.groups()
                if group in chosen and chosen[group] not in group_options(group):
                    raise unknown_name(group, chosen[group], group_options(group))
                if group in chosen:
                    _print_choice(console, group, chosen[group], files)
                else:
                    _print_group(console, group, default, sentence, files)
    _print_options(console, f"Options of graftbench {verb}", _commented_options(path))


def _root(verb: str) -> Path:
    return config_folder() / f"{config_name(verb)}.yaml"


def _print_group(console: Console, group: str, default: str, sentence: str, files: Sequence[Path]) -> None:
    table = Table.grid(padding=(0, 2))
    for name in group_options(group):
        mark = " (default)" if name == default else ""
        table.add_row(f"  {group}={name}", f"{_summary(group, name, files)}{mark}")
    console.print(f"[bold]{group}[/]: {escape(sentence)}", highlight=False)
    console.print(table)
    console.print()


def _print_choice(console: Console, group: str, name: str, files: Sequence[Path]) -> None:
    """The options of one choice: a method's from its dataclass, others' from their file's comments."""
    console.print(f"[bold]{group}={name}[/]: {_summary(group, name, files)}", highlight=False)
    path = config_folder() / group / f"{name}.yaml"
    methods = known_methods(files)
    if group == "method" and not path.exists() and name in methods:
        rows = [(f"method.{o.name}", o.default, o.text) for o in options_of(methods[name])]
    else:
        rows = [(f"{group}.{option}", default, text) for option, default, text in _commented_options(path)]
    _print_options(console, "", rows)
    if group == "suite":
        _print_tasks(console, name)


def _print_tasks(console: Console, name: str) -> None:
    """The tasks of a suite with what differs from their declarations."""
    suite = OmegaConf.to_container(compose("leaderboard", [f"suite={name}"]).suite)
    tasks = suite.get("tasks") if isinstance(suite, dict) else None
    if not tasks:
        return
    table = Table("task", "capability", "metric", "shots", "validation", "verified")
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    table.columns[2].overflow = "fold"
    for task, settings in tasks.items():
        spec = {"verified": True, **(settings or {})}
        validation = (
            "held out"
            if spec.get("held_out")
            else ", ".join(f"{key} {value}" for key, value in (spec.get("validation") or {}).items())
        )
        table.add_row(
            str(task),
            str(spec.get("capability", task)),
            str(spec.get("metric", "the task's first")),
            str(spec.get("num_fewshot", "the task's")),
            validation or "the task's",
            "yes" if spec["verified"] else "[yellow]not yet[/]",
        )
    console.print(table)


def _print_options(console: Console, title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    if title:
        console.print(f"[bold]{title}[/]", highlight=False)
    table = Table.grid(padding=(0, 2))
    for name, default, text in rows:
        table.add_row(escape(f"  {name}={default}"), escape(text))
    console.print(table)
    console.print()


def _summary(group: str, name: str, files: Sequence[Path]) -> str:
    path = config_folder() / group / f"{name}.yaml"
    if path.exists():
        return _first_comment(path)
    methods = known_methods(files)
    return escape(summary_of(methods[name])) if group == "method" and name in methods else ""


def _first_comment(path: Path) -> str:
    """The first comment line of a file that is not an instruction to Hydra."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return escape(next((line.lstrip("# ") for line in lines if line.startswith("# ") and "@package" not in line), ""))


def _commented_options(path: Path) -> list[tuple[str, str, str]]:
    """Name, default and the comment above it, of every scalar option at the top of a file."""
    rows = []
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        match = _OPTION_LINE.fullmatch(line)
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
        elif match and match.group(1) not in ("defaults", "name"):
            rows.append((match.group(1), match.group(2), " ".join(comment)))
            comment = []
        else:
            comment = []
    return rows
