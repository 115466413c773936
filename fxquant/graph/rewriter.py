"""The only editor of graphs, and of the modules, weights and ranges in them.

Every pass changes a graph through a `Rewriter`: new nodes inherit source line, module path and
recorded value from the node they stand for; edits are counted, so that a pass knows whether it
changed anything; and a pattern that nearly matched leaves a reason behind (`skip`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, overload

from torch import Tensor, fx, nn

from fxquant import ops
from fxquant.errors import PassError, place
from fxquant.graph.meta import Spec, TensorSpec, module_path
from fxquant.graph.pass_log import Gone, Skip
from fxquant.graph.recorded_module import recompile_later
from fxquant.nn.stored_tensors import replace_stored

if TYPE_CHECKING:
    from fxquant.nn.containers import QuantizerDict, QuantizerList
    from fxquant.quantization import QuantizerBase
    from fxquant.quantization.affine import AffineQuantizer
    from fxquant.quantization.affine.pof2 import PowerOfTwoQuantizeDequantize

_log = logging.getLogger("fxquant")
M = TypeVar("M", bound=nn.Module)


class Rewriter:
    """Reads and edits one `GraphModule`.

    Args:
        gm: graph that is edited in place.
        by: who edits; named in the log and in errors.

    Attributes:
        changes: number of edits so far.
        current: node at which a walk over `nodes` is now, if there is one.
        skips: near misses with their reasons.
        reasons: why nodes are as they are, by module path or node name.
        gone: what became of modules whose calls were replaced or erased, by path.
    """

    def __init__(self, gm: fx.GraphModule, by: str = "rewriter") -> None:
        self.gm = gm
        self.by = by
        self.changes = 0
        self.current: fx.Node | None = None
        self.skips: list[Skip] = []
        self.reasons: dict[str, tuple[str, ...]] = {}
        self.gone: dict[str, Gone] = {}
        self._before: fx.Node | None = None

    # --- reading -----------------------------------------------------------------------------

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """All nodes in order, as they are now."""
        return _Nodes(self)

    @property
    def output(self) -> fx.Node:
        """The node that returns."""
        return self.gm.graph.output_node()

    def op(self, node: fx.Node) -> ops.Op | None:
        """The node's row of the operator table."""
        return ops.row_of(node, self.gm)

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        """The node's arguments by their canonical names."""
        return ops.arguments(node, self.gm)

    @overload
    def module(self, node: fx.Node) -> nn.Module | None: ...
    @overload
    def module(self, node: fx.Node, kind: type[M]) -> M | None: ...
    def module(self, node: fx.Node, kind: type[nn.Module] = nn.Module) -> nn.Module | None:
        """The module that `node` calls if it is of this kind, else None."""
        if node.op != "call_module":
            return None
        found = self.gm.get_submodule(str(node.target))
        return found if isinstance(found, kind) else None

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Recorded shape of a node's tensor; empty if it is not known."""
        found = node.meta.get("spec")
        return found.shape if isinstance(found, TensorSpec) else ()

    def constant(self, node: Any) -> Tensor | None:
        """The tensor that a get_attr node reads, or None."""
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        owner, _, name = str(node.target).rpartition(".")
        found = getattr(self.gm.get_submodule(owner), name, None)
        return found if isinstance(found, Tensor) else None

    def callers(self, path: str) -> list[fx.Node]:
        """The nodes that call the module at `path`, itself or under another name."""
        wanted = self.gm.get_submodule(path)
        calls = self.gm.graph.find_nodes(op="call_module", target=path, sort=True)
        others = (n for n in self.gm.graph.nodes if n.op == "call_module" and n.target != path)
        return calls + [n for n in others if self.gm.get_submodule(str(n.target)) is wanted]

    # --- modules -----------------------------------------------------------------------------

    def add_module(self, scope: str, name: str, module: nn.Module) -> str:
        """Register a new module in the module at path `scope`; returns its path.

        A name that is taken gets `_1`, `_2` ... The module trains or evaluates like its scope. A
        scope whose class has a way of its own to be copied would forget it: then it lives above.
        """
        owner = self._scope(scope)
        while scope and _copies_itself(type(owner)):
            scope = scope.rpartition(".")[0]
            owner = self._scope(scope)
        free, number = name, 0
        while hasattr(owner, free):
            number += 1
            free = f"{name}_{number}"
        owner.add_module(free, module.train(owner.training))
        self.changes += 1
        return f"{scope}.{free}" if scope else free

    def set_module(self, path: str, module: nn.Module) -> None:
        """Put `module` where another module was; nodes that call the path call it from now on."""
        owner, _, name = path.rpartition(".")
        self.gm.get_submodule(owner)._modules[name] = module
        self.changes += 1

    def set_flag(self, module: nn.Module, name: str, value: bool) -> None:
        """Set a flag of a module, such as `inplace`."""
        setattr(module, name, value)
        self.changes += 1

    def set_parameter(self, module: nn.Module, name: str, value: Tensor, grad: bool) -> None:
        """Give a module a new parameter, wherever the old one is registered; `grad`: it learns."""
        replace_stored(self.gm, module, name, nn.Parameter(value, grad))
        quantizers: Any = getattr(module, "param_quantizers", None)
        if quantizers is not None and quantizers.known is not None:
            quantizers.known |= {name}
        self.changes += 1

    def edit(self, change: Callable[..., object], *args: Any) -> None:
        """Call a function that changes a module in place: for what torch does in one call."""
        change(*args)
        self.changes += 1

    # --- quantizers --------------------------------------------------------------------------

    def set_quantizer(
        self, home: QuantizerList | QuantizerDict, key: Any, quantizer: QuantizerBase | None
    ) -> None:
        """Give a tensor its quantizer.

        Args:
            home: quantizers of a module: of its inputs, outputs or parameters.
            key: position or name of the tensor.
            quantizer: the quantizer; None leaves the tensor in floating point.
        """
        home[key] = quantizer
        self.changes += 1

    def set_range(self, quantizer: AffineQuantizer, low: Tensor, high: Tensor) -> None:
        """Set the range of a quantizer; both ends in the shape of its ranges."""
        quantizer.set_range(low, high)
        self.changes += 1

    def set_position(self, quantizer: PowerOfTwoQuantizeDequantize, position: Tensor | int) -> None:
        """Set the position of the binary point: the scale becomes `2 ** -position`."""
        quantizer.set_position(position)
        self.changes += 1

    # --- nodes -------------------------------------------------------------------------------

    def set_argument(self, node: fx.Node, name: str, value: Any) -> None:
        """Give a node a keyword argument."""
        node.kwargs = {**node.kwargs, name: value}
        self.changes += 1

    @contextmanager
    def before(self, node: fx.Node) -> Iterator[None]:
        """New nodes are inserted before `node`, in the order of their making."""
        kept, self._before = self._before, node
        try:
            yield
        finally:
            self._before = kept

    def after(self, node: fx.Node) -> Any:
        """New nodes are inserted after `node`, and after all inputs if it is one of them."""
        following = node.next
        while node.op == "placeholder" and following.op == "placeholder":
            following = following.next
        return self.before(following)

    def call_module(
        self, path: str, *args: Any, like: fx.Node, kwargs: Mapping[str, Any] | None = None
    ) -> fx.Node:
        """A new node that calls the module at `path`; it inherits what is known about `like`.

        It is put before `like` unless `before` or `after` says otherwise.
        """
        with self._at(like):
            node = self.gm.graph.call_module(path, args, dict(kwargs or {}))
        return self._born(node, like)

    def call_function(
        self,
        target: Callable[..., Any],
        *args: Any,
        like: fx.Node,
        kwargs: Mapping[str, Any] | None = None,
    ) -> fx.Node:
        """A new node that calls a function; see `call_module`."""
        with self._at(like):
            node = self.gm.graph.call_function(target, args, dict(kwargs or {}))
        return self._born(node, like)

    def call_method(
        self, name: str, *args: Any, like: fx.Node, kwargs: Mapping[str, Any] | None = None
    ) -> fx.Node:
        """A new node that calls a method of its first argument; see `call_module`."""
        with self._at(like):
            node = self.gm.graph.call_method(name, args, dict(kwargs or {}))
        return self._born(node, like)

    def new_constant(self, scope: str, name: str, value: Tensor, *, like: fx.Node) -> fx.Node:
        """Register a buffer in the module at path `scope` and read it; see `call_module`."""
        path = self.add_module(scope, name, nn.Module())
        self.gm.get_submodule(path).register_buffer("value", value)
        with self._at(like):
            node = self._born(self.gm.graph.get_attr(f"{path}.value"), like)
        node.meta["spec"] = TensorSpec(tuple(value.shape), value.dtype)
        return node

    def new_module(
        self,
        module: nn.Module,
        *args: Any,
        like: fx.Node,
        name: str,
        kwargs: Mapping[str, Any] | None = None,
        spec: Spec = None,
    ) -> fx.Node:
        """Register `module` where `like` was called and call it: `add_module` and `call_module`.

        A `spec` says what the new node's value looks like where it is not as `like`'s.
        """
        path = self.add_module(module_path(like), name, module)
        node = self.call_module(path, *args, like=like, kwargs=kwargs)
        if spec is not None:
            node.meta["spec"] = spec
        return node

    def become_module(
        self,
        node: fx.Node,
        module: nn.Module,
        *args: Any,
        name: str,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Let `node` call a new module instead of what it calls; its name and consumers stay."""
        path = self.add_module(module_path(node), name, module)
        node.op, node.target = "call_module", path
        node.args, node.kwargs = args, dict(kwargs or {})
        self.changes += 1

    def move_before(self, node: fx.Node, moved: fx.Node) -> None:
        """Put a node in front of another one; its own inputs have to stand there already."""
        node.prepend(moved)
        self.changes += 1

    def become_call(
        self, node: fx.Node, target: Any, *args: Any, kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Let a node call another function, or a method by its name; consumers stay."""
        node.op = "call_method" if isinstance(target, str) else "call_function"
        node.target = target
        node.args, node.kwargs = args, dict(kwargs or {})
        self.changes += 1

    def call_anew(self, node: fx.Node, *args: Any, kwargs: Mapping[str, Any]) -> None:
        """Let a node call what it calls with other arguments; those that are None are left out."""
        node.args = args
        node.kwargs = {key: value for key, value in kwargs.items() if value is not None}
        self.changes += 1

    def replace(self, old: fx.Node, new: fx.Node, how: str = "was replaced by") -> None:
        """Let every consumer of `old` read `new`, and erase `old`; `how` is for people."""
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        self.erase(old)
        if old.op == "call_module":
            self.gone[str(old.target)] = Gone(how, label(new))

    def redirect(self, old: fx.Node, new: fx.Node, consumers: Iterable[fx.Node]) -> None:
        """Let `consumers` read `new` instead of `old`."""
        for consumer in consumers:
            consumer.replace_input_with(old, new)
            self.changes += 1

    def retarget(self, node: fx.Node, path: str) -> None:
        """Let a node call the module at another path."""
        node.target = path
        self.changes += 1

    def erase(self, node: fx.Node) -> None:
        """Erase a node that nobody reads; the module that it called stays where it is.

        Raises:
            PassError: FXQ304, the node has consumers.
        """
        if node.users:
            what = f"{self.by} erases a node that {', '.join(u.name for u in node.users)} reads"
            raise PassError("FXQ304", what, at=node, fix="rw.replace(node, by) its result first")
        self.gm.graph.erase_node(node)
        if node.op == "call_module":
            self.gone[str(node.target)] = Gone("was taken out: nothing reads what it computes", "")
        self.changes += 1

    def skip(self, node: fx.Node, reason: str) -> None:
        """Note that `node` is left as it is, and why."""
        self.skips.append(Skip(self.by, node.name, str(place(node)), reason))
        _log.debug("%s", self.skips[-1])

    def explain(self, node: fx.Node, *reasons: str) -> None:
        """Note why a node is as it is; a reason that is known is not repeated."""
        key = label(node)
        self.reasons[key] = tuple(dict.fromkeys((*self.reasons.get(key, ()), *reasons)))

    def finish(self) -> None:
        """Check the graph and have its code generated anew if anything was changed."""
        if self.changes:
            self.gm.graph.lint()
            recompile_later(self.gm)

    def _scope(self, path: str) -> nn.Module:
        try:
            return self.gm.get_submodule(path)
        except AttributeError as e:
            what = f"{self.by}: the model has no module {path!r}"
            fix = "give the path of a module that stands in the graph, as a node's target has it"
            raise PassError("FXQ303", what, fix=fix) from e

    def _at(self, like: fx.Node) -> Any:
        return self.gm.graph.inserting_before(self._before or like)

    def _born(self, node: fx.Node, like: fx.Node) -> fx.Node:
        node.meta = dict(like.meta)
        self.changes += 1
        return node


class _Nodes(tuple[fx.Node, ...]):
    """The nodes of a graph; the rewriter knows where a walk over them is, for errors."""

    def __new__(cls, rw: Rewriter) -> _Nodes:
        return super().__new__(cls, rw.gm.graph.nodes)

    def __init__(self, rw: Rewriter) -> None:
        self.rw = rw

    def __iter__(self) -> Iterator[fx.Node]:
        return self._walk(super().__iter__())

    def __reversed__(self) -> Iterator[fx.Node]:
        return self._walk(iter(self[::-1]))

    def _walk(self, nodes: Iterator[fx.Node]) -> Iterator[fx.Node]:
        outer = self.rw.current
        for node in nodes:
            self.rw.current = node
            yield node
        self.rw.current = outer


def _copies_itself(kind: type[nn.Module]) -> bool:
    """Whether a class of the author's says how its modules are copied."""
    ways = ("__getstate__", "__setstate__", "__reduce__", "__reduce_ex__", "__deepcopy__")
    found = (vars(base).get(way) for base in kind.__mro__ for way in ways)
    homes = (str(getattr(method, "__module__", "") or "builtins") for method in found if method)
    return any(h.partition(".")[0] not in ("torch", "builtins", "copyreg") for h in homes)


def label(node: fx.Node) -> str:
    """How people name a node: the path of the module that it calls, or its own name."""
    return str(node.target) if node.op == "call_module" else node.name


def producer(node: fx.Node, root: fx.GraphModule, name: str = "input") -> fx.Node | None:
    """The node that makes the operand called `name` of a node that has a row, or None."""
    if ops.row_of(node, root) is None:
        return None
    found = ops.arguments(node, root).get(name)
    return found if isinstance(found, fx.Node) else None
