"""Whether models can be merged, from their configurations and headers: all problems at once, and what is left out."""

import logging
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from harness.checkpoints import TensorInfo, TensorSource, role_and_layer
from harness.checkpoints.opening import Model

log = logging.getLogger(__name__)

SHAPELESS_SETTINGS = (
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
)
"""Settings of an architecture that change what weights mean without changing their shapes."""

_NAMES_SHOWN = 3


class TiedHead:
    """A model whose head is its embedding, with the head under a name of its own. A `TensorSource`."""

    def __init__(self, inner: TensorSource, head: str, embedding: str) -> None:
        self._inner = inner
        self._stored = {head: embedding}
        self.source = inner.source
        self.tensors: Mapping[str, TensorInfo] = {
            **inner.tensors,
            head: replace(inner.tensors[embedding], name=head),
        }

    def fetch(self, name: str, start: int, stop: int, scratch: Tensor) -> Tensor:
        """Entries of a tensor; see `TensorSource`."""
        return self._inner.fetch(self._stored.get(name, name), start, stop, scratch)

    def announce(self, name: str, start: int, stop: int) -> None:
        """Tell the system that a range will be fetched soon."""
        self._inner.announce(self._stored.get(name, name), start, stop)

    def close(self) -> None:
        """Close the model's files."""
        self._inner.close()


def with_head(base: Model, expert: str, model: Model) -> TensorSource:
    """An expert's tensors; where it ties its head to the embedding and the base does not, the head is the embedding."""
    heads, embeddings = _of_role(base, "head"), _of_role(base, "embedding")
    ties = bool(model.config.get("tie_word_embeddings")) and not base.config.get("tie_word_embeddings")
    if not (ties and len(heads) == len(embeddings) == 1 and embeddings[0] in model.tensors):
        return model
    log.warning("expert '%s' ties its head to its embedding, the base does not: the embedding serves as both", expert)
    return TiedHead(model, heads[0], embeddings[0])


def configuration_problems(base: Model, expert: str, model: Model) -> list[str]:
    """What keeps an expert from being an edit of the base, by the two configurations."""
    where = f"expert '{expert}' ({model.source})"
    if model.architecture != base.architecture:
        return [
            f"{where} is a {model.architecture}, the base ({base.source}) a {base.architecture}; "
            "experts must be fine-tuned from the base"
        ]
    problems = []
    for key in SHAPELESS_SETTINGS:
        ours, theirs = base.config.get(key), model.config.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            problems.append(
                f"{where} has {key}={theirs} in config.json, the base {ours}: their weights mean different things"
            )
    unties = base.config.get("tie_word_embeddings") and not model.config.get("tie_word_embeddings", True)
    if unties and (heads := _of_role(model, "head")):
        problems.append(
            f"{where} has a head of its own ('{heads[0]}'), the base ties its head to the embedding: the merge would "
            "lose it; save the base with an untied head"
        )
    return problems


def dtype_problems(base: Model, expert: str, model: Model) -> list[str]:
    """Tensors that are weights in one model and integers in the other, which nobody can merge or copy."""
    return [
        f"expert '{expert}' ({model.source}): tensor '{name}' in {theirs.file.name} is {_dtype(theirs)}, the base's "
        f"{_dtype(ours)}; export both in a floating-point type"
        for here, there in ((base.tensors, model.buffers), (base.buffers, model.tensors))
        for name, ours in here.items()
        if (theirs := there.get(name)) is not None
    ]


def tensor_problems(
    parameters: Mapping[str, TensorInfo], expert: str, source: TensorSource, buffers: Mapping[str, TensorInfo]
) -> list[str]:
    """Tensors that an expert lacks or has in other shapes; what it has beyond the base is left out, and logged.

    Args:
        parameters: the output's tensors.
        expert: the expert's name.
        source: its tensors, rows matched.
        buffers: its tensors of integers; see `dtype_problems` for those that should be weights.
    """
    where, problems = f"expert '{expert}' ({source.source})", []
    missing = [name for name in parameters if name not in source.tensors and name not in buffers]
    if missing:
        problems.append(f"{where} lacks {_shown(missing)}, which the base has; export it whole")
    extra = [name for name in source.tensors if name not in parameters]
    if extra:
        log.warning("%s has %s, which the base lacks: left out", where, _shown(extra))
    for name, info in parameters.items():
        found = source.tensors.get(name)
        if found is not None and found.shape != info.shape:
            problems.append(
                f"{where}: tensor '{name}' in {found.file.name} has shape {list(found.shape)}, "
                f"the base's {list(info.shape)}; it is fine-tuned from another base"
            )
    return problems


def copied_from_base(base: Model, experts: Mapping[str, TensorSource]) -> list[TensorInfo]:
    """Tensors that no expert has, and buffers of integers: the output takes the base's."""
    alone = [info for name, info in base.tensors.items() if not any(name in each.tensors for each in experts.values())]
    if alone and experts:
        log.warning("only the base (%s) has %s: copied", base.source, _shown([info.name for info in alone]))
    return [*(alone if experts else []), *base.buffers.values()]


def _of_role(model: Model, role: str) -> list[str]:
    return [name for name in model.tensors if role_and_layer(name)[0] == role and name.endswith("weight")]


def _dtype(info: TensorInfo) -> str:
    return str(info.dtype).removeprefix("torch.")


def _shown(names: list[str]) -> str:
    listed = ", ".join(f"'{name}'" for name in names[:_NAMES_SHOWN])
    word = "tensor" if len(names) == 1 else "tensors"
    return f"{word} {listed}" + (f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")
