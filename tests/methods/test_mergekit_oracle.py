"""mergekit 0.1.5's numbers, from mergekit itself: tensor by tensor, in fp32, to two units in the last place."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from methods import Cutoff, Parameter, generalized_task_arithmetic
from methods.generalized_task_arithmetic import GeneralizedTaskArithmetic
from methods.interface import per_expert
from methods.linear import Linear
from methods.selection import entries_to_keep
from methods.task_arithmetic import TaskArithmetic
from tests.methods.asking_mergekit import TensorMerge, merged_tensors

NAMES = ("a", "b", "c", "d", "e")
SHAPES = ((1,), (7,), (300,), (5, 3), (33, 64))
WEIGHTS = (
    [1.0],
    [0.3],
    [0.7, 0.3],
    [1.0, 0.5],
    [2.0, -0.5],
    [0.5, -0.5],
    [0.2, 0.3, 0.5],
    [1.0, 0.0, 0.4],
    [-1.0, 0.9, -0.3],
    [0.1, 0.4, 0.15, 1.3, 0.8],
)

OPTIONS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {},
    "ties": {"select": "magnitude", "elect": True},
    "dare_linear": {"select": "random"},
    "dare_ties": {"select": "random", "elect": True},
    "linear": {"origin": "zero"},
}
"""What each of mergekit's methods is, in options of ours."""


@dataclass(frozen=True)
class Case:
    """One merge, ours and mergekit's."""

    method: GeneralizedTaskArithmetic
    parameter: Parameter
    theirs: TensorMerge


def cases() -> list[Case]:
    """Every combination of method, weights, densities, normalisation and rescaling, over all shapes in turn."""
    made: list[Case] = []
    combinations = itertools.product(OPTIONS, WEIGHTS, (True, False), (True, False), (1.0, 0.5, 0.07))
    for name, weights, normalize, rescale, density in combinations:
        if name == "linear" and (rescale or density < 1 or (normalize and sum(weights) == 0)):
            continue
        seed = len(made)
        densities = [density if expert % 2 == 0 else min(1.0, density + 0.3) for expert in range(len(weights))]
        scale = 1.0 if name == "linear" else (1.0, 0.6, -0.3)[seed % 3]
        parameter = draw(SHAPES[seed % len(SHAPES)], len(weights), seed)
        method = GeneralizedTaskArithmetic(
            weight=dict(zip(NAMES, weights, strict=False)),
            density=dict(zip(NAMES, densities, strict=False)),
            normalize=normalize,
            rescale=rescale,
            scale=scale,
            **OPTIONS[name],
        )
        made.append(Case(method, parameter, theirs(name, parameter, weights, densities, method, seed)))
    return made


def theirs(
    name: str,
    parameter: Parameter,
    weights: list[float],
    densities: list[float],
    method: GeneralizedTaskArithmetic,
    seed: int,
) -> TensorMerge:
    """The same merge in mergekit's words."""
    if name == "linear":
        return TensorMerge(name, list(parameter.experts), {"weight": weights, "normalize": method.normalize})
    parameters = {"weight": weights, "normalize": method.normalize, "rescale": method.rescale, "lambda": method.scale}
    masks: list[Tensor] = []
    if name != "task_arithmetic":
        parameters["density"] = densities
    if method.select == "random":
        drawn = torch.rand(parameter.experts.shape, generator=torch.Generator().manual_seed(seed))
        masks = [(row < share).float() for row, share in zip(drawn, densities, strict=True) if share < 1]
    return TensorMerge(name, [parameter.base, *parameter.experts], parameters, 0, masks)


def draw(shape: tuple[int, ...], experts: int, seed: int) -> Parameter:
    """Tensors as fine-tuning makes them, without ties: the experts near the base."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    edits = 0.1 * torch.randn(experts, *shape, generator=generator)
    return Parameter("model.layers.0.mlp.up_proj.weight", base, base + edits, NAMES[:experts], layer=0, layers=1)


def with_cutoffs(parameter: Parameter, method: GeneralizedTaskArithmetic) -> Parameter:
    """The parameter with the cutoffs that the method's selection asks for, found by sorting."""
    selection = method.selection_in(parameter.site)
    if selection is None:
        return parameter
    assert selection.density is not None and (selection.scope, selection.rounding) == ("tensor", "down")
    cutoffs = []
    densities = per_expert(selection.density, parameter.expert_names)
    for scores, density in zip(method.score(parameter).flatten(1), densities, strict=True):
        kept = entries_to_keep(density, scores.numel(), selection.rounding)
        threshold = float(scores.sort(descending=True).values[kept - 1])
        cutoffs.append(Cutoff(-torch.inf if density >= 1 else threshold))
    return replace(parameter, cutoffs=tuple(cutoffs))


def units(found: Tensor, expected: Tensor, parameter: Parameter) -> float:
    """The largest difference, in units in the last place of the largest number that was added or came out."""
    terms = torch.stack([expected, expected - parameter.base, parameter.base, *parameter.experts]).abs().amax(0)
    spacing = torch.nextafter(terms, torch.tensor(torch.inf)) - terms
    return float(((found - expected).abs() / spacing).max())


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Case, Tensor]]:
    """Every case with what mergekit makes of it."""
    made = cases()
    return list(
        zip(made, merged_tensors([case.theirs for case in made], tmp_path_factory.mktemp("oracle")), strict=True)
    )


def test_the_family_gives_mergekits_numbers(
    answers: list[tuple[Case, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for case, expected in answers:
        masks = iter(case.theirs.masks)

        def given(parameter: Parameter, densities: list[float], _: int, masks: Any = masks) -> Tensor:
            return torch.stack([next(masks) if share < 1 else torch.ones_like(parameter.base) for share in densities])

        monkeypatch.setattr(generalized_task_arithmetic, "random_mask", given)
        found = case.method.merge(with_cutoffs(case.parameter, case.method))
        assert units(found, expected, case.parameter) <= 2, (case.theirs.method, case.theirs.parameters)


def test_our_average_is_theirs(answers: list[tuple[Case, Tensor]]) -> None:
    """Ours averages differences from the first expert, which gives equal experts back exactly."""
    compared = 0
    for case, expected in answers:
        weights = dict(zip(NAMES, case.theirs.parameters["weight"], strict=False))
        if case.theirs.method == "linear" and case.method.normalize and min(weights.values()) >= 0:
            found = Linear(weights=weights).merge(case.parameter)
            assert units(found, expected, case.parameter) <= 2, weights
            compared += 1
    assert compared == 7


def test_our_task_arithmetic_is_theirs(answers: list[tuple[Case, Tensor]]) -> None:
    for case, expected in answers:
        weights = dict(zip(NAMES, case.theirs.parameters["weight"], strict=False))
        if case.theirs.method == "task_arithmetic" and not case.method.normalize and min(weights.values()) >= 0:
            found = TaskArithmetic(weights=weights, scale=float(case.theirs.parameters["lambda"])).merge(case.parameter)
            assert units(found, expected, case.parameter) <= 2, weights
