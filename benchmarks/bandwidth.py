"""What this machine's disk, memory and (with CUDA) copy engine can move, in GB/s: a probe of a few seconds.

    python -m benchmarks.bandwidth FILE FOLDER [cuda]

reads FILE (its page cache, once it was read), writes 1 GB into FOLDER and copies memory; prints JSON. The fastest of
three tries counts: the bound that a merge is compared with.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

_BYTES = 1 << 30


def probe(file: Path, folder: Path, device: str) -> dict[str, float]:
    """GB/s of reading a file, writing one, copying memory; with CUDA also of both copies and of the device's memory."""
    host = torch.empty(_BYTES, dtype=torch.uint8).fill_(1)
    other = torch.empty_like(host).fill_(0)
    found = {
        "read": _fastest(lambda: _read(file, host), min(_BYTES, file.stat().st_size)),
        "write": _fastest(lambda: _write(folder / "bandwidth.probe", host), _BYTES),
        # A copy reads and writes each byte.
        "memory": _fastest(lambda: other.copy_(host), 2 * _BYTES),
    }
    (folder / "bandwidth.probe").unlink()
    if device.startswith("cuda"):
        found |= _cuda(device)
    return found


def _cuda(device: str) -> dict[str, float]:
    pinned = torch.empty(_BYTES, dtype=torch.uint8, pin_memory=True)
    on_device = torch.empty(_BYTES, dtype=torch.uint8, device=device)
    twin = torch.empty_like(on_device)

    def finished(copy: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            copy()
            torch.cuda.synchronize(device)

        return run

    return {
        "to_device": _fastest(finished(lambda: on_device.copy_(pinned, non_blocking=True)), _BYTES),
        "from_device": _fastest(finished(lambda: pinned.copy_(on_device, non_blocking=True)), _BYTES),
        "device_memory": _fastest(finished(lambda: twin.copy_(on_device)), 2 * _BYTES),
    }


def _read(file: Path, into: torch.Tensor) -> None:
    with file.open("rb", buffering=0) as stream:
        view = into.numpy().data
        done = 0
        while done < len(view) and (count := stream.readinto(view[done:])):
            done += count


def _write(file: Path, values: torch.Tensor) -> None:
    with file.open("wb", buffering=0) as stream:
        view = values.numpy().data
        done = 0
        while done < len(view):
            done += stream.write(view[done:])


def _fastest(run: Callable[[], object], moved: int) -> float:
    """GB/s over the fastest of three tries."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return moved / min(seconds) / 1e9


if __name__ == "__main__":
    print(json.dumps(probe(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "cpu")))
