"""What every merging method must do, ours and a stranger's: pass a class and its options to `check_method`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from methods import Method, Parameter, available, load_file
from methods.interface import Cutoff, per_expert
from methods.ota_ffg import OtaFfg

NAMES = ("code", "knowledge", "math")
OPTIONS: dict[str, dict[str, Any]] = {"ffg": {"expert": "math"}}


def parameter(names: tuple[str, ...] = NAMES, shape: tuple[int, ...] = (6, 5)) -> Parameter:
    """Random tensors that depend on an expert's name, and not on its place."""

    def draw(key: str) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(sum(map(ord, key))))

    base = draw("base")
    return Parameter(
        name="model.layers.1.mlp.up_proj.weight",
        base=base,
        experts=torch.stack([base + 0.1 * draw(name) for name in names]),
        expert_names=names,
        curvatures=torch.stack([draw(f"{name} v").square() for name in names]),
        cutoffs=tuple(Cutoff(-torch.inf) for _ in names),
        role="up",
        layer=1,
    )


def flat_piece(whole: Parameter, start: int, stop: int) -> Parameter:
    """Entries of a parameter as the stream gives them to a method of granularity `element`."""
    assert whole.curvatures is not None
    return replace(
        whole,
        base=whole.base.flatten()[start:stop],
        experts=whole.experts.flatten(1)[:, start:stop],
        curvatures=whole.curvatures.flatten(1)[:, start:stop],
        offset=start,
    )


def check_method(method: Method) -> None:
    """Shape, data type, purity, finiteness, and independence of the order of experts and of pieces."""
    given = parameter()
    before = (given.base.clone(), given.experts.clone(), given.curvatures.clone())  # type: ignore[union-attr]
    merged = method.merge(given)
    assert merged.shape == given.base.shape
    assert merged.dtype == torch.float32
    assert torch.isfinite(merged).all()
    after = (given.base, given.experts, given.curvatures)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "inputs were changed"
    assert torch.equal(method.merge(parameter()), merged), "the same merge twice gives two results"
    backwards = method.merge(parameter(NAMES[::-1]))
    torch.testing.assert_close(backwards, merged, rtol=1e-5, atol=1e-6)
    if method.granularity() == "element":
        cut = torch.cat([method.merge(flat_piece(given, start, start + 7)) for start in range(0, 30, 7)])
        torch.testing.assert_close(cut.view_as(merged), merged, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", available())
def test_methods_conform(name: str) -> None:
    options = OPTIONS.get(name, {})
    method = available()[name](**options)
    if options.get("expert"):
        given = parameter(("math",))
        assert method.merge(given).shape == given.base.shape
        return
    check_method(method)


@pytest.mark.parametrize("name", available())
def test_experts_equal_to_the_base_give_the_base(name: str) -> None:
    """Bit for bit: nothing was edited, so nothing may move."""
    names = ("math",) if name == "ffg" else NAMES
    given = parameter(names)
    same = Parameter(
        name=given.name,
        base=given.base,
        experts=given.base.expand_as(given.experts).clone(),
        expert_names=names,
        curvatures=given.curvatures,
        cutoffs=given.cutoffs,
    )
    assert torch.equal(available()[name](**OPTIONS.get(name, {})).merge(same), given.base)


@pytest.mark.parametrize("name", available())
def test_negative_weights_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="weights"):
        available()[name](weights={"math": -1.0}, **OPTIONS.get(name, {}))


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("ties", {"density": 1.5}, "density"),
        ("ties", {"density": {"math": -0.1}}, "density"),
        ("dare", {"drop_rate": 1.0}, "drop_rate"),
        ("ota", {"power": -1.0}, "power"),
        ("ffg", {"threshold": -1.0}, "threshold"),
        ("ota_ffg", {"threshold": {"math": -1.0}}, "threshold"),
        ("ota_ffg", {"density": 2.0}, "density"),
        ("umtam", {"density": {"math": 2.0}}, "density"),
    ],
)
def test_bad_values_are_refused_by_name(name: str, options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        available()[name](**options)


def test_shuffling_moves_all_experts_curvature_by_one_permutation() -> None:
    given = parameter()
    assert given.curvatures is not None
    shuffled = OtaFfg(pairing="shuffled", seed=3)._curvatures(given).flatten(1)
    own = given.curvatures.flatten(1)
    # All values of an expert differ, so the place that each came from can be looked up.
    origin = torch.stack([(own[i].unsqueeze(0) == shuffled[i].unsqueeze(1)).int().argmax(dim=1) for i in range(3)])
    assert torch.equal(origin[0], origin[1]) and torch.equal(origin[0], origin[2])
    assert origin[0].sort().values.tolist() == list(range(30))
    assert origin[0].tolist() != list(range(30))


def test_per_expert_values_follow_the_names() -> None:
    assert per_expert({"math": 0.1, "code": 0.2}, ("code", "math")) == [0.2, 0.1]
    assert per_expert(0.5, ("code", "math")) == [0.5, 0.5]
    assert per_expert({"math": 2.0}, ("code", "math"), default=1.0) == [1.0, 2.0]


def test_the_documented_example_conforms(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    file = tmp_path / "sign_agreement.py"
    file.write_text(page.partition("```python\n")[2].partition("```")[0], encoding="utf-8")
    name, method = load_file(file)
    assert name == "sign_agreement"
    check_method(method())
    # Experts agree on +2 and +4, and disagree on the second entry.
    given = Parameter("p", torch.zeros(2), torch.tensor([[2.0, 1.0], [4.0, -1.0]]), ("x", "y"))
    assert method().merge(given).tolist() == [3.0, 0.0]
