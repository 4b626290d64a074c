"""Starts the command: what libraries read from the environment as they are imported must stand before them."""

import os
import sys


def main() -> None:
    """The console script `graftbench`, and `python -m harness`."""
    # Threads that wait without spinning: on a busy machine spinning ones made training several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Progress bars only where work takes long and somebody watches.
    os.environ.setdefault("TQDM_DELAY", "10" if sys.stderr.isatty() else "1e9")
    from harness.cli import main as run

    run()


if __name__ == "__main__":
    main()
