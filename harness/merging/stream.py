"""The stream of parameters: read one by one, handed to the method, passed on merged."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from harness.checkpoints import TensorInfo, role_and_layer
from harness.errors import GraftbenchError
from harness.merging.plan import MergePlan
from methods import Cutoff, Parameter


def merged_parameters(plan: MergePlan, cutoffs: Mapping[str, Cutoff] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Name and merged tensor, fp32, of every parameter in turn; nothing else stays in memory.

    Args:
        plan: the merge.
        cutoffs: each expert's cutoff, if the method selects over the whole model.
    """
    for parameter in parameters(plan, cutoffs):
        try:
            with torch.inference_mode():
                merged = plan.method.merge(parameter)
        except Exception as error:
            error.add_note(f"while method '{plan.name}' merged '{parameter.name}'")
            raise
        _check_output(plan, parameter, merged)
        yield parameter.name, merged.to(torch.float32)


def parameters(plan: MergePlan, cutoffs: Mapping[str, Cutoff] | None = None) -> Iterator[Parameter]:
    """Every parameter as a method sees it, in the order in which the base's files hold them."""
    names = tuple(plan.experts)
    ordered = tuple(cutoffs[name] for name in names) if cutoffs is not None else None
    for info in plan.parameters:
        yield _read(plan, info, names, ordered)


def _read(plan: MergePlan, info: TensorInfo, names: tuple[str, ...], cutoffs: tuple[Cutoff, ...] | None) -> Parameter:
    role, layer = role_and_layer(info.name)
    experts = torch.empty(len(names), *info.shape, dtype=torch.float32, device=plan.device)
    for row, expert in zip(experts, plan.experts.values(), strict=True):
        row.copy_(expert.read(info.name))
    curvatures = plan.curvature.read(info.name).to(plan.device) if plan.curvature is not None else None
    return Parameter(
        name=info.name,
        role=role,
        layer=layer,
        base=plan.base.read(info.name).to(plan.device, torch.float32, copy=True),
        experts=experts,
        expert_names=names,
        curvatures=curvatures,
        cutoffs=cutoffs,
    )


def _check_output(plan: MergePlan, parameter: Parameter, merged: Tensor) -> None:
    """A method's own mistake is told apart from bad input: the method is named."""
    if not isinstance(merged, Tensor) or not merged.is_floating_point():
        kind = merged.dtype if isinstance(merged, Tensor) else type(merged).__name__
        raise GraftbenchError(f"method '{plan.name}' gave {kind} for '{parameter.name}', not a floating-point tensor")
    if merged.shape != parameter.base.shape:
        raise GraftbenchError(
            f"method '{plan.name}' gave shape {list(merged.shape)} for '{parameter.name}', "
            f"whose shape is {list(parameter.base.shape)}"
        )
    if not torch.isfinite(merged).all():
        raise GraftbenchError(
            f"method '{plan.name}' gave NaN or Inf for '{parameter.name}', though its inputs are finite"
        )
