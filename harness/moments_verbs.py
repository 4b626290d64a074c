"""What the verbs `moments …` of the command line do once their settings are read."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table

from harness.config import ExportSettings
from harness.curvature.batched_fisher import LabelSource
from harness.curvature.compressing import CompressionReport, compress_file
from harness.curvature.delta import DELTA_FILE_NAME, write_squared_task_vectors
from harness.curvature.estimating import estimate_fisher
from harness.curvature.export import export_second_moments
from harness.curvature.second_moments import FILE_NAME, FISHER_FILE_NAME, SecondMoments
from harness.curvature.stored import Form
from harness.files import readable_size, write_text_atomically
from harness.merging.overlap import MaskOverlap, mask_overlaps
from harness.merging.planning import resolve_device
from harness.moments_config import CompressSettings, EstimateSettings


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


def estimate(settings: EstimateSettings) -> None:
    """Write Fisher information or squared task vectors to a file of second moments."""
    out = settings.out.expanduser()
    if out.suffix != ".safetensors":
        out /= FISHER_FILE_NAME if settings.kind == "fisher" else DELTA_FILE_NAME
    if settings.data is not None:
        parameters, examples = estimate_fisher(
            settings.model,
            settings.data.expanduser(),
            out,
            base=settings.base,
            labels=cast(LabelSource, settings.labels),
            batch_size=settings.batch_size,
            max_length=settings.max_length,
            limit=settings.limit,
            device=resolve_device(settings.device),
            seed=settings.seed,
        )
        told = f"Fisher information of {parameters} parameters from {examples} examples, labels={settings.labels}"
    else:
        assert settings.base is not None
        told = f"squared task vectors of {write_squared_task_vectors(settings.base, settings.model, out)} parameters"
    Console().print(f"wrote {out}: {told}", highlight=False, soft_wrap=True)


def compress(settings: CompressSettings) -> None:
    """Write second moments in a smaller form, and report what is lost."""
    source, out = settings.source.expanduser(), settings.out.expanduser()
    form = cast(Form, settings.format)
    report = compress_file(source, _file_for(out, source), form, settings.rank)
    console = Console()
    _print_compression(console, report)
    overlaps: list[MaskOverlap] = []
    if settings.base is not None and settings.expert is not None:
        overlaps = mask_overlaps(settings.base, settings.expert, source, report.path, settings.densities)
        console.print(_overlap_table(overlaps))
    if settings.report is not None:
        told = {
            "source": str(source),
            "out": str(report.path),
            "format": form,
            "rank": settings.rank if form == "rank" else None,
            "parameters": report.parameters,
            "kept_whole": report.kept_whole,
            "bytes_before": report.bytes_before,
            "bytes_after": report.bytes_after,
            "reconstruction": asdict(report.reconstruction),
            "overlap": [{**asdict(each), "iou": each.intersection_over_union} for each in overlaps],
        }
        write_text_atomically(settings.report.expanduser(), json.dumps(told, indent=2) + "\n")


def _file_for(out: Path, source: Path) -> Path:
    """The file to write; in a folder under the usual name of what it is made from."""
    if out.suffix == ".safetensors":
        return out
    with SecondMoments(source) as moments:
        return out / (FISHER_FILE_NAME if moments.metadata.kind == "fisher" else FILE_NAME)


def _print_compression(console: Console, report: CompressionReport) -> None:
    error = report.reconstruction
    share = report.bytes_after / report.bytes_before
    console.print(
        f"wrote {report.path}: {report.parameters} parameters, {report.kept_whole} of them whole; "
        f"{readable_size(report.bytes_before)} → {readable_size(report.bytes_after)} ({share:.1%})\n"
        f"log₁₀ v is off by {error.mean_error:.3f} on average, root mean square {error.root_mean_square_error:.3f}, at "
        f"most {error.largest_error:.2f}, over the {error.compared:,} entries that are positive before and after\n"
        f"zeros, which have no logarithm: {error.zeros_kept:,} are zero still, {error.zeros_filled:,} no longer; "
        f"{error.lost:,} positive entries became zero",
        highlight=False,
        soft_wrap=True,
    )


def _overlap_table(overlaps: list[MaskOverlap]) -> Table:
    table = Table("density", "IoU", "entries in both masks", title="FFG's masks under both files")
    for each in overlaps:
        table.add_row(f"{each.density:g}", f"{each.intersection_over_union:.3f}", f"{each.both:,}")
    return table
