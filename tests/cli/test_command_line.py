"""The command line refuses what does not exist, with the nearest names, before any work; and helps a newcomer."""

import re
from pathlib import Path

import pytest

from harness import cli
from harness.cli import main
from harness.errors import GraftbenchError

MINE = '''
from dataclasses import dataclass
from methods import Method

@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    """Keeps the base and adds a share of the first expert's edits."""

    share: float = 0.5
    """How much."""

    def merge(self, parameter):
        return parameter.base + self.share * parameter.task_vectors[0]
'''


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another working folder, which must stay empty: nothing may happen before everything was checked."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GRAFTBENCH_HOME", str(tmp_path / "home"))
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that must fail."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 1
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "unknown verb 'rum'; did you mean 'run'?"),
        (["run", "method=tis"], "unknown method 'tis'; did you mean 'ties'?"),
        (["run", "zoo=tinny"], "unknown zoo 'tinny'; did you mean 'tiny'?"),
        (["run", "suite=tinny"], "unknown suite 'tinny'; did you mean 'tiny'?"),
        (["run", "sweep=method"], "unknown sweep 'method'; did you mean 'methods'"),
        (["run", "methd=ties"], "unknown option 'methd'; did you mean 'method'?"),
        (["run", "devise=cpu"], "unknown option 'devise'; did you mean 'device'?"),
        (["run", "method=ties", "method.densty=0.2"], "did you mean 'method.density'"),
        (["run", "method=ties", "+method.densty=0.2"], "unknown option 'method.densty'; did you mean 'method.density'"),
        (["run", "+zoo.bse=x"], "did you mean 'zoo.base'"),
        (["run", "+suite.limt=3"], "did you mean 'limit'"),
        (["run", "backend=hf", "+backend.batch=3"], "did you mean 'batch_size'"),
        (["run", "+tracking.projct=x"], "did you mean 'tracking.project'"),
        (["run", "+sed=3"], "unknown option 'sed'"),
        (["run", "method=ties", "method.density=much"], "method.density=much: input should be a valid number"),
        (["run", "method=ties", "method.density=1.5"], "density=1.5 must lie in 0..1"),
        (["run", "method=ties", "method.scope=row"], "method.scope=row: input should be 'model' or 'tensor'"),
        (["run", "--device", "cpu"], "unknown flag '--device'; options are written name=value"),
        (["run", "ties"], "'ties' is no option; options are written name=value"),
        (["run", "method=ties,linear"], "add -m to run one job for each"),
        (["run", "-m", "method=linear,tis"], "unknown method 'tis'"),
        (["run", "-m", "method=ties,dare", "method.density=0.1,0.2"], "'method.density' of method=dare"),
        (["run", "method.path=nothing.py"], "nothing.py does not exist"),
        (["run", "model=nowhere"], "model=nowhere: there is no such folder; give a checkpoint's folder or a hub name"),
        (["run", "-m", "model=owner/name@main,nowhere"], "model=nowhere: there is no such folder"),
        (["run", "model="], "model= is empty"),
        (["run", "zoo=none", "+zoo.base=x"], "zoo.base cannot be given for zoo=none, which has no models; name all"),
        (["run", "zoo=none", "backend=hf"], "zoo=none has no models to merge; name a set with zoo=NAME"),
        (["run", "zoo=none", "method=none", "backend=hf"], "unknown model of zoo none 'base'"),
        (["run", "model=[a,b]"], "-m model=A,B evaluates several, one row each"),
        (["run", "model=owner/name", "method=ties"], "method cannot be given with model=owner/name, which is"),
        (["run", "model=owner/name", "method.weights.math=2"], "method.weights.math cannot be given with model="),
        (["run", "model=owner/name", "recipe=x.yaml"], "recipe cannot be given with model=owner/name"),
        (["merge", "method=ties"], "option out needs a value: out=…"),
        (["merge", "-m", "method=ties,linear", "out=x"], "2 merges, and several would be written to out=x; put what"),
        (["merge", "-m", "method.weights.a=1,2,3", "out=./x", "zoo=tiny"], "'out=x/${method.name}' for a sweep"),
        (["merge", "-m", "method=ota,ota_compressed", "out=x/${method.name}"], "several would be written to out=x/ota"),
        (["merge", "method=none", "out=x"], "method=none merges nothing"),
        (["merge", "out=x", "shard_gb=0"], "shard_gb=0.0 must be positive"),
        (["run", "sweep=methods"], "add -m to run them"),
        (["run", "method=ties", "method.scale=nan"], "method.scale=nan: input should be a finite number"),
        (["merge", "out=x", "shard_gb=inf"], "shard_gb=inf: input should be a finite number"),
        (["run", "method=ties", "method.role=base"], "'method.role' is no option"),
        (["run", "method=[ties]"], "no method is chosen; write method=NAME"),
        (["run", "home="], "home= is empty"),
        (["run", "zoo.experts.mine=x"], "zoo.experts cannot be given for zoo=tiny"),
        (["merge", "zoo=tiny", "zoo.second_moments.math=x", "out=y"], "zoo.second_moments cannot be given"),
        (["run", "suite.data_root=/nonexistent"], "suite.data_root=/nonexistent is no folder"),
        (["run", "suite.tasks.tiny_math=3"], "it takes settings"),
        (["run", "method=tis", "--help"], "unknown method 'tis'; did you mean 'ties'?"),
        (["tune", "++grid.ties.densty=[0.1]", "zoo=custom"], "did you mean 'method.density'"),
        (["leaderboard"], "zoo=tiny is not built in"),
        (["zoo", "show"], "zoo=tiny is not built in"),
        (["leaderboard", "records=nothing"], "nothing holds no records"),
        (["zoo", "bild"], "unknown action of zoo 'bild'; did you mean 'build'?"),
        (["data", "fetsh"], "unknown action of data 'fetsh'; did you mean 'fetch'?"),
        (["data", "fetch"], "option to needs a value: to=…"),
        (["data", "fetch", "to=x", "suite=corr"], "unknown suite 'corr'; did you mean 'core'?"),
        (["data", "fetch", "to=x", "suite=custom", "suite.tasks={gsm8kk:{}}"], "did you mean 'gsm8k'"),
        (["run", "suite=core", "suite.tasks.mmlu.held_out=true"], "is held out, so that it has no validation items"),
        (["leaderboard", "suit=tiny"], "unknown option 'suit'; did you mean 'suite'?"),
        (["gate", "empty=101"], "empty=101.0 must lie in 0..100 percent"),
        (["gate", "++zoo.tolerance=-1"], "zoo.tolerance=-1: it is a number of points"),
        (["gate", "zoo.stated.math=70"], "zoo.stated.math=70: it takes scores by task or capability"),
        (["gate", "zoo=custom"], "zoo.base is not set"),
        (["tune", "+grd=1"], "unknown option 'grd'; did you mean 'grid'"),
    ],
)
def test_what_does_not_exist_is_refused_before_any_work(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], elsewhere: Path, tmp_path: Path
) -> None:
    assert message in refused(capsys, *arguments)
    assert not list(elsewhere.iterdir())
    assert not [path for path in (tmp_path / "home").glob("*") if path.name != "logs"]


