"""Inputs that a model is called with, as batches to measure on later."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fxquant.graph.pytree import fresh_inputs, samples_of
from fxquant.tracing.signature import input_name, placeholder_values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import fx


@contextmanager
def capturing(gm: fx.GraphModule, samples: int) -> Iterator[list[dict[str, Any]]]:
    """Copies of what a graph is called with, by name of the input, until there are enough samples.

    Args:
        gm: the graph.
        samples: samples that are enough; whole batches are taken.
    """
    holders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    names = list(map(input_name, holders))
    found: list[dict[str, Any]] = []
    count = 0

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal count
        if count < samples:
            values = fresh_inputs(placeholder_values(holders, args, kwargs))
            found.append(dict(zip(names, values, strict=True)))
            count += samples_of(values)

    handle = gm.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()
