"""What the verbs `moments …` of the command line do once their settings are read."""

from rich.console import Console

from harness.config import ExportSettings
from harness.curvature.export import export_second_moments


def export(settings: ExportSettings) -> None:
    """Turn an optimizer's checkpoint into a file of second moments."""
    report = export_second_moments(
        settings.source.expanduser(),
        settings.out.expanduser(),
        settings.model,
        settings.base,
        settings.format,
        settings.frozen,
    )
    metadata = report.metadata
    known = {"step": metadata.step, "β₂": metadata.beta2, "learning rate": metadata.learning_rate}
    told = ", ".join(f"{what} {value:g}" for what, value in known.items() if value is not None)
    Console().print(
        f"wrote {report.path}: second moments of {report.parameters} parameters ({report.entries:,} entries), "
        f"{metadata.optimizer}{f', {told}' if told else ''}",
        highlight=False,
        soft_wrap=True,
    )
