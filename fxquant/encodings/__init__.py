"""Encodings files: what every version of the JSON says about the grids of a model's tensors.

An `Entry` is one tensor's grid in no version's words. Every version has a file that reads and
writes entries; `collect` and `load` go between entries and the quantizers of a simulation, `diff`
compares.
"""

from fxquant.encodings.collect import entry_of, module_encodings
from fxquant.encodings.diff import Difference, diff
from fxquant.encodings.entry import Entry
from fxquant.encodings.file import FORMATS, EncodingsFile, as_text, read, write
from fxquant.encodings.load import load

__all__ = [
    "FORMATS",
    "Difference",
    "EncodingsFile",
    "Entry",
    "as_text",
    "diff",
    "entry_of",
    "load",
    "module_encodings",
    "read",
    "write",
]
