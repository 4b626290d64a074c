"""Small mistakes in the formulas, made on purpose: the hand-computed cases must notice each of them."""

import multiprocessing
import shutil
import sys
from pathlib import Path

import pytest

import methods
from tests.methods.merging_by_hand import first_mismatch

PACKAGE = Path(str(methods.__file__)).parent

FAMILY = "generalized_task_arithmetic.py"

MUTATIONS = {
    "linear: sum instead of mean": ("linear.py", "anchor + masked_mean(", "anchor + 2 * masked_mean("),
    "linear: weights ignored": ("linear.py", "self.expert_weights(parameter)", "parameter.per_expert(1.0)"),
    "task vectors: sign": ("interface.py", "self.experts - self.base", "self.base - self.experts"),
    "task arithmetic: scale ignored": ("task_arithmetic.py", "self.scale * merged", "merged"),
    "task arithmetic: weights ignored": ("task_arithmetic.py", ", self.expert_weights(parameter))", ")"),
    "task arithmetic: sign": ("task_arithmetic.py", "parameter.base + ", "parameter.base - "),
    "TIES: no trimming": ("ties.py", "keep_by_cutoff(self.score(parameter), parameter).mul_(", "1.0 * ("),
    "TIES: no election": ("ties.py", "agreeing(trimmed, weights)", "trimmed.ne(0.0)"),
    "TIES: election before trimming": (
        "ties.py",
        "agreeing(trimmed, weights)",
        "agreeing(parameter.task_vectors, weights)",
    ),
    "TIES: scope": ("ties.py", 'scope: Scope = "model"', 'scope: Scope = "tensor"'),
    "TIES: scope of the tensors": ("ties.py", "scope=self.scope", 'scope="model"'),
    "TIES: scale ignored": ("ties.py", "self.scale * masked_mean", "masked_mean"),
    "election: the minority wins": ("combination.py", ".gt_(0.0)", ".lt_(0.0)"),
    "election: unweighted": ("combination.py", "sum_over_experts(values, weights)", "sum_over_experts(values)"),
    "election: zero elects plus": ("combination.py", ".sign_()", ".sign_().add_(0.5).sign_()"),
    "sum: factors ignored": ("combination.py", "if factors is None", "if True"),
    "mean: over all experts": ("combination.py", 'kept if denominator == "survivors" else weights', "weights"),
    "mean: over survivors only": ("combination.py", 'kept if denominator == "survivors" else weights', "kept"),
    "mean: mask forgotten": ("combination.py", "weights if mask is None else mask * weights", "weights"),
    "mean: strengths forgotten": ("combination.py", "if strengths is not None", "if False"),
    "mean: weights forgotten": ("combination.py", "weighted = weights * strengths", "weighted = strengths.clone()"),
    "mean: no fallback without curvature": ("combination.py", ".add_(nothing * weights)", ""),
    "mean: an epsilon decides": ("combination.py", ".div_(largest + nothing)", ".add_(1e-12)"),
    "DARE: scale ignored": ("dare.py", "self.scale * merged", "merged"),
    "DARE: everything drops": ("dare.py", ".ge_(self.drop_rate)", ".lt_(self.drop_rate)"),
    "DARE: no election": ("dare.py", "if self.elect", "if False"),
    "Fisher: curvature ignored": ("fisher.py", "parameter.curvature_of(self.curvature)", "None"),
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
    "density: nothing kept where mergekit keeps one": ("selection.py", "max(1, int(", "max(0, int("),
    "density: one kept where nothing shall be": ("selection.py", "if density > 0 else 0", "if True else 0"),
    "cutoff: ties all kept": ("interface.py", "if self.ties_until is None and self.threshold > 0", "if True"),
    "cutoff: ties all dropped": ("interface.py", "if tied and self.threshold > 0", "if False"),
    "cutoff: one tie too many": ("interface.py", "max(self.ties_until - offset, 0)", "self.ties_until - offset + 1"),
    "cutoff: one tie too few": ("interface.py", "max(self.ties_until - offset, 0)", "self.ties_until - offset - 1"),
    "cutoff: last ties first": (
        "interface.py",
        "mask.view(-1)[:tied] += scores.reshape(-1)[:tied] == self.threshold",
        "mask.view(-1)[tied:] += scores.reshape(-1)[tied:] == self.threshold",
    ),
    "cutoff: threshold itself excluded": (
        "interface.py",
        "torch.ge(scores, self.threshold",
        "torch.gt(scores, self.threshold",
    ),
    "cutoff: threshold itself included twice": ("interface.py", "torch.gt(scores, max(", "torch.ge(scores, max("),
    "FFG: mask forgotten": ("ffg.py", "kept * (", "("),
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
    "OTA+FFG: scores of others unread": ("ota_ffg.py", 'self.pairing != "rotated"', "True"),
    "OTA+FFG: scale ignored": ("ota_ffg.py", "self.scale * merged", "merged"),
    "OTA+FFG: threshold ignored": ("ota_ffg.py", "if self.threshold is not None:", "if False:"),
    "UMTAM: no selection": ("umtam.py", "keep_by_cutoff(self.score(parameter), parameter).mul_(", "1.0 * ("),
    "UMTAM: no election": ("umtam.py", "agreeing(edits, weights)", "edits.ne(0.0)"),
    "UMTAM: election before selection": ("umtam.py", "agreeing(edits,", "agreeing(parameter.task_vectors,"),
    "UMTAM: balance before election": ("umtam.py", "edits *= agreed", "pass"),
    "UMTAM: never balanced": ("umtam.py", "if self.balance:", "if False:"),
    "UMTAM: always balanced": ("umtam.py", "if self.balance:", "if True:"),
    "UMTAM: empty edits count": ("umtam.py", "strict=True) if norm > 0]", "strict=True)]"),
    "UMTAM: norms unweighted": ("umtam.py", "weight * norm for", "norm for"),
    "UMTAM: sums of magnitudes": ("umtam.py", ".square().sum()", ".abs().sum()"),
    "UMTAM: scale ignored": ("umtam.py", "self.scale * masked_mean", "masked_mean"),
    "UMTAM: curvature ignored": (
        "umtam.py",
        "parameter.curvature_of(self.curvature)",
        "parameter.task_vectors.square()",
    ),
    "mergekit's family: weight ignored": (FAMILY, "weighted *= factors", "weighted *= torch.ones_like(factors)"),
    "mergekit's family: scalar weights ignored": (FAMILY, "a * b for a, b", "a for a, _"),
    "mergekit's family: scale ignored": (FAMILY, "merged *= value_at(self.scale, parameter.site)", "pass"),
    "mergekit's family: base forgotten": (FAMILY, "return merged.add_(parameter.base) if", "return merged if"),
    "mergekit's family: origin ignored": (
        FAMILY,
        'if self.origin == "base" else parameter.experts',
        "if True else parameter.experts",
    ),
    "mergekit's family: base added to an average": (
        FAMILY,
        'if self.origin == "base" else merged',
        "if True else merged",
    ),
    "mergekit's family: no election": (FAMILY, "if self.elect else", "if False else"),
    "mergekit's family: zero elects nothing": (
        FAMILY,
        "torch.ge(elected, 0.0, out=elected)",
        "elected.sign_().add_(1.0).mul_(0.5)",
    ),
    "mergekit's family: zero elects minus": (FAMILY, "torch.ge(elected, 0.0", "torch.gt(elected, 0.0"),
    "mergekit's family: the minority wins": (FAMILY, "elected.mul_(2.0).sub_(1.0)", "elected.mul_(-2.0).add_(1.0)"),
    "mergekit's family: what disagrees counts": (FAMILY, ".clamp_(min=0.0)", ""),
    "mergekit's family: the elected sign is lost": (FAMILY, "total *= elected", "pass"),
    "mergekit's family: mean by heads": (FAMILY, "alpha=weight", "alpha=1.0"),
    "mergekit's family: elected, never normalised": (
        FAMILY,
        "        if normalize:\n            divisor",
        "        if False:\n            divisor",
    ),
    "mergekit's family: division by nothing": (FAMILY, "divisor += torch.eq(divisor, 0.0, out=elected)", "pass"),
    "mergekit's family: never normalised": (FAMILY, "if not self.normalize", "if True"),
    "mergekit's family: always normalised": (FAMILY, "if not self.normalize", "if False"),
    "mergekit's family: weights that cancel divide": (FAMILY, "abs(divisor) < 1e-8", "False"),
    "mergekit's family: nothing is selected": (FAMILY, 'if self.select == "none"', "if True"),
    "mergekit's family: density of the whole model": (FAMILY, 'scope="tensor"', 'scope="model"'),
    "mergekit's family: density rounded up": (FAMILY, 'rounding="down"', 'rounding="up"'),
    "mergekit's family: density of one for all": (
        FAMILY,
        "density = {name: value_at(schedule, site) for name, schedule in self.density.items()}",
        "density = value_at(next(iter(self.density.values())), site)",
    ),
    "mergekit's family: what should drop stays": (FAMILY, "torch.lt(row, density", "torch.ge(row, density"),
    "mergekit's family: no rescaling": (
        FAMILY,
        "if self.rescale:\n            _rescale",
        "if False:\n            _rescale",
    ),
    "mergekit's family: rescaled the wrong way": (FAMILY, "before / after", "after / before"),
    "mergekit's family: rescaled to the larger entries": (FAMILY, "piece.abs().sum()", "piece.square().sum()"),
    "schedules: another number outside of the blocks": ("schedules.py", "return gradient[0]", "return gradient[-1]"),
    "schedules: a single block takes the first": (
        "schedules.py",
        "if site.layers > 1 else 1.0",
        "if site.layers > 1 else 0.0",
    ),
    "schedules: no interpolation": ("schedules.py", "share = scaled - before", "share = 0.0"),
    "schedules: interpolated backwards": ("schedules.py", "share = scaled - before", "share = 1 - (scaled - before)"),
    "schedules: the last block falls short": (
        "schedules.py",
        "site.layer / (site.layers - 1)",
        "site.layer / site.layers",
    ),
    "schedules: the last rule counts": (
        "schedules.py",
        "for rule in rules if rule.holds",
        "for rule in rules[::-1] if rule.holds",
    ),
    "schedules: a filter is the whole name": ("schedules.py", "str(self.filter) in name", "str(self.filter) == name"),
    "schedules: one expert's schedule for all": (
        "schedules.py",
        "value_at(value[name], site) for name in names",
        "value_at(value[names[0]], site) for name in names",
    ),
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
    sys.modules.pop("tests.checkpoints.small", None)
    sys.path.insert(0, folder)
    import methods as mutated

    assert str(mutated.__file__).startswith(folder)
    return first_mismatch()
