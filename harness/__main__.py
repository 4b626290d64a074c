"""Starts the command: what libraries read from the environment as they are imported must stand before them."""

import os
import sys


def main() -> None:
    """The console script `graftbench`, and `python -m harness`."""
    # Threads that spin for microseconds, not milliseconds, before they sleep: as fast on an idle machine as the
    # default, and on a busy one they leave the processor to whoever holds the work that they wait for.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Progress bars only where work takes long and somebody watches.
    os.environ.setdefault("TQDM_DELAY", "10" if sys.stderr.isatty() else "1e9")
    try:
        from harness.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)  # before the command could see to it


if __name__ == "__main__":
    main()
