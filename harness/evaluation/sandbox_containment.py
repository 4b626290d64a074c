"""What shuts the sandbox's server and its programs in: namespaces, a root folder of their own, an identity
without rights, a filter of system calls. Linux's own calls through ctypes; elsewhere only the identity."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NOBODY = 65534
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
LINUX = sys.platform == "linux"

AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
FORBIDDEN = {
    **{"socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "io_uring_setup": (425, 425)},
    **{"fork": (57, -1), "vfork": (58, -1), "clone": (56, 220), "clone3": (435, 435)},
    **{"execve": (59, 221), "execveat": (322, 281)},
    **{"kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_send_signal": (424, 424)},
    **{"rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240)},
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271)},
    **{"unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "bpf": (321, 280), "keyctl": (250, 219)},
}
"""System calls that programs may not make: their numbers on x86_64 and aarch64, -1 where there is no such call."""

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
    filtered: bool
    """Programs run under a filter of system calls: no sockets, no processes, no signals to others."""
    hook: bool
    """Programs run under the audit hook."""
    packages: tuple[str, ...]
    """Folders of packages that programs may import."""
    library: bool
    """Programs can read Python's standard library."""

    def __str__(self) -> str:
        by_hook = "refused by audit hook" if self.hook else "NOT refused"
        by_kernel = "refused by the kernel (seccomp)" if self.filtered else by_hook
        return "; ".join(
            [
                "no network, own processes (namespaces)" if self.namespaces else f"network and processes {by_kernel}",
                "files: Python and an empty folder (own root)"
                if self.folder
                else f"files: the machine's, by permission, those beyond Python and an empty folder {by_hook}",
                "user nobody" if self.drop else "the harness's user, no capabilities",
                *([] if self.library else ["Python's library is UNREADABLE to programs, which lack most imports"]),
                "limits on time, memory, files and processes",
            ]
        )


def contain(without: Sequence[str], packages: tuple[str, ...]) -> Containment | None:
    """Shut this process in as far as the kernel permits, `without` the layers named.

    Goes on in a child process, so that it is the first of its process namespace, which programs cannot signal; in the
    parent it returns None when that child has ended.
    """
    namespaces = LINUX and "namespaces" not in without and enter_namespaces()
    if namespaces:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            return None
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    drop = os.geteuid() == 0 and nobody_exists()
    folder = new_root(packages) if namespaces else None
    filtered = "filter" not in without and in_a_child(forbid_system_calls)
    library = in_a_child(lambda: library_is_readable(drop))
    return Containment(namespaces, drop, folder, filtered, "hook" not in without, packages, library)


def give_up_privileges(containment: Containment) -> None:
    """In the program's own process, before it starts."""
    if containment.drop:
        become_nobody()
    if LINUX:
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
        libc.capset(header, (ctypes.c_uint32 * 6)())
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    if containment.filtered:
        forbid_system_calls()


def forbid_system_calls() -> bool:
    """Have the kernel refuse, for this process and for good, what FORBIDDEN lists; False where it has no such filter,
    or this processor's numbers are not known here."""
    architecture = platform.machine()
    if not LINUX or architecture not in AUDIT_ARCHITECTURES:
        return False
    numbers = [pair[architecture == "aarch64"] for pair in FORBIDDEN.values()]
    known = [number for number in numbers if number >= 0]
    # Load the architecture (offset 4), then the call's number (offset 0); a jump says how many instructions to skip.
    program = [
        (0x20, 0, 0, 4),
        (0x15, 0, len(known) + 3, AUDIT_ARCHITECTURES[architecture]),
        (0x20, 0, 0, 0),
        (0x35, len(known) + 1, 0, 0x40000000),  # numbers of x86's 32-bit pointers would evade the list
        *((0x15, len(known) - index, 0, number) for index, number in enumerate(known)),
        (0x06, 0, 0, 0x7FFF0000),  # allow
        (0x06, 0, 0, 0x00050000 | errno.EPERM),
    ]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    described = (ctypes.c_uint64 * 2)(len(program), ctypes.addressof(buffer))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(libc.prctl(PR_SET_SECCOMP, 2, ctypes.byref(described), 0, 0) == 0)


def in_a_child(question: Callable[[], bool]) -> bool:
    """The answer to what could not be undone in this process."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os._exit(0 if question() else 1)
        os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


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


def library_is_readable(drop: bool) -> bool:
    """Whether programs can import what is not loaded yet: `nobody` may not enter a home folder that holds Python."""
    if drop:
        become_nobody()
    return os.access(os.__file__, os.R_OK)


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


def new_root(packages: Sequence[str]) -> str | None:
    """Make a root folder that holds the Python installation, the packages (read-only) and an empty /tmp, and move
    there; None where refused.

    It is mounted over /proc, in this process's own mount namespace: a folder that always exists, and that
    programs need not see.
    """
    root = "/proc"
    try:
        mount(None, "/", None, MS_REC | MS_PRIVATE)
        mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=64m,nr_inodes=16384,mode=755")
        for source in sorted({"/usr", "/lib", "/lib64", sys.base_prefix, *packages}):
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
