"""Which channels of which layers have to be scaled by the same factor.

The graph is walked once, with the ids of `scale_ids` in the place of values. A factor is free if
every operator between the layers that make its channels and those that take them in is positively
homogeneous, f(s x) = s f(x), and nothing else reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant import ops
from fxquant.graph.moved_channels import run_on
from fxquant.graph.rewriter import label
from fxquant.nn.stubs import DeQuantStub, QuantStub
from fxquant.placement.dataflow import is_float_spec, is_sequence, takes_item
from fxquant.ptq.cross_layer.scalable_layers import NORMS, ScalableLayer, layer_row, unshared
from fxquant.ptq.cross_layer.scale_ids import ScaleIds, along, settled, squeezed

# what draws numbers in training and returns its operand in evaluation: the dropouts
_DROPS = {
    name
    for name, row in ops.TABLE.rows.items()
    if row.effect is ops.Effect.RANDOM and row.memory is ops.Memory.VIEW
}
_PASS = _DROPS | {
    "relu", "leaky_relu", "prelu", "abs", "neg", "contiguous", "clone", "detach", "identity", "to",
    "type_as", "float", "double", "half", "bfloat16",
}  # fmt: skip
_MOVES = frozenset({
    "chunk", "split", "tensor_split", "unbind", "view", "reshape", "view_as", "flatten",
    "unflatten", "permute", "transpose", "swapaxes", "movedim", "t", "adjoint", "squeeze",
    "unsqueeze", "expand", "expand_as", "broadcast_to", "repeat", "tile", "repeat_interleave",
    "roll", "flip", "rot90", "narrow", "select", "getitem", "diagonal", "tril", "triu", "pad",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "unfold", "cat", "stack",
})  # fmt: skip
_JOINS = frozenset({"add", "sub", "maximum", "minimum", "where"})
_ALONG = frozenset({"mean", "sum", "amax", "amin", "max", "min", "topk", "sort", "cumsum"})
_SIZES = frozenset({"size", "dim", "ndimension", "numel", "getattr", "len", "__len__", "shape"})


class ChannelFlow:
    """Reads a prepared graph; see the module's docstring.

    Args:
        gm: the prepared graph.

    Attributes:
        ids: reasons and unions of ids.
        layers: layers and norms in the order of the graph.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm, self.ids = gm, ScaleIds()
        self.layers: list[ScalableLayer] = []
        self._values: dict[fx.Node, Any] = {}
        rows = {n: r for n in gm.graph.nodes if (r := layer_row(n, gm)) is not None}
        own = unshared(gm, rows)
        self._rows = {n: r for n, r in rows.items() if n in own}
        with torch.no_grad():
            for node in gm.graph.nodes:
                self._values[node] = self._value(node)
                for past in node.all_input_nodes:
                    if all(user in self._values for user in past.users):
                        self._values[past] = None

    # --- values ------------------------------------------------------------------------------

    def _value(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._fixed(node, "it is an input of the model")
        if node.op == "get_attr":
            return self._fixed(node, f"{node.target} is a constant")
        if node.op == "output":
            self._fix_operands(node, "it is an output of the model")
            return None
        item = takes_item(node)
        if item is not None:
            above = self._values.get(item[0])
            if isinstance(above, list) and isinstance(item[1], int):
                return above[item[1]]
            return self._opaque(node)
        if self._is_size(node):
            return None
        found = self._layer(node) if node in self._rows else self._operator(node)
        return self._opaque(node) if found is None else found

    def _is_size(self, node: fx.Node) -> bool:
        """Whether a node reads the shape or type of its operands only."""
        name = str(getattr(node.target, "__name__", node.target))
        return name in _SIZES and not is_float_spec(_spec(node))

    def _fixed(self, node: fx.Node, reason: str) -> Any:
        spec = _spec(node)
        if is_sequence(spec):
            return [self.ids.fixed(s.shape, reason) if is_float_spec(s) else None for s in spec]
        return self.ids.fixed(spec.shape, reason) if is_float_spec(spec) else None

    def _opaque(self, node: fx.Node) -> Any:
        """An operator that is not homogeneous, or that nothing is known of."""
        self._fix_operands(node, f"{label(node)} reads it")
        return self._fixed(node, f"{label(node)} computes it")

    def _fix_operands(self, node: fx.Node, reason: str) -> None:
        for operand in node.all_input_nodes:
            for ids in _tensors(self._values.get(operand)):
                self.ids.fix(ids, reason)

    def _ids(self, value: Any) -> Tensor | None:
        found = self._values.get(value) if isinstance(value, fx.Node) else None
        return found if isinstance(found, Tensor) else None

    # --- layers ------------------------------------------------------------------------------

    def _layer(self, node: fx.Node) -> Tensor | None:
        module, row = self.gm.get_submodule(str(node.target)), self._rows[node]
        given, spec = self._ids(ops.arguments(node, self.gm).get("input")), _spec(node)
        if given is None or not is_float_spec(spec) or given.dim() != len(spec.shape):
            return None
        weight = module.get_parameter("weight")
        if row in NORMS:
            return self._norm(node, module, row, given)
        dim = -1 if row == "linear" else -(weight.dim() - 1)
        inputs = self.ids.channels(given, dim)
        outputs = self.ids.fresh(spec.shape[dim])
        self.layers.append(ScalableLayer(node, module, row, outputs, inputs))
        return along(outputs, dim, spec.shape)

    def _norm(self, node: fx.Node, module: nn.Module, row: str, given: Tensor) -> Tensor | None:
        shape = _spec(node).shape
        dim = -1 if row in ("layer_norm", "rms_norm") else 1
        weight = module.get_parameter("weight")
        if weight.dim() != 1 or shape[dim] != weight.numel():
            return None
        self.ids.fix(given, f"{label(node)} reads it")
        outputs = self.ids.fresh(shape[dim])
        self.layers.append(ScalableLayer(node, module, row, outputs, outputs[:0]))
        return along(outputs, dim, shape)

    # --- operators ---------------------------------------------------------------------------

    def _operator(self, node: fx.Node) -> Any:
        if node.op == "call_module":
            module = self.gm.get_submodule(str(node.target))
            if module._forward_hooks or module._forward_pre_hooks:
                return None
            if isinstance(module, (QuantStub, DeQuantStub)):
                return self._values.get(node.all_input_nodes[0])
        row = ops.row_of(node, self.gm)
        if row is None:
            return None
        rule = self._rule(row.name)
        return None if rule is None else rule(node, ops.arguments(node, self.gm), _spec(node))

    def _rule(self, name: str) -> Callable[[fx.Node, dict[str, Any], Any], Any] | None:
        if name in _PASS:
            return self._pass
        if name in _MOVES:
            return self._move
        if name in _JOINS:
            return self._join
        if name in _ALONG:
            return self._along
        if "pool" in name or name == "interpolate":
            return self._spatial
        return {
            "clamp": self._clamp, "clamp_min": self._clamp, "threshold": self._clamp,
            "mul": self._multiply, "div": self._multiply, "matmul": self._product,
            "bmm": self._product, "scaled_dot_product_attention": self._attention,
            "masked_fill": self._masked,
        }.get(name)  # fmt: skip

    def _pass(self, node: fx.Node, given: dict[str, Any], spec: Any) -> Tensor | None:
        ids = self._ids(given["input"])
        if ids is None or not is_float_spec(spec) or ids.shape != spec.shape:
            return None
        for operand in node.all_input_nodes:  # a slope that is computed
            other = self._ids(operand)
            if operand is not given["input"] and other is not None:
                self.ids.fix(other, f"{label(node)} reads it")
        return ids

    def _clamp(self, node: fx.Node, given: dict[str, Any], spec: Any) -> Tensor | None:
        bounds = [given.get(k) for k in ("min", "max", "threshold", "value")]
        return self._pass(node, given, spec) if all(b is None or b == 0 for b in bounds) else None

    def _move(self, node: fx.Node, _given: dict[str, Any], spec: Any) -> Any:
        """Run the operator itself on ids."""
        tensors = [n for n in node.all_input_nodes if is_float_spec(_spec(n))]
        others = [n for n in node.all_input_nodes if _has_tensor(_spec(n)) and n not in tensors]
        if others or any(self._ids(n) is None for n in tensors):
            return None
        made = run_on(node, self.gm, self._run_argument)
        shapes = [s.shape for s in spec] if is_sequence(spec) else [getattr(spec, "shape", None)]
        parts = list(made) if is_sequence(made) else [made]
        if [tuple(p.shape) for p in parts] != [tuple(s) if s is not None else s for s in shapes]:
            return None
        # a padding with minus infinity fits every factor, as zeros do
        parts = [settled(p.clamp(min=0) if bool((p < 0).any()) else p) for p in parts]
        return parts if is_sequence(made) else parts[0]

    def _run_argument(self, node: fx.Node) -> Any:
        found = self._values.get(node)
        return _spec(node) if found is None else found

    def _join(self, node: fx.Node, given: dict[str, Any], spec: Any) -> Tensor | None:
        names = [k for k in ("input", "other") if k in given]
        values = [given[k] for k in names]
        ids = [self._ids(v) for v in values]
        numbers = [v for v, i in zip(values, ids, strict=True) if i is None]
        if len(numbers) == len(values) or not is_float_spec(spec):
            return None
        if any(isinstance(v, fx.Node) or (v != 0 and not math.isinf(v)) for v in numbers):
            return None
        found = [i.expand(spec.shape) for i in ids if i is not None]
        for other in found[1:]:
            self.ids.join(found[0], other)
        return found[0] if len(found) == 1 else torch.maximum(*squeezed(*found)).expand(spec.shape)

    def _multiply(self, node: fx.Node, given: dict[str, Any], spec: Any) -> Tensor | None:
        if given.get("rounding_mode") is not None or not is_float_spec(spec):
            return None
        first, second = self._ids(given["input"]), self._ids(given["other"])
        if first is None and isinstance(given["input"], fx.Node):
            return None
        if second is None and _has_tensor(_spec_of(given["other"])):
            return None  # a tensor of integers
        if second is None:
            return None if first is None else first.expand(spec.shape)
        name = ops.row_of(node, self.gm)
        if first is not None and self.ids.is_fixed(second):
            return first.expand(spec.shape)
        dividing = name is not None and name.name == "div"
        if not dividing and (first is None or self.ids.is_fixed(first)):
            return second.expand(spec.shape)
        return None

    def _along(self, node: fx.Node, given: dict[str, Any], spec: Any) -> Any:
        ids, dim = self._ids(given["input"]), given.get("dim")
        if ids is None or isinstance(dim, fx.Node):
            return None
        every = range(ids.dim()) if dim is None or dim == () else dim
        dims = [every] if isinstance(every, int) else list(every)
        made = self.ids.collapse(ids, dims)
        first = spec[0] if is_sequence(spec) else spec
        if not is_float_spec(first):
            return None
        if len(first.shape) < made.dim():
            made = made.squeeze(tuple(dims))
        made = made.expand(first.shape)
        return [made, *[None] * (len(spec) - 1)] if is_sequence(spec) else made

    def _spatial(self, node: fx.Node, given: dict[str, Any], spec: Any) -> Any:
        """Poolings and resizing: every channel by itself."""
        ids, row = self._ids(given["input"]), ops.row_of(node, self.gm)
        if ids is None or row is None:
            return None
        first = spec[0] if is_sequence(spec) else spec
        count = ids.dim() - 2 if row.name == "interpolate" else int(row.name[-2])
        made = self.ids.collapse(ids, range(-count, 0)).expand(first.shape)
        return [made, *[None] * (len(spec) - 1)] if is_sequence(spec) else made

    def _product(self, node: fx.Node, given: dict[str, Any], spec: Any) -> Tensor | None:
        row = ops.row_of(node, self.gm)
        names = row.signature.parameters if row else ()
        first, second = (self._ids(given[k]) for k in list(names)[:2])
        if first is None or second is None or first.dim() < 2 or second.dim() < 2:
            return None
        if self.ids.is_fixed(first):
            return self.ids.collapse(second, [-2]).expand(spec.shape)
        if self.ids.is_fixed(second):
            return self.ids.collapse(first, [-1]).expand(spec.shape)
        return None

    def _attention(self, node: fx.Node, given: dict[str, Any], spec: Any) -> Tensor | None:
        value = self._ids(given["value"])
        if value is None or given.get("enable_gqa"):
            return None
        for name in ("query", "key", "attn_mask"):
            other = self._ids(given.get(name))
            if other is not None:
                self.ids.fix(other, f"{label(node)} reads it")
        return self.ids.collapse(value, [-2]).expand(spec.shape)

    def _masked(self, node: fx.Node, given: dict[str, Any], spec: Any) -> Tensor | None:
        ids, value = self._ids(given["input"]), given["value"]
        if ids is None or isinstance(value, fx.Node) or (value != 0 and not math.isinf(value)):
            return None
        return ids.expand(spec.shape)


def _spec(node: fx.Node) -> Any:
    return node.meta.get("spec")


def _spec_of(value: Any) -> Any:
    return _spec(value) if isinstance(value, fx.Node) else None


def _has_tensor(spec: Any) -> bool:
    if hasattr(spec, "dtype"):
        return True
    return is_sequence(spec) and any(map(_has_tensor, spec))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
