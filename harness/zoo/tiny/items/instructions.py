"""Verifiable formatting instructions: write given words in the form that one or two instructions ask.

Whether an answer follows its instructions is decided by the checks that the item carries (kinds and
arguments, run by ``harness.evaluation.tasks.tiny.instructions``), not by comparison with the reference
answer. An item is a choice of words and instructions; each is in one split only.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.zoo.tiny.items import Counts, Item, deal, generator

WORDS = [
    "ant",
    "ape",
    "arm",
    "art",
    "bag",
    "bat",
    "bed",
    "bee",
    "bell",
    "bird",
    "boat",
    "book",
    "bow",
    "box",
    "boy",
    "bus",
    "cake",
    "camp",
    "cap",
    "car",
    "cat",
    "cave",
    "chair",
    "city",
    "clay",
    "cloud",
    "coat",
    "cow",
    "crab",
    "cup",
    "dawn",
    "day",
    "deer",
    "desk",
    "dish",
    "dog",
    "door",
    "dove",
    "drum",
    "duck",
    "dust",
    "ear",
    "egg",
    "elk",
    "eye",
    "fan",
    "farm",
    "fig",
    "fire",
    "fish",
    "flag",
    "fog",
    "fox",
    "frog",
    "gate",
    "gem",
    "girl",
    "goat",
    "gold",
    "gum",
    "hat",
    "hawk",
    "hen",
    "hill",
    "hive",
    "home",
    "horn",
    "ice",
    "ink",
    "iron",
    "jam",
    "jar",
    "jet",
    "key",
    "king",
    "kite",
    "lake",
    "lamb",
    "lamp",
    "leaf",
    "lily",
    "lion",
    "log",
    "map",
    "mask",
    "milk",
    "mint",
    "moon",
    "moss",
    "moth",
    "mud",
    "nail",
    "nest",
    "net",
    "nut",
    "oak",
    "oar",
    "oil",
    "owl",
    "ox",
    "palm",
    "pan",
    "path",
    "pea",
    "pen",
    "pig",
    "pin",
    "pipe",
    "plum",
    "pond",
    "pony",
    "pot",
    "rain",
    "rat",
    "ring",
    "road",
    "rock",
    "roof",
    "root",
    "rope",
    "rose",
    "rug",
    "sail",
    "salt",
    "sand",
    "seal",
    "seed",
    "ship",
    "shoe",
    "silk",
    "sky",
    "snow",
    "soap",
    "song",
    "soup",
    "star",
    "stem",
    "sun",
    "swan",
    "tea",
    "tent",
    "tin",
    "toad",
    "top",
    "toy",
    "tree",
    "vase",
    "vine",
    "wall",
    "wand",
    "wasp",
    "wave",
    "well",
    "wind",
    "wing",
    "wolf",
    "wood",
    "yak",
    "yarn",
    "zoo",
]


@dataclass(frozen=True)
class Instruction:
    """One instruction: its level, its wording, the check that verifies it, and how a right answer is made."""

    level: str
    wording: str
    check: dict[str, Any]
    apply: Callable[[str], str]


INSTRUCTIONS: dict[str, Instruction] = {
    "upper": Instruction("basic", "in capitals", {"kind": "upper"}, str.upper),
    "brackets": Instruction("basic", "in brackets", {"kind": "wrap", "left": "[", "right": "]"}, lambda t: f"[{t}]"),
    "twice": Instruction("basic", "twice", {"kind": "repeat", "times": 2}, lambda t: f"{t} {t}"),
    "bang": Instruction("basic", "end with !", {"kind": "end", "mark": "!"}, lambda t: f"{t}!"),
    "spelled": Instruction(
        "advanced", "spelled", {"kind": "spelled", "mark": "-"}, lambda t: "-".join(t.replace(" ", ""))
    ),
    "title": Instruction("advanced", "as a title", {"kind": "title"}, str.title),
    "stars": Instruction("advanced", "in stars", {"kind": "wrap", "left": "*", "right": "*"}, lambda t: f"*{t}*"),
    "thrice": Instruction("advanced", "thrice", {"kind": "repeat", "times": 3}, lambda t: f"{t} {t} {t}"),
    "start": Instruction("advanced", "start with ok", {"kind": "start", "mark": "ok "}, lambda t: f"ok {t}"),
}

COMBINATIONS: dict[str, tuple[str, ...]] = {
    "upper": ("upper",),
    "brackets": ("brackets",),
    "twice": ("twice",),
    "bang": ("bang",),
    "upper+brackets": ("upper", "brackets"),
    "twice+bang": ("twice", "bang"),
    "spelled": ("spelled",),
    "title": ("title",),
    "stars": ("stars",),
    "thrice": ("thrice",),
    "start": ("start",),
    "upper+stars": ("upper", "stars"),
    "start+bang": ("start", "bang"),
    "title+bang": ("title", "bang"),
}


def generate(seed: int, counts: Counts) -> dict[str, list[Item]]:
    rng = generator(seed, "instructions")
    levels = {name: _level(parts) for name, parts in COMBINATIONS.items()}
    sizes = {level: sum(value == level for value in levels.values()) for level in ("basic", "advanced")}
    shares = {name: 0.5 / sizes[level] for name, level in levels.items()}
    total = counts.train + counts.validation + counts.test
    candidates = {name: _distinct(name, round(total * shares[name]) + 1, rng) for name in COMBINATIONS}
    return deal(candidates, shares, counts, rng)


def _level(parts: tuple[str, ...]) -> str:
    return "advanced" if any(INSTRUCTIONS[part].level == "advanced" for part in parts) else "basic"


def _distinct(combination: str, wanted: int, rng: random.Random) -> list[Item]:
    items: dict[str, Item] = {}
    for _ in range(20 * wanted):
        if len(items) >= wanted:
            break
        item = _item(combination, " ".join(rng.sample(WORDS, rng.choice((1, 2)))))
        items.setdefault(item["prompt"], item)
    return list(items.values())


def _item(combination: str, text: str) -> Item:
    parts = [INSTRUCTIONS[name] for name in COMBINATIONS[combination]]
    answer = text
    for part in parts:
        answer = part.apply(answer)
    return {
        "family": combination,
        "level": _level(COMBINATIONS[combination]),
        "prompt": f"{text}: {', '.join(part.wording for part in parts)}",
        "answer": answer,
        "text": text,
        "checks": [part.check for part in parts],
    }
