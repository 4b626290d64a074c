"""Processes that share memory under names: the names go, a stranger's file in the same folder stays."""

import subprocess
import sys
import uuid
from pathlib import Path

PROGRAM = """
import mmap, os, signal, subprocess, sys
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from harness.evaluation.engines.ranks import forget_names

def child(name, ready, wait):
    attached = SharedMemory(name=name)
    own = SharedMemory(create=True, size=4096)
    open(f"/dev/shm/sem.loky-{os.getpid()}-x", "w").close()
    ready.send({own.name, f"sem.loky-{os.getpid()}-x"})
    wait.recv()
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    with open(sys.argv[1], "r+b") as file:
        kept = mmap.mmap(file.fileno(), 0)
    ours = SharedMemory(create=True, size=4096)
    context = get_context("fork")
    (ready, theirs), (go, wait) = context.Pipe(), context.Pipe()
    process = context.Process(target=child, args=(ours.name, theirs, wait))
    process.start()
    names = {ours.name} | ready.recv()
    assert all(os.path.exists(f"/dev/shm/{name}") for name in names)
    print(set(forget_names()) == names, not any(os.path.exists(f"/dev/shm/{name}") for name in names))
    ours.buf[0] = 7
    print(ours.buf[0], forget_names())
    go.send(1)
    process.join()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_names_of_shared_memory_are_forgotten_and_nothing_else(tmp_path: Path) -> None:
    """Of this process and of what it started; the memory still works, and killing all leaves nothing behind."""
    stranger = Path("/dev/shm") / f"graftbench-test-model-{uuid.uuid4().hex}.safetensors"
    stranger.write_bytes(b"a user's checkpoint" * 1000)
    (tmp_path / "program.py").write_text(PROGRAM)
    try:
        done = subprocess.run(
            [sys.executable, tmp_path / "program.py", stranger], capture_output=True, text=True, check=False
        )
        assert done.stdout.splitlines() == ["True True", "7 []"], done.stderr
        assert "leaked" not in done.stderr and "No such file" not in done.stderr
        assert stranger.exists()
    finally:
        stranger.unlink()
