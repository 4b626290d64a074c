"""Hostile programs, each of which must end, fail for the right reason, and leave nothing behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import GraftbenchError
from harness.evaluation.sandbox import Limits, Outcome, code_execution_allowed, isolation, run_program, stop

SHORT = Limits(cpu_seconds=0.3, wall_seconds=1.5)


@pytest.fixture
def allowed() -> Iterator[None]:
    with code_execution_allowed():
        yield


def test_refuses_without_permission() -> None:
    with pytest.raises(GraftbenchError, match=r"suite\.allow_code_execution=true"):
        run_program("pass")


def test_permission_ends_with_its_block(allowed: None) -> None:
    with code_execution_allowed(False), pytest.raises(GraftbenchError):
        run_program("pass")
    assert run_program("pass").passed


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert sum([1, 2]) == 3", "passed"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\nassert A(1).x == 1", "passed"),
        ("import json, csv, math, random, re, itertools, unittest", "passed"),
        ("open('a', 'w').write('x' * 10)\nassert open('a').read() == 'x' * 10", "passed"),
        ("assert 1 == 2", "AssertionError"),
        ("assert 1 == 2, 'one\\nis not two'", "AssertionError: one is not two"),
        ("def f(:", "SyntaxError: invalid syntax (<program>, line 1)"),
        ("undefined", "NameError: name 'undefined' is not defined"),
    ],
)
def test_a_program_passes_when_it_reaches_its_end(allowed: None, program: str, reason: str) -> None:
    assert run_program(program) == Outcome(passed=reason == "passed", reason=reason)


@pytest.mark.parametrize("program", ["import os; os._exit(0)", "import sys; sys.exit(0)", "raise SystemExit"])
def test_ending_early_with_status_zero_is_no_pass(allowed: None, program: str) -> None:
    assert not run_program(program + "\nassert False").passed


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("while True: pass", "processor time"),
        ("while True: print('y' * 1000)", "processor time"),
        ("import time; time.sleep(60)", "elapsed time"),
        ("import os, time; os.close(3); time.sleep(60)", "elapsed time"),
        ("x = 'a' * 10**10", "MemoryError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("f = [open(f'{n}', 'w') for n in range(100)]", "Too many open files"),
        ("open('a', 'w').write('x' * 10**7)", "File too large"),
        ("import os\nwhile True: os.fork()", "refuses os.fork"),
        ("import subprocess; subprocess.run(['ls'])", "refuses subprocess"),
        ("import socket; socket.create_connection(('127.0.0.1', 22))", "refuses socket"),
        ("import urllib.request; urllib.request.urlopen('http://127.0.0.1')", "refuses socket"),
        ("import os; os.kill(os.getppid(), 9)", "refuses os.kill"),
        ("import ctypes; ctypes.CDLL(None).kill(1, 9)", "refuses import"),
        ("import threading; threading.Thread(target=print).start()", "can't start new thread"),
    ],
)
def test_limits_and_refusals(allowed: None, program: str, reason: str) -> None:
    if "threading" in program and "namespaces" not in isolation():
        pytest.skip("the standard library is readable in the sandbox only with namespaces")
    outcome = run_program(program, SHORT)
    assert not outcome.passed
    assert reason in outcome.reason


def test_a_program_that_ignores_the_timer_is_ended_all_the_same(allowed: None) -> None:
    program = "import signal\nsignal.signal(signal.SIGPROF, signal.SIG_IGN)\nwhile True: pass"
    assert not run_program(program, SHORT).passed
    assert run_program("pass", SHORT).passed


def test_writes_nothing_outside_its_folder(allowed: None, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)
    target = tmp_path / "written"
    outcome = run_program(f"open({str(target)!r}, 'w').write('x')")
    assert outcome.reason == "PermissionError: the sandbox refuses writing outside the working folder"
    assert not target.exists()
    assert not run_program(f"import os; os.remove({__file__!r})").passed
    assert Path(__file__).exists()


def test_sees_no_environment(allowed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTBENCH_TEST_SECRET", "secret")
    stop()  # so that the server itself starts with the secret around
    assert run_program("import os; assert not os.environ, os.environ").passed
    looking = (
        "import os\nfor pid in os.listdir('/proc'):\n    if pid.isdigit():\n"
        "        try: text = open(f'/proc/{pid}/environ').read()\n        except OSError: continue\n"
        "        assert 'GRAFTBENCH_TEST_SECRET' not in text\n"
    )
    assert "AssertionError" not in run_program(looking).reason


def test_programs_do_not_see_one_another(allowed: None) -> None:
    assert run_program("import math, builtins\nmath.pi = 3\nbuiltins.leak = 1\nopen('a', 'w').close()").passed
    program = (
        "import os, math, builtins\nassert math.pi > 3.1 and not hasattr(builtins, 'leak') and not os.listdir('.')"
    )
    assert run_program(program) == Outcome(True, "passed")


def test_sets_have_a_fixed_order(allowed: None) -> None:
    """Else a program that prints a set would pass on some days only."""
    order = "x = list({'a', 'b', 'c', 'd', 'e'})\nraise ValueError(x)"
    first = run_program(order)
    stop()
    assert run_program(order) == first


def test_a_dead_server_is_replaced(allowed: None) -> None:
    from harness.evaluation import sandbox

    assert run_program("pass").passed
    server = sandbox._state.server
    assert server is not None
    server.process.kill()
    server.process.wait()
    assert run_program("pass").passed


def test_no_process_is_left(allowed: None) -> None:
    from harness.evaluation import sandbox

    run_program("import time; time.sleep(60)", Limits(wall_seconds=0.2))
    server = sandbox._state.server
    assert server is not None
    pid = server.process.pid
    stop()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()


def test_says_how_far_it_shut_itself_in(allowed: None) -> None:
    assert isolation().endswith("limits on time, memory, files and processes")
