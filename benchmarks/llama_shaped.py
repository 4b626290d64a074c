"""Llama-shaped checkpoints of a chosen size, for measuring merges: a base, five experts and their second moments.

    python -m benchmarks.llama_shaped FOLDER --size 0.43b

The values are random but repeatable: bf16 weights of spread 0.02 (norms around 1), experts 0.001 away from the base,
fp32 second moments around 1e-10. A file that is there already and holds the right tensors is kept; the others are
written piece by piece, so that making a set needs memory for a few pieces alone.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

EXPERTS = ("e0", "e1", "e2", "e3", "e4")
MOMENTS = "exp_avg_sq"
SHARDS = 4
_PIECE = 1 << 22


@dataclass(frozen=True)
class Shape:
    """The sizes that make a Llama: untied embeddings, as many key and value heads as query heads."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int = 32_000

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, layer by layer."""
        square, wide = (self.hidden, self.hidden), (self.intermediate, self.hidden)
        layer = {
            "input_layernorm": (self.hidden,),
            "mlp.down_proj": (self.hidden, self.intermediate),
            "mlp.gate_proj": wide,
            "mlp.up_proj": wide,
            "post_attention_layernorm": (self.hidden,),
            "self_attn.k_proj": square,
            "self_attn.o_proj": square,
            "self_attn.q_proj": square,
            "self_attn.v_proj": square,
        }
        named: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for index in range(self.layers):
            named |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
        return named | {"model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocabulary, self.hidden)}

    def parameters(self) -> int:
        """Number of parameters."""
        return sum(_entries(shape) for shape in self.tensors().values())

    def config(self) -> dict[str, Any]:
        """The `config.json` of such a model."""
        heads = max(1, self.hidden // 64)
        return {
            "architectures": ["LlamaForCausalLM"],
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 2048,
            "model_type": "llama",
            "num_attention_heads": heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": heads,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocabulary,
        }


SIZES = {
    "tiny": Shape(hidden=64, intermediate=256, layers=2, vocabulary=1000),
    "0.2b": Shape(hidden=768, intermediate=3072, layers=16),
    "0.43b": Shape(hidden=1024, intermediate=4096, layers=22),
}
"""The sizes that the benchmark knows; `tiny` only shows that it works."""


def make_set(folder: Path, shape: Shape, sharded_moments: bool = False) -> list[Path]:
    """Make what is missing of a set: `folder/base`, `folder/e0` … `folder/e4`, each expert with second moments.

    Args:
        folder: where the set lies; made if it does not exist.
        shape: the model's sizes.
        sharded_moments: write second moments in as many shards as the weights, with an index, instead of one file.

    Returns:
        The files that were written; none if the set was complete.

    Raises:
        SystemExit: the disk has too little room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = list(_planned_files(folder, shape, sharded_moments))
    missing = [file for file in plan if not file.complete()]
    _check_room(folder, sum(file.length() for file in missing))
    for model in ("base", *EXPERTS):
        _write_small_files(folder / model, shape, sharded_moments and model != "base")
    if missing:
        _write_tensors(shape, missing)
    return [file.path for file in missing]


