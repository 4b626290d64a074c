"""The output's tokenizer, chat template, special tokens and generation configuration, from a stated source."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.checkpoints.layout import TOKENIZER_FILES
from harness.checkpoints.vocabulary.match import Model, Vocabulary, embedding_rows
from harness.checkpoints.vocabulary.tokens import (
    FAST_FILE,
    Tokens,
    flags,
    load_tokenizer,
    load_transformers_tokenizer,
    read_tokens,
    tokens_digest,
)
from harness.errors import GraftbenchError

GENERATION_FILE = "generation_config.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
SPECIAL_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"

_PIPELINE = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_SPECIAL_KEY = re.compile(r"(\w+_token|\w+_special_tokens|add_(bos|eos)_token|chat_template)")
_NUMBERED_KEY = re.compile(r"(\w+_token_ids?|suppress_tokens|begin_suppress_tokens|bad_words_ids)")
_UNREADABLE_KEYS = ("forced_decoder_ids", "sequence_bias")


def tokenizer_problems(
    vocabulary: Vocabulary, base: Model, source: Model, experts: Mapping[str, Model] | None = None
) -> list[str]:
    """What keeps `source` from giving the output its tokenizer; see `write_tokenizer`. Nothing is written.

    Args:
        vocabulary: the matched vocabulary.
        base: the base model.
        source: the base, or the expert that the user named.
        experts: all of them; with `vocabulary=union` every model's files must be readable.
    """
    asked = [base, *(experts or {}).values()] if vocabulary.mode == "union" else []
    folders = dict.fromkeys(model.folder for model in (source, *asked))
    if unreadable := [problem for folder in folders for problem in _unreadable(folder)]:
        return unreadable
    try:
        _Output(vocabulary, base, source).check()
    except GraftbenchError as error:
        return [str(error)]
    return []


def _unreadable(folder: Path) -> list[str]:
    """The files of a folder's tokenizer that cannot be read, each with what to do."""
    problems = []
    for name in (FAST_FILE, CONFIG_FILE, SPECIAL_FILE, ADDED_FILE, GENERATION_FILE):
        try:
            if name != FAST_FILE:
                _read_json(folder / name)
            elif (folder / name).is_file():
                load_tokenizer(folder)
        except GraftbenchError as error:
            problems.append(str(error))
    return problems


def write_tokenizer(folder: Path, vocabulary: Vocabulary, base: Model, source: Model) -> dict[str, Any]:
    """Write tokenizer, chat template, special tokens and generation configuration into the output's folder.

    - A source whose tokens have the output's numbers is copied, byte for byte: the base, unless tokens are added, and
      any expert with `vocabulary=strict`.
    - With `vocabulary=union`, the tokens that experts add are appended to the base's tokenizer. Another source than the
      base then gives chat template, special tokens and generation configuration alone, its numbers translated by token
      string; the base gives everything else. Both need a tokenizer.json that cuts texts in the same way.
    - Any other source is refused.

    Args:
        folder: the output's folder; if tokens are added it holds config.json already, since transformers wants it.
        vocabulary: the matched vocabulary.
        base: the base model.
        source: the base, or the expert that the user named.

    Returns:
        Numbers of special tokens that the output's config.json must state (`eos_token_id`, …); none for the base.

    Raises:
        GraftbenchError: the source cannot give the output its tokenizer, or the written tokenizer would not give the
            planned numbers.
    """
    output = _Output(vocabulary, base, source)
    output.check()
    return output.write(folder)


