"""The number format in which a model answers."""

import json
from pathlib import Path

from harness.errors import unknown_name

DTYPES = ("auto", "float32", "bfloat16", "float16")


def check_dtype(dtype: str) -> None:
    """Refuse what is no number format of ours.

    Raises:
        GraftbenchError: it is unknown.
    """
    if dtype not in DTYPES:
        raise unknown_name("value of backend.dtype", dtype, DTYPES)


def dtype_of(folder: Path) -> str:
    """The format that a checkpoint's configuration states; float32 where it states none, as transformers has it."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stated = config.get("dtype") or config.get("torch_dtype") or "float32"
    return str(stated).removeprefix("torch.")
