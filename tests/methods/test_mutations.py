"""Small mistakes in the formulas, made on purpose: the hand-computed cases must notice each of them."""

import multiprocessing
import shutil
import sys
from pathlib import Path

import pytest

import methods
from tests.methods.merging_by_hand import first_mismatch

PACKAGE = Path(str(methods.__file__)).parent

MUTATIONS = {
    "linear: sum instead of mean": ("linear.py", "anchor + masked_mean(", "anchor + 2 * masked_mean("),
    "linear: weights ignored": ("linear.py", "self.expert_weights(parameter)", "parameter.per_expert(1.0)"),
    "task vectors: sign": ("interface.py", "self.experts - self.base", "self.base - self.experts"),
    "task arithmetic: scale ignored": ("task_arithmetic.py", "self.scale * sum", "sum"),
    "task arithmetic: weights ignored": (
        "task_arithmetic.py",
        "self.expert_weights(parameter) * parameter.task_vectors",
        "parameter.task_vectors",
    ),
    "task arithmetic: sign": ("task_arithmetic.py", "parameter.base + ", "parameter.base - "),
    "TIES: no trimming": ("ties.py", "parameter.task_vectors * kept", "parameter.task_vectors"),
    "TIES: no election": ("ties.py", "agreeing(trimmed, weights)", "kept"),
    "TIES: election before trimming": (
        "ties.py",
        "agreeing(trimmed, weights)",
        "agreeing(parameter.task_vectors, weights)",
    ),
    "TIES: scope": (
        "ties.py",
        'scope: Literal["model", "tensor"] = "model"',
        'scope: Literal["model", "tensor"] = "tensor"',
    ),
    "TIES: scope of the tensors": (
        "ties.py",
        'if self.scope == "model"\n            else keep',
        "if True\n            else keep",
    ),
    "TIES: scale ignored": ("ties.py", "self.scale * masked_mean", "masked_mean"),
    "election: the minority wins": ("combination.py", "== elected)", "== -elected)"),
    "election: unweighted": (
        "combination.py",
        "sum_over_experts(values * weights).sign()",
        "sum_over_experts(values).sign()",
    ),
    "election: zero elects plus": (
        "combination.py",
        ".sign()\n    return",
        ".sign().add(0.5).sign()\n    return",
    ),
    "mean: over all experts": ("combination.py", 'if denominator == "survivors" else', "if False else"),
    "mean: over survivors only": ("combination.py", 'if denominator == "survivors" else', "if True else"),
    "mean: mask forgotten": ("combination.py", "torch.where(mask, strengths, 0.0)", "strengths"),
    "mean: strengths forgotten": ("combination.py", "weights * relative", "weights.expand_as(relative)"),
    "mean: weights forgotten": ("combination.py", "weights * relative", "relative"),
    "mean: no fallback without curvature": ("combination.py", "torch.where(defined, curved, mean)", "curved"),
    "mean: an epsilon decides": (
        "combination.py",
        "torch.where(largest > 0, strengths / largest, 0.0)",
        "strengths + 1e-12",
    ),
    "DARE: scale ignored": ("dare.py", "self.scale * merged", "merged"),
    "DARE: everything drops": ("dare.py", ">= self.drop_rate", "< self.drop_rate"),
    "DARE: no election": ("dare.py", "if self.elect", "if False"),
    "Fisher: curvature ignored": ("fisher.py", "parameter.require_curvatures()", "None"),
    "Fisher: scale ignored": ("fisher.py", "self.scale * merged", "merged"),
    "OTA: power": ("ota.py", "power: float = 0.5", "power: float = 1.0"),
    "OTA: power ignored": ("ota.py", ".pow(self.power)", ".sqrt()"),
    "OTA: weights ignored": ("ota.py", "self.expert_weights(parameter)", "parameter.per_expert(1.0)"),
    "saliency: not squared": (
        "selection.py",
        "curvatures * parameter.task_vectors.square()",
        "curvatures * parameter.task_vectors.abs()",
    ),
    "saliency: no curvature": (
        "selection.py",
        "curvatures * parameter.task_vectors.square()",
        "parameter.task_vectors.square()",
    ),
    "saliency: no edit": ("selection.py", "curvatures * parameter.task_vectors.square()", "curvatures"),
    "density: rounded down": ("selection.py", "math.ceil", "math.floor"),
    "cutoff: ties all kept": ("interface.py", "if self.ties is None", "if True"),
    "cutoff: ties all dropped": ("interface.py", "if kept:", "if False:"),
    "cutoff: last ties first": (
        "interface.py",
        "tied.cumsum(0) <= kept",
        "tied.flip(0).cumsum(0).flip(0) <= kept",
    ),
    "cutoff: threshold itself excluded": (
        "interface.py",
        "(scores >= self.threshold)",
        "(scores > self.threshold)",
    ),
    "FFG: mask forgotten": ("ffg.py", "torch.where(kept, ", "torch.where(kept | True, "),
    "FFG: scale ignored": ("ffg.py", "self.scale * grafted", "grafted"),
    "FFG: threshold ignored": ("ffg.py", "if self.threshold is not None", "if False"),
    "OTA+FFG: mask forgotten": (
        "ota_ffg.py",
        "parameter.task_vectors, kept,",
        "parameter.task_vectors, None,",
    ),
    "OTA+FFG: denominator ignored": ("ota_ffg.py", "strengths, self.denominator", "strengths"),
    "OTA+FFG: power": ("ota_ffg.py", "power: float = 0.5", "power: float = 1.0"),
    "OTA+FFG: always saliency": ("ota_ffg.py", 'if self.score_by == "magnitude":', "if False:"),
    "OTA+FFG: always curvature": (
        "ota_ffg.py",
        'if self.weight_by == "curvature" else None',
        "if True else None",
    ),
    "OTA+FFG: own curvature always": ("ota_ffg.py", 'if self.pairing == "rotated"', "if False"),
    "OTA+FFG: scale ignored": ("ota_ffg.py", "self.scale * merged", "merged"),
    "OTA+FFG: threshold ignored": ("ota_ffg.py", "if self.threshold is not None:", "if False:"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_cases_notice(name: str, tmp_path: Path) -> None:
    file, old, new = MUTATIONS[name]
    shutil.copytree(PACKAGE, tmp_path / "methods")
    source = (tmp_path / "methods" / file).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{file} has {source.count(old)} places that read {old!r}"
    (tmp_path / "methods" / file).write_text(source.replace(old, new), encoding="utf-8")
    assert _first_mismatch_with(tmp_path) is not None


def test_the_cases_hold_without_a_mutation(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "methods")
    assert _first_mismatch_with(tmp_path) is None


def _first_mismatch_with(folder: Path) -> str | None:
    """The first mismatch under the `methods` of a folder, in a child that imports everything of ours anew."""
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        return pool.apply(_in_child, (str(folder),))


def _in_child(folder: str) -> str | None:
    import torch

    torch.set_num_threads(1)
    for module in [m for m in sys.modules if m.partition(".")[0] in ("methods", "harness")]:
        del sys.modules[module]
    del sys.modules["tests.checkpoints.small"]
    sys.path.insert(0, folder)
    import methods as mutated

    assert str(mutated.__file__).startswith(folder)
    return first_mismatch()
