"""A checkpoint of DeepSpeed's ZeRO, stages 1 to 3: every rank's share of the optimizer's state, put together by name.

The layout, as DeepSpeed 0.19 writes it in the folder of a step:

    [bf16_]zero_pp_rank_<rank>_mp_rank_00_optim_states.pt   one per rank, with flat tensors
    mp_rank_00_model_states.pt                              names and shapes (stages 1 and 2)
    zero_pp_rank_<rank>_mp_rank_00_model_states.pt          the same for stage 3

In stages 1 and 2 the parameters of a group lie end to end, and each rank holds one stretch of the whole; newer files
say which entries of which parameter it has. In stage 3 each parameter is cut into as many parts as there are ranks,
the last padded, and each rank's parts lie end to end, groups included.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.checkpoints.pickled import load_without_code
from harness.curvature.export.entries import Entry
from harness.curvature.export.state import Key, OptimizerState, ParameterGroup, ParameterMoments
from harness.curvature.export.torch_optim import assembled, options_of
from harness.errors import GraftbenchError

_OPTIMIZER = re.compile(r"(?:\w+_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_?optim_states\.pt")
_MODEL = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
_ADVICE = "it is not as DeepSpeed writes it; save the checkpoint again with engine.save_checkpoint"


class StandIn:
    """Takes the place of a class of DeepSpeed's: it keeps what it is given and does nothing."""

    def __init__(self, *_arguments: Any) -> None:
        pass


STAND_INS = dict.fromkeys(
    (
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    ),
    StandIn,
)
"""What DeepSpeed's files hold beside tensors and plain values; the classes themselves are never imported."""


@dataclass(frozen=True)
class _Flat:
    """Flat tensors, read as one."""

    tensors: Sequence[Tensor]

    @property
    def entries(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors)

    def read(self, start: int, stop: int) -> list[Tensor]:
        ends = list(accumulate(tensor.numel() for tensor in self.tensors))
        found = []
        while start < stop:
            place = bisect_right(ends, start)
            begin = ends[place] - self.tensors[place].numel()
            end = min(stop, ends[place])
            found.append(self.tensors[place].view(-1)[start - begin : end - begin])
            start = end
        return found


Stretch = tuple[_Flat, int, int]
"""A stretch of a flat tensor: from where to where."""


def recognises(path: Path) -> bool:
    """Whether it is a folder with ranks' files, or one of steps with such, or the file of one rank."""
    return bool(_step_folders(path)) if path.is_dir() else _OPTIMIZER.fullmatch(path.name) is not None


def read(path: Path) -> OptimizerState:
    """The state of all ranks; their tensors are mapped.

    Raises:
        GraftbenchError: a rank's file is missing, cut short or holds code, or the files are not of one step.
    """
    folder = path.parent if path.is_file() else _step_folder(path)
    files = _files_of_ranks(folder)
    ranks = [_optimizer_of(file) for file in files]
    model = next((folder / name for name in _MODEL if (folder / name).is_file()), None)
    if model is None:
        raise GraftbenchError(f"{folder} has no {_MODEL[0]}, which says what parameters are called; copy all of it")
    shapes = load_without_code(model, "meta", STAND_INS, _ADVICE).get("param_shapes")
    if not shapes:
        raise GraftbenchError(f"{model} does not say shapes of parameters (param_shapes); {_ADVICE}")
    third = "fp32_flat_groups" in ranks[0]
    _check_count(folder, files, ranks)
    bases = [_base_optimizer(file, rank, third) for file, rank in zip(files, ranks, strict=True)]
    cut = _by_parameter if third else _by_stretch
    entries: dict[Key, Entry] = {}
    for name, shape, stretches in cut(files, ranks, bases, shapes):
        moments = ParameterMoments(shape, {"": shape}, partial(_put_together, stretches, shape))
        entries[name] = Entry("adam", moments)
    groups = [
        ParameterGroup(tuple(names), options_of(options))
        for names, options in zip(shapes, bases[0].groups, strict=False)
    ]
    steps = [step for base in bases for step in base.steps]
    state = assembled(folder, groups, entries, steps)
    return replace(state, optimizer=bases[0].name or state.optimizer)


