"""A merge that was asked for in one process is the same merge in another."""

import pickle
import sys
from pathlib import Path

import torch

from harness.merging import Execution, MergeRequest, merged_parameters
from methods import load_file
from methods.ties import Ties
from tests.merging.models import Models

MINE = """
from dataclasses import dataclass
from methods import Method

@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    share: float = 0.5

    def merge(self, parameter):
        return parameter.base + self.share * parameter.task_vectors.sum(0)
"""


def test_what_is_sent_plans_the_same_merge(tmp_path: Path) -> None:
    models = Models(tmp_path)
    experts = {name: models.single[name] for name in ("code", "math")}
    files = {"code": None, "math": None}
    request = MergeRequest("ties", Ties(density=0.3), models.single["base"], experts, files, "bfloat16", Execution())
    sent = pickle.loads(pickle.dumps(request))
    with request.plan() as here, sent.plan() as there:
        assert here.recipe() == there.recipe()
        assert there.request == request
        ours, theirs = dict(merged_parameters(here)), dict(merged_parameters(there))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_method_of_ones_own_goes_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    _, mine = load_file(file)
    request = MergeRequest("mine", mine(share=0.25), tmp_path, {"math": tmp_path}, {"math": None})
    sent = pickle.dumps(request)
    del sys.modules["graftbench_method_mine"]  # as in a process that has not read the file
    method = pickle.loads(sent).method
    assert type(method).__name__ == "Mine"
    assert method.share == 0.25
