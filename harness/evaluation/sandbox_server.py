"""The sandbox's server process: a program of its own, standard library only, started by `sandbox.py` with an
empty environment.

It shuts itself in (namespaces, a root folder that holds Python and nothing else), says on standard output how
far that went, then reads one request per line and forks once per request. What it must keep for itself it
gives up in the child, before the program starts.
"""

from __future__ import annotations

import contextlib
import ctypes
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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

# Loaded before the fork, so that no program pays for them; the rest of the standard library is read on demand.
for _name in ("bisect", "datetime", "hashlib", "heapq", "random", "re", "statistics", "string", "typing"):
    __import__(_name)

NOBODY = 65534
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
LINUX = sys.platform == "linux"

libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Containment:
    """How far the kernel let the server shut itself in."""

    namespaces: bool
    drop: bool
    """Each program becomes the user `nobody`."""
    folder: str | None
    """Where working folders are made: within the new root folder, or None for the machine's own temporary
    folder."""

    def __str__(self) -> str:
        return "; ".join(
            [
                "no network, own processes (namespaces)"
                if self.namespaces
                else "network and processes refused by audit hook",
                "files: Python and an empty folder"
                if self.folder
                else "files: the machine's, by permission and audit hook",
                "user nobody" if self.drop else "the harness's user, no capabilities",
                "limits on time, memory, files and processes",
            ]
        )


def main() -> None:
    """Shut in, say how far, then serve until the harness closes the pipe."""
    namespaces = LINUX and enter_namespaces()
    if namespaces:
        pid = os.fork()  # the child is the first process of the new process namespace: programs cannot signal it
        if pid:
            os.waitpid(pid, 0)
            return
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    drop = os.geteuid() == 0 and nobody_exists()
    serve(Containment(namespaces, drop, new_root() if namespaces else None))


def serve(containment: Containment) -> None:
    with open(os.dup(0), "rb") as incoming, open(os.dup(1), "wb") as outgoing:
        outgoing.write(json.dumps({"isolation": str(containment)}).encode() + b"\n")
        outgoing.flush()
        for line in incoming:
            outgoing.write(json.dumps(run(json.loads(line), containment)).encode() + b"\n")
            outgoing.flush()


def run(request: dict[str, Any], containment: Containment) -> dict[str, Any]:
    """Fork, wait for the child's word or its end, and leave no process and no file of it behind."""
    with tempfile.TemporaryDirectory(dir=containment.folder, ignore_cleanup_errors=True) as working:
        os.chmod(working, 0o777)
        token = secrets.token_hex(16)  # so that a program that merely ends early with status 0 has not passed
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(request, working, writing, token, containment.drop)
        os.close(writing)
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


def child(request: dict[str, Any], working: str, writing: int, token: str, drop: bool) -> NoReturn:
    """The program's process: give everything up, run, say how it went."""
    try:
        os.setsid()
        os.chdir(working)
        os.environ.clear()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.dup2(writing, 3)
        os.closerange(4, 1024)
        give_up_privileges(drop)
        set_limits(request)
        reason = execute(request["source"], os.path.realpath(working))
        os.write(3, f"{token} {reason}".encode(errors="replace"))
    finally:
        os._exit(0)


def execute(source: str, working: str) -> str:
    """Run the program as `__main__`; 'passed', or the exception on one line."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.modules.pop("ctypes")
    try:
        code = compile(source, "<program>", "exec", dont_inherit=True)
        sys.addaudithook(refusing_hook(working))
        exec(code, module.__dict__)
    except BaseException as error:
        name = type(error).__name__
        return " ".join(f"{name}: {error}".split())[:200].rstrip(": ")
    return "passed"


def refusing_hook(working: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that turns what the outer layers prevent anyway into an exception that the program can
    report."""
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

    def outside(path: Any) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        return not (os.path.realpath(os.fsdecode(path)) + "/").startswith(working + "/")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(refused_prefixes) or (event == "import" and arguments[0] in ("ctypes", "_ctypes")):
            raise PermissionError(f"the sandbox refuses {event}")
        if event == "open" and arguments[2] and arguments[2] & writes and outside(arguments[0]):
            raise PermissionError("the sandbox refuses writing outside the working folder")
        if event.startswith(changing_prefixes) and any(outside(argument) for argument in arguments):
            raise PermissionError(f"the sandbox refuses {event} outside the working folder")

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


def give_up_privileges(drop: bool) -> None:
    if drop:
        become_nobody()
    if LINUX:
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
        libc.capset(header, (ctypes.c_uint32 * 6)())
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def nobody_exists() -> bool:
    """Whether the user `nobody` exists here: a user namespace of one's own maps a single user."""
    if not LINUX:
        return True
    with open("/proc/self/uid_map") as mapping:
        ranges = [tuple(map(int, line.split())) for line in mapping]
    return any(first <= NOBODY < first + count for first, _, count in ranges)


def enter_namespaces() -> bool:
    """Enter new network, process, mount and IPC namespaces, through a new user namespace where root's own
    right is missing."""
    wanted = CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC
    if libc.unshare(wanted) == 0:
        return True
    if os.geteuid() == 0 and nobody_exists():
        become_nobody()  # a user namespace maps one user, which had better not be root
        libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else the files below belong to root
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(wanted | CLONE_NEWUSER) != 0:
        return False
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return True


def new_root() -> str | None:
    """Make a root folder that holds the Python installation (read-only) and an empty /tmp, and move there;
    None where refused.

    It is mounted over /proc, in this process's own mount namespace: a folder that always exists, and that
    programs need not see.
    """
    root = "/proc"
    try:
        mount(None, "/", None, MS_REC | MS_PRIVATE)
        mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=64m,mode=755")
        for source in sorted({"/usr", "/lib", "/lib64", sys.base_prefix}):
            if os.path.islink(source):
                os.symlink(os.readlink(source), root + source)
            elif os.path.isdir(source) and not os.path.exists(root + source):
                os.makedirs(root + source)
                mount(source, root + source, None, MS_BIND | MS_REC)
                mount(None, root + source, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
        os.mkdir(root + "/dev")
        os.close(os.open(root + "/dev/null", os.O_CREAT))
        mount("/dev/null", root + "/dev/null", None, MS_BIND)
        os.mkdir(root + "/tmp")
        os.chroot(root)
        os.chdir("/")
    except OSError:
        return None
    return "/tmp"


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [text.encode() if text is not None else None for text in (source, target, kind, options)]
    if libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


if __name__ == "__main__":
    main()
