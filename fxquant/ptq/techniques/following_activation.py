"""The activation that follows a layer, as a function of single elements."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fxquant import ops
from fxquant.nn import QuantizationMixin

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, fx, nn

# numbers by which a module shows whether it treats every element by itself
_PROBE = (-7.0, -2.5, -0.3, 0.0, 0.4, 1.7, 5.0, 9.0)


def activation_after(
    gm: fx.GraphModule, node: fx.Node
) -> tuple[str, Callable[[Tensor], Tensor]] | None:
    """Path and function of the activation that alone reads a layer's output, or None.

    It is one of `torch.nn` without parameters that computes every element from that element.
    """
    user = next(iter(node.users), None)
    if user is None or len(node.users) != 1 or user.op != "call_module":
        return None
    if user.all_input_nodes != [node]:
        return None
    module = gm.get_submodule(str(user.target))
    row = ops.row_of(user, gm)
    if row is None or not _is_elementwise(module, row):
        return None
    plain = module.get_original_module() if isinstance(module, QuantizationMixin) else module
    return str(user.target), _not_in_place(plain)


def _is_elementwise(module: nn.Module, row: ops.Op) -> bool:
    made_by_torch = row.module.__module__.startswith("torch.nn.modules.activation")
    if not made_by_torch or next(module.parameters(recurse=False), None) is not None:
        return False
    if row.grid is ops.Grid.FLOAT or row.inputs != ("input",) or row.effect is not None:
        return False
    plain = module.get_original_module() if isinstance(module, QuantizationMixin) else module
    probe = torch.tensor(_PROBE)
    try:
        together = plain(probe.clone().reshape(2, 4))
        alone = torch.stack([plain(x.reshape(1, 1).clone()).reshape(()) for x in probe])
    except (RuntimeError, TypeError, IndexError):
        return False
    same: bool = together.shape == (2, 4) and torch.allclose(together.reshape(-1), alone)
    return same


def _not_in_place(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module on a copy where it would write into its input."""
    if getattr(module, "inplace", False):
        return lambda x: module(x.clone())
    return lambda x: module(x)
