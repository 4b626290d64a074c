"""Supervised fine-tuning on chats by transformers' Trainer, into an ordinary checkpoint with second moments."""

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from harness import __version__
from harness.checkpoints import Checkpoint
from harness.curvature.callback import SecondMomentsCallback
from harness.curvature.examples import IGNORED, Example, read_examples
from harness.curvature.second_moments import FILE_NAME
from harness.errors import GraftbenchError
from harness.files import file_digest, folder_written_atomically, write_text_atomically
from harness.zoo.training.recipe import Recipe

log = logging.getLogger(__name__)

RECORD = "training.json"
"""What the expert was made from and with, beside its weights."""


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    folder: Path
    examples: int
    steps: int
    loss: float
    """Mean over the steps of this process's run."""


def train_expert(model: str | Path, data: Path, out: Path, recipe: Recipe, resume: bool = False) -> Trained | None:
    """Fine-tune a model and write it to a new folder, with `exp_avg_sq.safetensors` and `training.json`.

    Checkpoints to resume from lie in `OUT.unfinished` until the expert is written.

    Args:
        model: Hugging Face folder or hub name.
        data: chats, or prompts and answers; see `read_examples`. Only what the assistant says is learnt.
        out: the folder to write.
        recipe: how.
        resume: go on from the last checkpoint of a training that was interrupted.

    Returns:
        None in the processes of a launch that write nothing.

    Raises:
        GraftbenchError: model or data cannot be read, `out` exists, or there is nothing (or something else) to resume.
    """
    with Checkpoint(model) as checkpoint:
        folder, digest = checkpoint.folder, checkpoint.weights_digest
    work = out.with_name(f"{out.name}.unfinished")
    if not data.is_file():
        raise GraftbenchError(f"data={data} is no file; name a file of JSON lines")
    record = {
        "model": str(model),
        "base_digest": digest,
        "data": str(data),
        "data_digest": file_digest(data),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "recipe": asdict(recipe),
    }
    arguments = _arguments(recipe, work)
    writes = os.environ.get("RANK", "0") == "0"
    if writes:
        _check_places(out, work, record, resume)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = read_examples(data, tokenizer, recipe.max_length)
    set_seed(recipe.seed)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if writes:
        work.mkdir(parents=True, exist_ok=True)
        write_text_atomically(work / RECORD, json.dumps(record, indent=2) + "\n")
    trainer = Trainer(
        model=network,
        args=arguments,
        train_dataset=_Examples(examples),
        data_collator=_padded,
        callbacks=[SecondMomentsCallback(work, base_digest=digest)],
    )
    result = trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work)) if resume else None)
    trainer.accelerator.wait_for_everyone()
    if not writes:
        return None
    if not (work / FILE_NAME).is_file():
        raise GraftbenchError(f"training made no step; give more steps than {work} has, or remove it and begin anew")
    versions = {"graftbench": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    told = {**record, "examples": len(examples), "steps": result.global_step, "loss": result.training_loss}
    with folder_written_atomically(out) as begun:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(begun)
        tokenizer.save_pretrained(begun)
        shutil.copyfile(work / FILE_NAME, begun / FILE_NAME)
        (begun / RECORD).write_text(json.dumps({**told, "versions": versions}, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(work)
    return Trained(out, len(examples), result.global_step, result.training_loss)


def _check_places(out: Path, work: Path, record: dict[str, Any], resume: bool) -> None:
    if os.path.lexists(out):
        raise GraftbenchError(f"{out} exists already; choose another out= or remove it")
    if not resume:
        if os.path.lexists(work):
            raise GraftbenchError(f"{work} holds an unfinished training; go on with resume=true, or remove it")
        return
    if not work.is_dir() or get_last_checkpoint(str(work)) is None:
        raise GraftbenchError(
            f"there is no checkpoint in {work} to resume from; begin anew without resume, and set save_every"
        )
    begun = json.loads((work / RECORD).read_text(encoding="utf-8"))
    # What is found again under another path is the same model and data.
    told = {key: value for key, value in record.items() if key not in ("model", "data")}
    if changed := [key for key, value in told.items() if begun.get(key) != value]:
        raise GraftbenchError(
            f"{work} was begun with another {' and '.join(changed)}; resume with the same, or remove it and begin anew"
        )


def _arguments(recipe: Recipe, work: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=recipe.epochs,
        max_steps=recipe.steps or -1,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,  # below 1 it is a share of the steps
        weight_decay=recipe.weight_decay,
        adam_beta2=recipe.beta2,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        bf16=recipe.bf16,
        use_cpu=not torch.accelerator.is_available(),  # bfloat16 is refused on a CPU that was not asked for
        save_strategy="no" if recipe.save_every is None else "steps",
        save_steps=recipe.save_every or 500,
        save_total_limit=2,
        seed=recipe.seed,
        report_to="none",
        remove_unused_columns=False,
    )


class _Examples(Dataset[Example]):
    def __init__(self, examples: list[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: int) -> Example:
        return self.examples[place]


def _padded(examples: list[Example]) -> dict[str, Tensor]:
    """A batch, `[examples, tokens]`; nobody attends to what fills it up, and it is not predicted."""
    return {
        "input_ids": pad_sequence([each.input_ids for each in examples], batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(each.input_ids) for each in examples], batch_first=True),
        "labels": pad_sequence([each.labels for each in examples], batch_first=True, padding_value=IGNORED),
    }
