"""Which tensors of a graph may share memory, which nodes write into one, calls without a write.

The answers are on the safe side: what is not known to make new memory may return its operand.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxquant import ops
from fxquant.graph.meta import TensorSpec, spec, spec_of

_NO_VALUE_WRITTEN = frozenset({"requires_grad_", "retain_grad", "rename_", "share_memory_"})
OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
    operator.ilshift: operator.lshift,
    operator.irshift: operator.rshift,
}
_IN_PLACE_NAMES = frozenset({*(f.__name__ for f in OUT_OF_PLACE), "idiv"})


def written(node: fx.Node, root: fx.GraphModule) -> fx.Node | None:
    """The node whose tensor `node` writes into, or None.

    Written are the first operand of in-place functions, operators and methods, the target of
    `x[i] = y` and of `out=`, and the input of a module with `inplace=True`.
    """
    if node.op not in ("call_function", "call_method", "call_module"):
        return None
    out = node.kwargs.get("out")
    if isinstance(out, fx.Node):
        return out
    if not (_writes_by_name(node) or _writes_by_flag(node, root)):
        return None
    first = next(iter([*node.args, *node.kwargs.values()]), None)
    # `isub(1.5, x)` makes a new tensor
    return first if isinstance(first, fx.Node) else None


def _writes_by_name(node: fx.Node) -> bool:
    if node.op == "call_module":
        return False
    if node.op == "call_method":
        name = str(node.target)
        if name.endswith("__"):
            return name == "__setitem__" or name[2:-2] in _IN_PLACE_NAMES
        return name.endswith("_") and name not in _NO_VALUE_WRITTEN
    if node.target in OUT_OF_PLACE or node.target in (operator.setitem, setattr):
        return True
    name = getattr(node.target, "__name__", "")
    space = str(getattr(node.target, "__module__", None))
    ours = space.startswith(("torch", "None"))
    return ours and name.endswith("_") and not name.endswith("__")


def _writes_by_flag(node: fx.Node, root: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    if ops.TABLE.spelling(node) is None:
        return bool(node.kwargs.get("inplace"))
    try:
        return bool(ops.arguments(node, root).get("inplace"))
    except TypeError:  # the row knows another form of the function
        return bool(node.kwargs.get("inplace"))


def viewed(node: fx.Node, root: fx.GraphModule) -> list[fx.Node]:
    """The operands whose memory the value of `node` may share."""
    if node.op in ("placeholder", "get_attr", "output") or isinstance(node.target, type):
        return []  # a container that the model returns; nothing in the graph looks into it
    target = written(node, root)
    if target is not None:
        return [target]
    if node.op == "call_function" and node.target is operator.getitem:
        return [] if _is_given(node.args[0]) or _gathers(node) else node.all_input_nodes[:1]
    row = ops.row_of(node, root)
    if row is None:
        new = _is_plain(node) or _fills(node) or _makes_memory(_function_name(node, root))
        return [] if new else _tensors(node)
    if row.memory is not ops.Memory.NEW:
        return node.all_input_nodes[:1]
    return [] if _is_house_module(node, root) else _tensors(node)


def _function_name(node: fx.Node, root: fx.GraphModule) -> str:
    target = node.target
    if node.op == "call_module":  # a function without a row, held by a module
        target = getattr(root.get_submodule(str(target)), "function", "")
    home = str(getattr(target, "__module__", None) or "torch")
    known = isinstance(target, str) or home.partition(".")[0] in ("torch", "_operator", "None")
    return str(getattr(target, "__name__", target)) if known else ""


@functools.cache
def _makes_memory(name: str) -> bool:
    """Whether all forms of a function of torch that are no compositions return new memory."""
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    forms = [getattr(packet, o) for o in packet.overloads()] if packet is not None else []
    # some forms, for numbers, are known to the compiler of TorchScript alone
    forms = [f for f in forms if torch._C._dispatch_has_kernel(f.name())]
    return bool(forms) and not any(
        torch._C._dispatch_has_kernel_for_dispatch_key(f.name(), "CompositeImplicitAutograd")
        or any(result.alias_info is not None for result in f._schema.returns)
        for f in forms
        if not f._schema.is_mutable
    )


def _tensors(node: fx.Node) -> list[fx.Node]:
    """The operands that are or hold tensors."""
    return [n for n in node.all_input_nodes if not _is_plain(n)]


def _fills(node: fx.Node) -> bool:
    """Whether a node makes a new tensor by filling it: `x.new_zeros(...)`, `zeros_like(x)`."""
    name = str(getattr(node.target, "__name__", node.target))
    return name.startswith("new_") or name.endswith("_like")


def _is_given(container: Any) -> bool:
    """Whether it is a container of inputs: the tensors in it are memory of their own."""
    is_input = isinstance(container, fx.Node) and container.op == "placeholder"
    return is_input and not isinstance(container.meta.get("spec"), TensorSpec)


def _gathers(node: fx.Node) -> bool:
    """Whether `x[i]` copies because `i` holds a tensor or a list."""
    index = node.args[1]
    parts = index if isinstance(index, tuple) else (index,)
    tensors = [p for p in parts if isinstance(p, fx.Node)]
    return any(isinstance(p, list) for p in parts) or any(
        isinstance(p.meta.get("spec"), TensorSpec) for p in tensors
    )


def _is_plain(node: fx.Node) -> bool:
    """Whether the value is no tensor: numbers, sizes."""
    value = node.meta.get("spec")
    return (
        value is not None
        and not hasattr(value, "shape")
        and not isinstance(value, tuple | list | dict)
    )


def _is_house_module(node: fx.Node, root: fx.GraphModule) -> bool:
    if node.op != "call_module":
        return True
    module: nn.Module = root.get_submodule(str(node.target))
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module).__module__.startswith(("torch.nn.", "fxquant.")) and not hooked


def view_of(node: fx.Node, root: fx.GraphModule) -> fx.Node | None:
    """The tensor of which `node` is surely a view that `x[i] = y` or a reshape can write back to.

    That is `x[i]` with an index of numbers and slices, and `x.view(...)`.
    """
    row = ops.row_of(node, root) if node.op in ("call_function", "call_method") else None
    if row is None or row.name not in ("getitem", "view"):
        return None
    given = ops.arguments(node, root)
    base = given["input"]
    if not isinstance(base, fx.Node) or (row.name == "getitem" and not _is_basic(given["index"])):
        return None
    return base


def _is_basic(index: Any) -> bool:
    """Whether an index of numbers, slices, None and `...` makes a view, not a copy."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is Ellipsis or isinstance(p, slice) or type(p) is int for p in parts)


