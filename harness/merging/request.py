"""What is asked of a merge, apart from any open file: it can be sent to another process, which plans the same merge."""

import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.checkpoints.opening import Source
from harness.merging.plan import BASE, Execution, MergePlan
from harness.merging.planning import plan_merge
from methods import Method, load_file


@dataclass(frozen=True)
class MergeRequest:
    """The arguments of `plan_merge`, which says what each of them is."""

    name: str
    method: Method
    base: Source
    experts: Mapping[str, Source]
    curvature_files: Mapping[str, Path | None]
    dtype: str | None = None
    execution: Execution = field(default_factory=Execution)
    vocabulary: str = "strict"
    tokenizer: str = BASE

    def plan(self) -> MergePlan:
        """Open all inputs and check them.

        Raises:
            GraftbenchError: something is wrong with the inputs.
        """
        arguments = {name: value for name, value in vars(self).items() if name not in ("name", "method")}
        return replace(plan_merge(self.name, self.method, **arguments), request=self)

    def __getstate__(self) -> dict[str, Any]:
        """A method out of a user's file goes with the file's name: another process has to load it first."""
        module = sys.modules[type(self.method).__module__]
        file = None if module.__name__.startswith("methods.") else str(module.__file__)
        return {**vars(self), "method": (file, pickle.dumps(self.method))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        file, method = state["method"]
        if file is not None:
            load_file(Path(file))
        for name, value in {**state, "method": pickle.loads(method)}.items():
            object.__setattr__(self, name, value)
