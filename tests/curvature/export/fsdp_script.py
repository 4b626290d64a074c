"""One of two processes that train a small model under FSDP and save the optimizer's state, in shards and whole.

python fsdp_script.py FOLDER PORT RANK
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as distributed_checkpoint
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from tests.curvature.export.live import adamw, saved, tied_model, train


def wrapped(kind: str, model: Any) -> Any:
    if kind == "fsdp1":
        return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def save(kind: str, folder: Path, rank: str) -> None:
    sharded = wrapped(kind, tied_model())
    optimizer = adamw(sharded)
    train(sharded, optimizer)
    whole = get_optimizer_state_dict(sharded, optimizer, options=StateDictOptions(full_state_dict=True))
    if rank == "0":
        folder.mkdir()
        save_file(
            {name: entry["exp_avg_sq"].clone() for name, entry in whole["state"].items()}, folder / "live.safetensors"
        )
        torch.save(whole, folder / "optimizer.bin")
    dist.barrier()
    state = get_optimizer_state_dict(sharded, optimizer)
    distributed_checkpoint.save({"optimizer": state}, checkpoint_id=folder / "state")


def main(folder: Path, port: str, rank: str) -> None:
    os.environ.update(RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo")
    if rank == "0":
        saved(folder / "model", tied_model())
    for kind in ("fsdp1", "fsdp2"):
        save(kind, folder / kind, rank)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
