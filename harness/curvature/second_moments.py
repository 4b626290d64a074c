"""The file of second moments: safetensors under the model's parameter names, whole or compressed; see `keys`."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self, cast, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.checkpoints.layout import SCRATCH_ITEM_BYTES, read_index
from harness.checkpoints.safetensors_file import SafetensorsFile
from harness.curvature.compression import compress
from harness.curvature.keys import parameters_in
from harness.curvature.stored import Form, Stored, compressed
from harness.errors import GraftbenchError
from harness.files import file_written_atomically

FORMAT_VERSION = "1"
FILE_NAME = "exp_avg_sq.safetensors"
FISHER_FILE_NAME = "fisher.safetensors"

INDEX_SUFFIX = ".index.json"
"""What the index of a sharded file is called, after the name that the file would have."""

PIECE_ENTRIES = 65_536
"""Entries that `read` takes at a time: their scratch stays in cache."""

StoredKind = Literal["adam", "fisher", "delta"]


@dataclass(frozen=True)
class SecondMomentsMetadata:
    """Where second moments come from; a public file may know none of it."""

    kind: StoredKind = "adam"
    """Adam's running average of squared gradients, the mean squared gradient of single examples, or squared task
    vectors."""
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
    estimate: str | None = None
    """What Fisher information was estimated from, in words."""
    compression: str | None = None
    """What matrices were compressed to, in words; how they are read follows from the tensors' names."""

    @property
    def correction(self) -> float | None:
        """Factor that makes the stored values unbiased (Kingma and Ba 2015, arXiv:1412.6980, §3); None if unknown."""
        if self.kind != "adam" or self.bias_corrected:
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


def find_second_moments(folder: Path, kind: StoredKind) -> Path | None:
    """The file of that kind of curvature in a folder, by its usual name, or the index of its shards; None for neither.

    Squared task vectors have no usual name: they are computed when they are needed.

    Raises:
        GraftbenchError: there are both, and one of them may be stale.
    """
    name = FILE_NAME if kind == "adam" else FISHER_FILE_NAME
    found = [path for path in (Path(folder) / name, Path(folder) / (name + INDEX_SUFFIX)) if path.is_file()]
    if len(found) > 1:
        raise GraftbenchError(f"{folder} holds both {name} and {found[1].name}; remove one, or name the file to read")
    return found[0] if found else None


class SecondMoments:
    """Second moments on disk, read in pieces: one file or shards with an index, whole or compressed. A `TensorSource`.

    Use it as a context manager to close its files. Any number of threads may read at once.
    """

    def __init__(self, path: Path, kind: StoredKind | None = None) -> None:
        """Open the files and check their headers.

        Args:
            path: a safetensors file, an index (`*.safetensors.index.json`, as Hugging Face writes it), or a folder
                that holds one of them under its usual name.
            kind: which kind to take from a folder that holds both.

        Raises:
            GraftbenchError: a file is missing, corrupt or of another format version, or files contradict one another.
        """
        self.path = Path(path)
        """As it was given."""
        index, shards, self._file_of = _open_files(self.path, kind)
        self.files = (*([index] if index else []), *(shard.path for shard in shards))
        """All files that determine the values, an index included."""
        self.metadata = _common_metadata(shards)
        parameters = parameters_in(self._file_of)
        self.tensors = parameters.infos
        """The parameters that are covered, by name: shape as the model has it, and the data type that `fetch` gives."""
        self.unreadable = parameters.unreadable
        """Tensors whose data type (integers, fp8) cannot hold second moments."""
        self._stored = parameters.stored
        self._compressed: dict[tuple[str, Form], Stored] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; the next `fetch` opens them again."""
        for file in set(self._file_of.values()):
            file.close()

    @property
    def source(self) -> str:
        """The file or folder as it was given."""
        return str(self.path)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter that is covered."""
        return {name: info.shape for name, info in self.tensors.items()}

    def fetch(self, name: str, start: int, stop: int, scratch: Tensor, form: Form | None = None) -> Tensor:
        """Entries `start` to `stop` of a parameter's second moments, raw and flat; the same bits however it is cut.

        Where the file holds the parameter whole, they are as it stores them (fp64, fp32, fp16 or bf16); where it is
        compressed, or `form` asks for that, fp32. They lie at the beginning of `scratch` in either case.

        Args:
            name: the parameter.
            start: flat index of the first entry.
            stop: flat index after the last.
            scratch: uint8, 4 bytes per entry (8 where fp64 is stored), of the calling thread.
            form: compress it on the fly and rebuild it, as a file of that form would. Sums and factors are computed by
                the first call, which reads all of the matrix, a piece of bounded size at a time, and are kept.

        Raises:
            GraftbenchError: values are negative, NaN or Inf, or cannot be read; file and tensor are named.
        """
        return self.stored(name, form).fetch(start, stop, scratch)

    def announce(self, name: str, start: int, stop: int, form: Form | None = None) -> None:
        """Tell the system that a range will be fetched soon."""
        self.stored(name, form).announce(start, stop)

    def read(self, name: str, form: Form | None = None) -> Tensor:
        """The second moments of one parameter, whole: raw, fp32, in its shape; see `fetch`."""
        info = self.tensors[name]
        out, scratch = torch.empty(info.entries), torch.empty(PIECE_ENTRIES * SCRATCH_ITEM_BYTES, dtype=torch.uint8)
        for start in range(0, info.entries, PIECE_ENTRIES):
            stop = min(start + PIECE_ENTRIES, info.entries)
            out[start:stop] = self.fetch(name, start, stop, scratch, form)
        return out.view(info.shape)

    def stored(self, name: str, form: Form | None = None) -> Stored:
        """One parameter, as the file has it or compressed on the fly.

        Raises:
            GraftbenchError: its data type cannot hold second moments.
        """
        if name in self.unreadable:
            raise GraftbenchError(f"{self.path}: second moments of '{name}' {refusal(self.unreadable[name])}")
        if form is None:
            return self._stored[name]
        if (name, form) not in self._compressed:
            made = compressed(self._stored[name], name, self.tensors[name].shape, form)
            return self._compressed.setdefault((name, form), made)
        return self._compressed[name, form]


