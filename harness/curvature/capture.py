"""Adam's second moments out of a live optimizer."""

from torch import Tensor, nn
from torch.optim import Optimizer

from harness.errors import GraftbenchError


def second_moments_of(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """`exp_avg_sq` of every trained parameter, raw, under the parameter's name; tied parameters once.

    Raises:
        GraftbenchError: the optimizer keeps no second moments for a parameter that it should train.
    """
    moments = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        state = optimizer.state.get(parameter, {})
        if "exp_avg_sq" not in state:
            raise GraftbenchError(
                f"the optimizer ({type(optimizer).__name__}) has no exp_avg_sq for '{name}'; "
                "it must be of Adam's kind, hold this model's parameters, and have made a step"
            )
        moments[name] = state["exp_avg_sq"].detach().clone()
    return moments
