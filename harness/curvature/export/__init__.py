"""Second moments out of an optimizer's checkpoint: a module for each format, and these steps.

formats.py      which format a file or folder has
trainer.py, torch_optim.py, deepspeed.py, dcp.py
                an optimizer's state, parameter by parameter (state.py), from headers alone
entries.py, eight_bit.py
                what Adam, 8-bit Adam and Adafactor keep of one parameter
names.py, modules.py
                from an optimizer's names and numbers to the model's names
write.py        the file, one parameter after another
"""

from harness.curvature.export.formats import AUTO, FORMATS
from harness.curvature.export.write import ExportReport, export_second_moments

__all__ = ["AUTO", "FORMATS", "ExportReport", "export_second_moments"]
