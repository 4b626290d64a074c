"""Adam's second moments out of a live optimizer: as tensors, or straight into the file that merging reads."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from harness.curvature.second_moments import FILE_NAME, SecondMomentsMetadata, write_second_moments
from harness.errors import GraftbenchError

log = logging.getLogger(__name__)

_EXPORT = "save a checkpoint of the optimizer and run `graftbench moments export source=CHECKPOINT out=DIR`"


def save_second_moments(
    optimizer: Optimizer,
    model: nn.Module,
    folder: Path | str,
    step: int | None = None,
    base_digest: str | None = None,
) -> Path:
    """Write `exp_avg_sq.safetensors` into a folder, raw, with what the bias correction needs; call it in one process.

    Args:
        optimizer: of Adam's kind, after its last step; one that accelerate wrapped, too.
        model: the model that it trains; one that DistributedDataParallel or torch.compile wrapped, too.
        folder: by convention the expert's.
        step: number of optimizer steps (not of batches), if the optimizer itself does not count them.
        base_digest: digest of the weights that training began with, `Checkpoint(base).weights_digest`.

    Returns:
        The file's path.

    Raises:
        GraftbenchError: as `second_moments_of`; the optimizer counts other steps than `step`, or has several β₂.
    """
    optimizer, model = unwrapped(optimizer, model)
    moments = second_moments_of(optimizer, model)
    folder = Path(folder)
    metadata = metadata_of(optimizer, model, step, base_digest)
    folder.mkdir(parents=True, exist_ok=True)
    write_second_moments(folder / FILE_NAME, moments, metadata)
    return folder / FILE_NAME


def metadata_of(
    optimizer: Optimizer, model: nn.Module, step: int | None = None, base_digest: str | None = None
) -> SecondMomentsMetadata:
    """What a file of a live optimizer's second moments says of them; see `save_second_moments`.

    Raises:
        GraftbenchError: the optimizer counts other steps than `step`, or has several β₂.
    """
    return SecondMomentsMetadata(
        kind="adam",
        optimizer=type(optimizer).__name__,
        beta2=_beta2(optimizer),
        step=_steps(optimizer, model, step),
        learning_rate=_learning_rate(optimizer),
        base_digest=base_digest,
    )


def second_moments_of(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """`exp_avg_sq` of every trained parameter, raw, under the parameter's name; tied parameters once.

    Raises:
        GraftbenchError: the optimizer keeps no second moments for a parameter that it should train, or this process
            holds a shard of them only.
    """
    optimizer, model = unwrapped(optimizer, model)
    check_whole(optimizer, model)
    moments = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        state = optimizer.state.get(parameter, {})
        if "exp_avg_sq" not in state:
            raise GraftbenchError(
                f"the optimizer ({type(optimizer).__name__}) has no exp_avg_sq for '{name}'; "
                "it must be of Adam's kind, hold this model's parameters, and have made a step. "
                f"If it keeps them in another form (8 bits, factors), {_EXPORT}"
            )
        if state["exp_avg_sq"].shape != parameter.shape:
            raise GraftbenchError(
                f"exp_avg_sq of '{name}' has shape {list(state['exp_avg_sq'].shape)}, the parameter "
                f"{list(parameter.shape)}: they are sharded or packed; {_EXPORT}"
            )
        moments[name] = state["exp_avg_sq"].detach().clone()
    if not moments:
        raise GraftbenchError(f"{type(model).__name__} has no parameter that requires a gradient; nothing is trained")
    return moments


def check_whole(optimizer: Optimizer, model: nn.Module) -> None:
    """Refuse what DeepSpeed or FSDP sharded over processes.

    Raises:
        GraftbenchError: it is sharded; the export of a checkpoint is the way then.
    """
    optimizer, model = unwrapped(optimizer, model)
    kinds = {kind.__module__.partition(".")[0]: kind for kind in type(optimizer).__mro__}
    modules = {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
    if "deepspeed" in kinds or any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        sharder = "DeepSpeed"
    elif modules & {"FullyShardedDataParallel", "FSDPModule"}:
        sharder = "FSDP"
    elif any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        sharder = "a device mesh (DTensor)"
    else:
        return
    raise GraftbenchError(f"the optimizer's state is sharded by {sharder}, and no process has all of it; {_EXPORT}")


def unwrapped(optimizer: Optimizer, model: nn.Module) -> tuple[Optimizer, nn.Module]:
    """Both without what accelerate, DistributedDataParallel and torch.compile put around them."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer) or _is_wrapper(inner):
        optimizer = cast(Optimizer, inner)
    while True:
        if type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            model = cast(nn.Module, model.module)
        elif isinstance(original := getattr(model, "_orig_mod", None), nn.Module):
            model = original
        else:
            return optimizer, model


def _is_wrapper(inner: Any) -> bool:
    """DeepSpeed's optimizers need not be torch's."""
    return inner is not None and hasattr(inner, "param_groups")


def _beta2(optimizer: Optimizer) -> float | None:
    found = {float(group["betas"][1]) for group in optimizer.param_groups if "betas" in group}
    if len(found) > 1:
        raise GraftbenchError(
            f"the groups of {type(optimizer).__name__} have several β₂ ({', '.join(map(str, sorted(found)))}); "
            "a file of second moments has one, so train all groups with the same"
        )
    return found.pop() if found else None


def _learning_rate(optimizer: Optimizer) -> float:
    """The rate that a schedule scales, where there is one; of several groups the largest."""
    return max(float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups)


def _steps(optimizer: Optimizer, model: nn.Module, given: int | None) -> int | None:
    counted = {
        name: int(state["step"])
        for name, parameter in model.named_parameters()
        if (state := cast(Mapping[str, Any], optimizer.state.get(parameter, {}))) and "step" in state
    }
    if not counted:
        return given
    steps = max(counted.values())
    if given is not None and given != steps:
        raise GraftbenchError(
            f"step={given}, but {type(optimizer).__name__} made {steps} steps; give optimizer steps, not batches, "
            "or leave step out"
        )
    if fewer := [name for name, count in counted.items() if count < steps]:
        log.warning(
            "%d parameters had no gradient in some of the %d steps (such as '%s'); the correction takes all for %d",
            len(fewer),
            steps,
            fewer[0],
            steps,
        )
    return steps
