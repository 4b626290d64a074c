"""Curvature out of a training run: Adam's state by name, and single examples' squared gradients."""

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from harness.curvature import empirical_fisher, second_moments_of
from harness.errors import GraftbenchError
from tests.checkpoints.llama import llama


@pytest.fixture
def model() -> LlamaForCausalLM:
    return llama(vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=1, tie_word_embeddings=True)


def examples(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(11, (6,), generator=generator) for _ in range(count)]
    return [{"input_ids": i, "labels": torch.cat([torch.full((3,), -100), i[3:]])} for i in ids]


def test_states_are_found_by_name_even_where_shapes_are_equal(model: LlamaForCausalLM) -> None:
    names = [name for name, _ in model.named_parameters()]
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    for number, (_, parameter) in enumerate(model.named_parameters()):
        optimizer.state[parameter]["exp_avg_sq"].fill_(float(number))
    moments = second_moments_of(optimizer, model)
    assert list(moments) == names
    assert "lm_head.weight" not in moments
    assert [float(value.flatten()[0]) for value in moments.values()] == list(range(len(names)))
    assert all(moments[name].shape == parameter.shape for name, parameter in model.named_parameters())


def test_an_optimizer_without_second_moments_is_refused() -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with pytest.raises(GraftbenchError, match=r"SGD.*'weight'"):
        second_moments_of(optimizer, layer)


def test_fisher_is_the_mean_of_single_examples_squares(model: LlamaForCausalLM) -> None:
    """Against backward passes one by one; the square of the batch's gradient would be another number."""
    batch = examples(3)
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    summed = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for example in batch:
        model.zero_grad()
        logits = model(input_ids=example["input_ids"][None]).logits[0]
        log_p = logits.log_softmax(-1)
        loss = -sum(log_p[place, example["input_ids"][place + 1]] for place in (2, 3, 4))
        loss.backward()  # type: ignore[union-attr]
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            expected[name] += parameter.grad**2 / 3
            summed[name] += parameter.grad / 3
    fisher = empirical_fisher(model, batch)
    assert fisher.keys() == expected.keys()
    for name, value in fisher.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-9)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.allclose(fisher[name], summed[name] ** 2, rtol=0.1)


def test_fisher_needs_examples(model: LlamaForCausalLM) -> None:
    with pytest.raises(GraftbenchError, match="at least one example"):
        empirical_fisher(model, [])
