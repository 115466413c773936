"""Further inputs of a file: other values, other batch sizes, and what the simulation gives on them.

A proof on the example alone does not see what was frozen by accident: a size that depends on
values, rows of another batch, an index that was taken for a constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.graph.pytree import fresh_inputs, tensors
from fxquant.nn.modes import evaluating
from fxquant.onnx.runs.observed import REFUSALS, Example, bound_example
from fxquant.onnx.runs.varying import CUT, Varying, other_values
from fxquant.onnx.runs.visible_writes import preserved


@dataclass(frozen=True)
class Variation:
    """One more input.

    Attributes:
        what: what differs from the example, for people.
        example: positional and keyword inputs.
        outputs: all output tensors of the simulation, in order.
    """

    what: str
    example: Example
    outputs: tuple[Tensor, ...]


def variations(
    gm: fx.GraphModule, example: Example, varying: Varying, *, at_most: int = 3
) -> list[Variation]:
    """Inputs other than the example that a file must compute as the simulation does.

    They are the same in every call, and torch's generator of random numbers is left alone.

    Args:
        gm: the simulation's graph; training flags and buffers are as before afterwards.
        example: the example that was lowered.
        varying: what its lowering decided may vary (`Lowered.varying`).
        at_most: how many.

    Returns:
        Other values at the example's sizes, then other batch sizes where the batch is dynamic.
        Inputs that the simulation itself refuses are left out.

    Raises:
        ExportError: FXQ501, the example lacks an input.
    """
    values = bound_example(gm, example)
    found: list[Variation] = []
    with preserved(gm), evaluating(gm), torch.no_grad():
        count = len(_outputs(gm, values))
        for number, (what, same) in enumerate(_sized(values, varying)):
            if len(found) == at_most:
                break
            # where other values are refused (indices that must differ), at least another size
            for given in (other_values(same, varying, number), same):
                outputs = _tried(gm, given)
                if outputs is not None and len(outputs) == count and not _equal(given, values):
                    found.append(Variation(what, (tuple(given), {}), outputs))
                    break
    return found


def _sized(values: list[Any], varying: Varying) -> Iterator[tuple[str, list[Any]]]:
    yield "other values", values
    if varying.batch is None or not varying.dynamic:
        return
    batch = varying.batch
    fewer = [n for n in (*reversed(CUT), 1) if n != batch]
    for wanted in fewer if varying.cut or batch == 1 else [batch + 1, 2 * batch]:
        yield f"a batch of {wanted}", varying.resized(values, wanted)


def _tried(gm: fx.GraphModule, values: list[Any]) -> tuple[Tensor, ...] | None:
    try:
        return _outputs(gm, values)
    except REFUSALS:
        # an input that the model cannot take says nothing about its file
        return None


def _outputs(gm: fx.GraphModule, values: list[Any]) -> tuple[Tensor, ...]:
    interpreter = fx.Interpreter(gm)
    interpreter.extra_traceback = False
    # a graph may write into its inputs
    result = interpreter.run(*fresh_inputs(values))
    return tuple(t.detach().as_subclass(Tensor) for t in tensors(result))


def _equal(a: list[Any], b: list[Any]) -> bool:
    pairs = zip(tensors(a), tensors(b), strict=True)
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)
