"""The vocabulary of a merge: which row of each model belongs to which token, and the output's tokenizer."""

from harness.checkpoints.vocabulary.match import MODES, RowMap, Vocabulary, embedding_rows, match_vocabularies
from harness.checkpoints.vocabulary.rows import MatchedRows, MissingRows
from harness.checkpoints.vocabulary.tokenizer import tokenizer_problems, write_tokenizer
from harness.checkpoints.vocabulary.tokens import Tokens, read_tokens

__all__ = [
    "MODES",
    "MatchedRows",
    "MissingRows",
    "RowMap",
    "Tokens",
    "Vocabulary",
    "embedding_rows",
    "match_vocabularies",
    "read_tokens",
    "tokenizer_problems",
    "write_tokenizer",
]
