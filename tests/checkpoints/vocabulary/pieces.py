"""Tensors put together from pieces, as a merge reads them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.checkpoints.layout import TensorSource
from harness.checkpoints.vocabulary import Vocabulary

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def whole(source: TensorSource, name: str, piece: int | None = None) -> Tensor:
    """A tensor put together from pieces, fp32."""
    info = source.tensors[name]
    size = piece or info.entries
    parts = []
    for start in range(0, info.entries, size):
        stop = min(start + size, info.entries)
        scratch = torch.full(((stop - start) * 8,), 255, dtype=torch.uint8)
        parts.append(source.fetch(name, start, stop, scratch).float().clone())
    return torch.cat(parts).view(info.shape)


def completed(
    vocabulary: Vocabulary,
    base: TensorSource,
    experts: Mapping[str, TensorSource],
    name: str,
    piece: int,
    curvatures: Mapping[str, TensorSource] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Base, experts and curvatures of a vocabulary tensor as the merge sees them, put together from pieces."""
    matched = vocabulary.matched(base)
    names = sorted(experts)
    info = matched.tensors[name]
    assert vocabulary.covers(info)
    flat_base = whole(matched, name, piece).flatten()
    flat = torch.stack([whole(vocabulary.matched(experts[e], e), name, piece).flatten() for e in names])
    curved = None
    if curvatures is not None:
        curved = torch.stack([whole(vocabulary.matched(curvatures[e], e), name, piece).flatten() for e in names])
    missing = vocabulary.missing(names)
    if missing is not None:
        for start in range(0, info.entries, piece):
            cut = slice(start, start + piece)
            # Copies, as a merge's pieces are.
            b, e, c = flat_base[cut].clone(), flat[:, cut].clone(), None if curved is None else curved[:, cut].clone()
            missing.fill(b, e, c, start, info.entries // info.shape[0])
            flat_base[cut], flat[:, cut] = b, e
            if curved is not None and c is not None:
                curved[:, cut] = c
    shape = info.shape
    return flat_base.view(shape), flat.view(-1, *shape), None if curved is None else curved.view(-1, *shape)
