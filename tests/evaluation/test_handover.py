"""Weights that go to other processes through shared memory: all of it arrives, and nobody waits for the dead."""

import gc
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.evaluation.engines.handover import Handover, HandoverBroken, received
from harness.evaluation.engines.interface import Weights
from harness.merging.merge import tensor_digest

FORK = multiprocessing.get_context("fork")


def weights() -> Weights:
    """Tensors of less than a slot and of several, of other formats, strided, without entries, of one number."""
    torch.manual_seed(0)
    yield "small", torch.randn(3)
    yield "large", torch.randn(50, 70)
    yield "half", torch.randn(33, 7).to(torch.bfloat16)
    yield "strided", torch.randn(20, 30).t()
    yield "none", torch.empty(0, 4)
    yield "number", torch.tensor(2.5)
    yield "whole numbers", torch.arange(1000)
    yield "exactly two slots", torch.randn(500)


def take(address: bytes, told: Connection, act: str = "") -> None:
    """A receiver: tells the digest of each tensor, or dies after the first, or stops there, or says how it ended."""
    try:
        arrived: dict[str, tuple[Any, ...]] = {}
        for name, tensor in received(address):
            arrived[name] = (tensor_digest(tensor), tuple(tensor.shape), str(tensor.dtype))
            if act == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if act == "stop":
                break
            if act == "wait":
                told.send("first")
        told.send(arrived)
    except HandoverBroken as error:
        told.send(str(error))


class Receivers:
    """Processes that take from one address, each acting as it is told."""

    def __init__(self, address: bytes, *acts: str) -> None:
        self.pipes, self.processes = [], []
        for act in acts:
            ours, theirs = FORK.Pipe()
            self.processes.append(FORK.Process(target=take, args=(address, theirs, act), daemon=True))
            self.processes[-1].start()
            theirs.close()
            self.pipes.append(ours)

    def heard(self) -> list[Any]:
        """What each told; None of one that died."""
        told: list[Any] = []
        for pipe in self.pipes:
            assert pipe.poll(60), "a receiver waits for ever"
            try:
                told.append(pipe.recv())
            except EOFError:
                told.append(None)
        return told


def small(receivers: int) -> Handover:
    return Handover(receivers, slots=3, slot_bytes=1000)


@pytest.fixture(autouse=True)
def _end_receivers() -> Iterator[None]:
    yield
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


def test_the_memory_has_no_name_and_its_size_is_the_budget() -> None:
    """So nothing can be left behind, however the processes end."""

    def mapped() -> list[str]:
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if "graftbench-handover" in line]

    files = len(os.listdir("/proc/self/fd"))
    with small(1) as handover:
        (line,) = mapped()
        first, _, last = line.split()[0].partition("-")
        assert int(last, 16) - int(first, 16) == 4096, "three slots of 1000 bytes, in whole pages"
        assert line.split()[-2:] == ["/memfd:graftbench-handover", "(deleted)"]
        assert handover.address.startswith(b"\0"), "an abstract name is in no folder"
    del handover
    gc.collect()
    assert not mapped()
    assert len(os.listdir("/proc/self/fd")) == files


def test_every_receiver_gets_every_tensor() -> None:
    with small(2) as handover:
        receivers = Receivers(handover.address, "", "")
        handover.send(weights())
        one, other = receivers.heard()
    expected = {name: (tensor_digest(tensor), tuple(tensor.shape), str(tensor.dtype)) for name, tensor in weights()}
    assert one == other == expected
    assert list(one) == list(expected)


def test_the_sender_is_never_further_ahead_than_its_slots() -> None:
    """One receiver takes nothing after the first tensor; the other's taking all does not matter."""
    taken: list[int] = []

    def many() -> Weights:
        for number in range(100):
            taken.append(number)
            yield str(number), torch.full((250,), float(number))

    with small(2) as handover:
        receivers = Receivers(handover.address, "", "stop")
        with pytest.raises(HandoverBroken):
            handover.send(many())
    assert len(taken) <= 1 + 3 + 1
    assert "gone" in receivers.heard()[0]


def test_a_receiver_that_dies_ends_all() -> None:
    with small(2) as handover:
        receivers = Receivers(handover.address, "", "die")
        with pytest.raises(HandoverBroken, match="is gone"):
            handover.send(weights())
    assert "gone" in receivers.heard()[0]


def test_a_sender_that_dies_leaves_nobody_waiting() -> None:
    ours, theirs = FORK.Pipe()

    def send() -> None:
        def endless() -> Weights:
            yield from weights()
            signal.pause()

        handover = small(2)
        theirs.send(handover.address)
        handover.send(endless())

    sender = FORK.Process(target=send, daemon=True)
    sender.start()
    receivers = Receivers(ours.recv(), "wait", "wait")
    assert receivers.heard() == ["first", "first"]
    assert sender.pid is not None
    os.kill(sender.pid, signal.SIGKILL)
    for pipe in receivers.pipes:
        messages = []
        while pipe.poll(60) and (message := pipe.recv()) == "first":
            messages.append(message)
        assert "the process at the other end of a handover of weights is gone" in message


def test_an_error_of_the_weights_is_handed_on_as_it_is() -> None:
    def broken() -> Weights:
        yield "one", torch.ones(3)
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="the disk went away"), small(2) as handover:
        receivers = Receivers(handover.address, "", "")
        handover.send(broken())
    assert all("gone" in told for told in receivers.heard())


def test_receivers_that_never_come() -> None:
    with small(2) as handover, pytest.raises(HandoverBroken, match="not all processes came"):
        handover.send(weights(), going_on=lambda: False)


def test_an_address_without_a_sender() -> None:
    with small(1) as handover:
        address = handover.address
    with pytest.raises(HandoverBroken):
        next(received(address))
