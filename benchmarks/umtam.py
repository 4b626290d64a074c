"""Momentum-aware training against AdamW: loss and optimizer memory on the tiny base, on the same batches.

    python -m benchmarks.umtam FOLDER --steps 760

makes the training items of zoo=tiny under FOLDER (kept for the next time) and trains its base from the same initial
weights with each optimizer. The loss is the training loss, averaged over the last tenth of the steps.
"""

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from harness.curvature import Umtam
from harness.files import folder_written_atomically
from harness.zoo.tiny.build import Builder, Folders
from harness.zoo.tiny.items import CAPABILITIES
from harness.zoo.tiny.settings import settings_from_mapping
from harness.zoo.tiny.train import Schedule, accumulate_gradients, deterministic, draw_batches

CONFIGURATION = Path(__file__).resolve().parent.parent / "conf" / "zoo" / "tiny.yaml"


def main() -> None:
    """Train with each optimizer and print one row of a Markdown table for each."""
    parser = argparse.ArgumentParser(description="Compare Umtam's loss and memory with AdamW's.")
    parser.add_argument("folder", type=Path, help="where the training items lie or are made")
    parser.add_argument(
        "--steps", type=int, default=760, help="steps of each training (default 760, as the set's base)"
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[4], help="ranks of Umtam's momentum (default 4)")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: at least 1")
    settings = settings_from_mapping(yaml.safe_load(CONFIGURATION.read_text(encoding="utf-8"))["build"])
    builder = Builder(settings, Folders(options.folder))
    for capability in CAPABILITIES:
        if not (folder := builder.folders.items(capability)).is_dir():
            with folder_written_atomically(folder) as temporary:
                builder.make_items(capability, temporary)
    print(f"{options.steps} steps, batch {settings.batch_size}, learning rate {settings.base.learning_rate}")
    print("| optimizer | loss, last tenth | state, bytes per entry | seconds per step |\n| :-- | --: | --: | --: |")
    for rank in (None, *options.ranks):
        loss, size, seconds = trained(builder, options.steps, rank)
        name = "AdamW" if rank is None else f"Umtam, rank {rank}"
        print(f"| {name} | {loss:.4f} | {size:.2f} | {seconds:.3f} |", flush=True)


def trained(builder: Builder, steps: int, rank: int | None) -> tuple[float, float, float]:
    """The loss, the state's bytes per entry and the seconds per step of one training; AdamW's without a rank."""
    settings = builder.settings
    schedule = Schedule(steps, settings.base.learning_rate, batch_size=settings.batch_size)
    # The set's own recipe: its sources cannot offer more, since every built set is named by their digest.
    model, pools = builder._new_model(), builder._mixture(1.0)
    optimizer: torch.optim.Optimizer
    common: dict[str, Any] = {
        "lr": schedule.learning_rate,
        "betas": schedule.betas,
        "weight_decay": schedule.weight_decay,
    }
    if rank is None:
        optimizer = torch.optim.AdamW(model.parameters(), foreach=True, **common)
    else:
        optimizer = Umtam(model.parameters(), rank=rank, **common)
    batches = draw_batches(pools, schedule.batch_size, random.Random(f"{settings.training_seed}/base"))
    losses, started = [], time.monotonic()
    with deterministic():
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate_at(step)
            losses.append(accumulate_gradients(model, next(batches)))
            torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.gradient_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    seconds = (time.monotonic() - started) / steps
    last = losses[-max(1, steps // 10) :]
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor) and v.dim()]
    size = sum(tensor.nbytes for tensor in tensors) / sum(parameter.numel() for parameter in model.parameters())
    return sum(last) / len(last), size, seconds


if __name__ == "__main__":
    main()
