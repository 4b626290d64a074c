"""What an engine can do, whatever answers behind it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from harness.evaluation.engines.samples import Held

Weights = Iterable[tuple[str, Tensor]]
"""Names and tensors of a whole checkpoint, one after the other; each tensor stays as it is after the next is taken."""


class Engine(Protocol):
    """Turns a checkpoint's folder into the language-model object that lm-eval asks."""

    own_process: ClassVar[bool]
    """Whether each model needs a process of its own, because the engine does not free all that it took."""

    def describe(self) -> dict[str, Any]:
        """What of the engine can change a score: JSON-able, for the key of a result.

        Raises:
            GraftbenchError: the engine cannot run here; it is said why, and what to do.
        """
        ...

    def load(self, model: str | Path) -> Any:
        """Load a checkpoint (a folder, or a name on the Hugging Face hub) as an `lm_eval.api.model.LM`."""
        ...

    def check_exchange(self) -> None:
        """Check that weights can be exchanged while the engine stands.

        Raises:
            GraftbenchError: with these settings they cannot.
        """
        ...

    def hollow(self, folder: Path) -> Any:
        """The same for weights that come later: configuration and tokenizer are read, the weights are of no model."""
        ...

    def exchange(self, lm: Any, weights: Weights) -> Sequence[Mapping[str, str]]:
        """Replace all weights of a loaded model where they lie, and forget all that was computed with the old ones.

        Returns for each process that they were sent to the digests of what arrived there, by name; nothing where they
        stayed in this one. Any error leaves the model in no state to be used.
        """
        ...

    def held(self, lm: Any, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Held]:
        """Samples of the weights that the model has now, by their names in a checkpoint, as far as they can be read
        back; of one tensor there may be several parts.

        Args:
            lm: the model.
            shapes: names and shapes of the checkpoint's tensors.
        """
        ...

    def cached_tokens(self, lm: Any, prompt: str) -> int:
        """How many tokens of a prompt were answered from what earlier prompts had left, in one generation."""
        ...
