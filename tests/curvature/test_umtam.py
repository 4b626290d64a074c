"""The momentum-aware optimizer, against facts that can be worked out by hand and against torch's own AdamW."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.curvature import Umtam
from harness.curvature.umtam import leading_directions
from harness.errors import GraftbenchError
from tests.checkpoints.llama import llama
from tests.curvature.export.live import tied_model, train

ROWS, COLUMNS = 12, 9


def gradients(steps: int, shape: tuple[int, ...] = (ROWS, COLUMNS), seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(steps)]


def matrix(value: Tensor | None = None, **options: Any) -> tuple[nn.Parameter, Umtam]:
    """One parameter and its optimizer, which factors it however small it is."""
    parameter = nn.Parameter(torch.zeros(ROWS, COLUMNS) if value is None else value.clone())
    return parameter, Umtam([parameter], **{"dense_below": 0, "weight_decay": 0.0, **options})


def make_step(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, gradient: Tensor) -> None:
    parameter.grad = gradient.clone()
    optimizer.step()


@pytest.mark.parametrize("rank", [1, 3, COLUMNS])
def test_the_low_rank_part_and_the_error_are_the_exact_momentum(rank: int) -> None:
    parameter, optimizer = matrix(rank=rank, betas=(0.9, 0.99))
    exact = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    for gradient in gradients(20):
        make_step(parameter, optimizer, gradient)
        exact = 0.9 * exact + 0.1 * gradient.double()
        state = optimizer.state[parameter]
        assert state["left"].shape == (ROWS, rank) and state["right"].shape == (rank, COLUMNS)
        low_rank = state["left"].double() @ state["right"].double()
        torch.testing.assert_close(low_rank + state["error"], exact, rtol=0, atol=1e-6)
        assert low_rank.norm() > 0.1 * exact.norm(), "the low-rank part is a part"
    assert (state["error"].norm() < 1e-5) == (rank == COLUMNS), "of full rank nothing is left over, else something is"


def test_at_full_rank_a_step_is_adams_with_factored_second_moments() -> None:
    lr, beta1, beta2, eps, decay = 0.01, 0.8, 0.9, 1e-8, 0.1
    start = gradients(1, seed=5)[0]
    parameter, optimizer = matrix(
        start, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay, rank=max(ROWS, COLUMNS)
    )
    value, mean = start.double(), torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    row, column = torch.zeros(ROWS, dtype=torch.float64), torch.zeros(COLUMNS, dtype=torch.float64)
    for step, gradient in enumerate(gradients(6), start=1):
        make_step(parameter, optimizer, gradient)
        g = gradient.double()
        mean = beta1 * mean + (1 - beta1) * g
        row = beta2 * row + (1 - beta2) * (g * g).sum(dim=1)
        column = beta2 * column + (1 - beta2) * (g * g).sum(dim=0)
        second = row[:, None] * column[None] / row.sum() / (1 - beta2**step)
        value = value - lr * decay * value - lr * mean / (1 - beta1**step) / (second.sqrt() + eps)
        torch.testing.assert_close(parameter.double(), value, rtol=0, atol=1e-6)


def test_what_is_not_factored_is_trained_as_by_adamw() -> None:
    options: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}
    shapes = [(7,), (5, 6), (2, 3, 4)]
    ours, theirs = ([nn.Parameter(gradients(1, shape, 3)[0]) for shape in shapes] for _ in range(2))
    optimizers = Umtam(ours, dense_below=31, **options), torch.optim.AdamW(theirs, **options)
    for number in range(5):
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for parameter in parameters:
                parameter.grad = gradients(1, tuple(parameter.shape), 10 + number)[0]
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert "exp_avg" in optimizers[0].state[mine]
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_saliency_is_the_sum_of_gradients_times_steps() -> None:
    """A gradient that stays makes Adam step by lr in its direction: |g·δ| is lr·|g| in every step."""
    options: dict[str, Any] = {"lr": 0.1, "eps": 1e-12, "weight_decay": 0.5}
    vector = nn.Parameter(torch.tensor([5.0, 5.0, 5.0]))
    optimizer = Umtam([vector], **options)
    for steps in (1, 2):
        make_step(vector, optimizer, torch.tensor([1.0, -2.0, 0.0]))
        expected = steps * torch.tensor([0.1, 0.2, 0.0])  # the decay of 5.0 is no saliency
        torch.testing.assert_close(optimizer.state[vector]["saliency"], expected)
    # Of rank one, so that neither factors nor rank 1 lose anything: [1, 2]·[1, 3]ᵀ
    parameter = nn.Parameter(torch.zeros(2, 2))
    optimizer = Umtam([parameter], rank=1, dense_below=0, **options)
    make_step(parameter, optimizer, torch.tensor([[1.0, -3.0], [2.0, -6.0]]))
    torch.testing.assert_close(optimizer.state[parameter]["saliency"], torch.tensor([[0.1, 0.3], [0.2, 0.6]]))
    torch.testing.assert_close(parameter.detach(), torch.tensor([[-0.1, 0.1], [-0.1, 0.1]]))


def test_a_step_of_another_sign_than_the_gradient_adds_saliency_too() -> None:
    vector = nn.Parameter(torch.zeros(1))
    optimizer = Umtam([vector], lr=0.1, betas=(0.5, 0.0), eps=1e-12)
    for gradient in (4.0, -1.0):
        make_step(vector, optimizer, torch.tensor([gradient]))
    # m = 2, then 0.5: (0.5/0.75)/1·0.1 against a gradient of −1
    torch.testing.assert_close(optimizer.state[vector]["saliency"], torch.tensor([0.4 + 0.1 * 2 / 3]))


def test_power_iteration_finds_the_leading_directions() -> None:
    diagonal = torch.diag(torch.tensor([1.0, 8.0, 2.0, 4.0]))
    directions = torch.zeros(4, 2)
    for _ in range(20):
        directions = leading_directions(diagonal, directions)
    torch.testing.assert_close(directions @ directions.T, torch.diag(torch.tensor([0.0, 1.0, 0.0, 1.0])))


def test_directions_that_a_matrix_lacks_are_zero_and_come_back() -> None:
    one = torch.outer(torch.arange(1.0, 6.0), torch.tensor([3.0, 0.0, 4.0]))
    directions = leading_directions(one, torch.zeros(3, 2))
    torch.testing.assert_close(directions.abs(), torch.tensor([[0.6, 0.0], [0.0, 0.0], [0.8, 0.0]]))
    whole = leading_directions(torch.eye(3), directions)
    torch.testing.assert_close(whole.T @ whole, torch.eye(2))
    assert not leading_directions(torch.zeros(5, 3), directions).any()


@pytest.mark.parametrize("factor", [1e-18, 1.0, 1e15])
def test_directions_do_not_depend_on_the_gradients_scale(factor: float) -> None:
    given = gradients(1)[0]
    expected = leading_directions(given, torch.zeros(COLUMNS, 3))
    torch.testing.assert_close(leading_directions(given * factor, torch.zeros(COLUMNS, 3)), expected)


def test_rows_and_columns_without_gradient_do_not_move() -> None:
    """Bit for bit, though √v + ε is as small as it can be there: tokens that were never seen."""
    start = gradients(1, seed=5)[0]
    parameter, optimizer = matrix(start, rank=3, lr=0.1)
    for gradient in gradients(10):
        gradient[[2, 7]] = 0.0
        gradient[:, 4] = 0.0
        make_step(parameter, optimizer, gradient)
    unmoved = parameter == start
    assert unmoved[[2, 7]].all() and unmoved[:, 4].all()
    assert unmoved.sum() == 2 * COLUMNS + ROWS - 2


def small_umtam(model: nn.Module, **options: Any) -> Umtam:
    return Umtam(model.parameters(), **{"lr": 0.01, "rank": 2, "dense_below": 100, **options})


def test_training_goes_on_from_a_state_dict_to_the_bit(tmp_path: Any) -> None:
    model = tied_model()
    optimizer = small_umtam(model)
    train(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    other = copy.deepcopy(model)
    resumed = small_umtam(other)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for each, its in ((model, optimizer), (other, resumed)):
        train(each, its)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        mine, theirs = optimizer.state[a], resumed.state[b]
        assert mine.keys() == theirs.keys() and mine["step"] == theirs["step"] == 6
        assert all(torch.equal(mine[key], theirs[key]) for key in mine if key != "step")


def test_the_same_training_twice_gives_the_same_bits() -> None:
    models = tied_model(), tied_model()
    for seed, model in enumerate(models):
        optimizer = small_umtam(model)
        torch.manual_seed(seed)  # the optimizer draws nothing from torch's own numbers
        train(model, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_frozen_parameters_stay_tied_ones_are_one_and_groups_have_their_own_options() -> None:
    model = tied_model()
    frozen = model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    still = model.model.layers[1].mlp.up_proj.weight
    before = {id(parameter): parameter.detach().clone() for parameter in model.parameters()}
    rest = [parameter for parameter in model.parameters() if parameter is not still]
    groups = [{"params": rest}, {"params": [still], "lr": 0.0, "saliency": False, "rank": 1}]
    optimizer = Umtam(groups, lr=0.01, rank=2, dense_below=100)
    train(model, optimizer)
    moved = {id(parameter) for parameter in model.parameters() if not torch.equal(parameter, before[id(parameter)])}
    assert moved == before.keys() - {id(frozen), id(still)}
    assert frozen not in optimizer.state and len(optimizer.state) == len(before) - 1
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert optimizer.state[model.lm_head.weight]["step"] == 3
    assert "saliency" not in optimizer.state[still] and optimizer.state[still]["left"].shape[1] == 1


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor) and v.dim()]
    return sum(tensor.nbytes for tensor in tensors)


def test_the_state_takes_at_most_30_percent_more_memory_than_adamws() -> None:
    """The claim of the paper's second version; without saliency it is about a half."""
    sizes = {}
    for name in ("adamw", "umtam", "without saliency"):
        model = llama(vocab_size=256, hidden_size=64, intermediate_size=128)
        optimizer: torch.optim.Optimizer
        if name == "adamw":
            optimizer = torch.optim.AdamW(model.parameters())
        else:
            optimizer = Umtam(model.parameters(), saliency=name == "umtam")
        train(model, optimizer, steps=1)
        sizes[name] = state_bytes(optimizer)
    entries = sum(parameter.numel() for parameter in model.parameters())
    assert sizes["adamw"] == 8 * entries
    assert 1.0 < sizes["umtam"] / sizes["adamw"] < 1.1
    assert 0.5 < sizes["without saliency"] / sizes["adamw"] < 0.6


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"betas": (0.9, 1.0)}, "betas="),
        ({"eps": 0.0}, "eps=0.0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"rank": 0}, "rank=0"),
        ({"rank": 1.5}, "rank=1.5"),
        ({"dense_below": -1}, "dense_below=-1"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], word: str) -> None:
    with pytest.raises(GraftbenchError, match=word):
        matrix(**options)


def test_other_numbers_than_fp32_and_sparse_gradients_are_refused() -> None:
    with pytest.raises(GraftbenchError, match=r"bfloat16.*autocast"):
        Umtam([nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))])
    parameter, optimizer = matrix()
    parameter.grad = torch.zeros(ROWS, COLUMNS).to_sparse()
    with pytest.raises(GraftbenchError, match="sparse=False"):
        optimizer.step()
