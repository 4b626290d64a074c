"""Graftbench: merge language models, evaluate the merges, rank the methods.

`docs/architecture.md` draws the house; `graftbench --help` lists what it can do.
"""

__version__ = "0.1.0"
