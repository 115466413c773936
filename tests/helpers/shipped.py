"""A file at every optimization level, on any CPU: as it is, and in a form that is exact here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxquant.onnx.lowering.unsigned_products import exact_model
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.onnx.parity.shipped_file import ALL_LEVELS
from fxquant.onnx.session import open_session, packed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor


class Shipped:
    """Sessions over a file that was exported.

    The file itself is opened and run at every level. Where this CPU saturates byte products, what
    it computes is not what the simulation does: there the same integers are computed as unsigned
    products, which every CPU computes exactly, and the file must load and run. Sizes may depend on
    values, so ranks and types are compared of it.
    """

    def __init__(self, path: Path) -> None:
        self.files = [open_session(path, level) for level in ALL_LEVELS]
        self.exact = self.files
        if not this_cpu().exact:
            with packed(exact_model(path)) as source:
                self.exact = [open_session(source, level) for level in ALL_LEVELS]

    def run(self, given: Sequence[Tensor]) -> Iterator[list[Any]]:
        """The outputs on positional inputs, level after level."""
        for file, exact in zip(self.files, self.exact, strict=True):
            feeds = {n: t.numpy() for n, t in zip(file.inputs, given, strict=True)}
            found = list(exact.run(feeds).values())
            if file is not exact:
                kinds = [(a.ndim, a.dtype) for a in file.run(feeds).values()]
                assert kinds == [(a.ndim, a.dtype) for a in found]
            yield found