@dataclass(frozen=True)
class _Base:
    """What one rank's file holds of the optimizer inside."""

    moments: Sequence[Tensor]
    """Flat second moments, one for each flat group."""
    groups: Sequence[Mapping[str, Any]]
    steps: Sequence[Any]
    name: str | None


def _base_optimizer(file: Path, rank: Mapping[str, Any], third: bool) -> _Base:
    try:
        inside = rank["optimizer_state_dict" if third else "base_optimizer_state"]
        groups = inside["param_groups"] if isinstance(inside, Mapping) else []
        if isinstance(inside, Mapping):
            states = [inside["state"][key] for group in groups for key in group["params"] if key in inside["state"]]
        else:
            states = list(inside)  # an elastic checkpoint: a list, without padding
        moments = [state["exp_avg_sq"] for state in states]
    except (KeyError, TypeError) as error:
        raise GraftbenchError(
            f"{file} holds no second moments ({error}); it must be of Adam's kind, have made a step, and not be "
            "swapped out to a disk"
        ) from error
    steps = [state.get("step") for state in states] + [group.get("step") for group in groups]
    name = ((rank.get("ds_config") or {}).get("optimizer") or {}).get("type")
    return _Base(moments, groups, steps, name)


def _by_stretch(
    files: Sequence[Path],
    ranks: Sequence[Mapping[str, Any]],
    bases: Sequence[_Base],
    shapes: Sequence[Mapping[str, torch.Size]],
) -> Iterable[tuple[str, tuple[int, ...], list[Stretch]]]:
    """Parameters of stages 1 and 2, each with its stretches in the order of ranks."""
    for group, names in enumerate(shapes):
        flats = [_Flat([base.moments[group]]) for base in bases]
        told = [rank["param_slice_mappings"] for rank in ranks if rank.get("param_slice_mappings")]
        if len(told) == len(ranks):
            for name, shape in names.items():
                fragments = [(flat, t[group][name]) for flat, t in zip(flats, told, strict=True) if name in t[group]]
                yield name, tuple(shape), [(flat, f.start, f.start + f.numel) for flat, f in fragments]
            continue
        if any(padding for rank in ranks for padding in _flat_list(rank.get("param_alignment_paddings"))):
            raise GraftbenchError(f"{files[0]} pads between parameters, but does not say where they are; {_ADVICE}")
        whole, start = _Flat([tensor for flat in flats for tensor in flat.tensors]), 0
        for name, shape in names.items():
            yield name, tuple(shape), [(whole, start, start + shape.numel())]
            start += shape.numel()