def _open_files(
    path: Path, kind: StoredKind | None
) -> tuple[Path | None, list[SafetensorsFile], dict[str, SafetensorsFile]]:
    """The index if there is one; the files; and the one that holds each stored tensor."""
    file = _file_in(path, kind) if path.is_dir() else path
    if not file.exists():
        raise GraftbenchError(f"second moments {path} do not exist; export them from the expert's optimizer state")
    if not file.name.endswith(INDEX_SUFFIX):
        single = SafetensorsFile(file)
        return None, [single], dict.fromkeys(single.tensors, single)
    index = read_index(file)
    shards = {path: SafetensorsFile(path) for path in sorted(set(index.values()))}
    for key, path in index.items():
        if key not in shards[path].tensors:
            raise GraftbenchError(f"{path}: '{key}' is missing, though {file.name} lists it there")
    return file, list(shards.values()), {key: shards[path] for key, path in index.items()}


def _file_in(folder: Path, kind: StoredKind | None) -> Path:
    kinds: tuple[StoredKind, ...] = ("adam", "fisher") if kind is None else (kind,)
    found = [path for path in (find_second_moments(folder, each) for each in kinds) if path is not None]
    if len(found) == 1:
        return found[0]
    names = " or ".join(FISHER_FILE_NAME if each == "fisher" else FILE_NAME for each in kinds)
    if found:
        raise GraftbenchError(f"{folder} holds second moments of two kinds ({names}); name the file to read")
    raise GraftbenchError(f"second moments {folder} do not exist: the folder holds no {names}, nor an index of one")


def _common_metadata(shards: Iterable[SafetensorsFile]) -> SecondMomentsMetadata:
    """The metadata that all shards agree on."""
    found = {shard.path: _metadata(shard.metadata, shard.path) for shard in shards}
    (first, common), *others = found.items() or [(Path(), SecondMomentsMetadata())]
    for path, metadata in others:
        if metadata != common:
            raise GraftbenchError(
                f"{path}: its metadata differ from those of {first.name} ({metadata}, {common}); "
                "shards of one export agree, so export them again"
            )
    return common


def refusal(dtype: torch.dtype) -> str:
    """Why second moments of a data type are refused, after their name."""
    return f"are stored as {str(dtype).removeprefix('torch.')}; only fp64, fp32, fp16 and bf16 can be read"


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
        if kind not in get_args(StoredKind):
            raise ValueError(f"kind={kind} is none of {', '.join(get_args(StoredKind))}")
        if beta2 is not None and not 0.0 <= beta2 < 1.0:
            raise ValueError(f"beta2={beta2} lies outside 0..1")
        return SecondMomentsMetadata(
            kind=cast(StoredKind, kind),
            optimizer=fields.get("optimizer"),
            beta2=beta2,
            step=int(fields["step"]) if "step" in fields else None,
            learning_rate=float(fields["learning_rate"]) if "learning_rate" in fields else None,
            base_digest=fields.get("base_digest"),
            bias_corrected=fields.get("bias_corrected") == "True",
            estimate=fields.get("estimate"),
            compression=fields.get("compression"),
        )
    except (KeyError, ValueError) as error:
        raise GraftbenchError(f"{path}: its metadata cannot be read ({error})") from error
