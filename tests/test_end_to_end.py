"""The whole job on a miniature of the embedded set: the same code, files and tasks, after a few training steps."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir
from transformers import AutoModelForCausalLM

from harness.cli import main
from harness.config import run_settings
from harness.method_choice import config_folder
from harness.overrides import composed
from harness.results import Record, Store
from harness.verbs import run
from tests.wandb_files import read_records

CAPABILITIES = ("math", "code", "instructions", "knowledge")
MINIATURE = [
    "zoo.build.base.steps=3",
    "zoo.build.multitask.steps=1",
    "zoo.build.fisher_examples=4",
    *(f"zoo.build.experts.{capability}.steps={steps}" for steps, capability in enumerate(CAPABILITIES, start=1)),
]
EVALUATED = [*MINIATURE, "suite.limit=6"]

MINE = '''
from dataclasses import dataclass
from methods import Method
from methods.combination import sum_over_experts

@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    """The base plus a share of every edit."""

    share: float = 0.5
    """How much of it."""

    def merge(self, parameter):
        return parameter.base + self.share * sum_over_experts(parameter.task_vectors)
'''


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the miniature is built."""
    folder = tmp_path_factory.mktemp("home")
    graftbench(folder, "zoo", "build", *MINIATURE)
    return folder


def graftbench(home: Path, *arguments: str) -> None:
    main([*arguments, f"home={home}"])


def records(home: Path) -> dict[str, Record]:
    return {record.label: record for record in Store(home / "results").records()}


