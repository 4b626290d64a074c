"""What an expert is trained with."""

from dataclasses import dataclass

LEAST_ONE = ("steps", "batch_size", "accumulation", "max_length", "save_every")


@dataclass(frozen=True)
class Recipe:
    """Full fine-tuning with AdamW, a linear warm-up and a cosine that ends at zero."""

    epochs: float = 1.0
    """Passes over the data; `steps` outranks it."""
    steps: int | None = None
    """Optimizer steps."""
    learning_rate: float = 2e-5
    """At its peak."""
    warmup: float = 0.03
    """Share of the steps before the peak, 0 to below 1."""
    weight_decay: float = 0.0
    beta2: float = 0.999
    batch_size: int = 8
    """Examples at a time on each device."""
    accumulation: int = 1
    """Batches for each step."""
    max_length: int = 1024
    """Tokens after which an example is cut off."""
    bf16: bool = False
    """Compute in bfloat16; weights and optimizer stay float32."""
    save_every: int | None = None
    """Steps between checkpoints to resume from."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in LEAST_ONE:
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")
        for name in ("epochs", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be more than 0")
        for name in ("warmup", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in 0..1, 1 excluded")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay={self.weight_decay} must be 0 or more")
