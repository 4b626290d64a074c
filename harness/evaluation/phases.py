"""Where the time of a task goes: building prompts, the model at work, scoring."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

PHASES = ("prepare", "answer", "score")

REQUESTS = ("generate_until", "loglikelihood", "loglikelihood_rolling")
"""What lm-eval asks of a model."""


@contextlib.contextmanager
def phases(lm: Any) -> Iterator[dict[str, float]]:
    """Within the block, time what is asked of `lm`; the mapping is filled when the block ends.

    It holds seconds: `prepare` until the model is first asked, `answer` while it is at work, `score` the rest.
    """
    asked: list[tuple[float, float]] = []
    originals = {name: getattr(lm, name) for name in REQUESTS}

    def timed(request: Callable[..., Any]) -> Callable[..., Any]:
        def asking(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return request(*arguments, **options)
            finally:
                asked.append((started, time.perf_counter()))

        return asking

    seconds: dict[str, float] = {}
    started = time.perf_counter()
    for name, request in originals.items():
        setattr(lm, name, timed(request))
    try:
        yield seconds
    finally:
        for name in originals:
            delattr(lm, name)  # uncovers the class's own method
        ended = time.perf_counter()
        first, last = (asked[0][0], asked[-1][1]) if asked else (ended, ended)
        answer = sum(end - begin for begin, end in asked)
        seconds |= {"prepare": first - started, "answer": answer, "score": (ended - last) + (last - first - answer)}
