"""The formats that can be read, and which of them a file or folder has."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.curvature.export import dcp, deepspeed, torch_optim, trainer
from harness.curvature.export.state import OptimizerState
from harness.errors import GraftbenchError, unknown_name


@dataclass(frozen=True)
class Format:
    """One way in which optimizer state lies on a disk."""

    text: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], OptimizerState]


FORMATS = {
    "trainer": Format("a checkpoint folder of transformers' Trainer (optimizer.pt)", trainer.recognises, trainer.read),
    "deepspeed": Format("DeepSpeed's ZeRO 1 to 3 (*_optim_states.pt)", deepspeed.recognises, deepspeed.read),
    "dcp": Format("a distributed checkpoint (.metadata, *.distcp)", dcp.recognises, dcp.read),
    "torch": Format("a state dict of torch.optim, or FSDP's optimizer.bin", torch_optim.recognises, torch_optim.read),
}

AUTO = "auto"


def read_state(path: Path, name: str = AUTO) -> OptimizerState:
    """An optimizer's state in whichever format it is, or in the one that is named.

    Raises:
        GraftbenchError: there is nothing, the format is not known or not that, or something in it is wrong.
    """
    if name not in (AUTO, *FORMATS):
        raise unknown_name("format", name, (AUTO, *FORMATS))
    if not path.exists():
        raise GraftbenchError(f"source={path} does not exist; name a checkpoint's folder, or the optimizer's file")
    return FORMATS[format_of(path) if name == AUTO else name].read(path)


def format_of(path: Path) -> str:
    """The name of a checkpoint's format.

    Raises:
        GraftbenchError: it has none that is known, or several.
    """
    found = [name for name, one in FORMATS.items() if one.recognises(path)]
    if path.is_file() and len(found) > 1:
        found.remove("torch")  # which any file may be, where its name says no more
    if len(found) == 1:
        return found[0]
    if found:
        raise GraftbenchError(f"{path} holds optimizer state in several formats; choose one: format={'|'.join(found)}")
    known = "; ".join(f"{name}: {one.text}" for name, one in FORMATS.items())
    raise GraftbenchError(f"{path} holds no optimizer state that is known ({known})")
