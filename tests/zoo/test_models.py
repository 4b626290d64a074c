"""Resolving a model set of existing checkpoints, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import GraftbenchError
from harness.zoo.models import resolve_zoo


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    for name in ("base", "math", "code"):
        (tmp_path / name).mkdir()
    (tmp_path / "math" / "exp_avg_sq.safetensors").touch()
    return tmp_path


def test_checkpoints_are_named_inline(checkpoints: Path, tmp_path: Path) -> None:
    zoo = resolve_zoo(
        {"base": str(checkpoints / "base"), "experts": {"m": str(checkpoints / "math"), "c": "owner/model"}},
        tmp_path,
    )
    assert zoo.base == checkpoints / "base"
    assert zoo.experts == {"m": checkpoints / "math", "c": "owner/model"}
    assert zoo.capabilities == {"m": "m", "c": "c"}


def test_curvature_beside_an_expert_is_found_and_a_named_file_wins(checkpoints: Path, tmp_path: Path) -> None:
    given = {
        "base": str(checkpoints / "base"),
        "experts": {n: str(checkpoints / n) for n in ("math", "code")},
    }
    zoo = resolve_zoo(given, tmp_path)
    assert zoo.second_moments == {"math": checkpoints / "math" / "exp_avg_sq.safetensors", "code": None}
    assert zoo.fisher == {"math": None, "code": None}
    (tmp_path / "other.safetensors").touch()
    named = {**given, "second_moments": {"math": str(tmp_path / "other.safetensors")}}
    assert resolve_zoo(named, tmp_path).second_moments["math"] == tmp_path / "other.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": None}, "zoo.base is not set"),
        ({"base": "./nowhere"}, "zoo.base=./nowhere: there is no such folder"),
        ({"base": "nowhere"}, "give a checkpoint's folder or a hub name"),
        ({"experts": {"math": "/no/such/folder"}}, "zoo.experts.math"),
        ({"capabilities": {"maths": "math"}}, "did you mean 'math'"),
        (
            {"second_moments": {"math": "none.safetensors"}},
            "zoo.second_moments.math=none.safetensors does not exist",
        ),
        ({"bilder": "tiny"}, "unknown option 'zoo.bilder'; did you mean 'zoo.builder'"),
        ({"builder": "tini"}, "did you mean 'tiny'"),
        ({"training_seed": -1}, "zoo.training_seed=-1: it is a whole number, 0 or more"),
        ({"builder": "tiny", "name": "tiny", "training_seed": 1}, "such as zoo.build.training_seed=1"),
        ({"builder": "tiny", "name": "tiny"}, "zoo.base cannot be given for zoo=tiny, which builds its own models"),
    ],
)
def test_mistakes_are_named(checkpoints: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    given = {"base": str(checkpoints / "base"), "experts": {"math": str(checkpoints / "math")}, **change}
    with pytest.raises(GraftbenchError, match=message):
        resolve_zoo(given, tmp_path)


def test_settings_of_a_build_are_named(tmp_path: Path) -> None:
    with pytest.raises(GraftbenchError, match="did you mean 'seed'"):
        resolve_zoo({"builder": "tiny", "name": "tiny", "build": {"sed": 1}}, tmp_path)


def test_checkpoints_of_ones_own_may_state_their_training_seed(checkpoints: Path, tmp_path: Path) -> None:
    given = {"base": str(checkpoints / "base"), "experts": {"math": str(checkpoints / "math")}}
    assert resolve_zoo(given, tmp_path).training_seed is None
    assert resolve_zoo({**given, "training_seed": 2}, tmp_path).training_seed == 2


def test_a_file_is_no_checkpoint(checkpoints: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(GraftbenchError, match="is a file"):
        resolve_zoo({"base": str(file)}, tmp_path)


def test_an_adapter_on_a_base_and_a_list_of_checkpoints_are_experts(checkpoints: Path, tmp_path: Path) -> None:
    """Of several checkpoints of one run, the last one's second moments count."""
    base, math, code = (checkpoints / name for name in ("base", "math", "code"))
    zoo = resolve_zoo(
        {"base": str(base), "experts": {"lora": f"{base}+{code}", "run": [str(code), str(math)]}},
        tmp_path,
    )
    assert zoo.experts == {"lora": f"{base}+{code}", "run": [code, math]}
    assert zoo.second_moments == {"lora": None, "run": math / "exp_avg_sq.safetensors"}


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        ([], r"zoo\.experts\.x is an empty list; name at least one checkpoint"),
        (["{base}", "./nowhere"], r"zoo\.experts\.x=\./nowhere: there is no such folder"),
        ("{base}+./nowhere", r"'\./nowhere', which is neither a folder nor a hub name"),
    ],
)
def test_parts_of_an_expert_must_exist(checkpoints: Path, tmp_path: Path, expert: object, message: str) -> None:
    base = str(checkpoints / "base")
    filled = [e.format(base=base) for e in expert] if isinstance(expert, list) else str(expert).format(base=base)
    with pytest.raises(GraftbenchError, match=message):
        resolve_zoo({"base": base, "experts": {"x": filled}}, tmp_path)


def test_all_wrong_paths_are_told_at_once(checkpoints: Path, tmp_path: Path) -> None:
    given = {
        "base": "./gone",
        "experts": {"math": str(checkpoints / "maths"), "code": str(checkpoints / "code")},
        "second_moments": {"math": "math.safetensors", "coed": str(tmp_path)},
        "fisher": {"code": "fisher.safetensors"},
        "references": {"all": "./all"},
        "data_root": "./data",
    }
    with pytest.raises(GraftbenchError) as caught:
        resolve_zoo(given, tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "7 things are wrong:"
    for line, expected in zip(
        lines[1:],
        (
            "zoo.base=./gone: there is no such folder",
            f"zoo.experts.math={checkpoints / 'maths'}: there is no such folder",
            "zoo.references.all=./all: there is no such folder",
            "unknown expert in zoo.second_moments 'coed'; did you mean 'code'",
            "zoo.second_moments.math=math.safetensors does not exist",
            "zoo.fisher.code=fisher.safetensors does not exist",
            "zoo.data_root=./data does not exist",
        ),
        strict=True,
    ):
        assert expected in line
