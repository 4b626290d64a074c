"""The mean of several checkpoints of one run, computed as they are read."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from harness.checkpoints.derived import DerivedCheckpoint
from harness.checkpoints.layout import Checkpoint
from harness.errors import GraftbenchError
from harness.files import canonical_json, text_digest


class AveragedCheckpoint(DerivedCheckpoint):
    """The equal-weight mean of checkpoints, in fp32, summed in the order given, then divided by their number.

    Latest weight averaging (arXiv:2209.14981), as in stochastic weight averaging (arXiv:1803.05407). Configuration,
    tokenizer, buffers and the folder that second moments are looked for in are those of the last one.
    """

    def __init__(self, members: Sequence[Checkpoint | DerivedCheckpoint]) -> None:
        """Check that the members have one layout.

        Args:
            members: at least one, in the order of training.

        Raises:
            GraftbenchError: two of them differ in architecture, tensors or shapes; both are named.
        """
        last = members[-1]
        for member in members[:-1]:
            _check_same_layout(member, last)
        super().__init__("[" + ", ".join(member.source for member in members) + "]", last)
        self.members = tuple(members)
        self.is_adapter = any(isinstance(member, DerivedCheckpoint) and member.is_adapter for member in members)

    @cached_property
    def weights_digest(self) -> str:
        """Digest of the members' weights, in order."""
        return text_digest(canonical_json(["mean", [member.weights_digest for member in self.members]]))

    def fetch(self, name: str, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Entries of the mean, fp32; see `TensorSource`."""
        count = stop - start
        mean = scratch[: 4 * count].view(torch.float32)
        spare = self._spare(count)
        first, *others = self.members
        mean.copy_(first.fetch(name, start, stop, spare))
        for member in others:
            mean.add_(member.fetch(name, start, stop, spare).to(torch.float32))
        return mean.div_(len(self.members))

    def announce(self, name: str, start: int, stop: int) -> None:
        """Tell the system that a range will be fetched soon."""
        for member in self.members:
            member.announce(name, start, stop)

    def close(self) -> None:
        """Close the members' files; the next `fetch` opens them again."""
        for member in self.members:
            member.close()


def _check_same_layout(one: Checkpoint | DerivedCheckpoint, last: Checkpoint | DerivedCheckpoint) -> None:
    """That two members can be averaged entry by entry."""
    pair = f"{one.source} and {last.source} cannot be averaged: "
    if one.architecture != last.architecture:
        raise GraftbenchError(
            f"{pair}one is a {one.architecture}, the other a {last.architecture}; give checkpoints of one run"
        )
    for holder, other in ((one, last), (last, one)):
        lacking = [name for name in holder.tensors if name not in other.tensors]
        if lacking:
            raise GraftbenchError(
                f"{pair}{other.source} lacks {len(lacking)} tensors of {holder.source}, such as '{lacking[0]}'; "
                "give checkpoints of one run"
            )
    for name, info in one.tensors.items():
        if info.shape != last.tensors[name].shape:
            raise GraftbenchError(
                f"{pair}'{name}' is {list(info.shape)} in one and {list(last.tensors[name].shape)} in the other; "
                "give checkpoints of one run"
            )
