"""The worker's side: takes requests from the process that started it, one after the other, until that is gone."""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection

from harness.errors import GraftbenchError
from harness.evaluation import sandbox
from harness.evaluation.engines.ranks import forget_names
from harness.evaluation.worker.process import Reply
from harness.evaluation.worker.requests import Kept

_WATCH_SECONDS = 1.0


def main(descriptor: int) -> None:
    """Answer requests that come through a socket."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("harness").setLevel(logging.INFO)
    connection, kept = Connection(descriptor), Kept()
    while True:
        try:
            request = connection.recv()
        except EOFError:
            break
        except Exception as error:  # a request that cannot be read: code of the user's that fails, or has changed
            connection.send(Reply("refused", f"the request cannot be read: {error}"))
            continue
        try:
            reply = Reply("done", request(kept))
        except GraftbenchError as error:
            reply = Reply("refused", str(error))
        except Exception as error:
            reply = Reply("broken", f"{error}", traceback.format_exc())
        connection.send(reply)
    sandbox.stop()
    _end_all()  # vLLM's threads, processes and caches need not be taken down one by one


def _end_with(parent: int) -> None:
    """End this process when the one that it works for is gone: killed, it cannot say so."""
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    _end_all()


def _end_all() -> None:
    """End this process and those that engines have started, which are in its group (see `Worker`)."""
    forget_names()
    os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
