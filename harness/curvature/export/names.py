"""From what an optimizer calls its parameters to the model's names: never by shape alone."""

import difflib
import fnmatch
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from harness.checkpoints import Checkpoint
from harness.checkpoints.layout import role_and_layer
from harness.curvature.export.modules import ModuleParameter, parameters_in_order
from harness.curvature.export.state import Key, OptimizerState, ParameterMoments
from harness.errors import GraftbenchError, all_of

log = logging.getLogger(__name__)

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP and activation checkpointing put into names."""

_NAMES_SHOWN = 3


def named_moments(state: OptimizerState, model: Checkpoint, frozen: Sequence[str] = ()) -> dict[str, ParameterMoments]:
    """Second moments by the model's names.

    Args:
        state: what the checkpoint holds, by name or by number.
        model: the model that was trained.
        frozen: patterns (`model.embed_tokens.*`) of parameters that were not; only numbered ones need them.

    Raises:
        GraftbenchError: a parameter fits none of the model's, or numbers cannot be told apart for sure.
    """
    if not state.moments:
        raise GraftbenchError(f"{state.path} holds no second moments: it was saved before the optimizer's first step")
    names = _names_of(state, model, frozen)
    found: dict[str, ParameterMoments] = {}
    problems = []
    for key, moments in state.moments.items():
        name = _untied(names[key], moments, names.values(), model)
        if name in found:
            problems.append(f"{state.path} holds second moments of '{name}' twice, under two of its names")
        elif problem := _misfit(name, moments, model):
            problems.append(f"{state.path}: {problem}")
        found[name] = moments
    if problems:
        raise all_of(problems)
    left = [name for name in model.tensors if name not in found]
    if left:
        log.warning(
            "%s of the model's %s parameters have no second moments, and are left out as frozen: %s",
            len(left),
            len(model.tensors),
            _first(left),
        )
    return {name: found[name] for name in sorted(found)}


def _names_of(state: OptimizerState, model: Checkpoint, frozen: Sequence[str]) -> dict[Key, str]:
    keys = list(dict.fromkeys([*(key for group in state.groups for key in group.keys), *state.moments]))
    if all(isinstance(key, str) for key in keys):
        return {key: _without_wrappers(str(key), model) for key in keys}
    if not all(isinstance(key, int) for key in keys):
        raise GraftbenchError(f"{state.path} calls some parameters by number and others by name; save it again")
    return {number: name for number, name in _by_order(state, model, frozen).items()}


def _without_wrappers(name: str, model: Checkpoint) -> str:
    plain = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    return plain.removeprefix("module.") if plain not in model.tensors else plain


def _untied(name: str, moments: ParameterMoments, all_names: Iterable[str], model: Checkpoint) -> str:
    """The embedding's name for a tied head, of which an optimizer may know either name."""
    if name in model.tensors or role_and_layer(name) != ("head", None):
        return name
    embeddings = [other for other in model.tensors if role_and_layer(other) == ("embedding", None)]
    fits = len(embeddings) == 1 and model.tensors[embeddings[0]].shape == moments.shape
    return embeddings[0] if fits and embeddings[0] not in all_names else name


def _misfit(name: str, moments: ParameterMoments, model: Checkpoint) -> str | None:
    """Why a parameter is none of the model's; None if it is one."""
    info = model.tensors.get(name)
    if info is not None and info.shape == moments.shape:
        return None
    shapes = {other: list(known.shape) for other, known in model.tensors.items()}
    if info is not None:
        return (
            f"second moments of '{name}' have shape {list(moments.shape)}, the parameter of {model.source} "
            f"{shapes[name]}; the checkpoint is another model's, or only a part of it is there"
        )
    near = difflib.get_close_matches(name, shapes, n=3, cutoff=0.5)
    near = (
        sorted(near, key=lambda other: tuple(shapes[other]) != moments.shape)
        or [other for other, shape in shapes.items() if tuple(shape) == moments.shape][:_NAMES_SHOWN]
    )
    nearest = ", ".join(f"'{other}' {shapes[other]}" for other in near)
    return (
        f"second moments of '{name}' {list(moments.shape)}, but {model.source} has no parameter of that name"
        f"{f'; nearest: {nearest}' if near else ''}; name the model that was trained with model="
    )


