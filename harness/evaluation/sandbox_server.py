"""The sandbox's server process: a program of its own, standard library only, started by `sandbox.py` with an
empty environment.

It shuts itself in (namespaces, a root folder that holds Python and nothing else), says on standard output how
far that went, then reads one request per line and forks once per request. What it must keep for itself it
gives up in the child, before the program starts.

Its one argument is JSON: `packages`, the folders of packages beside the standard library that programs may
import, and `without`, the layers (namespaces, filter, hook) to leave out, by which tests see that the others hold.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import math
import os
import resource
import secrets
import select
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from harness.evaluation import sandbox_containment
from harness.evaluation.sandbox_containment import LINUX, Containment, contain, give_up_privileges

# Loaded before the fork, so that no program pays for them; the rest of the standard library is read on demand.
for _name in ("bisect", "datetime", "hashlib", "heapq", "random", "re", "statistics", "string", "typing"):
    __import__(_name)

LAZY_PARTS = {"numpy": ("fft", "linalg", "ma", "polynomial", "random")}
"""Parts of packages that would be imported on first use only."""


def main() -> None:
    """Shut in, say how far, then serve until the harness closes the pipe."""
    options = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    sys.path.remove(os.environ["PYTHONPATH"])  # programs are not to import the harness
    containment = contain(options.get("without", ()), tuple(options.get("packages", ())))
    if containment is not None:
        serve(containment)


def serve(containment: Containment) -> None:
    with open(os.dup(0), "rb") as incoming, open(os.dup(1), "wb") as outgoing:
        outgoing.write(json.dumps({"isolation": str(containment)}).encode() + b"\n")
        outgoing.flush()
        for line in incoming:
            outgoing.write(json.dumps(run(json.loads(line), containment)).encode() + b"\n")
            outgoing.flush()


def run(request: dict[str, Any], containment: Containment) -> dict[str, Any]:
    """Fork, wait for the child's word or its end, and leave no process and no file of it behind."""
    for package in containment.packages:
        if os.path.basename(package) in request["source"]:
            load_package(package)
    with tempfile.TemporaryDirectory(dir=containment.folder, ignore_cleanup_errors=True) as working:
        os.chmod(working, 0o777)
        reading, writing = os.pipe()
        token_reading, token_writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(request, working, writing, token_reading, containment)
        # What the child must say for the program to have passed. It is drawn after the fork and lies in a pipe until
        # the program's last line, so that ending early is no pass, and no variable of a calling frame is one either.
        token = secrets.token_hex(16)
        os.write(token_writing, token.encode())
        for descriptor in (writing, token_writing, token_reading):  # the last only now: the child may have ended
            os.close(descriptor)
        deadline = time.monotonic() + request["wall_seconds"]
        message = read_until(reading, deadline)
        os.close(reading)
        status = end_all(pid, deadline, containment.namespaces)
    said, _, reason = message.decode(errors="replace").partition(" ")
    if said == token:
        return {"passed": reason == "passed", "reason": reason}
    if status is None:
        return {"passed": False, "reason": "elapsed time"}
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        over_time = number in (signal.SIGPROF, signal.SIGXCPU)
        return {
            "passed": False,
            "reason": "processor time" if over_time else f"signal {signal.Signals(number).name}",
        }
    return {"passed": False, "reason": "ended before its last line"}


def read_until(reading: int, deadline: float) -> bytes:
    """What the child says until it closes its end; ends at the deadline."""
    message = b""
    while len(message) < 4096:
        if not select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
            break
        piece = os.read(reading, 4096)
        if not piece:
            break
        message += piece
    return message


def end_all(pid: int, deadline: float, namespaces: bool) -> int | None:
    """Collect the program and kill whatever it started; its wait status, or None if it had to be ended at the
    deadline."""
    collected, status = os.waitpid(pid, os.WNOHANG)
    while not collected and time.monotonic() < deadline:
        time.sleep(0.0002)
        collected, status = os.waitpid(pid, os.WNOHANG)
    while True:
        with contextlib.suppress(OSError):
            if namespaces:
                os.kill(-1, signal.SIGKILL)  # everything in the process namespace but this, its first process
            else:
                os.killpg(pid, signal.SIGKILL)
        try:
            if not os.waitpid(-1, 0 if namespaces else os.WNOHANG)[0]:
                time.sleep(0.0002)
        except ChildProcessError:
            return status if collected else None


