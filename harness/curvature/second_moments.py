"""The file of second moments: safetensors under the model's parameter names, whole or as row and column sums."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.errors import GraftbenchError
from harness.files import file_written_atomically

FORMAT_VERSION = "1"
FILE_NAME = "exp_avg_sq.safetensors"
FISHER_FILE_NAME = "fisher.safetensors"

_ROW, _COLUMN = ".row", ".col"


@dataclass(frozen=True)
class SecondMomentsMetadata:
    """Where second moments come from; a public file may know none of it."""

    kind: Literal["adam", "fisher"] = "adam"
    """Adam's running average of squared gradients, or the mean squared gradient of single examples."""
    optimizer: str | None = None
    beta2: float | None = None
    """Adam's β₂, needed for the bias correction."""
    step: int | None = None
    """Number of optimizer steps, needed for the bias correction."""
    learning_rate: float | None = None
    base_digest: str | None = None
    """Digest of the base model's weights."""
    bias_corrected: bool = False
    """Whether 1/(1−β₂ᵗ) has been applied already; files of ours are stored raw."""

    @property
    def correction(self) -> float | None:
        """Factor that makes the stored values unbiased (Kingma and Ba 2015, arXiv:1412.6980, §3); None if unknown."""
        if self.kind == "fisher" or self.bias_corrected:
            return 1.0
        if self.beta2 is None or self.step is None or self.step < 1:
            return None
        return float(1.0 / (1.0 - self.beta2**self.step))


def write_second_moments(
    path: Path, tensors: Mapping[str, Tensor], metadata: SecondMomentsMetadata, compressed: bool = False
) -> None:
    """Write second moments in fp32, raw, atomically.

    Args:
        path: the file, by convention `exp_avg_sq.safetensors` in the expert's folder.
        tensors: one tensor per parameter, ≥ 0, under the parameter's name; tied parameters once.
        metadata: where they come from.
        compressed: keep row and column sums of matrices instead of the matrices.
    """
    stored = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    if compressed:
        stored = {key: part for name, tensor in stored.items() for key, part in compress(name, tensor).items()}
    fields = {"format": "graftbench.second_moments", "version": FORMAT_VERSION}
    fields |= {key: str(value) for key, value in asdict(metadata).items() if value is not None}
    with file_written_atomically(path) as temporary:
        save_file(stored, temporary, metadata=fields)
        _sort_header(temporary)


def compress(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Row and column sums of a matrix, fp32, under `<name>.row` and `<name>.col` (Adafactor, arXiv:1804.04235, §3).

    Anything but a matrix is kept whole, under its own name.
    """
    if tensor.dim() != 2:
        return {name: tensor}
    return {f"{name}{_ROW}": tensor.sum(dim=1), f"{name}{_COLUMN}": tensor.sum(dim=0)}


def reconstruct(row: Tensor, column: Tensor) -> Tensor:
    """The matrix (row/Σ)·colᵀ of those sums, `[rows, columns]`; zero where they are all zero."""
    total = row.sum()
    return torch.outer(row / total, column) if total > 0 else row.new_zeros(len(row), len(column))


class SecondMoments:
    """A file of second moments, read one parameter at a time. Use it as a context manager to close the file."""

    def __init__(self, path: Path) -> None:
        """Open the file and read its header.

        Raises:
            GraftbenchError: it is missing, corrupt, or of another format version.
        """
        self.path = Path(path)
        self._files = ExitStack()
        try:
            self._file: Any = self._files.enter_context(safe_open(self.path, framework="pt"))
        except FileNotFoundError:
            raise GraftbenchError(f"second moments {self.path} do not exist") from None
        except (OSError, SafetensorError) as error:
            raise GraftbenchError(f"{self.path} is not a whole safetensors file ({error}); export it again") from error
        self.metadata = _metadata(self._file.metadata() or {}, self.path)
        self.shapes = _shapes(self._file, self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def read(self, name: str, as_sums: bool = False) -> Tensor:
        """The second moments of one parameter, raw, fp32, in its shape.

        Args:
            name: the parameter.
            as_sums: reduce a matrix to its row and column sums and reconstruct it, as a compressed file would.

        Raises:
            GraftbenchError: the values are negative, NaN or Inf.
        """
        if name in self._file.keys():  # noqa: SIM118 - safetensors' handle is no mapping
            value = self._file.get_tensor(name).to(torch.float32)
            self._check(name, value)
            parts = compress(name, value) if as_sums else {name: value}
        else:
            parts = {key: self._file.get_tensor(key).to(torch.float32) for key in (name + _ROW, name + _COLUMN)}
            for key, part in parts.items():
                self._check(key, part)
        return parts[name] if name in parts else reconstruct(parts[name + _ROW], parts[name + _COLUMN])

    def _check(self, name: str, value: Tensor) -> None:
        if not (torch.isfinite(value) & (value >= 0)).all():
            raise GraftbenchError(f"{self.path}: second moments of '{name}' hold negative values, NaN or Inf")


def _sort_header(path: Path) -> None:
    """Put the header's keys in order: safetensors writes metadata in an order that differs from call to call."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))


def _metadata(fields: Mapping[str, str], path: Path) -> SecondMomentsMetadata:
    """The metadata of a file of ours; a public file without any is raw Adam of unknown step."""
    if fields.get("format") != "graftbench.second_moments":
        return SecondMomentsMetadata()
    if fields.get("version") != FORMAT_VERSION:
        raise GraftbenchError(f"{path}: format version {fields.get('version')}, but this reads {FORMAT_VERSION}")
    try:
        kind, beta2 = fields["kind"], float(fields["beta2"]) if "beta2" in fields else None
        if kind not in ("adam", "fisher"):
            raise ValueError(f"kind={kind} is neither adam nor fisher")
        if beta2 is not None and not 0.0 <= beta2 < 1.0:
            raise ValueError(f"beta2={beta2} lies outside 0..1")
        return SecondMomentsMetadata(
            kind="fisher" if kind == "fisher" else "adam",
            optimizer=fields.get("optimizer"),
            beta2=beta2,
            step=int(fields["step"]) if "step" in fields else None,
            learning_rate=float(fields["learning_rate"]) if "learning_rate" in fields else None,
            base_digest=fields.get("base_digest"),
            bias_corrected=fields.get("bias_corrected") == "True",
        )
    except (KeyError, ValueError) as error:
        raise GraftbenchError(f"{path}: its metadata cannot be read ({error})") from error


def _shapes(file: Any, path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter that the file covers, from its header."""
    stored = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    shapes = {}
    for key, shape in stored.items():
        if key.endswith(_ROW):
            name = key.removesuffix(_ROW)
            if name + _COLUMN not in stored:
                raise GraftbenchError(f"{path}: has row sums of '{name}' but no column sums")
            shapes[name] = (*shape, *stored[name + _COLUMN])
        elif not key.endswith(_COLUMN):
            shapes[key] = shape
    return shapes