def _by_order(state: OptimizerState, model: Checkpoint, frozen: Sequence[str]) -> dict[int, str]:
    """Names of numbered parameters, by the documented orders of the optimizer's groups, if one alone fits."""
    ordered = parameters_in_order(model)
    unknown = [pattern for pattern in frozen if not any(fnmatch.fnmatchcase(p.name, pattern) for p in ordered)]
    if unknown:
        raise GraftbenchError(f"frozen={unknown[0]} matches no parameter of {model.source}; write names or patterns")
    trained = [p for p in ordered if not any(fnmatch.fnmatchcase(p.name, pattern) for pattern in frozen)]
    fits: list[dict[int, str]] = []
    problems: list[str] = []
    for order in _orders(state, trained):
        try:
            fit = _in_groups(state, order)
        except GraftbenchError as error:
            problems.append(str(error))
        else:
            if fit not in fits:
                fits.append(fit)
    if not fits:
        raise GraftbenchError(f"{state.path} does not fit {model.source}: {problems[0]}")
    if len(fits) > 1:
        number = next(key for key in fits[0] if fits[0][key] != fits[1].get(key))
        raise GraftbenchError(
            f"{state.path}: parameter {number} may be '{fits[0][number]}' or '{fits[1].get(number)}', by the orders of "
            "newer and older Trainers; resume the run with optimizer state that has names"
        )
    return fits[0]


def _orders(state: OptimizerState, trained: Sequence[ModuleParameter]) -> list[list[list[ModuleParameter]]]:
    """For each documented order, the parameters of each group: all in the model's, or decaying ones first."""
    if len(state.groups) == 1:
        return [[list(trained)]]
    if len(state.groups) == 2:
        rules: list[Callable[[ModuleParameter], bool]] = [lambda p: p.decays, lambda p: p.decayed_before]
        return [[[p for p in trained if rule(p)], [p for p in trained if not rule(p)]] for rule in rules]
    raise GraftbenchError(
        f"{state.path} has {len(state.groups)} parameter groups and numbers their parameters; only one group, or "
        "Trainer's two (with weight decay, without), have an order that is known: save the optimizer with names "
        "(torch.optim.AdamW of named parameters), or call harness.curvature.second_moments_of in the training script"
    )


def _in_groups(state: OptimizerState, order: Sequence[Sequence[ModuleParameter]]) -> dict[int, str]:
    names: dict[int, str] = {}
    for number, (group, parameters) in enumerate(zip(state.groups, order, strict=True)):
        keys = [int(key) for key in group.keys]
        names |= _aligned(keys, state.moments, parameters, f"group {number}")
    return names


def _aligned(
    keys: Sequence[int], moments: Mapping[Key, ParameterMoments], parameters: Sequence[ModuleParameter], group: str
) -> dict[int, str]:
    """The one way in which numbers of a group can be parameters in order, where those between may have been frozen.

    Taking each number's earliest parameter, and its latest, gives the two extremes of all ways; one alone is left if
    they agree.

    Raises:
        GraftbenchError: there is no way, or more than one.
    """
    shapes = [moments[key].shape if key in moments else None for key in keys]
    earliest = _first_fit(shapes, parameters)
    if earliest is None:
        raise GraftbenchError(_no_fit(keys, shapes, parameters, group))
    backwards = _first_fit(shapes[::-1], parameters[::-1])
    assert backwards is not None
    latest = [len(parameters) - 1 - place for place in backwards[::-1]]
    for key, first, last in zip(keys, earliest, latest, strict=True):
        if first != last:
            raise GraftbenchError(
                f"{group} has {len(keys)} parameters of {len(parameters)}, so some were frozen, and number {key} may "
                f"be '{parameters[first].name}' or '{parameters[last].name}', of equal shape; say which were frozen "
                "with frozen=[PATTERN,…]"
            )
    return {key: parameters[place].name for key, place in zip(keys, earliest, strict=True)}


def _first_fit(shapes: Sequence[tuple[int, ...] | None], parameters: Sequence[ModuleParameter]) -> list[int] | None:
    """Where each shape is met for the first time, in order; what has no state may be any. None if it cannot be."""
    places: list[int] = []
    for shape in shapes:
        start = places[-1] + 1 if places else 0
        rest = range(start, len(parameters))
        place = next((i for i in rest if shape is None or parameters[i].shape == shape), None)
        if place is None:
            return None
        places.append(place)
    return places


def _no_fit(
    keys: Sequence[int],
    shapes: Sequence[tuple[int, ...] | None],
    parameters: Sequence[ModuleParameter],
    group: str,
) -> str:
    """Which number is the first that cannot be placed, and what is near."""
    fitting = next(n for n in range(len(keys), -1, -1) if _first_fit(shapes[:n], parameters) is not None)
    shape = shapes[fitting]
    found = f"{group} has {len(keys)} parameters where the model has {len(parameters)}"
    near = [f"'{p.name}' {list(p.shape)}" for p in parameters[fitting : fitting + _NAMES_SHOWN]]
    return (
        f"{found}, and number {keys[fitting]}{f' of shape {list(shape)}' if shape is not None else ''} is none of them "
        f"in order; nearest: {', '.join(near) or 'none is left'}; name the model that was trained with model="
    )


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"
