"""Where a checkpoint comes from: a folder, or a name on the Hugging Face hub."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from harness.errors import GraftbenchError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_PICKLED_PATTERNS = ["pytorch_model*.bin", "adapter_model.bin"]
# Copies of the weights in other formats or of other steps, beside those that transformers and PEFT load.
_IGNORED = ["*/*.safetensors", "consolidated*.safetensors"]


def local_folder(source: str | Path) -> Path:
    """The folder that holds a checkpoint or adapter; a hub name (`name[@revision]`) is downloaded into the hub's cache.

    PyTorch's `.bin` files are downloaded only where the repository has no safetensors.

    Raises:
        GraftbenchError: there is no such folder, and it is no hub name or the hub does not give it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise GraftbenchError(f"{path} is a file; a checkpoint is a folder with config.json and its weights")
    name = str(source)
    if not is_hub_name(name):
        raise GraftbenchError(f"checkpoint folder {path} does not exist, and it is no hub name (owner/name[@revision])")
    repository, _, revision = name.partition("@")
    try:
        folder = _downloaded(repository, revision or None, _PATTERNS)
        if not any(folder.glob("*.safetensors")):
            folder = _downloaded(repository, revision or None, _PATTERNS + _PICKLED_PATTERNS)
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise GraftbenchError(
            f"'{name}' is no folder here, and the Hugging Face hub did not give it: {reason}. "
            "Check the name, log in, or give the path of a local copy"
        ) from error


def is_hub_name(source: str) -> bool:
    """Whether a text has the form of a hub name."""
    return bool(_HUB_NAME.fullmatch(source)) and not source.startswith((".", "/"))


def _downloaded(repository: str, revision: str | None, patterns: list[str]) -> Path:
    """A repository's files of these names; those that are in the cache already are not downloaded again."""
    return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=_IGNORED))
