"""Linear: the weighted average of the experts' parameters (model soups)."""

from dataclasses import dataclass

from torch import Tensor

from methods.combination import masked_mean
from methods.interface import Method, Parameter


@dataclass(frozen=True, kw_only=True)
class Linear(Method):
    """Weighted average of the experts' parameters (Wortsman et al. 2022, arXiv:2203.05482): Σ wₜθₜ / Σ wₜ."""

    def uses_base(self) -> bool:
        return False

    def merge(self, parameter: Parameter) -> Tensor:
        # Averaging differences from one of the experts gives equal experts back bit for bit, however many there are.
        anchor = parameter.experts[0]
        return anchor + masked_mean(parameter.experts - anchor, None, self.expert_weights(parameter))
