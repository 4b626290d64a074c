"""What was measured, and on what: commit, versions, processor, memory, disk."""

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent


def describe_machine(folder: Path) -> dict[str, Any]:
    """The machine, and the disk that holds `folder`."""
    disk = shutil.disk_usage(folder)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(_memory_kib("MemTotal") * 1024 / 1e9, 1),
        "memory_available_gb": round(_memory_kib("MemAvailable") * 1024 / 1e9, 1),
        "disk": _disk(folder),
        "disk_total_gb": round(disk.total / 1e9),
        "disk_free_gb": round(disk.free / 1e9),
        "system": platform.platform(),
        "load_before": round(os.getloadavg()[0], 2),
        "threads": os.environ.get("OMP_NUM_THREADS", "all cores"),
    }


def commit() -> str:
    """The repository's commit, and whether the code in it was changed since."""
    head = _output(["git", "-C", str(REPOSITORY), "rev-parse", "--short=12", "HEAD"])
    changed = _output(["git", "-C", str(REPOSITORY), "status", "--porcelain", "--", "harness", "methods", "conf"])
    return (head or "unknown") + (" with uncommitted changes" if changed else "")


def versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    """The versions that an interpreter finds of some packages, and its own."""
    program = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {'python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    return dict(json.loads(_output([python, "-c", program, *packages]) or "{}"))


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _memory_kib(field: str) -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0


def _disk(folder: Path) -> str:
    found = _output(["findmnt", "--noheadings", "--output", "SOURCE,FSTYPE", "--target", str(folder)])
    return " ".join(found.split()) or "unknown"


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""
