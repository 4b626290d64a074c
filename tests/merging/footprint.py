"""The largest memory that a merge takes, printed by a process of its own: in kB, of itself and of its workers."""

import json
import resource
import sys
from pathlib import Path

import torch

from harness.merging import Execution, merge_to_folder, merged_parameters, plan_merge
from methods.ties import Ties


def peaks() -> dict[str, int]:
    own, workers = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return {
        "own": resource.getrusage(own).ru_maxrss,
        "workers": resource.getrusage(workers).ru_maxrss,
    }


def main(folder: Path, threads: int) -> None:
    torch.set_num_threads(1)
    torch.randn(10_000).square().sum()  # what torch takes for itself
    before = peaks()
    execution = Execution(threads=threads, memory_bytes=100 * 10**6)
    experts = {name: folder / name for name in ("x", "y")}
    with plan_merge("ties", Ties(), folder / "base", experts, {}, execution=execution) as plan:
        merge_to_folder(plan, folder / "out")
        for _ in merged_parameters(plan):
            pass
    print(json.dumps({"before": before, "after": peaks()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
