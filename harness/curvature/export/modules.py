"""The order of a model's parameters, which numbers in an optimizer's state refer to."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from harness.checkpoints import Checkpoint
from harness.errors import GraftbenchError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModuleParameter:
    """A parameter at its place in the model; tied ones are one, under the name that comes first."""

    name: str
    shape: tuple[int, ...]
    decays: bool
    """Whether transformers' Trainer puts it into the group with weight decay."""
    decayed_before: bool
    """Whether Trainers of old did: they knew norms by their class, and not every model's."""


def parameters_in_order(model: Checkpoint) -> list[ModuleParameter]:
    """The parameters in the order of `named_parameters()`, from the model's configuration alone.

    Nothing is allocated, and no code of the checkpoint is run.

    Raises:
        GraftbenchError: transformers has no class for it.
    """
    from transformers import Trainer
    from transformers.trainer_pt_utils import get_parameter_names

    module = _without_weights(model)
    decaying = set(Trainer.get_decay_parameter_names(None, module))  # type: ignore[arg-type]
    before = {name for name in get_parameter_names(module, [nn.LayerNorm]) if "bias" not in name}
    return [
        ModuleParameter(name, tuple(parameter.shape), name in decaying, name in before)
        for name, parameter in module.named_parameters()
    ]


def _without_weights(model: Checkpoint) -> nn.Module:
    import transformers

    by_name = (
        "save the optimizer with names (torch.optim.AdamW(model.named_parameters())), or export from DeepSpeed's, "
        "FSDP's or a distributed checkpoint, which have them"
    )
    try:
        configuration = transformers.AutoConfig.from_pretrained(model.folder, trust_remote_code=False)
        kind: Any = getattr(transformers, model.architecture, None)
        with torch.device("meta"):
            if kind is not None:
                return kind(configuration)
            return transformers.AutoModelForCausalLM.from_config(configuration, trust_remote_code=False)
    except (ValueError, OSError, KeyError, AttributeError, TypeError) as error:
        raise GraftbenchError(
            f"{model.source}: the optimizer numbers its parameters, and their order follows from the class "
            f"{model.architecture}, which transformers cannot make without running foreign code "
            f"({str(error).splitlines()[0]}); {by_name}"
        ) from error