def test_a_sweep_records_every_method_and_a_second_one_reads_the_store(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    methods = ("linear", "task_arithmetic", "ties", "dare", "fisher", "ota", "ota_ffg", "ota_ffg_compressed")
    sweep = ("run", "-m", f"method={','.join(methods)}", *EVALUATED)
    graftbench(home, *sweep)
    found = records(home)
    assert set(methods) <= set(found)
    for method in methods:
        record = found[method]
        assert [task.capability for task in record.tasks] == list(CAPABILITIES)
        assert all(len(task.outcomes) == 6 for task in record.tasks)
        assert record.weights_digest and record.timings["merge"] > 0
        assert record.costs["peak_memory_bytes"] > 0
        assert (home / "results" / f"{record.key}.parquet").is_file()
    assert len({found[method].weights_digest for method in methods}) == len(methods)
    extra = {method: found[method].costs["extra_bytes_per_expert"] for method in methods}
    assert extra["linear"] == extra["ties"] == 0 < extra["ota_ffg_compressed"] < extra["ota_ffg"] == extra["fisher"]
    assert found["fisher"].costs["data_needed"] == "labelled examples"

    times = {path: path.stat().st_mtime_ns for path in (home / "results").iterdir()}
    with caplog.at_level(logging.INFO):
        graftbench(home, *sweep)
    assert caplog.text.count("in the store already") == len(methods)
    assert {path: path.stat().st_mtime_ns for path in (home / "results").iterdir()} == times
    assert not list((home / "merges").glob("*/")), "merged checkpoints were to be removed"


def test_models_of_the_zoo_get_rows_of_their_own(home: Path) -> None:
    graftbench(home, "run", "-m", "method=none", "method.model=base,math,multitask", *EVALUATED)
    found = records(home)
    assert [(found[name].role, found[name].capability) for name in ("base", "math", "multitask")] == [
        ("base", None),
        ("expert", "math"),
        ("reference", None),
    ]
    assert {record.zoo["training_seed"] for record in found.values()} == {0}


def test_a_strangers_method_runs_is_recorded_and_ranks(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    graftbench(home, "run", f"method.path={file}", *EVALUATED)
    graftbench(home, "run", "-m", f"method.path={file}", "method=mine,linear", "method.weights.math=2", *EVALUATED)
    graftbench(home, "run", f"method.path={file}", "method.share=0.1", *EVALUATED)
    found = records(home)
    assert {"mine", "mine share=0.1", "mine weights.math=2", "linear weights.math=2"} <= set(found)
    assert found["mine"].recipe["hyperparameters"] == {"share": 0.5, "weights": {}}
    assert found["mine share=0.1"].selection["how"] == "given"

    graftbench(home, "leaderboard", *EVALUATED, f"out={tmp_path / 'board'}")
    page = (tmp_path / "board" / "README.md").read_text()
    assert "| mine |" in page and "| mine share=0.1 |" in page

    file.write_text(MINE.replace("0.5", "0.25"))
    graftbench(home, "run", f"method.path={file}", *EVALUATED)
    assert len([r for r in Store(home / "results").records() if r.label == "mine"]) == 2, "other code is another row"


def test_a_failed_job_leaves_the_finished_ones(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "broken.py"
    file.write_text(MINE.replace("return ", "assert 'norm' not in parameter.name, 'boom'\n        return "))
    with pytest.raises(SystemExit) as stopped:
        graftbench(
            home, "run", "-m", f"method.path={file}", "method=linear,broken,ties", "method.weights.code=3", *EVALUATED
        )
    assert stopped.value.code == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "1 jobs of the sweep failed" in told and "boom" in told
    assert {"linear weights.code=3", "ties weights.code=3"} <= set(records(home))


def test_a_board_is_the_same_bytes_from_the_store_and_from_its_own_records(home: Path, tmp_path: Path) -> None:
    graftbench(home, "run", "-m", "method=none", f"method.model=base,{','.join(CAPABILITIES)}", *EVALUATED)
    graftbench(home, "leaderboard", *EVALUATED, f"out={tmp_path / 'one'}")
    graftbench(home, "leaderboard", *EVALUATED, f"out={tmp_path / 'two'}")
    graftbench(home, "leaderboard", f"records={tmp_path / 'one' / 'records'}", f"out={tmp_path / 'three'}")
    for name in ("README.md", "leaderboard.csv", "leaderboard.json"):
        texts = {(tmp_path / board / name).read_bytes() for board in ("one", "two", "three")}
        assert len(texts) == 1, name


def test_no_results_is_said(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        graftbench(home, "leaderboard", *MINIATURE, "suite.limit=5", f"out={tmp_path / 'board'}")
    assert "no results for zoo=tiny and suite=tiny" in " ".join(capsys.readouterr().err.split())


def test_a_run_is_logged_to_wandb(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    tracking = ("tracking=wandb", "tracking.mode=offline")
    graftbench(home, "run", "-m", "method=linear,ties", "method.weights.math=5", *tracking, *EVALUATED)
    logged = {}
    for file in (home / "wandb").rglob("*.wandb"):
        messages = list(read_records(file))
        run_of = next(message.run for message in messages if message.HasField("run"))
        logged[run_of.display_name] = (
            run_of,
            {
                item.key or "/".join(item.nested_key)
                for message in messages
                if message.HasField("history")
                for item in message.history.item
            },
        )
    assert set(logged) == {"linear weights.math=5", "ties weights.math=5"}
    files = len(list((home / "wandb").rglob("*.wandb")))
    graftbench(home, "run", "method=linear", "method.weights.math=5", *tracking, *EVALUATED)
    assert len(list((home / "wandb").rglob("*.wandb"))) == files + 1, "a stored result is logged when it is asked for"
    groups = {run_of.run_group for run_of, _ in logged.values()}
    assert len(groups) == 1 and groups.pop(), "the runs of a sweep form one group"
    for run_of, keys in logged.values():
        assert {"score/average", "score/math", "seconds/merge", "seconds/evaluate"} <= keys
        assert any(key.startswith("eval/results/") for key in keys), "the table of scores"
        assert {"recipe", "suite", "engine", "selection"} <= {item.key for item in run_of.config.update}


def test_merge_makes_an_ordinary_checkpoint_of_any_models(home: Path, tmp_path: Path) -> None:
    zoo = next((home / "zoo").glob("tiny-*"))
    models = [f"zoo.base={zoo / 'base'}", f"zoo.experts.a={zoo / 'experts' / 'math'}"]
    merge = ("merge", "method=ota_ffg", *models, f"zoo.experts.b={zoo / 'experts' / 'code'}", f"out={tmp_path / 'out'}")
    graftbench(home, *merge, "dry_run=true")
    assert not (tmp_path / "out").exists()
    graftbench(home, *merge, "dtype=bfloat16", "shard_gb=0.0005")
    assert (tmp_path / "out" / "merge.json").is_file()
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16


def test_merge_refuses_an_expert_without_second_moments(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo = next((home / "zoo").glob("tiny-*"))
    with pytest.raises(SystemExit) as stopped:
        graftbench(
            home,
            "merge",
            "method=ota",
            f"zoo.base={zoo / 'base'}",
            f"zoo.experts.a={zoo / 'base'}",
            f"out={tmp_path}/out",
        )
    assert stopped.value.code == 1
    assert "zoo.second_moments.a=PATH" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_method_that_is_not_deterministic_is_caught(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "dice.py"
    file.write_text(MINE.replace("parameter.base +", "__import__('random').SystemRandom().random() + parameter.base +"))
    graftbench(home, "run", f"method.path={file}", *EVALUATED)
    with pytest.raises(SystemExit):
        graftbench(home, "run", f"method.path={file}", *MINIATURE, "suite.limit=5")
    assert not any(r.label == "dice" and len(r.tasks[0].outcomes) == 5 for r in Store(home / "results").records())


def test_an_objective_is_returned_to_hydras_sweepers(home: Path) -> None:
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config, invocation = composed("run", ["method=linear", *EVALUATED, f"home={home}"])
    assert run(run_settings(config, invocation)) == records(home)["linear"].objective()


def test_unknown_models_are_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        graftbench(home, "run", "method=none", "method.model=maths", *EVALUATED)
    assert "unknown model of zoo tiny 'maths'; did you mean 'math'?" in " ".join(capsys.readouterr().err.split())


def test_nan_in_a_model_that_is_evaluated_as_it_is(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo = next((home / "zoo").glob("tiny-*"))
    model = AutoModelForCausalLM.from_pretrained(zoo / "base")
    model.model.norm.weight.data[0] = float("nan")
    shutil.copytree(zoo / "base", tmp_path / "broken")
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(SystemExit):
        graftbench(
            home,
            "run",
            "method=none",
            "zoo=custom",
            f"zoo.base={tmp_path / 'broken'}",
            f"suite.data_root={zoo / 'data'}",
        )
    assert "tensor 'model.norm.weight' has NaN or Inf" in " ".join(capsys.readouterr().err.split())


def test_a_label_may_not_pass_for_a_model(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        graftbench(home, "run", "method=linear", "label=base", *EVALUATED)
    assert "label=base is the name of a model of zoo tiny" in " ".join(capsys.readouterr().err.split())


def test_a_kept_checkpoint_is_made_even_if_the_record_exists(home: Path) -> None:
    graftbench(home, "run", "method=linear", *EVALUATED)
    graftbench(home, "run", "method=linear", "keep=true", *EVALUATED)
    assert (next((home / "merges").glob("linear-*/")) / "merge.json").is_file()


def test_a_merge_that_was_kept_joins_the_board_with_the_scores_that_it_had(home: Path, tmp_path: Path) -> None:
    graftbench(home, "run", "method=ties", "method.density=0.3", "keep=true", *EVALUATED)
    kept = next((home / "merges").glob("ties-*/"))
    base = next((home / "zoo").glob("tiny-*")) / "base"
    graftbench(home, "run", "method=none", *EVALUATED)
    with pytest.raises(SystemExit):
        graftbench(home, "run", "-m", f"model={kept},{base}", *EVALUATED)  # a row cannot be called base
    graftbench(home, "run", f"model={base}", "label=a copy", *EVALUATED)
    found = records(home)
    joined = found["ties density=0.3 of code+instructions+knowledge+math"]
    assert (joined.role, joined.capability, joined.selection) == ("method", None, {"how": "unknown"})
    assert joined.tasks == found["ties density=0.3"].tasks
    assert (found["base"].role, found["a copy"].role) == ("base", "method"), "a copy of the base leaves the base's row"
    assert found["a copy"].tasks == found["base"].tasks
    graftbench(home, "leaderboard", *EVALUATED, f"out={tmp_path / 'board'}")
    assert "| a copy |" in (tmp_path / "board" / "README.md").read_text()


def test_a_model_that_exists_already_joins_without_a_set_being_built(home: Path, tmp_path: Path) -> None:
    """Two of them share a board, which is none of the set's; named again with the set, the row moves to its board."""
    zoo = next((home / "zoo").glob("tiny-*"))
    alone, data = tmp_path / "alone", [f"suite.data_root={zoo / 'data'}", "suite.limit=6"]
    expert = zoo / "experts" / "math"
    graftbench(alone, "run", "-m", f"model={zoo / 'references' / 'multitask'},{expert}", *data)
    assert not (alone / "zoo").exists()
    assert {record.zoo["name"] for record in records(alone).values()} == {"none"}
    graftbench(alone, "leaderboard", "zoo=none", *data, f"out={tmp_path / 'board'}")
    board = (tmp_path / "board" / "README.md").read_text()
    assert "| multitask |" in board and "| math |" in board

    (alone / "zoo").symlink_to(home / "zoo")
    with pytest.raises(SystemExit):
        graftbench(alone, "leaderboard", *MINIATURE, *data)
    graftbench(alone, "run", f"model={expert}", "label=a copy", *MINIATURE, *data)
    assert {label: record.zoo["name"] for label, record in records(alone).items()} == {
        "multitask": "none",
        "a copy": "tiny",
    }


def test_the_gate_says_what_is_off_and_exits_with_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After a step of training, no expert beats its base, and nobody scores what is stated."""
    with pytest.raises(SystemExit) as stopped:
        graftbench(home, "gate", "zoo.stated.math.tiny_math=100", *MINIATURE, "suite.limit=12")
    assert stopped.value.code == 1
    told = capsys.readouterr()
    assert "expert math on math: above the base by more than the standard error" in " ".join(told.err.split())
    assert "math on tiny_math: stated 100.0, within 2.0" in " ".join(told.err.split())
    assert "tiny: gate on tiny" in told.out and "NO" in told.out
    with pytest.raises(SystemExit):
        graftbench(home, "gate", "zoo.stated.maths.tiny_math=100", *EVALUATED)
    assert "unknown model in zoo.stated 'maths'; did you mean 'math'?" in " ".join(capsys.readouterr().err.split())


def test_a_gate_without_anything_to_check_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = next((home / "zoo").glob("tiny-*")) / "base"
    with pytest.raises(SystemExit):
        graftbench(home, "gate", "zoo=custom", f"zoo.base={base}")
    assert "zoo=custom has no experts and states no scores" in " ".join(capsys.readouterr().err.split())


def test_a_sweep_with_one_engine_gives_the_same_rows(home: Path, tmp_path: Path) -> None:
    (tmp_path / "zoo").symlink_to(home / "zoo")
    for folder, engine in ((home, "fresh"), (tmp_path, "shared")):
        graftbench(folder, "run", "-m", "method=linear,task_arithmetic,none", f"engine={engine}", *EVALUATED)
    shared, fresh = records(tmp_path), {record.key: record for record in Store(home / "results").records()}
    assert shared.keys() == {"linear", "task_arithmetic", "base"}
    for record in shared.values():
        assert record.key in fresh, "the engine's lifetime is no part of what determines a score"
        assert record.tasks == fresh[record.key].tasks
        assert record.weights_digest == fresh[record.key].weights_digest
    assert {"merge", "load", "canary", "answer", "evaluate"} <= shared["linear"].timings.keys()
    left = [path.name for path in (tmp_path / "merges").iterdir() if path.is_dir()]
    assert not left, "no checkpoint stays on disk"


def test_a_use_of_engines_that_does_not_exist(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        graftbench(home, "run", "engine=sharred", *EVALUATED)
    assert "unknown engine 'sharred'; did you mean 'shared'?" in " ".join(capsys.readouterr().err.split())
