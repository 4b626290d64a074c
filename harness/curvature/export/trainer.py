"""A checkpoint of Hugging Face's Trainer: `optimizer.pt` in its folder.

Trainer makes two groups, each in the order of `model.named_parameters()`: what decays, then what does not (norms and
biases). Frozen parameters are in neither, and tied ones are there once.
"""

from pathlib import Path

from harness.curvature.export import torch_optim
from harness.curvature.export.state import OptimizerState
from harness.errors import GraftbenchError

FILE_NAME = "optimizer.pt"


def recognises(path: Path) -> bool:
    """Whether it is a folder with `optimizer.pt`, or that file."""
    return path.name == FILE_NAME if path.is_file() else (path / FILE_NAME).is_file()


def read(path: Path) -> OptimizerState:
    """The state in `optimizer.pt`.

    Raises:
        GraftbenchError: there is none, it is cut short, or its groups are not Trainer's.
    """
    file = path if path.is_file() else path / FILE_NAME
    state = torch_optim.read(file) if file.is_file() else None
    if state is None:
        raise GraftbenchError(f"{path} holds no {FILE_NAME}; name a checkpoint folder of Trainer (checkpoint-STEP)")
    if len(state.groups) != 2:
        raise GraftbenchError(
            f"{file} has {len(state.groups)} parameter groups, but Trainer makes two (with weight decay, without); "
            "for an optimizer of your own in Trainer, choose format=torch"
        )
    return state
