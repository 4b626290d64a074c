"""A process that has imported everything, and forks a command line of graftbench for each line that it reads: the same
job in a process group of its own, without the ten seconds of imports.

Reads JSON lists of arguments; answers each with the process's number, and when it has ended with its exit code
(negative: the signal that ended it)."""

import json
import os
import sys

import datasets  # noqa: F401
import lm_eval
import lm_eval.models.huggingface  # noqa: F401
import transformers  # noqa: F401
from lm_eval.tasks import TaskManager  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

import harness.verbs  # noqa: F401
from harness.cli import main


def serve() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(2, 1)
            code = 1
            try:
                main(json.loads(line))
                code = 0
            except SystemExit as stopped:
                code = int(stopped.code or 0)
            finally:
                os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
