"""Runs a hand-computed case through real files and the real stream, with whichever `methods` is imported."""

import tempfile
from pathlib import Path

import torch

from tests.checkpoints.small import write_checkpoint, write_moments
from tests.methods.cases import CASES, Case
from tests.methods.cases_by_tensor import cases_by_tensor


def merged(case: Case) -> dict[str, torch.Tensor]:
    """The merged parameters of a case."""
    import methods
    from harness.merging import Execution, merged_parameters, plan_merge

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = write_checkpoint(folder / "base", case.base)
        experts = {expert: write_checkpoint(folder / expert, values) for expert, values in case.experts.items()}
        moments = {
            expert: write_moments(folder / expert / "v.safetensors", values, step=case.steps.get(expert, 1000))
            for expert, values in case.curvatures.items()
        }
        method = methods.available()[case.method](**case.options)
        # One thread: a process of a pool, where mutated methods are tried, may not start processes.
        with plan_merge(case.method, method, base, experts, moments, execution=Execution(threads=1)) as plan:
            return {name: tensor.clone() for name, tensor in merged_parameters(plan)}


def mismatch(case: Case) -> str | None:
    """What is wrong with the merge of a case; None if it is as worked out by hand."""
    found = merged(case)
    if found.keys() != case.expected.keys():
        return f"{case.name}: parameters {sorted(found)}"
    for name, expected in case.expected.items():
        if not torch.allclose(found[name], torch.tensor(expected), rtol=2e-6, atol=0.0):
            return f"{case.name}: {name} is {found[name].tolist()}, by hand {expected}"
    return None


def first_mismatch() -> str | None:
    """The first case that does not come out as worked out by hand, or that raises."""
    for case in [*CASES, *cases_by_tensor()]:
        try:
            wrong = mismatch(case)
        except Exception as error:
            wrong = f"{case.name}: {type(error).__name__}: {error}"
        if wrong:
            return wrong
    return None
