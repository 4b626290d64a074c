"""Hyper-parameters that differ by block, by tensor and by expert, worked out by hand."""

from typing import Any

from tests.methods.cases import Case

FAMILY = "generalized_task_arithmetic"


def blocks(count: int, kind: str = "mlp.up_proj.weight") -> list[str]:
    """One tensor of each block."""
    return [f"model.layers.{number}.{kind}" for number in range(count)]


def ones(names: list[str], **experts: float) -> dict[str, Any]:
    """A base of zeros, and experts whose every tensor is one number."""
    return {
        "base": {name: [0.0] for name in names},
        "experts": {expert: {name: [value] for name in names} for expert, value in experts.items()},
        "curvatures": {},
    }


def cases_by_tensor() -> list[Case]:
    """The cases; `methods` is imported only now, since a test may have put another in its place."""
    from methods.schedules import Rule

    three, outside = blocks(3), ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    query, four = blocks(2, "self_attn.q_proj.weight"), blocks(4)
    return [
        Case(
            "a gradient is spread over the blocks, and its first number counts outside of them",
            FAMILY,
            {"weight": [1.0, 5.0]},
            {**dict(zip(three, ([1.0], [3.0], [5.0]), strict=True)), **{name: [1.0] for name in outside}},
            **ones(three + outside, x=1.0),
        ),
        # Blocks lie at 0, 2/3, 4/3 and 2 of the list: 1, 1 + 2/3·3, 4 − 1/3·2, 2
        Case(
            "a gradient of three numbers over four blocks",
            FAMILY,
            {"weight": [1.0, 4.0, 2.0]},
            dict(zip(four, ([1.0], [3.0], [3.3333333333333333], [2.0]), strict=True)),
            **ones(four, x=1.0),
        ),
        Case(
            "a single block takes a gradient's last number",
            FAMILY,
            {"weight": [1.0, 5.0]},
            {blocks(1)[0]: [5.0]},
            **ones(blocks(1), x=1.0),
        ),
        Case(
            "the first rule whose filter a name contains counts",
            FAMILY,
            {"weight": [Rule(2.0, "q_proj"), Rule([3.0, 4.0], "layers"), Rule(7.0)]},
            {
                query[0]: [2.0],
                query[1]: [2.0],
                **dict(zip(blocks(2), ([3.0], [4.0]), strict=True)),
                "lm_head.weight": [7.0],
            },
            **ones([*query, *blocks(2), "lm_head.weight"], x=1.0),
        ),
        # 1·1 + 2·10 and 3·1 + 2·10, by half
        Case(
            "every expert has a schedule of its own, and the scale has one",
            FAMILY,
            {"weight": {"x": [1.0, 3.0], "y": 2.0}, "scale": [Rule(0.5, "layers"), Rule(1.0)]},
            dict(zip(blocks(2), ([10.5], [11.5]), strict=True)),
            **ones(blocks(2), x=1.0, y=10.0),
        ),
        # ⌊0.6·4⌋ = 2 entries in the first block, all in the last
        Case(
            "a density by block",
            FAMILY,
            {"select": "magnitude", "density": [0.6, 1.0]},
            dict(zip(blocks(2), ([0.0, 3.0, 0.0, 4.0], [1.0, 3.0, 2.0, 4.0]), strict=True)),
            base={name: [0.0] * 4 for name in blocks(2)},
            experts={"x": {name: [1.0, 3.0, 2.0, 4.0] for name in blocks(2)}},
            curvatures={},
        ),
        # Under y's curvature x keeps a₀ b₀ b₁, whoever else needs a cutoff: (2·4 − 2)/3; (3 + 2·1)/3, (4·−6 + 4)/5
        Case(
            "another's curvature selects, where that other selects nothing",
            "ota_ffg",
            {"density": {"x": 0.5, "y": 1.0}, "pairing": "rotated"},
            {"a": [3.0, -1.0, 3.0, 9.0], "b": [1.6666666666666667, -4.0]},
        ),
    ]
