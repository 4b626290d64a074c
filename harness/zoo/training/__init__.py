"""Making experts: supervised fine-tuning that keeps the second moments, for any causal language model."""

from harness.zoo.training.recipe import Recipe

__all__ = ["Recipe"]
