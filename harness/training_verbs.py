"""What `graftbench zoo train` does once its settings are read."""

from rich.console import Console

from harness.training_config import TrainSettings


def train(settings: TrainSettings) -> None:
    """Fine-tune an expert."""
    from harness.zoo.training.train import train_expert  # transformers' Trainer takes seconds to import

    trained = train_expert(
        settings.model, settings.data.expanduser(), settings.out.expanduser(), settings.recipe, settings.resume
    )
    if trained is not None:
        Console().print(
            f"wrote {trained.folder}: trained on {trained.examples} examples for {trained.steps} steps, mean loss "
            f"{trained.loss:.3f}, with exp_avg_sq.safetensors",
            highlight=False,
            soft_wrap=True,
        )
