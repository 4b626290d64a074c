"""How the vocabularies of experts differ from the base's, in words."""

from collections.abc import Iterable, Mapping

from harness.checkpoints.vocabulary.tokens import Tokens


def differences(
    tokens: Mapping[str | None, Tokens | None], counts: Mapping[str | None, int | None], named: Mapping[str, str]
) -> list[str]:
    """What keeps experts from being merged row by row, by position.

    Args:
        tokens: the tokens of the base (None) and of every expert, as far as they have a tokenizer.
        counts: their numbers of embedding rows.
        named: how to speak of each expert.

    Returns:
        One text per expert that differs, with what would help.
    """
    known = next((name for name, found in tokens.items() if found is not None), None)
    base, reference = tokens[None], tokens[known]
    whose = "the base" if known is None else named[known]
    problems = []
    for name, label in named.items():
        found, texts = tokens[name], []
        if counts[name] != counts[None]:
            texts.append(f"has {counts[name]} embedding rows where the base has {counts[None]}")
        if found is not None and reference is not None:
            texts += _disagreement(found.with_row(counts[name]), reference.with_row(counts[known]), whose)
        if not texts:
            continue
        if found is None or base is None:
            who = "it" if found is None else "the base"
            advice = f"{who} has no tokenizer to match rows by; put the tokenizer beside the weights"
        elif foreign := foreign_tokens(found, counts[name], base):
            advice = f"vocabulary=base would match rows by token and leave out its own ({some_of(foreign)})"
        else:
            advice = "vocabulary=base or vocabulary=union would match its rows by token"
        problems.append(f"{label} {' and '.join(texts)}; {advice}")
    return problems


def _disagreement(ours: Mapping[str, int], theirs: Mapping[str, int], whose: str) -> list[str]:
    if ours == theirs:
        return []
    different = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    shown = [f"{token!r} is {ours.get(token, 'missing')}, there {theirs.get(token, 'missing')}" for token in different]
    listing = "; ".join(shown[:3]) + ("; …" if len(shown) > 3 else "")
    tokens = "1 token" if len(different) == 1 else f"{len(different):,} tokens"
    return [f"disagrees with {whose} on the numbers of {tokens} ({listing})"]


def foreign_tokens(found: Tokens, count: int | None, base: Tokens) -> list[str]:
    """Tokens of an expert's core vocabulary that the base does not know in any way."""
    return sorted(found.with_row(count).keys() - base.ids.keys() - found.added.keys())


def some_of(tokens: Iterable[str], shown: int = 3) -> str:
    """The first few tokens."""
    listed = list(tokens)
    return ", ".join(repr(token) for token in listed[:shown]) + (", …" if len(listed) > shown else "")
