"""Merges worked out by hand, as literals: nothing here is computed by the code under test.

The model of most cases has two parameters, a and b, and two experts, x and y, whose second moments are squares:

                 a                    b
    base         1   1   1   1        0   0
    Δ of x       4  -2   1   0        3  -6
    Δ of y      -2  -2   2   8        1   4
    √v of x      1   2   3   1        2   1
    √v of y      2   1   1   2        1   4

    |Δ|·√v, whose order is the saliency's:   x  4  4  3  0 | 6  6        y  4  2  2 16 | 1 16
"""

from dataclasses import dataclass, field
from typing import Any

BASE = {"a": [1.0, 1.0, 1.0, 1.0], "b": [0.0, 0.0]}
X = {"a": [5.0, -1.0, 2.0, 1.0], "b": [3.0, -6.0]}
Y = {"a": [-1.0, -1.0, 3.0, 9.0], "b": [1.0, 4.0]}
V_X = {"a": [1.0, 4.0, 9.0, 1.0], "b": [4.0, 1.0]}
V_Y = {"a": [4.0, 1.0, 1.0, 4.0], "b": [1.0, 16.0]}


@dataclass(frozen=True)
class Case:
    """One merge: inputs, and what must come out."""

    name: str
    method: str
    options: dict[str, Any]
    expected: dict[str, Any]
    base: dict[str, Any] = field(default_factory=lambda: BASE)
    experts: dict[str, Any] = field(default_factory=lambda: {"x": X, "y": Y})
    curvatures: dict[str, Any] = field(default_factory=lambda: {"x": V_X, "y": V_Y})
    steps: dict[str, int] = field(default_factory=dict)


def pair(base: list[Any], x: list[Any], y: list[Any], v_x: list[Any], v_y: list[Any]) -> dict[str, Any]:
    """The inputs of a case with the single parameter p."""
    return {
        "base": {"p": base},
        "experts": {"x": {"p": x}, "y": {"p": y}},
        "curvatures": {"x": {"p": v_x}, "y": {"p": v_y}},
    }


