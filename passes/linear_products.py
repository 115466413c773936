"""Products with a parameter, as linear layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant.graph.meta import TensorSpec
from fxquant.graph.pass_infra import Fact, Pass
from fxquant.nn import dense
from fxquant.nn import functional as fn
from fxquant.nn.dense import Dense, adopt, layer_of
from fxquant.placement.dataflow import is_float_spec
from fxquant.placement.product_weights import (
    AXIS_MOVES,
    PRODUCTS,
    erase_unread,
    obstacle,
    written_tensors,
)
from fxquant.placement.regions import find_regions

if TYPE_CHECKING:
    from fxquant.graph.rewriter import Rewriter
    from fxquant.placement.regions import Regions

_JOINED = "was joined, as its bias, into"


@dataclass(frozen=True)
class LinearProducts(Pass):
    """Give products with a parameter the module of a linear layer, which is what they are.

    Before: `add(matmul(x, w), b)`, `addmm(b, x, w)`, `linear(x, t(w), b)` or `matmul(w, x)`.
    After: `linear(x)`, whose module holds the very `w` and `b`; for a parameter on the left, with
        transposes around it.

    Why: a weight has bits, channels and techniques of its own, which the second operand of a
    product of activations has not; and onnxruntime computes a product in integers only with a bias
    that is an integer too. The sum is rounded in another place, so it is done for the simulation
    only, like taking attention apart.
    """

    needs = frozenset({Fact.MODULES_ONLY, Fact.UNIQUE_MODULES})

    def run(self, rw: Rewriter) -> None:
        """Look at every product, then at what is added to its result."""
        regions, changing = find_regions(rw.gm), written_tensors(rw)
        for node in rw.nodes:
            product = _product(rw, node)
            if product is None:
                continue
            reason = _objection(rw, node, product, regions, changing)
            if reason:
                rw.skip(node, reason)
            else:
                _become_linear(rw, node, product)
        for node in rw.nodes:
            _join_bias(rw, node, regions, changing)


@dataclass(frozen=True)
class _Weight:
    """A stored tensor as a product reads it.

    Attributes:
        tensor: as it is stored.
        turned: whether it is read with its last two axes the other way round.
    """

    tensor: Tensor
    turned: bool


@dataclass(frozen=True)
class _Product:
    """`x @ weight + bias`, or `weight @ x` if the weight is on the left."""

    x: Any
    weight: _Weight
    bias: Any = None
    left: bool = False


def _product(rw: Rewriter, node: fx.Node) -> _Product | None:
    """How a node multiplies a value with a stored weight, or None."""
    row, module = rw.op(node), rw.module(node)
    if row is None or not isinstance(module, fn.Functional) or not is_float_spec(_spec(node)):
        return None
    given = rw.arguments(node)
    if row.name in PRODUCTS:
        first, second = (given[name] for name in row.inputs)
        right, left = _weight(rw, second), _weight(rw, first)
        if right is not None:
            return _Product(first, right)
        return None if left is None else _Product(second, left, left=True)
    if row.name == "addmm" and given["beta"] == given["alpha"] == 1:
        right = _weight(rw, given["mat2"])
        if right is not None and rw.constant(given["input"]) is not None:
            return _Product(given["mat1"], right, given["input"])
    if row.name == dense.ROW:
        found = _weight(rw, given["weight"])
        if found is not None and found.tensor.dim() == 2:
            turned = replace(found, turned=not found.turned)
            return _Product(given["input"], turned, given["bias"])
    return None


def _weight(rw: Rewriter, operand: Any) -> _Weight | None:
    """The stored tensor that an operand is, perhaps transposed, or None."""
    moves: list[fx.Node] = []
    while isinstance(operand, fx.Node) and operand.op == "call_module":
        row = rw.op(operand)
        if row is None or row.name not in AXIS_MOVES or len(operand.all_input_nodes) != 1:
            return None
        if row.name != "contiguous":  # a copy has the values where a view has them
            moves.insert(0, operand)
        operand = rw.arguments(operand)[row.inputs[0]]
    tensor = rw.constant(operand)
    if tensor is None or tensor.dim() == 0 or not tensor.is_floating_point():
        return None
    start = found = torch.empty(tensor.shape, device="meta")
    for move in moves:
        found = _moved(rw, move, found)
    for turned in (False, True)[: tensor.dim()]:
        wanted = start.mT if turned else start
        if (found.shape, found.stride()) == (wanted.shape, wanted.stride()):
            return _Weight(tensor, turned)
    return None


def _moved(rw: Rewriter, move: fx.Node, value: Tensor) -> Tensor:
    """What a node that moves axes makes of a value."""
    args = fx.node.map_arg(move.args, lambda _: value)
    kwargs = fx.node.map_arg(move.kwargs, lambda _: value)
    result: Tensor = _module(rw, move)(*args, **kwargs)
    return result


def _objection(
    rw: Rewriter, node: fx.Node, product: _Product, regions: Regions | None, changing: set[int]
) -> str:
    """Why a product is not written as a linear layer, or nothing."""
    rank, bias = product.weight.tensor.dim(), rw.constant(product.bias)
    reason = obstacle(node, product.x, product.weight.tensor, regions, changing)
    if reason:
        return reason
    if len(_spec(product.x).shape) < 2 and (product.left or rank != 2):
        return "a vector is no row of a linear layer's input here"
    if product.left and rank != 2:
        return "what it has on the left is no matrix"
    if product.bias is not None and not _is_bias(bias, _spec(node), changing):
        return "what it adds is no vector that is stored"
    return ""


def _become_linear(rw: Rewriter, node: fx.Node, product: _Product) -> None:
    operands = list(node.all_input_nodes)
    made = _layer(product, rw.constant(product.bias))
    rw.set_module(str(node.target), made.train(_module(rw, node).training))
    x, spec = product.x, _spec(node)
    if product.left:
        given = _turned(_spec(x))
        x = rw.new_module(fn.Transpose(), x, -2, -1, like=node, name="columns", spec=given)
        _pass_on(rw, node, fn.Transpose(), -2, -1, name="rows")
        node.meta["spec"] = _turned(spec)
    elif product.weight.tensor.dim() == 1:
        _pass_on(rw, node, fn.Squeeze(), -1, name="column")
        node.meta["spec"] = spec._replace(shape=(*spec.shape, 1))
    rw.call_anew(node, x, kwargs={})
    rw.explain(node, "it multiplies with a stored weight, so it is a linear layer")
    for operand in operands:
        erase_unread(rw, operand)


def _pass_on(rw: Rewriter, node: fx.Node, module: nn.Module, *args: Any, name: str) -> None:
    """Let what reads a value read what a module makes of it."""
    users = list(node.users)
    with rw.after(node):
        made = rw.new_module(module, node, *args, like=node, name=name)
    rw.redirect(node, made, users)


def _layer(product: _Product, bias: Tensor | None) -> nn.Module:
    weight, rank = product.weight.tensor, product.weight.tensor.dim()
    if rank == 1:
        return layer_of(weight, outputs=())
    # a weight on the left is read as `x.T @ weight.T`
    output = rank - 2 if product.weight.turned != product.left else rank - 1
    given = _spec(product.x)  # axes of size one are kept where they are more than the input's
    several = any(size != 1 for size in weight.shape[:-2]) or rank > len(given.shape)
    batch = range(rank - 2) if several else ()
    return layer_of(weight, bias, outputs=(output,), batch=batch)


def _join_bias(rw: Rewriter, node: fx.Node, regions: Regions | None, changing: set[int]) -> None:
    """Let a linear layer without a bias take in a vector that alone is added to its result.

    Before: `add(linear(x), b)`. After: `linear(x)` with the bias `b`.
    """
    module, user = rw.module(node), next(iter(node.users), None)
    # of no class that extends them: its forward may do without a bias
    if module is None or type(module) not in (nn.Linear, Dense):
        return
    if user is None or not isinstance(rw.module(user), fn.Add) or len(node.users) != 1:
        return
    given = rw.arguments(user)
    added = given["input"] if given["other"] is node else given["other"]
    bias = rw.constant(added)
    if not _is_bias(bias, _spec(node), changing) or given["alpha"] != 1:
        return
    if module._parameters.get("bias") is not None or module._buffers.get("bias") is not None:
        rw.skip(user, f"{node.name} has a bias already")
    elif regions is not None and not (regions.holds(node) and regions.holds(user)):
        rw.skip(user, "it lies outside of the quantized regions")
    elif isinstance(module, Dense) and module.batch:
        rw.skip(user, f"the weight of {node.name} is several matrices")
    elif module._forward_hooks:
        rw.skip(user, f"a hook reads the result of {node.name}")
    else:
        rw.edit(lambda: adopt(module, bias=bias))
        rw.replace(user, node, _JOINED)
        erase_unread(rw, added)


def _is_bias(tensor: Tensor | None, spec: TensorSpec, changing: set[int]) -> bool:
    """Whether a stored tensor is one number for each channel of a value."""
    if tensor is None or id(tensor) in changing:
        return False
    return tuple(tensor.shape) == spec.shape[-1:] and tensor.dtype == spec.dtype


def _module(rw: Rewriter, node: fx.Node) -> nn.Module:
    return rw.gm.get_submodule(str(node.target))


def _spec(node: fx.Node) -> Any:
    return node.meta.get("spec")


def _turned(spec: TensorSpec) -> TensorSpec:
    *outer, rows, columns = spec.shape
    return spec._replace(shape=(*outer, columns, rows))
