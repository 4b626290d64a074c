"""The error that a user can cause and mend."""

import difflib
from collections.abc import Iterable


class GraftbenchError(Exception):
    """Something in the input is wrong: the message says what was found, where, and what to do next.

    The command line prints the message alone and exits with status 1; any other exception is a defect of ours and
    keeps its traceback.
    """


def all_of(problems: Iterable[str]) -> GraftbenchError:
    """One error for everything that is wrong, each thing once."""
    distinct = list(dict.fromkeys(problems))
    if len(distinct) == 1:
        return GraftbenchError(distinct[0])
    return GraftbenchError(f"{len(distinct)} things are wrong:\n" + "\n".join(f"  - {text}" for text in distinct))


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> GraftbenchError:
    """The error for a name that does not exist: the nearest valid ones first, then all of them."""
    return GraftbenchError(f"unknown {kind} '{name}'; {suggestion(name, valid)}")


def suggestion(name: str, valid: Iterable[str]) -> str:
    """A clause that names what was probably meant, and everything that would have been valid."""
    choices = sorted(set(valid))
    if not choices:
        return "there are none to choose from"
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    listing = "valid names: " + ", ".join(choices)
    return f"did you mean {' or '.join(repr(c) for c in near)}? ({listing})" if near else listing
