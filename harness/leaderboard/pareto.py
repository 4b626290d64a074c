"""Which rows no other row beats in both score and cost."""

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, score) that no other point dominates, by rising cost.

    A point dominates another that costs no less and scores no more, unless both are equal (Pareto 1906).
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        cost, score = points[i]
        if not front or score > points[front[-1]][1] or points[front[-1]] == (cost, score):
            front.append(i)
    return front