def child(request: dict[str, Any], working: str, writing: int, token: int, containment: Containment) -> NoReturn:
    """The program's process: give everything up, run, say how it went with the token that the pipe `token` holds."""
    try:
        os.setsid()
        os.chdir(working)
        os.environ.clear()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        writing, token = duplicated_above(writing), duplicated_above(token)
        os.dup2(writing, 3)
        os.dup2(token, 4)
        os.closerange(5, 1024)
        give_up_privileges(containment)
        set_limits(request)
        seed()
        hook = refusing_hook(os.path.realpath(working), containment.packages, request["files"])
        reason = execute(request["source"], hook if containment.hook else None)
        os.write(3, os.read(4, 64) + f" {reason}".encode(errors="replace"))
    finally:
        os._exit(0)


def duplicated_above(descriptor: int) -> int:
    """The same pipe under a number that is not about to be taken."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD, 16)


def seed() -> None:
    """Give random numbers the same start for every program: a verdict must not depend on the day."""
    sys.modules["random"].seed(0)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed(0)


def load_package(folder: str) -> None:
    """Import a package before the fork, once: under the hook and the limits of a program some cannot be imported, and
    each program would pay for it."""
    name = os.path.basename(folder)
    if name in sys.modules:
        return
    sys.path.append(os.path.dirname(folder))
    with contextlib.suppress(Exception):  # without it the program's own import fails, which is its verdict
        importlib.import_module(name)
        for part in LAZY_PARTS.get(name, ()):
            importlib.import_module(f"{name}.{part}")
    sys.path.pop()


def execute(source: str, hook: Callable[[str, tuple[Any, ...]], None] | None) -> str:
    """Run the program as `__main__`; 'passed', or the exception on one line."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    for name in [name for name in sys.modules if name.partition(".")[0] in ("ctypes", "_ctypes", "harness")]:
        del sys.modules[name]
    vars(sandbox_containment).clear()  # it holds calls into the C library
    try:
        code = compile(source, "<program>", "exec", dont_inherit=True)
        if hook is not None:
            sys.addaudithook(hook)
        exec(code, module.__dict__)
    except BaseException as error:
        name = type(error).__name__
        return " ".join(f"{name}: {error}".split())[:200].rstrip(": ")
    return "passed"


def refusing_hook(working: str, packages: Sequence[str], files: int) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that turns what the outer layers prevent anyway into an exception that the program can
    report: processes, the network, signals, writing outside `working`, reading beyond it and Python, and making more
    than so many files."""
    refused = [
        "socket.",
        "subprocess.",
        "os.fork",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "os.kill",
        "ctypes.",
        "pty.",
    ]
    changing = [
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.mkdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.chmod",
        "os.chown",
        "shutil.",
    ]
    refused_prefixes, changing_prefixes = tuple(refused), tuple(changing)
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    system = ("/usr", "/lib", "/lib64", "/dev/null", "/dev/urandom")
    readable = tuple(os.path.realpath(each) + "/" for each in (*system, sys.base_prefix, *packages, working))
    made: set[str] = set()

    def resolved(path: Any) -> str | None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return None  # an open file's number, or no path at all
        return os.path.realpath(os.fsdecode(path)) + "/"

    def outside(path: Any) -> bool:
        place = resolved(path)
        return place is not None and not place.startswith(working + "/")

    def count(path: Any) -> None:
        made.add(str(resolved(path)))
        if len(made) > files:
            raise PermissionError(f"the sandbox refuses more than {files} files")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(refused_prefixes) or (event == "import" and arguments[0] in ("ctypes", "_ctypes")):
            raise PermissionError(f"the sandbox refuses {event}")
        if event == "open" and arguments[2] and arguments[2] & writes:
            if outside(arguments[0]):
                raise PermissionError("the sandbox refuses writing outside the working folder")
            count(arguments[0])
        elif event in ("open", "os.listdir", "os.scandir") and arguments[0] is not None:
            place = resolved(arguments[0])
            if place is not None and not place.startswith(readable):
                raise PermissionError("the sandbox refuses reading beyond Python and the working folder")
        if event.startswith(changing_prefixes) and any(outside(argument) for argument in arguments):
            raise PermissionError(f"the sandbox refuses {event} outside the working folder")
        if event == "os.mkdir":
            count(arguments[0])

    return hook


def set_limits(request: dict[str, Any]) -> None:
    seconds, mebibyte = request["cpu_seconds"], 1 << 20
    limits = {
        resource.RLIMIT_CPU: math.ceil(seconds) + 1,  # reached only by a program that catches SIGPROF
        resource.RLIMIT_FSIZE: request["file_mib"] * mebibyte,
        resource.RLIMIT_NOFILE: request["open_files"],
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    if LINUX:  # macOS knows the limit, but refuses every value
        limits[resource.RLIMIT_AS] = request["memory_mib"] * mebibyte
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main()