def _by_parameter(
    files: Sequence[Path],
    ranks: Sequence[Mapping[str, Any]],
    bases: Sequence[_Base],
    shapes: Sequence[Mapping[str, torch.Size]],
) -> Iterable[tuple[str, tuple[int, ...], list[Stretch]]]:
    """Parameters of stage 3, each with its part of every rank."""
    flats, start = [_Flat(base.moments) for base in bases], 0
    expected = sum(-(-shape.numel() // len(ranks)) for names in shapes for shape in names.values())
    for file, flat in zip(files, flats, strict=True):
        if flat.entries != expected:
            raise GraftbenchError(
                f"{file} holds {flat.entries:,} entries of second moments, but the model's parameters need "
                f"{expected:,} of each of {len(ranks)} ranks; {_ADVICE}"
            )
    for names in shapes:
        for name, shape in names.items():
            part = -(-shape.numel() // len(ranks))
            yield name, tuple(shape), [(flat, start, start + part) for flat in flats]
            start += part


def _put_together(stretches: Sequence[Stretch], shape: tuple[int, ...]) -> dict[str, Tensor]:
    entries = torch.Size(shape).numel()
    parts = [part for flat, start, stop in stretches for part in flat.read(start, stop)]
    return {"": torch.cat(parts)[:entries].view(shape)}


def _optimizer_of(file: Path) -> dict[str, Any]:
    loaded = load_without_code(file, "cpu", STAND_INS, _ADVICE)
    inside = loaded.get("optimizer_state_dict") if isinstance(loaded, dict) else None
    if not isinstance(inside, dict) or not {"fp32_flat_groups", "single_partition_of_fp32_groups"} & set(inside):
        raise GraftbenchError(f"{file} is no share of ZeRO's optimizer state (stages 1 to 3); {_ADVICE}")
    return {**inside, "ds_config": loaded.get("ds_config")}


def _check_count(folder: Path, files: Sequence[Path], ranks: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a checkpoint that lacks a rank, or has that of another run."""
    for file, rank in zip(files, ranks, strict=True):
        count = max(_flat_list(rank.get("partition_count")) or [len(files)])
        if count > len(files):
            lacking = [n for n in range(count) if n not in {int(m[1]) for m in map(_match, files)}]
            raise GraftbenchError(
                f"{folder} has the files of {len(files)} ranks, but {file.name} says that {count} took part; "
                f"copy those of rank {', '.join(map(str, lacking))} there too"
            )
        if count < len(files):
            raise GraftbenchError(
                f"{folder} has the files of {len(files)} ranks, but {file.name} says that {count} took part; some are "
                "left from another run: remove them"
            )
        if ("fp32_flat_groups" in rank) != ("fp32_flat_groups" in ranks[0]):
            raise GraftbenchError(f"{file} is of another ZeRO stage than {files[0].name}; they are of different runs")


def _files_of_ranks(folder: Path) -> list[Path]:
    found = sorted((path for path in folder.iterdir() if _OPTIMIZER.fullmatch(path.name)), key=_rank_of)
    if parallel := [path for path in found if int(_match(path)[2])]:
        raise GraftbenchError(
            f"{parallel[0]}: the model itself was cut over several devices (tensor parallelism), which DeepSpeed's "
            "files do not tell how to undo; convert it to one device first"
        )
    ranks = [_rank_of(path) for path in found]
    if len(set(ranks)) < len(ranks):
        raise GraftbenchError(f"{folder} has two files of one rank, from two runs: {', '.join(p.name for p in found)}")
    if lacking := sorted(set(range(max(ranks))) - set(ranks)):
        raise GraftbenchError(f"{folder} lacks the file of rank {', '.join(map(str, lacking))}; copy it there too")
    return found


def _match(path: Path) -> re.Match[str]:
    found = _OPTIMIZER.fullmatch(path.name)
    assert found is not None
    return found


def _rank_of(path: Path) -> int:
    return int(_match(path)[1])


def _step_folders(path: Path) -> list[Path]:
    """The folder itself if it is a step's, else those of steps in it."""
    return [path] if _has_ranks(path) else [inner for inner in sorted(path.iterdir()) if _has_ranks(inner)]


def _has_ranks(folder: Path) -> bool:
    return folder.is_dir() and any(_OPTIMIZER.fullmatch(file.name) for file in folder.iterdir())


def _step_folder(path: Path) -> Path:
    folders = _step_folders(path) if path.is_dir() else []
    if len(folders) > 1 and (path / "latest").is_file():
        latest = (path / "latest").read_text(encoding="utf-8").strip()
        folders = [folder for folder in folders if folder.name == latest]
    if len(folders) == 1:
        return folders[0]
    names = ", ".join(folder.name for folder in folders)
    problem = f"several steps ({names}); name one of them" if folders else "no *_optim_states.pt of DeepSpeed's ZeRO"
    raise GraftbenchError(f"{path} holds {problem}")


def _flat_list(value: Any) -> list[int]:
    if isinstance(value, (list, tuple)):
        return [number for inner in value for number in _flat_list(inner)]
    return [] if value is None else [int(value)]
