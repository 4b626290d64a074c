"""The diagonal of the empirical Fisher information, from single examples."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.errors import GraftbenchError


def empirical_fisher(model: nn.Module, examples: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean over examples of the squared gradient of log p(answer | prompt), by parameter name; tied ones once.

    Squares are taken example by example: the square of a batch's summed gradient would be another quantity
    (Kunstner et al. 2019, arXiv:1905.12558, eq. 3).

    Args:
        model: a causal language model whose output has `logits`.
        examples: mappings with `input_ids` and `labels`, int64 `[tokens]`; label −100 marks what is not predicted.

    Raises:
        GraftbenchError: there are no examples.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    sums = {name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in parameters.items()}
    was_training = model.training
    model.eval()
    count = 0
    for example in examples:
        logits = model(input_ids=example["input_ids"].unsqueeze(0)).logits[0, :-1].float()
        loss = cross_entropy(logits, example["labels"][1:], ignore_index=-100, reduction="sum")
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        for total, gradient in zip(sums.values(), gradients, strict=True):
            total += gradient.float().square()
        count += 1
    model.train(was_training)
    if count == 0:
        raise GraftbenchError("Fisher information needs at least one example")
    return {name: total / count for name, total in sums.items()}
