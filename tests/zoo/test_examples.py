"""The scripts of `examples/`: experts that a method can weigh by curvature."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.curvature.second_moments import SecondMoments
from tests.zoo.chats import chat_model, chats

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("script", "steps"), [("plain_loop.py", 4), ("with_trainer.py", 12)])
def test_an_example_writes_second_moments_beside_the_expert(script: str, steps: int, tmp_path: Path) -> None:
    arguments = [str(chat_model(tmp_path / "base")), str(chats(tmp_path / "chats.jsonl", "three")), "expert"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *arguments], cwd=tmp_path, env=environment, check=True
    )
    assert (tmp_path / "expert" / "model.safetensors").is_file()
    with SecondMoments(tmp_path / "expert" / "exp_avg_sq.safetensors") as moments:
        assert moments.metadata.step == steps
