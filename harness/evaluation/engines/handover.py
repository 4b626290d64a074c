"""Tensors from one process to several others, piece by piece through shared memory.

The sender writes a piece into a ring of slots, every receiver copies it out, and a slot is written again when all of
them have; so the memory is bounded whatever the size of a tensor, and the receivers go in step. Nothing of it can be
left behind: the memory is a file without a name, the socket lies in no folder, and both end with the last process that
holds them. A process that dies closes its end, so that nobody waits for it. Linux only, as vLLM is.
"""

import contextlib
import mmap
import os
import socket
import struct
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Self

import torch
from torch import Tensor

from harness.evaluation.engines.interface import Weights

SLOTS = 4
SLOT_BYTES = 2**24
"""64 MiB in all: large enough to keep memory busy, small beside any model."""

_POLL_SECONDS = 0.05


class HandoverBroken(Exception):
    """The other side is gone before all tensors came."""


@dataclass(frozen=True)
class _Piece:
    """What the sender says of a slot."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    """Of the tensor's bytes, the first one in the slot."""
    stop: int
    slot: int


class Handover:
    """The sender's side. Use it as a context manager: leaving it ends all receivers that still wait."""

    def __init__(self, receivers: int, slots: int = SLOTS, slot_bytes: int = SLOT_BYTES) -> None:
        self._slots, self._slot_bytes = slots, slot_bytes
        self._file = os.memfd_create("graftbench-handover")
        os.ftruncate(self._file, slots * slot_bytes)
        self._map = mmap.mmap(self._file, slots * slot_bytes)
        self._memory = torch.frombuffer(self._map, dtype=torch.uint8).view(slots, slot_bytes)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind("")  # the kernel finds an abstract name
        self._listener.listen(receivers)
        self._expected = receivers
        self._receivers: list[Connection] = []

    @property
    def address(self) -> bytes:
        """What a receiver must know."""
        return bytes(self._listener.getsockname())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all receivers that still wait."""
        for receiver in self._receivers:
            receiver.close()
        self._listener.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def send(self, weights: Weights, going_on: Callable[[], bool] = lambda: True) -> None:
        """Hand over all tensors.

        Args:
            weights: what is sent.
            going_on: whether receivers may still come.

        Raises:
            HandoverBroken: a receiver is gone, or did not come.
        """
        self._accept(going_on)
        sent = 0
        for name, tensor in weights:
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            for start in range(0, max(raw.numel(), 1), self._slot_bytes):
                slot, part = sent % self._slots, raw[start : start + self._slot_bytes]
                if sent >= self._slots:
                    self._await_one_taken()
                self._memory[slot, : part.numel()] = part
                self._tell(_Piece(name, tuple(tensor.shape), tensor.dtype, start, start + part.numel(), slot))
                sent += 1
        for _ in range(min(sent, self._slots)):
            self._await_one_taken()
        self._tell(None)

    def _accept(self, going_on: Callable[[], bool]) -> None:
        self._listener.settimeout(_POLL_SECONDS)
        while len(self._receivers) < self._expected:
            try:
                accepted, _ = self._listener.accept()
            except TimeoutError:
                if not going_on():
                    raise HandoverBroken("not all processes came that shall take weights") from None
                continue
            if _owner(accepted) != os.getuid():
                accepted.close()
                continue
            accepted.setblocking(True)
            with _not_alone():
                socket.send_fds(accepted, [struct.pack("qq", self._slots, self._slot_bytes)], [self._file])
            self._receivers.append(Connection(accepted.detach()))

    def _tell(self, piece: _Piece | None) -> None:
        with _not_alone():
            for receiver in self._receivers:
                receiver.send(piece)

    def _await_one_taken(self) -> None:
        """Pieces are taken in their order, so that the oldest that is still there is taken next."""
        with _not_alone():
            for receiver in self._receivers:
                receiver.recv()


def received(address: bytes) -> Generator[tuple[str, Tensor], None, None]:
    """The receiver's side: the tensors, each in memory of its own. Closing it tells the sender that no more are taken.

    Args:
        address: the sender's.

    Raises:
        HandoverBroken: the sender is gone, or has given up.
    """
    with socket.socket(socket.AF_UNIX) as connected, _not_alone():
        connected.connect(address)
        told, files, _, _ = socket.recv_fds(connected, struct.calcsize("qq"), 1)
        if not files:
            raise EOFError
        sender = Connection(connected.detach())
    slots, slot_bytes = struct.unpack("qq", told)
    mapped = mmap.mmap(files[0], slots * slot_bytes)
    os.close(files[0])
    memory = torch.frombuffer(mapped, dtype=torch.uint8).view(slots, slot_bytes)
    with sender:
        while (piece := _heard(sender)) is not None:
            if piece.start == 0:
                whole = torch.empty(piece.shape, dtype=piece.dtype)
                raw = whole.view(-1).view(torch.uint8)
            raw[piece.start : piece.stop] = memory[piece.slot, : piece.stop - piece.start]
            with _not_alone():
                sender.send(True)
            if piece.stop == raw.numel():
                yield piece.name, whole


def _heard(sender: Connection) -> _Piece | None:
    with _not_alone():
        piece: _Piece | None = sender.recv()
    return piece


@contextlib.contextmanager
def _not_alone() -> Iterator[None]:
    """What a socket raises when the other side has gone or given up, as one error."""
    try:
        yield
    except (EOFError, OSError) as error:
        raise HandoverBroken("the process at the other end of a handover of weights is gone") from error


def _owner(accepted: socket.socket) -> int:
    """The user of the process at the other end: a name that lies in no folder has no permissions."""
    _, user, _ = struct.unpack("3i", accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(user)
