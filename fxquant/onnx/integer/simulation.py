"""A simulation as the runtime computes it: a torch module over the exact integer executor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxquant.graph.pytree import map_leaves, tensors
from fxquant.nn.modes import evaluating
from fxquant.onnx.integer.kernels.arithmetic import Array
from fxquant.onnx.integer.model import IntegerModel, Placed
from fxquant.onnx.lowering.lower import lower
from fxquant.onnx.ort.feeds import Feeds, feeds_of
from fxquant.onnx.runs.observed import bound_example
from fxquant.onnx.runs.randomness import check_modes

if TYPE_CHECKING:
    from fxquant.targets import Deploy

Example = tuple[tuple[Any, ...], Mapping[str, Any]]


class LoweredSimulation(nn.Module):
    """Takes and returns what the simulated model takes and returns, computed from its ONNX form.

    Inputs may be arrays of numpy, too. Sizes that the file would fix are fixed here.

    Args:
        gm: calibrated model of a simulation; later changes of it do not show here.
        example: positional and keyword inputs.
        opset: version of the ONNX operators.
        contrib: whether onnxruntime's own operators are used, as an export does.
        deploy: the CPUs that the file would be written for.

    Attributes:
        lowered: the lowering it was made from: which ONNX value is which tensor of the simulation.
    """

    def __init__(
        self, gm: fx.GraphModule, example: Example, *, opset: int = 21,
        contrib: bool = False, deploy: Deploy = "any",
    ) -> None:  # fmt: skip
        super().__init__()
        check_modes(gm, bound_example(gm, example))
        with evaluating(gm), torch.no_grad():
            self.lowered = lower(gm, example, opset=opset, contrib=contrib, deploy=deploy)
            template = gm(*bound_example(gm, example))
        self._template = map_leaves(template, _emptied)
        self._simulated = (gm,)  # in a tuple, so that it does not count as a part of this module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The result for these inputs, in the containers the model returns."""
        found = self.outputs(self._feeds(args, kwargs))
        return map_leaves(self._template, _Filler(iter(found.values())))

    def outputs(self, feeds: Feeds) -> Mapping[str, Array]:
        """The outputs of the graph by name, in order."""
        raise NotImplementedError

    def _feeds(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Feeds:
        """Tensors and arrays in the order of the inputs, refused where the exported file would."""
        given = map_leaves(bound_example(self._simulated[0], (args, kwargs)), _as_tensor)
        return feeds_of(self.lowered.model.graph, tensors(given))


class IntegerSimulation(LoweredSimulation):
    """A simulation computed in integers.

    Args:
        gm: see `LoweredSimulation`.
        example: positional and keyword inputs.
        islands: see `IntegerModel`.
        cpu: see `IntegerModel`.
        lowering: options of `LoweredSimulation`.

    Attributes:
        integers: the executor, with `tensors()` and `placement()`.
    """

    def __init__(
        self, gm: fx.GraphModule, example: Example, *, islands: str = "own", cpu: str = "exact",
        **lowering: Any,
    ) -> None:  # fmt: skip
        super().__init__(gm, example, **lowering)
        self.integers = IntegerModel(self.lowered.model, islands=islands, cpu=cpu)

    def outputs(self, feeds: Feeds) -> Mapping[str, Array]:
        """The outputs of the graph by name, in order."""
        return self.integers.run(feeds)

    def tensors(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Every quantized tensor by its name in the ONNX graph, for these inputs."""
        return self.integers.run(self._feeds(args, kwargs), self.integers.quantized_names)

    def placement(self) -> tuple[Placed, ...]:
        """Where each operator runs."""
        return self.integers.placement()


def _as_tensor(leaf: Any) -> Any:
    return torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf


def _emptied(leaf: Any) -> Any:
    """A leaf without its data: what kind of value stands there."""
    return torch.empty(0, dtype=leaf.dtype) if isinstance(leaf, Tensor) else leaf


class _Filler:
    """Puts results in the places of a template, in order."""

    def __init__(self, results: Iterator[Array]) -> None:
        self.results = results

    def __call__(self, leaf: Any) -> Any:
        if leaf is None:
            return None
        array = next(self.results)
        if isinstance(leaf, Tensor):
            return torch.from_numpy(np.array(array))
        return type(leaf)(array.item())
