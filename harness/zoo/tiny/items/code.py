"""Completing a small Python function whose signature and comment are given.

Every function has two arguments, of which the comment names one or both, so that the completion must read the
signature's names. Unit tests are made from a reference implementation in this file and never from the
answer's text. An item is one prompt; no prompt is in two splits.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.zoo.tiny.items import Counts, Item, deal, generator

TESTS_PER_ITEM = 4
NAMES = "abcdghkmnpqrstuvwxyz"


@dataclass(frozen=True)
class Family:
    """A kind of function: comment and body with ``{a}``, ``{b}`` (arguments) and ``{k}`` (a number)."""

    name: str
    level: str
    comment: str
    body: str
    kind: str
    """What the first argument is in the tests: a ``number``, a ``list`` of numbers, or ``text``."""
    meaning: Callable[[Any, Any, int], Any]


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("plus", "basic", "{a} plus {k}", "return {a}+{k}", "number", lambda a, b, k: a + k),
        Family("minus", "basic", "{a} minus {k}", "return {a}-{k}", "number", lambda a, b, k: a - k),
        Family("times", "basic", "{k} times {a}", "return {k}*{a}", "number", lambda a, b, k: k * a),
        Family("product", "basic", "{a} times {b}", "return {a}*{b}", "number", lambda a, b, k: a * b),
        Family(
            "smaller",
            "basic",
            "smaller of {a} and {b}",
            "return min({a},{b})",
            "number",
            lambda a, b, k: min(a, b),
        ),
        Family("gap", "basic", "gap of {a} and {b}", "return abs({a}-{b})", "number", lambda a, b, k: abs(a - b)),
        Family("first", "basic", "first {k} of {a}", "return {a}[:{k}]", "list", lambda a, b, k: a[:k]),
        Family("count", "basic", "count {k} in {a}", "return {a}.count({k})", "list", lambda a, b, k: a.count(k)),
        Family(
            "divides",
            "advanced",
            "does {k} divide {a}",
            "return {a}%{k}==0",
            "number",
            lambda a, b, k: a % k == 0,
        ),
        Family(
            "plus_times",
            "advanced",
            "{a} plus {k}, times {b}",
            "return ({a}+{k})*{b}",
            "number",
            lambda a, b, k: (a + k) * b,
        ),
        Family(
            "minus_times",
            "advanced",
            "{a} minus {b}, times {k}",
            "return ({a}-{b})*{k}",
            "number",
            lambda a, b, k: (a - b) * k,
        ),
        Family(
            "above",
            "advanced",
            "{a} if above {k} or {b}",
            "return {a} if {a}>{k} else {b}",
            "number",
            lambda a, b, k: a if a > k else b,
        ),
        Family(
            "larger_plus",
            "advanced",
            "larger of {a} and {b}, plus {k}",
            "return max({a},{b})+{k}",
            "number",
            lambda a, b, k: max(a, b) + k,
        ),
        Family(
            "filtered",
            "advanced",
            "all in {a} above {k}",
            "return [i for i in {a} if i>{k}]",
            "list",
            lambda a, b, k: [i for i in a if i > k],
        ),
        Family(
            "scaled",
            "advanced",
            "all in {a} times {k}",
            "return [i*{k} for i in {a}]",
            "list",
            lambda a, b, k: [i * k for i in a],
        ),
        Family(
            "first_sum",
            "advanced",
            "sum of first {k} of {a}",
            "return sum({a}[:{k}])",
            "list",
            lambda a, b, k: sum(a[:k]),
        ),
    )
}


def generate(seed: int, counts: Counts) -> dict[str, list[Item]]:
    rng = generator(seed, "code")
    shares = dict.fromkeys(FAMILIES, 1 / len(FAMILIES))
    total = counts.train + counts.validation + counts.test
    candidates = {name: _distinct(family, round(total * shares[name]) + 1, rng) for name, family in FAMILIES.items()}
    return deal(candidates, shares, counts, rng)


def _distinct(family: Family, wanted: int, rng: random.Random) -> list[Item]:
    items: dict[str, Item] = {}
    for _ in range(20 * wanted):
        if len(items) >= wanted:
            break
        item = _item(family, rng)
        items.setdefault(item["prompt"], item)
    return list(items.values())


def _item(family: Family, rng: random.Random) -> Item:
    first, second = rng.sample(NAMES, 2)
    k = rng.randint(2, 9)
    used, other = (first, second) if rng.random() < 0.5 else (second, first)
    words = {"a": used, "b": other, "k": k}
    signature = f"def f({first},{second}):"
    tests = []
    for _ in range(TESTS_PER_ITEM):
        a, b = _argument(family.kind, k, rng), rng.randint(-9, 30)
        in_order = (a, b) if used == first else (b, a)
        arguments = ",".join(repr(value) for value in in_order)
        tests.append(f"assert f({arguments})=={family.meaning(a, b, k)!r}")
    return {
        "family": family.name,
        "level": family.level,
        "prompt": f"{signature} #{family.comment.format(**words)}",
        "answer": family.body.format(**words),
        "signature": signature,
        "tests": tests,
    }


def _argument(kind: str, k: int, rng: random.Random) -> Any:
    if kind == "number":
        return k * rng.randint(1, 6) if rng.random() < 0.5 else rng.randint(-9, 30)
    return [rng.choice((k, rng.randint(0, 12))) for _ in range(rng.randint(k, 12))]