def aliases(node: fx.Node, root: fx.GraphModule) -> set[fx.Node]:
    """All nodes whose tensors may share memory with `node`'s, itself included."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        here = waiting.pop()
        if here in found:
            continue
        found.add(here)
        waiting += viewed(here, root)
        waiting += [user for user in here.users if here in viewed(user, root)]
    return found


def disjoint(a: fx.Node, b: fx.Node, root: fx.GraphModule) -> bool:
    """Whether two nodes are different elements of one chunk, or of one topk."""
    first, second = _part(a, root), _part(b, root)
    return bool(first and second and first[0] is second[0] and first[1] != second[1])


def _part(node: fx.Node, root: fx.GraphModule) -> tuple[fx.Node, Any] | None:
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    container, key = node.args
    if not isinstance(container, fx.Node) or not isinstance(key, int):
        return None
    row = ops.row_of(container, root)
    apart = row is not None and row.memory is not ops.Memory.VIEW
    return (container, key) if apart else None


# `x.copy_(y)`, `x.fill_(2)` and `x.zero_()` are `x[...] = y`
_ASSIGNING = frozenset({"copy_", "fill_", "zero_"})


def assigned(node: fx.Node) -> tuple[Any, Any] | None:
    """(index, value) of a node that assigns to all or to some of a tensor, or None.

    >>> graph = fx.Graph()
    >>> assigned(graph.call_method("fill_", (graph.placeholder("x"), 2)))
    (Ellipsis, 2)
    """
    if node.target in (operator.setitem, "__setitem__"):
        return node.args[1], node.args[2]
    if node.op != "call_method" or node.target not in _ASSIGNING:
        return None
    if node.target == "zero_":
        return Ellipsis, 0
    values = [*node.args[1:2], *(v for k, v in node.kwargs.items() if k in ("src", "value"))]
    return (Ellipsis, values[0]) if values else None


def plain_target(node: fx.Node) -> Any:
    """The out-of-place function or method of a call_function or call_method node, or None."""
    if node.target is setattr:
        return None
    if "out" in node.kwargs:
        return node.target
    name = str(getattr(node.target, "__name__", node.target))
    if node.op == "call_method":
        name = f"__{name[3:]}" if name.startswith("__i") else name.rstrip("_")
        return name if hasattr(torch.Tensor, name) else None
    if node.target in OUT_OF_PLACE:
        return OUT_OF_PLACE[node.target]
    if not name.endswith("_"):
        return node.target  # `inplace=True`
    return next((f for m in (torch, F) if (f := getattr(m, name.rstrip("_"), None))), None)


def plain_arguments(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments without `inplace` and `out`, wherever they stood."""
    kwargs = {k: v for k, v in node.kwargs.items() if k not in ("inplace", "out")}
    spelled = ops.TABLE.spelling(node)
    names = list(spelled.signature.parameters) if spelled else []
    if "inplace" not in names or len(node.args) <= names.index("inplace"):
        return node.args, kwargs
    position = names.index("inplace")
    behind = zip(names[position + 1 :], node.args[position + 1 :], strict=False)
    return node.args[:position], kwargs | dict(behind)


def changes_type(node: fx.Node) -> bool:
    """Whether `x.add_(y)` keeps x's type where `x.add(y)` would have another one.

    Found by running the out-of-place form on tensors without values.
    """
    args, kwargs = plain_arguments(node)
    args, kwargs = fx.node.map_arg((args, kwargs), _on_meta)
    target = plain_target(node)
    try:
        call = getattr(args[0], target) if isinstance(target, str) else target
        value = call(*(args[1:] if isinstance(target, str) else args), **kwargs)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return True
    return bool(spec_of(value) != spec(node))


def _on_meta(node: fx.Node) -> Any:
    found = spec(node)
    if isinstance(found, TensorSpec):
        return torch.empty(found.shape, dtype=found.dtype, device="meta")
    return found