CASES = [
    Case("the average", "linear", {}, {"a": [2.0, -1.0, 2.5, 5.0], "b": [2.0, -1.0]}),
    # (3·4 − 2)/4 = 2.5, (−6 − 2)/4 = −2, (3 + 2)/4 = 1.25, 8/4 = 2; (9 + 1)/4 = 2.5, (−18 + 4)/4 = −3.5
    Case(
        "a weighted average",
        "linear",
        {"weights": {"x": 3.0}},
        {"a": [3.5, -1.0, 2.25, 3.0], "b": [2.5, -3.5]},
    ),
    # sums 2 −4 3 8 | 4 −2
    Case(
        "a quarter of the sum",
        "task_arithmetic",
        {"scale": 0.25},
        {"a": [1.5, 0.0, 1.75, 3.0], "b": [1.0, -0.5]},
    ),
    # sums with y twice: 0 −6 5 16 | 5 2
    Case(
        "a weighted sum",
        "task_arithmetic",
        {"scale": 0.5, "weights": {"y": 2.0}},
        {"a": [1.0, -2.0, 3.5, 9.0], "b": [2.5, 1.0]},
    ),
    # ⌈0.5·6⌉ = 3 of x: −6 4 3. Of y: 8 4, and of the three entries of size 2 the first of a.
    # Left: x 4 0 0 0 | 3 −6, y −2 0 0 8 | 0 4. Signs of the sums: + . . + | + −. Agreeing: 4, 8 | 3, −6.
    Case(
        "half of the whole model is kept",
        "ties",
        {"density": 0.5, "scale": 1.0},
        {"a": [5.0, 1.0, 1.0, 9.0], "b": [3.0, -6.0]},
    ),
    Case(
        "half of the whole model, at half scale",
        "ties",
        {"density": 0.5, "scale": 0.5},
        {"a": [3.0, 1.0, 1.0, 5.0], "b": [1.5, -3.0]},
    ),
    # Two of a, one of b. Left: x 4 −2 0 0 | 0 −6, y −2 0 0 8 | 0 4. Agreeing: 4 −2 . 8 | . −6
    Case(
        "half of each tensor is kept",
        "ties",
        {"density": 0.5, "scope": "tensor", "scale": 1.0},
        {"a": [5.0, -1.0, 1.0, 9.0], "b": [0.0, -6.0]},
    ),
    # Signs of the sums + − + + | + −. Agreeing: 4; −2 and −2; 1 and 2; 8 (0 agrees with nothing); 3 and 1; −6
    Case(
        "all is kept, and means are over those that agree",
        "ties",
        {"density": 1.0, "scale": 1.0},
        {"a": [5.0, -1.0, 2.5, 9.0], "b": [2.0, -6.0]},
    ),
    # Weighted by 4 for y: sums −4 … , so that y's −2 wins the first entry; b: −6 + 16 elects +.
    Case(
        "weights take part in the election and in the mean",
        "ties",
        {"density": 1.0, "scale": 1.0, "weights": {"y": 4.0}},
        {"a": [-1.0, -1.0, 2.8, 9.0], "b": [1.4, 4.0]},
    ),
    Case("nothing is kept", "ties", {"density": 0.0}, BASE),
    # The sum of the first entry is zero: the base stays. The second is a sum of 1 and 2.
    Case(
        "no sign is elected where the sum is zero",
        "ties",
        {"density": 1.0, "scale": 1.0},
        {"p": [7.0, 2.5]},
        **pair([7.0, 1.0], [10.0, 2.0], [4.0, 3.0], [1.0, 1.0], [1.0, 1.0]),
    ),
    Case(
        "nothing is dropped: task arithmetic",
        "dare",
        {"drop_rate": 0.0, "scale": 0.25},
        {"a": [1.5, 0.0, 1.75, 3.0], "b": [1.0, -0.5]},
    ),
    Case(
        "nothing is dropped, signs are elected",
        "dare",
        {"drop_rate": 0.0, "scale": 0.5, "elect": True},
        {"a": [3.0, 0.0, 1.75, 5.0], "b": [1.0, -3.0]},
    ),
    Case(
        "an election that sums to zero returns the base",
        "dare",
        {"drop_rate": 0.0, "scale": 1.0, "elect": True},
        {"p": [7.0, 2.5]},
        **pair([7.0, 1.0], [10.0, 2.0], [4.0, 3.0], [1.0, 1.0], [1.0, 1.0]),
    ),
    # (1·4 − 4·2)/5, (−4·2 − 2)/5, (9 + 2)/10, 4·8/5; (4·3 + 1)/5, (−6 + 16·4)/17
    Case(
        "averaged by squared gradients",
        "fisher",
        {"curvature": "adam"},
        {"a": [0.2, -1.0, 2.1, 7.4], "b": [2.6, 3.4117647058823529]},
    ),
    Case(
        "averaged by squared gradients, at double scale",
        "fisher",
        {"curvature": "adam", "scale": 2.0},
        {"a": [-0.6, -3.0, 3.2, 13.8], "b": [5.2, 6.8235294117647058]},
    ),
    # (4 − 2·2)/3, (−2·2 − 2)/3, (3 + 2)/4, 2·8/3; (2·3 + 1)/3, (−6 + 4·4)/5
    Case(
        "averaged by roots of second moments",
        "ota",
        {},
        {"a": [1.0, -1.0, 2.25, 6.3333333333333333], "b": [2.3333333333333333, 2.0]},
    ),
    # (2·4 − 2·2)/4, (−2·4 − 2)/5, (6 + 2)/7, 2·8/4; (4·3 + 1)/5, (−2·6 + 4·4)/6
    Case(
        "averaged by roots and scalar weights",
        "ota",
        {"weights": {"x": 2.0}},
        {"a": [2.0, -1.0, 2.1428571428571428, 5.0], "b": [2.6, 0.6666666666666667]},
    ),
    Case("power 0 is the plain average", "ota", {"power": 0.0}, {"a": [2.0, -1.0, 2.5, 5.0], "b": [2.0, -1.0]}),
    # No curvature at all in the first entry: the mean of 2 and 4. In the second only x has any.
    Case(
        "where nobody has curvature, the plain average",
        "ota",
        {},
        {"p": [3.0, 2.0]},
        **pair([0.0, 0.0], [2.0, 2.0], [4.0, 6.0], [0.0, 1.0], [0.0, 0.0]),
    ),
    # 1e-30 and 4e-30: no epsilon may decide. (1·5 + 2·2)/3 = 3
    Case(
        "curvature of any scale",
        "ota",
        {},
        {"p": [3.0]},
        **pair([0.0], [5.0], [2.0], [1e-30], [4e-30]),
    ),
    # (1·5 + 4·10)/5 = 9, where products of v and Δ would underflow
    Case(
        "squared gradients of any scale",
        "fisher",
        {"curvature": "adam"},
        {"p": [9.0e-6]},
        **pair([0.0], [5e-6], [10e-6], [1e-37], [4e-37]),
    ),
    # x: rank one, so its sums give it back: 1 3 3 9. y: rows 4 4, columns 4 4, sum 8, so 2 everywhere.
    # 3·v/(v + 2): 1, 9/5, 9/5, 27/11
    Case(
        "second moments as row and column sums",
        "ota",
        {"curvature": "compressed", "power": 1.0},
        {"p": [[1.0, 1.8], [1.8, 2.4545454545454545]]},
        **pair(
            [[0.0, 0.0], [0.0, 0.0]],
            [[3.0, 3.0], [3.0, 3.0]],
            [[0.0, 0.0], [0.0, 0.0]],
            [[1.0, 3.0], [3.0, 9.0]],
            [[4.0, 0.0], [0.0, 4.0]],
        ),
    ),
    # After 1 and 2 steps at β₂ = 0.5 the corrections are 2 and 4/3: 5·2/(2 + 4/3) = 3
    Case(
        "second moments of runs of unequal length",
        "ota",
        {"power": 1.0},
        {"p": [3.0]},
        **pair([0.0], [5.0], [0.0], [1.0], [1.0]),
        steps={"x": 1, "y": 2},
    ),
    # The saliencies of x are 16 16 9 0 | 36 36: three are kept, of the two 16 the first.
    Case(
        "half of one expert's edits",
        "ffg",
        {"expert": "x", "density": 0.5},
        {"a": [5.0, 1.0, 1.0, 1.0], "b": [3.0, -6.0]},
    ),
    Case(
        "half of one expert's edits at half scale",
        "ffg",
        {"expert": "x", "density": 0.5, "scale": 0.5},
        {"a": [3.0, 1.0, 1.0, 1.0], "b": [1.5, -3.0]},
    ),
    Case(
        "edits of at least saliency 16",
        "ffg",
        {"expert": "x", "threshold": 16.0},
        {"a": [5.0, -1.0, 1.0, 1.0], "b": [3.0, -6.0]},
    ),
    Case("all of one expert's edits", "ffg", {"expert": "y", "density": 1.0}, Y),
    # 1/3 of six, were it not that ⌈0.34·6⌉ = 3
    Case(
        "a share is rounded up",
        "ffg",
        {"expert": "x", "density": 0.34},
        {"a": [5.0, 1.0, 1.0, 1.0], "b": [3.0, -6.0]},
    ),
    # x keeps a₀ b₀ b₁, y keeps a₀ a₃ b₁: (4 − 2·2)/3, 8; 3, (−6 + 4·4)/5
    Case(
        "salient edits, weighted",
        "ota_ffg",
        {"density": 0.5},
        {"a": [1.0, 1.0, 1.0, 9.0], "b": [3.0, 2.0]},
    ),
    # The same over all weights: 2·8/3, 2·3/3
    Case(
        "salient edits over everyone's weights",
        "ota_ffg",
        {"density": 0.5, "denominator": "all"},
        {"a": [1.0, 1.0, 1.0, 6.3333333333333333], "b": [2.0, 2.0]},
    ),
    # y is whole: −2 and 2 where x has nothing left, (2·3 + 1)/3 where both have
    Case(
        "a density for each expert",
        "ota_ffg",
        {"density": {"x": 0.5, "y": 1.0}},
        {"a": [1.0, -1.0, 3.0, 9.0], "b": [2.3333333333333333, 2.0]},
    ),
    # x keeps all but 9 and 0, y keeps a₃ b₁
    Case(
        "a threshold for each expert",
        "ota_ffg",
        {"threshold": {"x": 10.0, "y": 200.0}},
        {"a": [5.0, -1.0, 1.0, 9.0], "b": [3.0, 2.0]},
    ),
    # (2·4 − 2·2)/(2 + 2); (−2·6 + 4·4)/(2 + 4), by half
    Case(
        "salient edits with scalar weights at half scale",
        "ota_ffg",
        {"density": 0.5, "weights": {"x": 2.0}, "scale": 0.5},
        {"a": [1.5, 1.0, 1.0, 5.0], "b": [1.5, 0.3333333333333333]},
    ),
    # ⌈0.3·6⌉ = 2: x keeps b₀ b₁ by saliency
    Case(
        "FFG's masks, uniform weights",
        "ota_ffg",
        {"density": 0.3, "weight_by": "uniform"},
        {"a": [1.0, 1.0, 1.0, 9.0], "b": [3.0, -1.0]},
    ),
    # by magnitude x keeps a₀ b₁
    Case(
        "magnitude masks, uniform weights",
        "ota_ffg",
        {"density": 0.3, "score_by": "magnitude", "weight_by": "uniform"},
        {"a": [5.0, 1.0, 1.0, 9.0], "b": [0.0, -1.0]},
    ),
    Case(
        "magnitude masks, OTA's weights",
        "ota_ffg",
        {"density": 0.3, "score_by": "magnitude"},
        {"a": [5.0, 1.0, 1.0, 9.0], "b": [0.0, 2.0]},
    ),
    # Under the other's curvature x's saliencies are 64 4 1 0 | 9 576, y's 4 16 36 64 | 4 16
    Case(
        "another expert's curvature",
        "ota_ffg",
        {"density": 0.3, "pairing": "rotated"},
        {"a": [5.0, 1.0, 3.0, 9.0], "b": [0.0, -6.0]},
    ),
    # Two of five entries differ from the base; half of five would be three, but edits of zero never survive.
    Case(
        "edits of zero never survive",
        "ota_ffg",
        {"density": 0.6, "denominator": "all"},
        {"p": [0.5, 0.0, 0.0, 0.0, 2.0]},
        **pair([0.0] * 5, [1.0, 0.0, 0.0, 0.0, 4.0], [0.0] * 5, [1.0] * 5, [1.0] * 5),
    ),
    # mergekit's family. ⌊0.5·4⌋ = 2 of a, ⌊0.5·2⌋ = 1 of b. Left: x 4 −2 0 0 | 0 −6, y −2 0 0 8 | 0 4; half of y.
    # Sums 3 −2 0 4 | 0 −4. Agreeing: 4; −2; none; 4 over 0.5; none; −6
    Case(
        "mergekit's TIES: trimmed tensor by tensor, normalised by the weights that agree",
        "generalized_task_arithmetic",
        {"select": "magnitude", "elect": True, "normalize": True, "density": 0.5, "weight": {"x": 1.0, "y": 0.5}},
        {"a": [5.0, -1.0, 1.0, 9.0], "b": [0.0, -6.0]},
    ),
    Case(
        "mergekit's TIES without normalisation",
        "generalized_task_arithmetic",
        {"select": "magnitude", "elect": True, "density": 0.5, "weight": {"x": 1.0, "y": 0.5}},
        {"a": [5.0, -1.0, 1.0, 5.0], "b": [0.0, -6.0]},
    ),
    # The sum of the first entry is zero, which elects plus: 3.
    Case(
        "mergekit's TIES elects plus where the sum is zero",
        "generalized_task_arithmetic",
        {"select": "magnitude", "elect": True, "normalize": True, "density": {"x": 1.0, "y": 1.0}},
        {"p": [10.0, 2.5]},
        **pair([7.0, 1.0], [10.0, 2.0], [4.0, 3.0], [1.0, 1.0], [1.0, 1.0]),
    ),
    # ⌊0.1·4⌋ and ⌊0.1·2⌋ are zero.
    Case(
        "one entry is kept at any density above zero",
        "generalized_task_arithmetic",
        {"select": "magnitude", "density": {"x": 0.1, "y": 0.0}},
        {"a": [5.0, 1.0, 1.0, 1.0], "b": [0.0, -6.0]},
    ),
    # y, weighted by −1: 2 2 −2 −8 | −1 −4.
    # Sums 6 0 −1 −8 | 2 −10. Agreeing, over their weights: 6, not over 0; 2/−1; −2/−1; −8/−1; 3/1; −10, not over 0
    Case(
        "negative weights take part in the election and in the sum of weights",
        "generalized_task_arithmetic",
        {"elect": True, "normalize": True, "weight": {"x": 1.0, "y": -1.0}},
        {"a": [7.0, -1.0, 3.0, 9.0], "b": [3.0, -10.0]},
    ),
    # 2·(4 − 0.5·2), 2·(−2 − 0.5·2) …, over 1.5
    Case(
        "a normalised sum, scaled",
        "generalized_task_arithmetic",
        {"normalize": True, "scale": 0.75, "weight": {"x": 1.0, "y": 0.5}},
        {"a": [2.5, -0.5, 2.0, 3.0], "b": [1.75, -2.0]},
    ),
    # Weights that sum to zero divide by one: 4 + 2, −2 + 2, 1 − 2, −8 | 3 − 1, −6 − 4
    Case(
        "weights that cancel are not divided by",
        "generalized_task_arithmetic",
        {"normalize": True, "weight": {"x": 1.0, "y": -1.0}},
        {"a": [7.0, 1.0, 0.0, -7.0], "b": [2.0, -10.0]},
    ),
    # x keeps 4 −2 of 7 in a and −6 of 9 in b, which become 7/6 and 9/6 as large; y keeps nothing.
    Case(
        "what is kept gets the norm of the whole",
        "generalized_task_arithmetic",
        {"select": "magnitude", "rescale": True, "density": {"x": 0.5, "y": 0.0}},
        {"a": [5.666666666666667, -1.3333333333333333, 1.0, 1.0], "b": [0.0, -9.0]},
    ),
    # 2·Δ of x and −Δ of y: 10 −2 0 −8 | 5 −16, by half
    Case(
        "both kinds of weights multiply",
        "generalized_task_arithmetic",
        {"weight": {"x": 1.0, "y": -1.0}, "weights": {"x": 2.0}, "scale": 0.5},
        {"a": [6.0, 0.0, 1.0, -3.0], "b": [2.5, -8.0]},
    ),
    Case(
        "an average of experts, and not of edits",
        "generalized_task_arithmetic",
        {"origin": "zero", "weight": {"x": 0.5, "y": -0.5}},
        {"a": [3.0, 0.0, -0.5, -4.0], "b": [1.0, -5.0]},
    ),
    # (5 − 0.5)/1.5, (−1 − 0.5)/1.5, (2 + 1.5)/1.5, (1 + 4.5)/1.5; (3 + 0.5)/1.5, (−6 + 2)/1.5
    Case(
        "a weighted average of experts",
        "generalized_task_arithmetic",
        {"origin": "zero", "normalize": True, "weight": {"x": 1.0, "y": 0.5}},
        {"a": [3.0, -1.0, 2.3333333333333333, 3.6666666666666667], "b": [2.3333333333333333, -2.6666666666666667]},
    ),
    Case(
        "a random choice of everything",
        "generalized_task_arithmetic",
        {"select": "random", "rescale": True, "scale": 0.25},
        {"a": [1.5, 0.0, 1.75, 3.0], "b": [1.0, -0.5]},
    ),
    Case(
        "a random choice of nothing",
        "generalized_task_arithmetic",
        {"select": "random", "rescale": True, "density": 0.0},
        BASE,
    ),
    # Three of six, a₀ before a₁. Left: x 4 0 0 0 | 3 −6, y −2 0 0 8 | 0 4. Agreeing: 4, 8 | 3, −6.
    # Norms in a: 4 and 8, hence 6 each; in b x alone.
    Case(
        "selected, elected, and of one norm in each tensor",
        "umtam",
        {"density": 0.5},
        {"a": [7.0, 1.0, 1.0, 7.0], "b": [3.0, -6.0]},
    ),
    Case(
        "the same at half scale",
        "umtam",
        {"density": 0.5, "scale": 0.5},
        {"a": [4.0, 1.0, 1.0, 4.0], "b": [1.5, -3.0]},
    ),
    Case(
        "the same without balance",
        "umtam",
        {"density": 0.5, "balance": False},
        {"a": [5.0, 1.0, 1.0, 9.0], "b": [3.0, -6.0]},
    ),
    # y, weighted by 3, wins a₀ (4 − 6) and b₁ (−6 + 12). In a y alone; in b norms 3 and 4, hence (3 + 3·4)/4 each.
    Case(
        "weights take part in the election and in the norm",
        "umtam",
        {"density": 0.5, "weights": {"y": 3.0}},
        {"a": [-1.0, 1.0, 1.0, 9.0], "b": [3.75, 3.75]},
    ),
    # Two of six, by v·Δ²: x keeps b, y a₃ and b₁.
    Case("curvature selects", "umtam", {"density": 0.33}, {"a": [1.0, 1.0, 1.0, 9.0], "b": [3.0, -6.0]}),
    # By Δ⁴: x keeps a₀ and b₁, y a₃ and b₁.
    Case(
        "squared task vectors select",
        "umtam",
        {"density": 0.33, "curvature": "delta"},
        {"a": [7.0, 1.0, 1.0, 7.0], "b": [0.0, -6.0]},
    ),
    # Norms 5 and 10, hence 7.5: x becomes 4.5 6, y 0 7.5.
    Case(
        "norms are Euclidean, and balanced before the mean",
        "umtam",
        {"density": 1.0},
        {"p": [4.5, 6.75]},
        **pair([0.0, 0.0], [3.0, 4.0], [0.0, 10.0], [1.0, 1.0], [1.0, 1.0]),
    ),
]
