"""PyTorch's `.bin` files: read in ranges, and never by running what they hold."""

import json
import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from harness.checkpoints import Checkpoint
from harness.checkpoints.pickled import PickledFile
from harness.errors import GraftbenchError


def read(file: PickledFile, name: str, start: int, stop: int) -> Tensor:
    return file.read(name, start, stop, torch.empty((stop - start) * 8, dtype=torch.uint8))


def written(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def shared() -> dict[str, Tensor]:
    """Tensors of several data types, some of which share storage or are not stored row by row."""
    torch.manual_seed(1)
    whole = torch.randn(6, 5)
    stacked = torch.randn(2, 3, 4)
    return {
        "whole": whole,
        "rows": whole[2:4],
        "column": whole[:, 1],
        "transposed": whole.T,
        "permuted": stacked.permute(0, 2, 1),
        "expanded": torch.randn(1, 3).expand(4, 3),
        "half": torch.randn(7, dtype=torch.float16),
        "brain": torch.randn(3, 3, dtype=torch.bfloat16),
        "scalar": torch.tensor(2.5),
        "positions": torch.arange(5),
        "empty": torch.empty(0, 3),
    }


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> PickledFile:
    return PickledFile(written(tmp_path_factory.mktemp("pickled") / "pytorch_model.bin", shared()))


@given(name=st.sampled_from(sorted(shared())), data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_range_is_what_was_saved(opened: PickledFile, name: str, data: st.DataObject) -> None:
    expected = shared()[name]
    assert opened.tensors[name].shape == tuple(expected.shape)
    assert opened.tensors[name].dtype == expected.dtype
    start = data.draw(st.integers(0, expected.numel()))
    stop = data.draw(st.integers(start, expected.numel()))
    opened.announce(name, start, stop)
    assert torch.equal(read(opened, name, start, stop), expected.reshape(-1)[start:stop])


def test_tensors_come_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    file = PickledFile(written(tmp_path / "m.bin", OrderedDict(b=torch.ones(2), a=torch.zeros(2))))
    assert list(file.tensors) == ["b", "a"]
    file.close()
    assert read(file, "b", 0, 2).tolist() == [1.0, 1.0]


class Malicious:
    """Unpickled freely, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_is_never_run(tmp_path: Path) -> None:
    target = tmp_path / "written"
    file = written(tmp_path / "m.bin", {"p": torch.ones(2), "q": Malicious(target)})
    with pytest.raises(
        GraftbenchError,
        match=r"holds more than tensors \(posix\.mkdir\), and loading it could run code.*save_pretrained",
    ):
        PickledFile(file)
    assert not target.exists()
    torch.load(file, weights_only=False)
    assert target.exists()


@pytest.mark.parametrize("kept", [0, 3, 60, 700, -1, -200])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    file = written(tmp_path / "m.bin", {"p": torch.ones(200)})
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(GraftbenchError, match=r"m\.bin is (not a whole PyTorch file|no PyTorch archive: it is cut)"):
        PickledFile(file)


def test_bytes_that_are_not_where_the_pickle_says_are_refused(tmp_path: Path) -> None:
    """An archive that was packed anew: compressed, or with a record cut short."""
    path = written(tmp_path / "m.bin", {"p": torch.ones(200)})
    for compression, kept in ((zipfile.ZIP_DEFLATED, None), (zipfile.ZIP_STORED, 80)):
        with zipfile.ZipFile(path) as one, zipfile.ZipFile(tmp_path / "n.bin", "w", compression) as other:
            for name in one.namelist():
                other.writestr(name, one.read(name)[:kept] if name.endswith("data/0") else one.read(name))
        with pytest.raises(GraftbenchError, match=r"n\.bin: tensor 'p' lies where the archive has no such bytes"):
            PickledFile(tmp_path / "n.bin")


@pytest.mark.parametrize("name", ["whole", "half"])
def test_a_file_cut_short_after_it_was_opened_is_an_error(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "m.bin", shared())
    file = PickledFile(path)
    path.write_bytes(path.read_bytes()[: file.tensors[name].begin + 4])
    with pytest.raises(GraftbenchError, match=rf"m\.bin: tensor '{name}' ends .* bytes too early"):
        read(file, name, 0, 5)


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ({"p": torch.ones(2)}, {"_use_new_zipfile_serialization": False}, "before PyTorch 1.6"),
        ([torch.ones(2)], {}, "holds a list"),
        ({"model": {"p": torch.ones(2)}}, {}, "'model' is a dict, not a tensor"),
        ({"p": torch.ones(2), "step": 3}, {}, "'step' is a int"),
        ({"p": torch.ones(2).to_sparse()}, {}, "'p' is sparse"),
        ({"p": torch.ones(2, dtype=torch.complex64)}, {}, "complex"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(GraftbenchError, match=said):
        PickledFile(written(tmp_path / "m.bin", content, **options))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GraftbenchError, match=r"m\.bin does not exist"):
        PickledFile(tmp_path / "m.bin")


def test_parameters_and_metadata_of_a_module_are_read(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 3)
    file = PickledFile(written(tmp_path / "m.bin", layer.state_dict()))
    assert torch.equal(read(file, "weight", 0, 6), layer.weight.detach().view(-1))
    kept = PickledFile(written(tmp_path / "n.bin", {"weight": layer.weight}))
    assert torch.equal(read(kept, "weight", 0, 6), layer.weight.detach().view(-1))


def test_a_checkpoint_of_pickled_shards(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["TestModel"]}))
    files = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    for value, (name, file) in enumerate(files.items()):
        written(tmp_path / file, {name: torch.full((2, 2), float(value))})
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    with Checkpoint(tmp_path) as checkpoint:
        assert {name: checkpoint.read(name).tolist() for name in checkpoint.tensors} == {
            "a": [[0.0, 0.0], [0.0, 0.0]],
            "b": [[1.0, 1.0], [1.0, 1.0]],
        }


def test_safetensors_win_where_a_folder_has_both(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    written(tmp_path / "pytorch_model.bin", {"p": torch.zeros(1)})
    assert Checkpoint(tmp_path).read("p").tolist() == [0.0]
    save_file({"p": torch.ones(1)}, tmp_path / "model.safetensors")
    assert Checkpoint(tmp_path).read("p").tolist() == [1.0]
