"""Runs in mergekit's interpreter, which has neither this package nor pytest: reads merges, lets mergekit do them.

Random draws are replaced by given ones, since two libraries never draw the same.
"""

import sys
from typing import Any
from unittest.mock import patch

import torch


def tensors(source: str, target: str) -> None:
    """Every merge of single tensors in the file `source`; the results go into the file `target`."""
    from mergekit.merge_methods import merge_tensors

    merged = []
    for merge in torch.load(source, weights_only=True):
        with patch.object(torch, "bernoulli", side_effect=merge["masks"]) as draw:
            arguments = {"base_index": merge["base_index"], "parameters": merge["parameters"]}
            merged.append(merge_tensors(merge["tensors"], merge["method"], **arguments))
        assert draw.call_count == len(merge["masks"]), "mergekit drew less often than masks were given"
    torch.save(merged, target)


def models(source: str) -> None:
    """Every merge of models in the file `source`; the recipe says where the models lie."""
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge
    from mergekit.merge_methods.generalized_task_arithmetic import GeneralizedTaskArithmeticMerge as Family

    merge_group = Family.merge_group
    for merge in torch.load(source, weights_only=True):

        def with_masks(self: Any, group: Any, masks: Any = merge["masks"], **parameters: Any) -> torch.Tensor:
            drawn = [entry for entry in group.non_base if masks and parameters["density"][entry.id] < 1]
            given = [masks[str(entry.id)][group.metadata.name] for entry in drawn]
            with patch.object(torch, "bernoulli", side_effect=given):
                return merge_group(self, group, **parameters)

        with patch.object(Family, "merge_group", with_masks):
            run_merge(MergeConfiguration.model_validate(yaml.safe_load(merge["recipe"])), merge["out"], MergeOptions())


if __name__ == "__main__":
    if sys.argv[1] == "tensors":
        tensors(*sys.argv[2:])
    else:
        models(*sys.argv[2:])
