"""What momentum-aware training leaves for merging, on disk: second moments, and the saliency of every entry."""

from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.curvature.capture import check_whole, metadata_of, unwrapped
from harness.curvature.compression import COLUMN, ROW
from harness.curvature.second_moments import FILE_NAME, write_second_moments
from harness.curvature.umtam import Umtam, trained_states
from harness.errors import GraftbenchError
from harness.files import file_written_atomically

SALIENCY_FILE_NAME = "saliency.safetensors"


def save_umtam(
    optimizer: Optimizer, model: nn.Module, folder: Path | str, base_digest: str | None = None
) -> dict[str, Path]:
    """Write `exp_avg_sq.safetensors`, and `saliency.safetensors` if it was accumulated; call it in one process.

    Second moments are raw and of kind adam: row and column sums of matrices that were factored, whole tensors
    otherwise. Every method that reads curvature takes them. Saliency is Σ|g·δ| over the steps, fp32 in each
    parameter's shape, in units of the loss.

    Args:
        optimizer: an `Umtam`, after its last step; one that accelerate wrapped, too.
        model: the model that it trains; one that DistributedDataParallel or torch.compile wrapped, too.
        folder: by convention the expert's.
        base_digest: digest of the weights that training began with, `Checkpoint(base).weights_digest`.

    Returns:
        The paths by file name.

    Raises:
        GraftbenchError: the optimizer is another one, is sharded, or made no step; its groups have several β₂.
    """
    optimizer, model = unwrapped(optimizer, model)
    check_whole(optimizer, model)
    if not isinstance(optimizer, Umtam):
        raise GraftbenchError(
            f"the optimizer is {type(optimizer).__name__}, not Umtam; "
            "harness.curvature.save_second_moments writes what one of Adam's kind has"
        )
    states = trained_states(optimizer, model)
    moments: dict[str, Tensor] = {}
    for name, state in states.items():
        if "row" in state:
            moments |= {name + ROW: state["row"], name + COLUMN: state["col"]}
        else:
            moments[name] = state["exp_avg_sq"]
    metadata = metadata_of(optimizer, model, base_digest=base_digest)
    if any("row" in state for state in states.values()):
        metadata = replace(metadata, compression="row and column sums")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_second_moments(folder / FILE_NAME, moments, metadata)
    paths = {FILE_NAME: folder / FILE_NAME}
    saliency = {name: state["saliency"].detach().cpu() for name, state in states.items() if "saliency" in state}
    if saliency:
        paths[SALIENCY_FILE_NAME] = folder / SALIENCY_FILE_NAME
        with file_written_atomically(paths[SALIENCY_FILE_NAME]) as temporary:
            save_file(saliency, temporary, metadata={"format": "graftbench.saliency"})
    return paths
