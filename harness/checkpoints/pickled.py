"""One PyTorch file (`pytorch_model.bin`): its tensors, and ranges of them, without running any code that it holds.

The file is a zip archive that stores each tensor's bytes uncompressed, and a pickle that says how to view them. The
pickle goes through torch's restricted unpickler alone (`torch.load(weights_only=True)`), onto the device `meta`, so
that no weight is read; the bytes are then read in ranges at the offsets that the archive gives. A tensor that is not
stored row by row, such as a transposed view, is gathered from a mapping of the file instead.
"""

import pickle
import re
import struct
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from harness.checkpoints.ranges import FileRanges, StoredTensor
from harness.errors import GraftbenchError

_SAVE_WEIGHTS = "where you trust the file, load the model and save it as safetensors with save_pretrained"
_ZIP_START = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<26xHH")
"""The lengths of name and extra field, which end a zip record's header (PKWARE APPNOTE 4.3.7)."""


class PickledFile:
    """A file whose pickle has been read: `tensors` in the order of their bytes."""

    def __init__(self, path: Path) -> None:
        """Read what the file says about its tensors; their bytes are not touched.

        Raises:
            GraftbenchError: the file is missing, truncated, of PyTorch's format before 1.6, or holds anything but
                tensors by name.
        """
        self.path = Path(path)
        self._ranges = FileRanges(self.path)
        self._mapping = threading.Lock()
        self._mapped: Mapping[str, Tensor] | None = None
        stored_at = self._record_offsets()
        loaded = _state(self.path, map_location="meta")
        described: dict[str, StoredTensor] = {}
        self._gathered: set[str] = set()
        for name, tensor in loaded.items():
            storage = tensor.untyped_storage()
            # A prototype of torch (notes/serialization): where it tells nothing, the tensor is read from the mapping.
            begin: int | None = getattr(storage, "_checkpoint_offset", None)
            if begin is not None and storage.nbytes() and stored_at.get(begin) != storage.nbytes():
                raise GraftbenchError(
                    f"{self.path}: tensor '{name}' lies where the archive has no such bytes; fetch or export it again"
                )
            if begin is None or not tensor.is_contiguous():
                self._gathered.add(name)
            offset = (begin or 0) + int(tensor.storage_offset()) * tensor.element_size()
            described[name] = StoredTensor(tuple(tensor.shape), tensor.dtype, offset)
        self.tensors = dict(sorted(described.items(), key=lambda item: item[1].begin))

    def read(self, name: str, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Entries `start` to `stop` of a tensor, flat (row by row), as they are stored.

        Args:
            name: the tensor.
            start: flat index of the first entry.
            stop: flat index after the last.
            scratch: uint8, large enough; the result is a view of it.

        Raises:
            GraftbenchError: the file vanished or is shorter than it was.
        """
        stored = self.tensors[name]
        if name not in self._gathered:
            return self._ranges.read(name, stored, start, stop, scratch)
        gathered = scratch[: (stop - start) * stored.dtype.itemsize].view(stored.dtype)
        _gather(self._strided(name), start, stop, gathered)
        return gathered

    def announce(self, name: str, start: int, stop: int) -> None:
        """Tell the system that a range will be read soon, so that the disk works while the processor does."""
        if name not in self._gathered:
            self._ranges.announce(self.tensors[name], start, stop)

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        self._ranges.close()
        with self._mapping:
            self._mapped = None

    def _strided(self, name: str) -> Tensor:
        with self._mapping:
            if self._mapped is None:
                self._mapped = _state(self.path, map_location="cpu")
            return self._mapped[name]

    def _record_offsets(self) -> dict[int, int]:
        """Size of each uncompressed record of the archive, by the offset of its bytes."""
        offsets: dict[int, int] = {}
        try:
            with self.path.open("rb") as file:
                if file.read(4) != _ZIP_START:
                    raise GraftbenchError(
                        f"{self.path} is no PyTorch archive: it is cut short, a pointer of Git LFS, or from before "
                        "PyTorch 1.6, whose files cannot be read in parts; if you trust it, load the model "
                        "and save it again with save_pretrained"
                    )
                with zipfile.ZipFile(file) as archive:
                    records = archive.infolist()
                    orders = [archive.read(record) for record in records if record.filename.endswith("/byteorder")]
                if any(order != b"little" for order in orders):
                    raise GraftbenchError(f"{self.path} was written on a big-endian machine; save it as safetensors")
                for record in records:
                    file.seek(record.header_offset)
                    name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                    begin = record.header_offset + _LOCAL_HEADER.size + name_length + extra_length
                    if record.compress_type == zipfile.ZIP_STORED and record.file_size:
                        offsets[begin] = record.file_size
        except FileNotFoundError:
            raise GraftbenchError(f"{self.path} does not exist; fetch or export it again") from None
        except (OSError, zipfile.BadZipFile, struct.error) as error:
            raise GraftbenchError(
                f"{self.path} is not a whole PyTorch file ({error}); fetch or export it again"
            ) from error
        return offsets


def load_without_code(
    path: Path, map_location: str, stand_ins: Mapping[str, type] = MappingProxyType({}), advice: str = _SAVE_WEIGHTS
) -> Any:
    """What a PyTorch file holds, its tensors mapped rather than read, and nothing of it run.

    Args:
        path: a file that `torch.save` wrote.
        map_location: where tensors shall be: `meta`, or `cpu` for a mapping of the file.
        stand_ins: what to put in the place of classes that plain data does not need, by the class's full name.
        advice: what to do about a file that holds more than plain data.

    Raises:
        GraftbenchError: the file is missing, cut short, or holds what only running code could restore.
    """
    allowed: list[Any] = [(stand_in, name) for name, stand_in in stand_ins.items()]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, weights_only=True, mmap=True, map_location=map_location)
    except FileNotFoundError:
        raise GraftbenchError(f"{path} does not exist; fetch or export it again") from None
    except pickle.UnpicklingError as error:
        # Of torch's own message only what it refused: the rest advises to switch the protection off.
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise GraftbenchError(
            f"{path} holds more than tensors{f' ({refused[1]})' if refused else ''}, and loading it could run code, so "
            f"it was not loaded; {advice}"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = re.split(r"\.\s|\n", str(error).strip())[0] or type(error).__name__
        raise GraftbenchError(f"{path} is not a whole PyTorch file ({reason}); fetch or export it again") from error


def _state(path: Path, map_location: str) -> dict[str, Tensor]:
    """What the file holds: on `meta`, or mapped."""
    loaded = load_without_code(path, map_location)
    if not isinstance(loaded, dict):
        raise GraftbenchError(f"{path} holds a {type(loaded).__name__}, not tensors by name; save a state dict there")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise GraftbenchError(
                f"{path}: '{name}' is a {type(value).__name__}, not a tensor; save the model's state dict alone there"
            )
        if value.layout is not torch.strided or value.is_quantized or value.is_complex():
            raise GraftbenchError(f"{path}: tensor '{name}' is sparse, quantised or complex; only dense ones are read")
    return {name: value.detach() for name, value in loaded.items()}


def _gather(tensor: Tensor, start: int, stop: int, out: Tensor) -> None:
    """Entries `start` to `stop` of a strided tensor, row by row; only the rows that hold them are copied."""
    if start == stop:
        return
    if tensor.dim() < 2:
        out.copy_(tensor.reshape(-1)[start:stop])
        return
    row = tensor[0].numel()
    first, last = start // row, -(-stop // row)
    if last - first == 1:
        _gather(tensor[first], start - first * row, stop - first * row, out)
    else:
        out.copy_(tensor[first:last].reshape(-1)[start - first * row : stop - first * row])
