"""The diagonal of the Fisher information in batches: still the squares of single examples' gradients."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy, pad

from harness.curvature.examples import IGNORED, Example
from harness.errors import GraftbenchError
from harness.files import text_digest

log = logging.getLogger(__name__)

LabelSource = Literal["data", "sampled"]
"""The data's own answers, which give the empirical Fisher information; or tokens drawn from the model's predictions,
which estimate the Fisher information itself (Kunstner et al. 2019, arXiv:1905.12558, eq. 2 and 3)."""

Gradients = Callable[[dict[str, Tensor], Tensor, Tensor], dict[str, Tensor]]

_REPORTS = 10


def batched_fisher(
    model: nn.Module,
    examples: Sequence[Example],
    batch_size: int = 8,
    labels: LabelSource = "data",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Mean over examples of the squared gradient of log p(answer | prompt), by parameter name; tied ones once.

    It is what `empirical_fisher` computes, up to rounding. Each example's gradient is formed on its own
    (`torch.func.vmap`), so a batch takes `batch_size` times the memory of the parameters; a batch of one is plain
    backpropagation. Examples are padded behind their ends, which a causal model does not see.

    Args:
        model: a causal language model whose output has `logits`, on the device that shall do the work.
        examples: what is predicted in which texts.
        batch_size: examples at a time.
        labels: whether answers are the data's; or drawn token by token from the model, given the data's tokens before.
        seed: of the draws; those of an example depend on its place, not on the batches.

    Raises:
        GraftbenchError: there are no examples, memory is too little, or the model cannot be differentiated in batches.
    """
    if not examples:
        raise GraftbenchError("Fisher information needs at least one example")
    device = next(model.parameters()).device
    parameters = {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}
    sums = {name: torch.zeros_like(each, dtype=torch.float32) for name, each in parameters.items()}
    was_training = model.training
    model.eval()
    try:
        gradients_of = _gradients(model, parameters)
        done = 0
        for places, input_ids, targets in _batches(examples, batch_size):
            input_ids, targets = input_ids.to(device), targets.to(device)
            if labels == "sampled":
                targets = _sampled(model, input_ids, targets, places, seed)
            for name, gradients in gradients_of(parameters, input_ids, targets).items():
                sums[name] += gradients.float().square_().sum(dim=0)
            if done * _REPORTS // len(examples) < (done + len(places)) * _REPORTS // len(examples):
                log.info("Fisher information: %d of %d examples", done + len(places), len(examples))
            done += len(places)
    except torch.OutOfMemoryError as error:
        raise GraftbenchError(
            f"batch_size={batch_size} takes more memory than {device} has: each example of a batch has a gradient of "
            f"the model's size; give batch_size={max(1, batch_size // 2)}, or cut texts shorter (max_length)"
        ) from error
    finally:
        model.train(was_training)
    return {name: total / len(examples) for name, total in sums.items()}


def _gradients(model: nn.Module, parameters: dict[str, Tensor]) -> Gradients:
    """Gives the gradients of every example of a batch, `[examples, *shape]` by parameter name."""
    buffers = dict(model.named_buffers())

    def loss(values: dict[str, Tensor], input_ids: Tensor, targets: Tensor) -> Tensor:
        output = functional_call(model, (values, buffers), kwargs={"input_ids": input_ids[None], "use_cache": False})
        logits = output.logits[0, :-1].float()
        return cross_entropy(logits, targets[1:], ignore_index=IGNORED, reduction="sum")

    one, several = grad(loss), vmap(grad(loss), in_dims=(None, 0, 0))

    def gradients(values: dict[str, Tensor], input_ids: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if len(input_ids) == 1:
            return {name: each[None] for name, each in one(values, input_ids[0], targets[0]).items()}
        try:
            return dict(several(values, input_ids, targets))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError, ValueError) as error:
            raise GraftbenchError(
                f"{type(model).__name__} cannot be differentiated example by example within a batch "
                f"({str(error).splitlines()[0]}); give batch_size=1"
            ) from error

    return gradients


def _batches(examples: Sequence[Example], size: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Places, padded ids and padded labels; the longest texts come first, so that too little memory shows at once."""
    order = sorted(range(len(examples)), key=lambda place: -len(examples[place].input_ids))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        longest = len(examples[places[0]].input_ids)
        ids = [pad(examples[p].input_ids, (0, longest - len(examples[p].input_ids))) for p in places]
        labels = [pad(examples[p].labels, (0, longest - len(examples[p].labels)), value=IGNORED) for p in places]
        yield places, torch.stack(ids), torch.stack(labels)


@torch.no_grad()
def _sampled(model: nn.Module, input_ids: Tensor, targets: Tensor, places: Sequence[int], seed: int) -> Tensor:
    """The labels, replaced by draws from the model's predictions of them."""
    drawn = targets.clone()
    predicted = model(input_ids=input_ids, use_cache=False).logits
    for row, place in enumerate(places):
        wanted = (targets[row, 1:] != IGNORED).nonzero().flatten()
        logits = predicted[row, wanted]
        cumulated = logits.float().softmax(dim=-1).to(torch.float64).cumsum(dim=-1)
        generator = torch.Generator().manual_seed(int(text_digest(f"{seed}/{place}")[:15], 16))
        uniform = torch.rand(len(wanted), 1, generator=generator, dtype=torch.float64).to(cumulated.device)
        tokens = torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True).flatten()
        drawn[row, wanted + 1] = tokens.clamp(max=logits.shape[-1] - 1)
    return drawn
