"""Builds the embedded zoo: items, a base, four experts with their curvature, and a multi-task reference.

Each stage is a folder that is written beside its final name and renamed when whole. A stage that exists is
kept, so a build that was interrupted continues where it stopped, and a finished one costs nothing.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from harness.checkpoints.layout import Checkpoint
from harness.curvature.capture import second_moments_of
from harness.curvature.fisher import empirical_fisher
from harness.curvature.second_moments import (
    FILE_NAME,
    FISHER_FILE_NAME,
    SecondMomentsMetadata,
    write_second_moments,
)
from harness.files import (
    canonical_json,
    file_digest,
    folder_written_atomically,
    text_digest,
    write_text_atomically,
)
from harness.zoo.tiny.items import CAPABILITIES, LEVELS, generate_items, read_split, write_splits
from harness.zoo.tiny.settings import Dose, Settings, Training
from harness.zoo.tiny.tokenizer import build_tokenizer, encode_example, save_tokenizer
from harness.zoo.tiny.train import Example, Pool, Progress, Schedule, deterministic, example_tensors, train

log = logging.getLogger(__name__)

REPORTS_PER_STAGE = 10
MULTITASK = "multitask"


@dataclass(frozen=True)
class Folders:
    """Where the parts of a built set lie."""

    root: Path

    @property
    def data(self) -> Path:
        """Root of the data mirror, for a suite's ``data_root``."""
        return self.root / "data"

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def multitask(self) -> Path:
        return self.root / "references" / MULTITASK

    def items(self, capability: str) -> Path:
        return self.data / "graftbench" / "tiny" / capability

    def expert(self, capability: str) -> Path:
        return self.root / "experts" / capability


def folders_for(settings: Settings, home: Path) -> Folders:
    """The folder that these settings and the sources give: ``<home>/zoo/tiny-<digest>``."""
    return Folders(Path(home) / "zoo" / f"tiny-{build_digest(settings)[:12]}")


def build_digest(settings: Settings) -> str:
    """Digest of the settings and of the sources that decide what they mean."""
    package = Path(__file__).parent
    sources = {str(path.relative_to(package)): file_digest(path) for path in sorted(package.rglob("*.py"))}
    return text_digest(canonical_json({"settings": settings.as_dict(), "sources": sources}))


def is_built(settings: Settings, home: Path) -> bool:
    """Whether every stage is there already."""
    return all(folder.is_dir() for _, folder, _ in _stages(Builder(settings, folders_for(settings, home))))


def build(settings: Settings, home: Path) -> Folders:
    """Builds what is missing of the set, in about six minutes on two cores; progress goes to the log."""
    folders = folders_for(settings, home)
    builder = Builder(settings, folders)
    missing = [(name, folder, make) for name, folder, make in _stages(builder) if not folder.is_dir()]
    if missing:
        log.info("building the embedded zoo in %s: %s", folders.root, ", ".join(name for name, _, _ in missing))
        write_text_atomically(
            folders.root / "settings.json", json.dumps(settings.as_dict(), indent=2, sort_keys=True) + "\n"
        )
    for number, (name, folder, make) in enumerate(missing, 1):
        started = time.monotonic()
        with folder_written_atomically(folder) as temporary, _without_progress_bars():
            make(temporary)
        log.info("%d/%d %s: done in %.0f s", number, len(missing), name, time.monotonic() - started)
    return folders


