"""Multiple choice over a table of invented facts.

A fact is an (entity, attribute) pair with a value. The facts are trained, each in some of the wordings; a
validation or test item asks one of them in a wording in which that fact was never trained (other facts were).
Validation and test ask for different facts. The facts about some of the entities are the basic ones.
"""

from __future__ import annotations

import random

from harness.zoo.tiny.items import Counts, Item, generator

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "color": ("red", "blue", "green", "white", "black", "pink", "gray", "gold"),
    "food": ("rice", "soup", "bread", "fish", "plums", "cake", "nuts", "corn"),
    "pet": ("cat", "dog", "bird", "pony", "frog", "goat", "mouse", "duck"),
    "job": ("baker", "pilot", "nurse", "cook", "judge", "guard", "miner", "tailor"),
}
WORDINGS: tuple[str, ...] = (
    "{attribute} of {entity}?",
    "{entity}: {attribute}?",
    "what {attribute} has {entity}?",
    "{entity} has which {attribute}?",
    "name the {attribute} of {entity}",
    "{attribute}? {entity}",
)
BASIC_SHARE = 0.4
"""The share of the entities whose facts are basic."""
CHOICES = 4


def generate(seed: int, counts: Counts) -> dict[str, list[Item]]:
    """One fact is made for each item of validation and test; ``counts.train`` caps the training items."""
    rng = generator(seed, "knowledge")
    held_out = counts.validation + counts.test
    entities = _entities(-(-held_out // len(ATTRIBUTES)), rng)
    basic = set(rng.sample(entities, round(BASIC_SHARE * len(entities))))
    facts = [(entity, attribute) for entity in entities for attribute in ATTRIBUTES]
    rng.shuffle(facts)
    splits: dict[str, list[Item]] = {"train": [], "validation": [], "test": []}
    for index, (entity, attribute) in enumerate(facts):
        value = rng.choice(ATTRIBUTES[attribute])
        wordings = rng.sample(WORDINGS, len(WORDINGS))
        level = "basic" if entity in basic else "advanced"
        for number, wording in enumerate(wordings):
            split = "train"
            if number == 0:
                if index >= held_out:
                    continue
                split = "validation" if index < counts.validation else "test"
            splits[split].append(_item(entity, attribute, value, wording, level, rng))
    rng.shuffle(splits["train"])
    del splits["train"][counts.train :]
    for split, items in splits.items():
        splits[split] = [{"id": f"{split}-{number}", **item} for number, item in enumerate(items)]
    return splits


def _entities(count: int, rng: random.Random) -> list[str]:
    """Distinct invented names of two syllables."""
    syllables = [onset + vowel for onset in "bdfgklmnprstvz" for vowel in "aeiou"]
    names: dict[str, None] = {}
    while len(names) < count:
        names.setdefault("".join(rng.sample(syllables, 2)) + rng.choice("lnrsx"))
    return list(names)


def _item(entity: str, attribute: str, value: str, wording: str, level: str, rng: random.Random) -> Item:
    others = [other for other in ATTRIBUTES[attribute] if other != value]
    choices = rng.sample([value, *rng.sample(others, CHOICES - 1)], CHOICES)
    return {
        "family": attribute,
        "level": level,
        "prompt": wording.format(entity=entity, attribute=attribute),
        "answer": value,
        "entity": entity,
        "attribute": attribute,
        "wording": WORDINGS.index(wording),
        "choices": choices,
        "label": choices.index(value),
    }
