"""The file of second moments, written parameter by parameter."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.curvature import SecondMomentsMetadata, compress, write_second_moments
from harness.curvature.export import export_second_moments
from harness.curvature.export.state import ParameterMoments
from harness.curvature.streaming import streamed_second_moments
from harness.errors import GraftbenchError
from tests.curvature.export.live import adamw, saved, tied_model, train

METADATA = SecondMomentsMetadata("adam", "AdamW β", 0.999, 12, 3e-4, "abc")


@pytest.mark.parametrize("compressed", [False, True])
def test_the_bytes_are_those_of_a_file_that_is_written_at_once(tmp_path: Path, compressed: bool) -> None:
    torch.manual_seed(0)
    tensors = {"b": torch.rand(3, 5), "a.weight": torch.rand(4), "scalar": torch.rand(()), "empty": torch.rand(0, 2)}
    write_second_moments(tmp_path / "once", tensors, METADATA, compressed)
    stored = {k: p for n, t in tensors.items() for k, p in (compress(n, t) if compressed else {n: t}).items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in stored.items()}
    with streamed_second_moments(tmp_path / "streamed", shapes, METADATA) as writer:
        for key, tensor in reversed(stored.items()):
            writer.write(key, tensor)
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "once").read_bytes()


def test_a_file_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"not written: \['q'\]"),
        streamed_second_moments(tmp_path / "v", {"p": (1,), "q": (1,)}, METADATA) as writer,
    ):
        writer.write("p", torch.ones(1))
    with (
        pytest.raises(GraftbenchError, match=r"'p' range from -1\.0"),
        streamed_second_moments(tmp_path / "v", {"p": (1,)}, METADATA) as writer,
    ):
        writer.write("p", -torch.ones(1))
    assert list(tmp_path.iterdir()) == []


def test_one_parameter_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tied_model()
    optimizer = adamw(model)
    train(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = []

    class Counted:
        """Stands for what one parameter takes: alive as long as something refers to its tensors."""

    original = ParameterMoments.__init__

    def counting(self: ParameterMoments, shape: Any, parts: Any, read: Any) -> None:
        def read_counted() -> dict[str, Tensor]:
            tensors = {suffix: tensor.clone() for suffix, tensor in read().items()}
            for tensor in tensors.values():
                tensor.counted = Counted()  # type: ignore[attr-defined]
                alive.add(tensor.counted)  # type: ignore[attr-defined]
            most.append(len(alive))
            return tensors

        original(self, shape, parts, read_counted)

    monkeypatch.setattr(ParameterMoments, "__init__", counting)
    export_second_moments(tmp_path / "state.pt", tmp_path / "out", saved(tmp_path / "model", model))
    # The next is read while the former is still named by the loop.
    assert len(most) == len(list(model.parameters())) and max(most) <= 2