def test_a_method_file_is_checked_like_ours(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    assert "did you mean 'method.share'" in refused(capsys, "run", f"method.path={file}", "method.shar=0.1")
    assert "did you mean 'method.share'" in refused(capsys, "run", f"method.path={file}", "+method.shar=0.1")
    file.write_text("import nothing_of_that_name")
    assert "cannot be imported: ModuleNotFoundError" in refused(capsys, "run", f"method.path={file}")
    file.write_text("x = 1")
    assert "defines no subclass of methods.Method" in refused(capsys, "run", f"method.path={file}")
    file.write_text(MINE.replace("share: float = 0.5", "share: float"))
    assert "needs a default" in refused(capsys, "run", f"method.path={file}")
    file.write_text(MINE.replace("share", "role"))
    assert "cannot be called role" in refused(capsys, "run", f"method.path={file}")
    for taken in ("ties", "none"):
        ours = tmp_path / f"{taken}.py"
        ours.write_text(MINE)
        assert f"there is a method '{taken}' already" in refused(capsys, "run", f"method.path={ours}")
    file.write_text(MINE)
    assert "leaves it out" in refused(capsys, "run", f"method.path={file}", "method=ties")


def test_help_lists_verbs_groups_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    told = capsys.readouterr().out
    assert all(f"graftbench {verb}" in told for verb in ("run", "merge", "leaderboard", "zoo", "gate", "tune"))
    for verb in ("run", "merge", "leaderboard", "zoo", "gate", "tune"):
        main([verb, "--help"])
        told = capsys.readouterr().out
        assert f"graftbench {verb}" in told and "zoo=tiny" in told
    main(["run", "--help"])
    told = capsys.readouterr().out
    assert "method=ota_ffg" in told and "saliency" in told
    assert "device=cpu" in told and "Where the merge is computed" in " ".join(told.split())


def test_help_on_a_method_lists_its_hyper_parameters(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["run", "method=ties", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "method.density=0.2" in told and "Share of each task vector's entries to keep" in told
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    main(["run", f"method.path={file}", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "method.share=0.5" in told and "How much." in told


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out.startswith("graftbench 0.")


@pytest.mark.parametrize(
    ("arguments", "verb"),
    [
        (["zoo", "check", "zoo=tiny"], ("zoo", ["action=check", "zoo=tiny"])),
        (["zoo", "zoo=tiny"], ("zoo", ["zoo=tiny"])),
        (["pair", "one", "x=1"], ("pair one", ["x=1"])),
    ],
)
def test_a_second_word_is_an_action_or_a_part_of_the_verb(
    arguments: list[str], verb: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cli.VERBS, "pair one", cli.VERBS["zoo"])
    assert cli.find_verb(arguments) == verb


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pair"], "graftbench pair needs a second word: one, two"),
        (["pair", "three"], "unknown action of pair 'three'"),
        (["pear", "one"], "unknown verb 'pear'"),
    ],
)
def test_a_wrong_second_word_is_told_the_right_ones(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for verb in ("pair one", "pair two"):
        monkeypatch.setitem(cli.VERBS, verb, cli.VERBS["zoo"])
    with pytest.raises(GraftbenchError, match=re.escape(said)):
        cli.find_verb(arguments)
