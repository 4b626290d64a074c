"""Arithmetic with two-digit numbers and a free answer.

Comparing, and adding and subtracting where no digit carries, are basic; carrying and borrowing are advanced.
An item is a pair of numbers under an operation, and each pair is in one split only.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.zoo.tiny.items import Counts, Item, deal, generator

SHARES = {"larger": 0.16, "sum": 0.17, "difference": 0.17, "sum_carry": 0.25, "difference_borrow": 0.25}
NUMBERS = range(10, 100)


def generate(seed: int, counts: Counts) -> dict[str, list[Item]]:
    candidates: dict[str, list[Item]] = {family: [] for family in SHARES}
    for item in problems():
        candidates[item["family"]].append(item)
    return deal(candidates, SHARES, counts, generator(seed, "math"))


def problems() -> Iterator[Item]:
    """Every problem there is: all pairs of two-digit numbers whose result has at most two digits."""
    for a in NUMBERS:
        for b in NUMBERS:
            if a != b:
                yield _item("larger", "basic", f"max({a},{b})=", max(a, b))
            if a + b < 100:
                carries = a % 10 + b % 10 >= 10
                family, level = ("sum_carry", "advanced") if carries else ("sum", "basic")
                yield _item(family, level, f"{a}+{b}=", a + b)
            if a > b:
                borrows = a % 10 < b % 10
                family, level = ("difference_borrow", "advanced") if borrows else ("difference", "basic")
                yield _item(family, level, f"{a}-{b}=", a - b)


def _item(family: str, level: str, prompt: str, answer: int) -> Item:
    return {"family": family, "level": level, "prompt": prompt, "answer": str(answer)}
