"""Merging methods: mathematics only, tensors in, tensor out.

One file is one method: `ties.py` holds the dataclass of TIES's hyper-parameters and the function that merges one
parameter. The pieces that methods are composed of are in `selection`, `combination` and `randomness`; what a method
may see and declare is in `interface`.
"""

from methods.interface import Cutoff, Method, Parameter, Selection
from methods.registry import available, load_file

__all__ = ["Cutoff", "Method", "Parameter", "Selection", "available", "load_file"]