class _Output:
    """The tokenizer to be written."""

    def __init__(self, vocabulary: Vocabulary, base: Model, source: Model) -> None:
        self.vocabulary = vocabulary
        self.base = base
        self.source = source
        self.from_base = source is base
        self.tokens: dict[str, int] = {}
        """The output's tokens; known only where something is to be written rather than copied."""
        self.copied = self._is_copy()

    def _is_copy(self) -> bool:
        """Whether the source's files serve as they are."""
        added = self.vocabulary.added
        if not added and (self.from_base or tokens_digest(self.source.folder) == tokens_digest(self.base.folder)):
            return True
        base_tokens, source_tokens = read_tokens(self.base.folder), read_tokens(self.source.folder)
        if source_tokens is None:
            raise GraftbenchError(f"{self.source.source} has no tokenizer to give to the output; choose tokenizer=base")
        if base_tokens is None:
            return True  # The base's tokens are nameless: rows matched by position, so the expert may name them.
        self.source_tokens: Tokens = source_tokens
        self.tokens = {**base_tokens.ids, **{token.content: number for number, token in added.items()}}
        if self.from_base:
            return False
        rows = self.vocabulary.rows
        expected = {token: number for token, number in self.tokens.items() if rows is None or number < rows}
        return source_tokens.with_row(embedding_rows(self.source.tensors)) == expected

    def check(self) -> None:
        """Refuse a source that cannot be laid over the base's vocabulary."""
        if self.copied or self.from_base:
            return
        if self.vocabulary.mode != "union":
            raise GraftbenchError(
                f"{self.source.source} gives other numbers to tokens than the output, so its tokenizer cannot be the "
                f"output's with vocabulary={self.vocabulary.mode}; choose tokenizer=base or vocabulary=union"
            )
        for model in (self.base, self.source):
            if not (model.folder / FAST_FILE).is_file():
                raise GraftbenchError(
                    f"{model.source} has no {FAST_FILE}, so the special tokens of {self.source.source} cannot be laid "
                    f"over the base's vocabulary; save it with a fast tokenizer, or choose tokenizer=base"
                )
        ours, theirs = (_pipeline(model.folder) for model in (self.base, self.source))
        for part in _PIPELINE:
            if ours[part] != theirs[part]:
                raise GraftbenchError(
                    f"the {part} in {FAST_FILE} of {self.source.source} differs from the base's, so texts would not be "
                    "cut as either model was trained; choose tokenizer=base"
                )
        for name in (CONFIG_FILE, SPECIAL_FILE):
            for key, token in _special_tokens(_read_json(self.source.folder / name)):
                if token not in self.tokens:
                    raise GraftbenchError(
                        f"{self.source.folder / name} names {token!r} as {key}, which the output's vocabulary lacks; "
                        "choose tokenizer=base"
                    )
        self._renumbered(GENERATION_FILE, _read_json(self.source.folder / GENERATION_FILE))
        self._config_numbers()

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the files and check them; returns the numbers for config.json."""
        if self.copied:
            _copy(self.source.folder, folder, (*TOKENIZER_FILES, GENERATION_FILE))
        else:
            if (self.base.folder / FAST_FILE).is_file():
                self._write_fast(folder)
            else:
                self._write_by_transformers(folder)
            if not self.from_base:
                self._lay_over(folder)
            self._verify(folder)
        return {} if self.from_base else self._config_numbers()

    def _write_fast(self, folder: Path) -> None:
        """The base's files, with the added tokens."""
        _copy(self.base.folder, folder, (*TOKENIZER_FILES, GENERATION_FILE))
        added = sorted(self.vocabulary.added.items())
        if not added:
            return
        tokenizer = load_tokenizer(self.base.folder)
        tokenizer.add_tokens([token for _, token in added])
        tokenizer.save(str(folder / FAST_FILE))
        config = _read_json(folder / CONFIG_FILE)
        if "added_tokens_decoder" in config:
            listed = {str(number): {"content": token.content, **flags(token)} for number, token in added}
            config["added_tokens_decoder"] |= listed
            _write_json(folder / CONFIG_FILE, config)
        if (folder / ADDED_FILE).is_file():
            listing = _read_json(folder / ADDED_FILE) | {token.content: number for number, token in added}
            _write_json(folder / ADDED_FILE, listing)

    def _write_by_transformers(self, folder: Path) -> None:
        """For a base without tokenizer.json: what transformers makes of it, which it saves as tokenizer.json."""
        tokenizer = load_transformers_tokenizer(self.base.folder)
        tokenizer.add_tokens([token for _, token in sorted(self.vocabulary.added.items())])
        tokenizer.save_pretrained(folder)
        _copy(self.base.folder, folder, (GENERATION_FILE,))

    def _lay_over(self, folder: Path) -> None:
        """Replace the base's chat template, special tokens and generation configuration by the source's."""
        theirs = _read_json(self.source.folder / CONFIG_FILE)
        config = {key: value for key, value in _read_json(folder / CONFIG_FILE).items() if not _is_special(key)}
        config |= {key: value for key, value in theirs.items() if _is_special(key)}
        _write_json(folder / CONFIG_FILE, config)
        for name in (TEMPLATE_FILE, SPECIAL_FILE, GENERATION_FILE):
            (folder / name).unlink(missing_ok=True)
        _copy(self.source.folder, folder, (TEMPLATE_FILE, SPECIAL_FILE))
        if (self.source.folder / GENERATION_FILE).is_file():
            generation = _read_json(self.source.folder / GENERATION_FILE)
            _write_json(folder / GENERATION_FILE, self._renumbered(GENERATION_FILE, generation))

    def _config_numbers(self) -> dict[str, Any]:
        """The source's special tokens, by the output's numbers."""
        config = {key: value for key, value in self.source.config.items() if _NUMBERED_KEY.fullmatch(key)}
        return config if self.copied else self._renumbered("config.json", config)

    def _renumbered(self, file: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the source whose token numbers are translated to the output's."""
        names = {number: token for token, number in self.source_tokens.ids.items()}

        def translated(key: str, value: Any) -> Any:
            if isinstance(value, list):
                return [translated(key, item) for item in value]
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                return value
            if names.get(value) not in self.tokens:
                raise GraftbenchError(
                    f"{self.source.folder / file} has {key}={value}, {names.get(value, 'no token')!r}, which the "
                    "output's vocabulary lacks; choose tokenizer=base"
                )
            return self.tokens[names[value]]

        for key in _UNREADABLE_KEYS:
            if settings.get(key):
                raise GraftbenchError(
                    f"{self.source.folder / file} has {key}, whose token numbers cannot be translated; remove it or "
                    "choose tokenizer=base"
                )
        return {
            key: translated(key, value) if _NUMBERED_KEY.fullmatch(key) else value for key, value in settings.items()
        }

    def _verify(self, folder: Path) -> None:
        """Every token must have the planned number, for tokenizers and for transformers."""
        written = read_tokens(folder)
        loaded = load_transformers_tokenizer(folder).get_vocab()
        for token, number in self.tokens.items():
            for library, ids in (("tokenizers", written.ids if written else {}), ("transformers", loaded)):
                if ids.get(token) != number:
                    raise GraftbenchError(
                        f"{folder}: {library} gives token {token!r} the number {ids.get(token)}, though its row is "
                        f"{number}; the tokenizer of {self.base.source} cannot be extended, so choose vocabulary=base"
                    )


def _pipeline(folder: Path) -> dict[str, Any]:
    """How a tokenizer cuts texts, without token numbers."""
    described = _read_json(folder / FAST_FILE)
    return {part: _without_numbers(described.get(part)) for part in _PIPELINE}


def _without_numbers(value: Any) -> Any:
    """A post-processor names its special tokens by string and number: [token, number], or under `ids`."""
    if isinstance(value, dict):
        return {key: _without_numbers(item) for key, item in value.items() if key != "ids"}
    if isinstance(value, list):
        if len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int):
            return value[:1]
        return [_without_numbers(item) for item in value]
    return value


def _is_special(key: str) -> bool:
    """Whether a setting is the chat template's or names special tokens."""
    return bool(_SPECIAL_KEY.fullmatch(key))


def _special_tokens(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The special tokens that a configuration names, each with its key."""
    found: list[tuple[str, str]] = []

    def collect(key: str, value: Any) -> None:
        if isinstance(value, str):
            found.append((key, value))
        elif isinstance(value, list):
            for item in value:
                collect(key, item)
        elif isinstance(value, dict):
            for item in [value["content"]] if "content" in value else value.values():
                collect(key, item)

    for key, value in config.items():
        if _is_special(key) and key != "chat_template":
            collect(key, value)
    return found


def _copy(source: Path, folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _read_json(path: Path) -> dict[str, Any]:
    """A file's settings; none if it does not exist."""
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GraftbenchError(f"{path} is not valid JSON ({error}); export it again") from error
    if not isinstance(settings, dict):
        raise GraftbenchError(f"{path} holds no settings; export it again")
    return settings


def _write_json(path: Path, settings: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