class Builder:
    """The stages of a build; each writes one folder and reads only folders of stages before it."""

    def __init__(self, settings: Settings, folders: Folders) -> None:
        self.settings = settings
        self.folders = folders
        self._examples: dict[tuple[str, str], list[Example]] = {}

    def make_items(self, capability: str, folder: Path) -> None:
        write_splits(folder, generate_items(capability, self.settings.seed, self.settings.items[capability]))

    def make_base(self, folder: Path) -> None:
        model = self._new_model()
        self._train("base", model, self._mixture(1.0), self.settings.base)
        self._save(model, folder)

    def make_expert(self, capability: str, folder: Path) -> None:
        """The expert and its curvature: Adam's last second moments, and its Fisher information."""
        training = self.settings.experts[capability]
        model = self._load_base()
        own = self._capability(capability, Dose(1.0 - self.settings.replay, training.advanced))
        optimizer = self._train(capability, model, own + self._mixture(self.settings.replay), training)
        self._save(model, folder)
        with Checkpoint(self.folders.base) as base:
            base_digest = base.weights_digest
        adam = SecondMomentsMetadata(
            kind="adam",
            optimizer=type(optimizer).__name__,
            beta2=optimizer.defaults["betas"][1],
            step=training.steps,
            learning_rate=training.learning_rate,
            base_digest=base_digest,
        )
        write_second_moments(folder / FILE_NAME, second_moments_of(optimizer, model), adam)
        fisher = SecondMomentsMetadata(kind="fisher", base_digest=base_digest)
        write_second_moments(folder / FISHER_FILE_NAME, self._fisher(capability, model), fisher)

    def make_multitask(self, folder: Path) -> None:
        """The reference: from the base, on the union of the experts' own data, in proportion to their steps."""
        model = self._load_base()
        experts = self.settings.experts
        total = sum(training.steps for training in experts.values())
        pools = [
            pool
            for capability in CAPABILITIES
            for pool in self._capability(
                capability, Dose(experts[capability].steps / total, experts[capability].advanced)
            )
        ]
        self._train(MULTITASK, model, pools, self.settings.multitask)
        self._save(model, folder)

    def _train(
        self, name: str, model: LlamaForCausalLM, pools: Sequence[Pool], training: Training
    ) -> torch.optim.AdamW:
        schedule = Schedule(training.steps, training.learning_rate, batch_size=self.settings.batch_size)
        rng = random.Random(f"{self.settings.training_seed}/{name}")
        return train(model, pools, schedule, rng, partial(_report, name))

    def _fisher(self, capability: str, model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
        examples = [example for level in LEVELS for example in self._pool(capability, level)]
        rng = random.Random(f"{self.settings.training_seed}/fisher/{capability}")
        chosen = rng.sample(examples, min(self.settings.fisher_examples, len(examples)))
        with deterministic():
            return empirical_fisher(model, (example_tensors(example) for example in chosen))

    def _mixture(self, share: float) -> list[Pool]:
        """The base's mixture, as this share of a training's examples."""
        doses = self.settings.base.mixture
        total = sum(dose.share for dose in doses.values())
        return [
            pool
            for capability in CAPABILITIES
            for pool in self._capability(
                capability, Dose(share * doses[capability].share / total, doses[capability].advanced)
            )
        ]

    def _capability(self, capability: str, dose: Dose) -> list[Pool]:
        shares = {"advanced": dose.share * dose.advanced, "basic": dose.share * (1 - dose.advanced)}
        return [Pool(self._pool(capability, level), share) for level, share in shares.items() if share > 0]

    def _pool(self, capability: str, level: str) -> list[Example]:
        """Training examples of one capability and level."""
        if (capability, level) not in self._examples:
            tokenizer = self._tokenizer()
            for each in LEVELS:
                self._examples[capability, each] = []
            for item in read_split(self.folders.items(capability), "train"):
                input_ids, labels = encode_example(tokenizer, item["prompt"], item["answer"])
                self._examples[capability, item["level"]].append(Example(tuple(input_ids), tuple(labels)))
        return self._examples[capability, level]

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        return build_tokenizer(self.settings.architecture.max_length)

    def _new_model(self) -> LlamaForCausalLM:
        tokenizer, wanted = self._tokenizer(), self.settings.architecture
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=wanted.hidden_size,
            intermediate_size=wanted.intermediate_size,
            num_hidden_layers=wanted.layers,
            num_attention_heads=wanted.heads,
            num_key_value_heads=wanted.key_value_heads,
            max_position_embeddings=wanted.max_length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
        # The caller's random state is left as it was: a build inside a larger run must not change its draws.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.training_seed)
            return LlamaForCausalLM(config)

    def _load_base(self) -> LlamaForCausalLM:
        return LlamaForCausalLM.from_pretrained(self.folders.base, dtype=torch.float32)

    def _save(self, model: LlamaForCausalLM, folder: Path) -> None:
        tokenizer = self._tokenizer()
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Spares the log the bars that transformers draws over files of a few megabytes."""
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


def _stages(builder: Builder) -> list[tuple[str, Path, Callable[[Path], None]]]:
    """Name, folder and maker of every stage, in the order in which they are built."""
    folders = builder.folders
    return [
        *(
            (f"{capability} items", folders.items(capability), partial(builder.make_items, capability))
            for capability in CAPABILITIES
        ),
        ("base", folders.base, builder.make_base),
        *(
            (f"{capability} expert", folders.expert(capability), partial(builder.make_expert, capability))
            for capability in CAPABILITIES
        ),
        ("multitask reference", folders.multitask, builder.make_multitask),
    ]


def _report(name: str, progress: Progress) -> None:
    every = max(1, progress.steps // REPORTS_PER_STAGE)
    if progress.step % every == 0 or progress.step == progress.steps:
        log.info(
            "%s: step %d of %d, loss %.3f, %.0f s left",
            name,
            progress.step,
            progress.steps,
            progress.loss,
            progress.seconds_left,
        )
