"""One rank of a small model's training under DeepSpeed on the CPU, for each stage of ZeRO; it saves a checkpoint.

Before it does, every entry of the second moments is set to a value of its own (`planted`), by DeepSpeed's own account
of which entries a rank holds.

    python deepspeed_script.py FOLDER PORT RANK WORLD
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.checkpoints.llama import TOKENS
from tests.curvature.export.live import saved, tied_model

STAGES = (1, 2, 3)


def planted(model: nn.Module) -> dict[str, Tensor]:
    """Second moments of which no two entries are equal."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    return {
        name: (place * 4096 + torch.arange(shapes[name].numel()).float()).view(shapes[name])
        for place, name in enumerate(names, start=1)
    }


def partly_frozen() -> Any:
    """The model, of whose equal layers one has a frozen matrix."""
    model = tied_model()
    model.model.layers[0].self_attn.k_proj.weight.requires_grad_(False)
    return model


def train(stage: int, folder: Path, rank: str) -> None:
    import deepspeed

    model = partly_frozen()
    values = planted(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = [
        {"params": [p for p in trained.values() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in trained.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    options = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage, "sub_group_size": 700},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": True},
    }
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=options)
    generator = torch.Generator().manual_seed(int(rank))
    for _ in range(3):
        tokens = torch.randint(0, TOKENS, (2, 6), generator=generator)
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()
    for name, parameter in trained.items():
        plant(engine.optimizer, parameter, values[name], stage)
    engine.save_checkpoint(str(folder))
    engine.destroy()


def plant(optimizer: Any, parameter: Any, value: Tensor, stage: int) -> None:
    if stage == 3:
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(parameter, value, "exp_avg_sq")
        return
    mapping = parameter._hp_mapping
    if mapping is not None:  # else the rank holds nothing of it
        flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        target = optimizer.optimizer.state[flat]["exp_avg_sq"].narrow(0, here.start, here.numel)
        target.copy_(value.flatten().narrow(0, there.start, there.numel))


def main(folder: Path, port: str, rank: str, world: str) -> None:
    os.environ.update(
        RANK=rank,
        LOCAL_RANK=rank,
        WORLD_SIZE=world,
        LOCAL_SIZE=world,
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
        DS_ACCELERATOR="cpu",
    )
    if rank == "0":
        saved(folder / "model", tied_model())
    for stage in STAGES:
        train(stage, folder / f"stage{stage}", rank)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