@dataclass(frozen=True)
class _File:
    """A safetensors file of one model; its bytes have the order of the names, as `safetensors.torch` writes them."""

    path: Path
    model: str
    dtype: str
    tensors: dict[str, tuple[int, ...]]

    def header(self) -> bytes:
        """Length and text of the header, padded so that the data starts at a multiple of 8."""
        described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for name, start in self.offsets().items():
            shape = self.tensors[name]
            end = start + _entries(shape) * self.width
            described[name] = {"dtype": self.dtype, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(described, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def offsets(self) -> dict[str, int]:
        """Where each tensor starts in the data that follows the header."""
        found, offset = {}, 0
        for name in sorted(self.tensors):
            found[name] = offset
            offset += _entries(self.tensors[name]) * self.width
        return found

    @property
    def width(self) -> int:
        return 2 if self.dtype == "BF16" else 4

    def length(self) -> int:
        return len(self.header()) + self.width * sum(_entries(shape) for shape in self.tensors.values())

    def complete(self) -> bool:
        """Whether the file holds these tensors, in whatever order; it took its name when it was whole."""
        if not self.path.is_file():
            return False
        with self.path.open("rb") as file:
            header_length = int.from_bytes(file.read(8), "little")
            found = json.loads(file.read(header_length))
        found.pop("__metadata__", None)
        wanted = {name: (self.dtype, list(shape)) for name, shape in self.tensors.items()}
        data = self.width * sum(_entries(shape) for shape in self.tensors.values())
        same = {name: (tensor["dtype"], tensor["shape"]) for name, tensor in found.items()} == wanted
        return same and self.path.stat().st_size == 8 + header_length + data


def _planned_files(folder: Path, shape: Shape, sharded_moments: bool) -> Iterator[_File]:
    groups = _shards(shape.tensors())
    for model in ("base", *EXPERTS):
        for index, group in enumerate(groups):
            yield _File(folder / model / _shard_name("model", index, len(groups)), model, "BF16", group)
    for model in EXPERTS:
        if sharded_moments:
            for index, group in enumerate(groups):
                yield _File(folder / model / _shard_name(MOMENTS, index, len(groups)), model, "F32", group)
        else:
            yield _File(folder / model / f"{MOMENTS}.safetensors", model, "F32", shape.tensors())


def _shards(tensors: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    """The tensors in their order, cut into shards of about one size."""
    share = sum(_entries(shape) for shape in tensors.values()) / SHARDS
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in tensors.items():
        if sum(_entries(other) for other in groups[-1].values()) >= share and len(groups) < SHARDS:
            groups.append({})
        groups[-1][name] = shape
    return groups


def _shard_name(stem: str, index: int, count: int) -> str:
    return f"{stem}-{index + 1:05d}-of-{count:05d}.safetensors"


def _write_small_files(model: Path, shape: Shape, sharded_moments: bool) -> None:
    model.mkdir(exist_ok=True)
    files = {"config.json": shape.config()}
    groups = _shards(shape.tensors())
    stems = {"model": 2} | ({MOMENTS: 4} if sharded_moments else {})
    for stem, width in stems.items():
        weight_map = {
            name: _shard_name(stem, number, len(groups)) for number, group in enumerate(groups) for name in group
        }
        index = {"metadata": {"total_size": width * shape.parameters()}, "weight_map": weight_map}
        files[f"{stem}.safetensors.index.json"] = index
    for name, content in files.items():
        if not (model / name).exists():
            (model / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tensors(shape: Shape, files: list[_File]) -> None:
    """Draw every tensor once, for all models together, and write it into the files that miss it."""
    with ExitStack() as opened:
        streams: dict[Path, BinaryIO] = {}
        for file in files:
            stream = opened.enter_context(_unfinished(file.path).open("wb"))
            stream.write(file.header())
            stream.truncate(file.length())
            streams[file.path] = stream
        for name, tensor_shape in shape.tensors().items():
            wanting = [file for file in files if name in file.tensors]
            for file in wanting:
                streams[file.path].seek(len(file.header()) + file.offsets()[name])
            generators = {
                (model, what): _generator(name, model, what)
                for model in ("base", *EXPERTS)
                for what in ("weights", "moments")
            }
            for start in range(0, _entries(tensor_shape), _PIECE):
                length = min(_PIECE, _entries(tensor_shape) - start)
                base = generators["base", "weights"].standard_normal(length, np.float32) * np.float32(0.02)
                base = _as_float32(_as_bfloat16(base + np.float32(len(tensor_shape) == 1)))
                for file in wanting:
                    streams[file.path].write(_values(file, base, generators).tobytes())
    for file in files:
        _unfinished(file.path).rename(file.path)


def _values(file: _File, base: np.ndarray, generators: dict[tuple[str, str], np.random.Generator]) -> np.ndarray:
    if file.dtype == "F32":
        return np.square(generators[file.model, "moments"].standard_normal(len(base), np.float32) * np.float32(1e-5))
    if file.model == "base":
        return _as_bfloat16(base)
    return _as_bfloat16(
        base + generators[file.model, "weights"].standard_normal(len(base), np.float32) * np.float32(1e-3)
    )


def _generator(*key: str) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(int(hashlib.sha256(repr(key).encode()).hexdigest()[:16], 16)))


def _as_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper halves of fp32 patterns, rounded to the nearest, halves to even; numpy has no bf16."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _as_float32(patterns: np.ndarray) -> np.ndarray:
    return (patterns.astype(np.uint32) << 16).view(np.float32)


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + ".unfinished")


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SystemExit(
            f"{folder} needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; free some space"
        )


def _entries(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def main() -> None:
    """Make one set."""
    parser = argparse.ArgumentParser(description="Make Llama-shaped checkpoints for measuring merges.")
    parser.add_argument("folder", type=Path, help="where the set lies: FOLDER/base, FOLDER/e0 … FOLDER/e4")
    parser.add_argument("--size", choices=SIZES, default="0.43b", help="size of the model (0.43b takes 13 GB)")
    parser.add_argument("--sharded-moments", action="store_true", help="second moments in shards with an index")
    options = parser.parse_args()
    written = make_set(options.folder, SIZES[options.size], options.sharded_moments)
    print(f"{options.folder}: {len(written)} files written, the others were there")


if __name__ == "__main__":
    main()
