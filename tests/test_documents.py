"""The documents stay true: their commands are accepted, and the committed board follows from its records."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from harness.cli import VERBS, find_verb
from harness.leaderboard import build_board, load_records
from harness.leaderboard.check import check_board
from harness.overrides import check, config_name, read_command_line

ROOT = Path(__file__).parent.parent
BOARD = ROOT / "leaderboards" / "tiny"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    """Every `$ graftbench …` of the documents, without its comment; `a|b` stands for one command each."""
    found = []
    for page in PAGES:
        for line in re.findall(r"^\$ (graftbench .*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            command = line.partition("  #")[0].strip()
            choices = re.search(r"\b\w+(?:\|\w+)+\b", command)
            found += [command.replace(choices[0], one) for one in choices[0].split("|")] if choices else [command]
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_a_documented_command_is_accepted(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = (ROOT / "docs" / "adding-a-method.md").read_text(encoding="utf-8").partition("```python\n")[2]
    for name in ("sign_agreement.py", "mine.py"):
        (tmp_path / name).write_text(example.partition("```")[0], encoding="utf-8")
    for name in ("MIRROR", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "merged" / "config.json").write_text("{}", encoding="utf-8")
    verb, arguments = find_verb(shlex.split(command)[1:])
    if "--help" in arguments:
        return
    check(config_name(verb), read_command_line(arguments), VERBS[verb].read)


def test_the_readme_shows_the_committed_board() -> None:
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", str(BOARD)], cwd=ROOT, check=False)
    if changed.returncode:
        pytest.skip("the board was made anew here; the README shows the committed one")
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = [line for line in page.splitlines() if line.startswith("|") and "±" in line]
    board = (BOARD / "README.md").read_text(encoding="utf-8").splitlines()
    assert shown, "the README shows no rows of the board"
    assert set(shown) <= set(board), "the README's board is not the committed one"


@pytest.mark.parametrize("board", sorted((ROOT / "leaderboards").iterdir()), ids=lambda board: board.name)
def test_committed_boards_follow_from_their_records(board: Path) -> None:
    assert check_board(board) == []


def test_the_committed_board_has_every_row() -> None:
    board = build_board(load_records(BOARD / "records"))
    labels = {row.label for row in board.rows}
    methods = {"linear", "task_arithmetic", "ties", "dare", "dare_ties", "fisher", "ota", "ota_ffg"}
    controls = {"ffg_uniform", "magnitude_uniform", "magnitude_ota", "shuffled_curvature", "rotated_curvature"}
    assert methods | controls | {"ota_compressed", "ota_ffg_compressed", "base", "multitask"} <= labels
    assert {row.expert_of for row in board.rows} >= set(board.capabilities)
    assert {row.label for row in board.rows if row.role == "control"} == controls
