"""The tokens of a checkpoint's tokenizer and their numbers, added tokens included."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from harness.checkpoints.layout import TOKENIZER_FILES
from harness.errors import GraftbenchError
from harness.files import canonical_json, file_digest, text_digest

FAST_FILE = "tokenizer.json"
_TEMPLATE_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_FLAGS = ("special", "normalized", "single_word", "lstrip", "rstrip")


@dataclass(frozen=True)
class Tokens:
    """What a tokenizer knows."""

    ids: Mapping[str, int]
    """Every token's number, added tokens included."""
    added: Mapping[str, AddedToken]
    """The added tokens with their flags; the others belong to the tokenizer's core vocabulary (its BPE, Unigram, …)."""
    next_id: int
    """The number that the next added token would take."""

    def with_row(self, rows: int | None) -> Mapping[str, int]:
        """The tokens that have an embedding row: a tokenizer may know more, such as a pad that was never trained."""
        if rows is None or max(self.ids.values(), default=-1) < rows:
            return self.ids
        return {token: number for token, number in self.ids.items() if number < rows}


def read_tokens(folder: Path) -> Tokens | None:
    """The tokens of a folder's tokenizer: tokenizer.json's, or else what transformers makes of its other files.

    Returns:
        None if the folder holds no tokenizer.

    Raises:
        GraftbenchError: the tokenizer's files cannot be read.
    """
    if (folder / FAST_FILE).is_file():
        return _tokens(load_tokenizer(folder))
    if not _vocabulary_files(folder):
        return None
    tokenizer = load_transformers_tokenizer(folder)
    if hasattr(tokenizer, "backend_tokenizer"):
        return _tokens(tokenizer.backend_tokenizer)
    added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    return Tokens(tokenizer.get_vocab(), added, len(tokenizer))


def tokens_digest(folder: Path) -> str | None:
    """Digest of the files that determine a folder's tokens, which spares reading them; None without a tokenizer."""
    fast = folder / FAST_FILE
    if fast.is_file():
        return file_digest(fast)
    if not _vocabulary_files(folder):
        return None
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    return text_digest(canonical_json([[file.name, file_digest(file)] for file in files]))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json.

    Raises:
        GraftbenchError: the file cannot be read.
    """
    path = folder / FAST_FILE
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises nothing more special.
        raise GraftbenchError(f"{path} is not a tokenizer that can be read ({error}); export it again") from error


def load_transformers_tokenizer(folder: Path) -> Any:
    """The tokenizer as transformers loads it from a folder.

    Raises:
        GraftbenchError: transformers cannot load it.
    """
    from transformers import AutoTokenizer  # Importing transformers takes a second, and few merges need it.

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # Any file of the folder may be bad in any way, or a package be missing.
        reason = str(error).strip().partition("\n")[0]
        raise GraftbenchError(
            f"the tokenizer in {folder} cannot be loaded by transformers ({reason}); save it again as {FAST_FILE}"
        ) from error


def flags(token: AddedToken) -> dict[str, bool]:
    """How an added token is found in a text and whether it is special; tokens compare as equal whatever these are."""
    return {name: bool(getattr(token, name)) for name in _FLAGS}


def _tokens(tokenizer: Tokenizer) -> Tokens:
    added = tokenizer.get_added_tokens_decoder()
    core_size = tokenizer.get_vocab_size(with_added_tokens=False)
    return Tokens(
        ids=tokenizer.get_vocab(with_added_tokens=True),
        added={token.content: token for token in added.values()},
        next_id=max(core_size, max(added, default=-1) + 1),
    )


def _vocabulary_files(folder: Path) -> list[str]:
    return [name for name in TOKENIZER_FILES if name not in _TEMPLATE_FILES and (folder / name).is_file()]
