"""Momentum-aware training: an optimizer that keeps what merging will want to know.

After the public description of UMTAM (Moayedikia and Troncoso 2025, arXiv:2512.17109). Its equations could not be
read: the formulas below are ours, and docs/umtam.md gives reasons.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.errors import GraftbenchError

_DEPENDENT = 1e-6
"""A column that keeps less than this share of its length next to those before it is taken for one of their sums."""


class Umtam(Optimizer):
    """AdamW with factored second moments, a low-rank momentum that keeps its error, and accumulated saliency.

    For a matrix with gradient g, in fp32:

        row ← β₂·row + (1−β₂)·Σ_columns g²        col ← β₂·col + (1−β₂)·Σ_rows g²        v = (row/Σrow)·colᵀ
        m = β₁·(left·right + error) + (1−β₁)·g    left·right ≈ m, of rank k               error = m − left·right
        δ = lr · left·right/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε)                                  saliency += |g·δ|
        θ ← θ·(1 − lr·decay) − δ

    so that left·right + error is AdamW's momentum, and what one step leaves out may enter a later one. Anything but a
    matrix, and matrices of fewer than `dense_below` entries, have m and v whole, as AdamW has them.

    State per parameter: `step`; `row`, `col`, `left` `[rows, k]`, `right` `[k, columns]`, `error`, or else `exp_avg`
    and `exp_avg_sq`; and `saliency` in the parameter's shape.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        rank: int = 4,
        dense_below: int = 1024,
        saliency: bool = True,
    ) -> None:
        """
        Args:
            params: parameters or parameter groups, fp32; a group may set any of the options below.
            lr: the step's size.
            betas: β₁ and β₂.
            eps: ε, added to √v.
            weight_decay: decoupled, as AdamW's; it does not count as saliency.
            rank: k, the momentum's rank; of a matrix with fewer rows or columns their number.
            dense_below: matrices with fewer entries have their momentum and second moments whole.
            saliency: accumulate |g·δ|, 4 bytes for each entry.

        Raises:
            GraftbenchError: an option lies outside of its range, or a parameter is not fp32.
        """
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "rank": rank, "dense_below": dense_below, "saliency": saliency})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, checked; parameters that require no gradient may be among it and stay as they are."""
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1])
        except GraftbenchError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all parameters that have a gradient.

        Raises:
            GraftbenchError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if gradient.is_sparse:
            raise GraftbenchError("Umtam takes no sparse gradients; make the embedding with sparse=False")
        state = self.state[parameter]
        if not state:
            state.update(_initial(parameter, group))
        state["step"] += 1
        (beta1, beta2), step = group["betas"], state["step"]
        if "error" in state:
            momentum = _compressed_momentum(state, gradient, beta1)
            second = _factored_second_moments(state, gradient, beta2)
        else:
            momentum = state["exp_avg"].lerp_(gradient, 1 - beta1)
            second = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
        update = (momentum / root).mul_(group["lr"] / (1 - beta1**step))
        if group["saliency"]:
            state["saliency"] += (gradient * update).abs_()
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update)


def _check(group: dict[str, Any]) -> None:
    betas, rank = group["betas"], group["rank"]
    rules: Iterable[tuple[str, Any, bool, str]] = (
        ("lr", group["lr"], group["lr"] >= 0, "must not be negative"),
        ("betas", betas, len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "must be two numbers in 0..1"),
        ("eps", group["eps"], group["eps"] > 0, "must be positive"),
        ("weight_decay", group["weight_decay"], group["weight_decay"] >= 0, "must not be negative"),
        ("rank", rank, isinstance(rank, int) and rank >= 1, "must be a whole number of at least 1"),
        ("dense_below", group["dense_below"], group["dense_below"] >= 0, "must not be negative"),
    )
    for name, value, holds, rule in rules:
        if not holds:
            raise GraftbenchError(f"Umtam: {name}={value} {rule}")
    for parameter in group["params"]:
        if parameter.dtype != torch.float32:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise GraftbenchError(
                f"Umtam: a parameter of shape {list(parameter.shape)} is {dtype}, but steps are made in fp32; keep "
                "the model in fp32 and compute in bf16 by torch.autocast"
            )


def _initial(parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = {"step": 0}
    if parameter.dim() == 2 and parameter.numel() >= max(1, group["dense_below"]):
        rows, columns = parameter.shape
        rank = min(group["rank"], rows, columns)
        state["row"], state["col"] = parameter.new_zeros(rows), parameter.new_zeros(columns)
        state["left"], state["right"] = parameter.new_zeros(rows, rank), parameter.new_zeros(rank, columns)
        state["error"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
    else:
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
    if group["saliency"]:
        state["saliency"] = torch.zeros_like(parameter)
    return state


def _compressed_momentum(state: dict[str, Any], gradient: Tensor, beta1: float) -> Tensor:
    """The low-rank part of the new momentum, `[rows, columns]`; the rest becomes the error."""
    left, right, momentum = state["left"], state["right"], state["error"]
    momentum.addmm_(left, right).lerp_(gradient, 1 - beta1)
    basis = leading_directions(momentum, right.T)
    torch.mm(momentum, basis, out=left)
    right.copy_(basis.T)
    low_rank = left @ right
    momentum -= low_rank
    return low_rank


def _factored_second_moments(state: dict[str, Any], gradient: Tensor, beta2: float) -> Tensor:
    """v from its row and column sums, `[rows, columns]`; zero where nothing ever had a gradient."""
    squares = gradient.square()
    row = state["row"].lerp_(squares.sum(dim=1), 1 - beta2)
    column = state["col"].lerp_(squares.sum(dim=0), 1 - beta2)
    total = row.sum()
    return torch.outer(row / torch.where(total > 0, total, 1.0), column)


def leading_directions(matrix: Tensor, before: Tensor) -> Tensor:
    """Orthonormal directions that nearly span the leading right singular vectors: one step of power iteration.

    With them for Q, matrix·Q·Qᵀ has no row longer than the matrix's own, and zero rows and columns stay exactly zero:
    a token that was never seen gets no step, however small its √v.

    Args:
        matrix: `[rows, columns]`.
        before: the directions of the last step, `[columns, k]`; those that are zero begin anew, from the same numbers
            each time.

    Returns:
        `[columns, k]`; columns are zero where the matrix has a lower rank than k.
    """
    generator = torch.Generator().manual_seed(0)
    fresh = torch.randn(before.shape, generator=generator).to(before)
    begun = torch.where(before.norm(dim=0) > 0, before, fresh)
    # Orthonormal in between, too: otherwise a direction's share would be the square of its singular value's.
    return _orthonormal(matrix.T @ _orthonormal(matrix @ begun))


def _orthonormal(columns: Tensor) -> Tensor:
    """Gram and Schmidt's, each column twice; a column that depends on those before it becomes zero.

    Unlike Householder's reflections it leaves zero rows exactly zero.
    """
    basis = torch.zeros_like(columns)
    for place in range(columns.shape[1]):
        column = columns[:, place]
        # Relative to its largest entry, so that squares of small gradients do not underflow.
        largest = column.abs().amax()
        rest = column / torch.where(largest > 0, largest, 1.0)
        length = rest.norm()
        for _ in range(2):
            rest = rest - basis @ (basis.T @ rest)
        left = rest.norm()
        basis[:, place] = torch.where(left > _DEPENDENT * length, rest / left, 0.0)
    return basis


def trained_states(optimizer: Umtam, model: nn.Module) -> dict[str, dict[str, Any]]:
    """The optimizer's state of every trained parameter by its name; tied parameters once.

    Raises:
        GraftbenchError: a parameter that should train had no step, or nothing is trained.
    """
    states = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if not (state := optimizer.state.get(parameter)):
            raise GraftbenchError(
                f"the optimizer made no step of '{name}'; it must hold this model's parameters and have made a step; "
                "freeze what is not meant to train (requires_grad_(False))"
            )
        states[name] = state
    if not states:
        raise GraftbenchError(f"{type(model).__name__} has no parameter that requires a gradient; nothing is trained")
    return states
