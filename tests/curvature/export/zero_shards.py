"""Shards in the layout of DeepSpeed's ZeRO, without DeepSpeed.

They hold what the export reads, and the classes of DeepSpeed's that lie in real ones, under their names: see
`harness/curvature/export/deepspeed.py`. Files that DeepSpeed itself wrote are read where it is installed.
"""

import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

BETAS = (0.9, 0.95)


@contextmanager
def deepspeed_classes() -> Iterator[dict[str, type]]:
    """Classes that pickle under DeepSpeed's names, for as long as files are being written."""
    found = {}
    before = dict(sys.modules)
    for module, name in (
        ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
        ("deepspeed.utils.tensor_fragment", "fragment_address"),
    ):
        found[name] = type(name, (), {"__module__": module})
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:end]), ModuleType(".".join(parts[:end])))
        setattr(sys.modules[module], name, found[name])
    try:
        yield found
    finally:
        for name in set(sys.modules) - set(before):
            if name.partition(".")[0] == "deepspeed":
                del sys.modules[name]


def write_zero(
    folder: Path,
    stage: int,
    groups: list[dict[str, Tensor]],
    world: int = 2,
    told: bool = True,
    step: int = 3,
) -> Path:
    """The files of a step: second moments of each group's parameters, cut over the ranks.

    Args:
        folder: to be made.
        stage: of ZeRO.
        groups: second moments by name.
        world: number of ranks.
        told: whether files of stages 1 and 2 say where each parameter's entries are, as newer ones do.
        step: number of steps made.
    """
    folder.mkdir(parents=True)
    model = {"module": {}, "param_shapes": [OrderedDict((n, v.shape) for n, v in group.items()) for group in groups]}
    with deepspeed_classes() as classes:
        for rank in range(world):
            cut = _third(groups, rank, world) if stage == 3 else _first(groups, rank, world, told, classes)
            state = {n: {"step": torch.tensor(float(step)), "exp_avg": v, "exp_avg_sq": v} for n, v in cut[0].items()}
            options = [{"lr": 1e-3, "betas": BETAS, "params": [n], "decoupled_weight_decay": True} for n in state]
            base = {"state": state, "param_groups": options}
            inside = {"loss_scaler": classes["LossScaler"](), "zero_stage": stage, **cut[1]}
            inside["optimizer_state_dict" if stage == 3 else "base_optimizer_state"] = base
            content = {"optimizer_state_dict": inside, "ds_config": {"optimizer": {"type": "AdamW"}}}
            torch.save(content, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
            if stage == 3:
                torch.save(model, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    if stage < 3:
        torch.save(model, folder / "mp_rank_00_model_states.pt")
    return folder


def _first(
    groups: list[dict[str, Tensor]], rank: int, world: int, told: bool, classes: Mapping[str, type]
) -> tuple[dict[int, Tensor], dict[str, Any]]:
    """Stages 1 and 2: one stretch of all that lies end to end, padded to a multiple of twice the ranks."""
    flats, addresses = {}, []
    for number, group in enumerate(groups):
        whole = torch.cat([value.flatten() for value in group.values()])
        part = -(-len(whole) // (2 * world)) * 2
        padded = torch.cat([whole, torch.zeros(part * world - len(whole))])
        flats[number] = padded[rank * part : (rank + 1) * part].clone()
        mine, begin = OrderedDict(), 0
        for name, value in group.items():
            start, stop = max(begin, rank * part), min(begin + value.numel(), (rank + 1) * part)
            if start < stop:
                mine[name] = classes["fragment_address"]()
                mine[name].__dict__.update(numel=stop - start, start=start - rank * part)
            begin += value.numel()
        addresses.append(mine)
    fields = {"single_partition_of_fp32_groups": list(flats.values()), "partition_count": [world] * len(groups)}
    return flats, {**fields, **({"param_slice_mappings": addresses} if told else {})}


def _third(groups: list[dict[str, Tensor]], rank: int, world: int) -> tuple[dict[int, Tensor], dict[str, Any]]:
    """Stage 3: each parameter in as many parts as there are ranks, the last padded."""
    flats = {}
    for number, group in enumerate(groups):
        parts = []
        for value in group.values():
            part = -(-value.numel() // world)
            padded = torch.cat([value.flatten(), torch.zeros(part * world - value.numel())])
            parts.append(padded[rank * part : (rank + 1) * part])
        flats[number] = torch.cat(parts)
    return flats, {"fp32_flat_groups": list(flats.values()), "partition_count": world}
