"""The recorder: sees every torch call of one real run and writes it down as an fx graph.

Real tensors flow, so whatever Python the model is made of just works. A ``TorchFunctionMode`` sees
functions and methods; calls of modules, autograd functions and scripted functions reach
it through ``patches``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from fxquant.errors import TraceError
from fxquant.graph.meta import source_of, spec_of, user_frame, user_source
from fxquant.graph.symbolic_ints import Change, Trail, plain, tracked
from fxquant.tracing import dynamic_dims, handlers, hooks
from fxquant.tracing.arguments import State, Writer
from fxquant.tracing.canonical_calls import spelling, written_kwargs
from fxquant.tracing.handlers import control_flow
from fxquant.tracing.provenance import Origin, Origins
from fxquant.tracing.recorded_call import Inputs, Written, has_tensor, plain_all
from fxquant.tracing.shape_rules import Call, Dims
from fxquant.tracing.specialization import DataDependentReads, ends_loop

if TYPE_CHECKING:
    from types import CodeType

    from fxquant.tracing.leaves import Leaves


# attributes of torch's modules that say how large the result is
_SIZES = ("output_size", "start_dim", "end_dim", "size")


@dataclass(frozen=True)
class Scope:
    """A module whose forward is running."""

    path: str
    stack: dict[str, tuple[str, type]]


class Recorder(TorchFunctionMode):
    """One recording in progress.

    Args:
        root: the fresh copy that runs; constants become its buffers.
        leaves: which modules, beside those of ``torch.nn``, are recorded as one call.
        boundary: code object of the function that starts the run; the user's lines are below it.
    """

    def __init__(self, root: nn.Module, leaves: Leaves | None, boundary: CodeType) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.origins = Origins(self.graph)
        self.state = State(root)
        self.writer = Writer(self.origins, self.state)
        self.leaves = leaves
        self.reads = DataDependentReads()
        self.closed = False
        self.asked_for_training = False  # whether code of the model read a training flag
        self._cast = _casting()
        self.quiet = 0
        self.grad = torch.is_grad_enabled()
        self.spent_hooks: list[tuple[nn.Module, int]] = []
        self._boundary = boundary
        self._scopes: list[Scope] = [Scope("", {"": ("", type(root))})]

    # ---- what torch tells us

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called by torch for every function and method while the mode is active."""
        kwargs = kwargs or {}
        if self.quiet or self.closed:
            return func(*args, **kwargs)
        answer = handlers.answer_of(func) or control_flow(func)
        if answer is not None:
            return answer(self, func, args, kwargs)
        return self.call(func, args, kwargs)

    def call(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a function of torch and write it down."""
        spelled = spelling(func)
        kwargs_shown = written_kwargs(func, kwargs)
        if spelled.target is getattr or spelled.target is setattr:
            args = (args[0], spelled.name, *args[1:])
            run = spelled.target
        else:
            run = func
        shown = (args[1], args[0]) if spelled.swap else args
        with self.writing(spelled.op, spelled.target, shown, kwargs_shown) as written:
            written.name = spelled.target.__name__ if spelled.swap else spelled.name
            written.result = run(*plain_all(args), **plain_all(kwargs))
        return written.result

    def call_leaf(
        self,
        module: nn.Module,
        path: str,
        args: Any,
        kwargs: dict[str, Any],
        *,
        run: Callable[..., Any] | None = None,
    ) -> Any:
        """Run a leaf module, or `run` in its place, and write it down as one node."""
        with (
            torch._C.DisableTorchFunction(),
            self.writing("call_module", path, args, kwargs) as written,
        ):
            written.name = type(module).__name__
            written.kwargs = {n: vars(module)[n] for n in _SIZES if n in vars(module)}
            written.module = module
            written.result = (run or module)(*plain_all(args), **plain_all(kwargs))
        return written.result

    def around_hooks(self, module: nn.Module, path: str) -> AbstractContextManager[None]:
        """Record what the hooks of a leaf module do, while `nn.Module.__call__` runs it."""
        inner = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self.call_leaf(module, path, args, kwargs, run=inner)

        return hooks.around(module, self._hook, forward)

    def _hook(self, key: int, hook: Callable[..., Any], module: nn.Module, *given: Any) -> Any:
        inputs = Inputs(self.origins, given)
        last = next(iter(reversed(self.graph.nodes)), None)
        result = hook(module, *given)
        if hooks.replaced(result, given) or inputs.mutated():
            self.spent_hooks.append((module, key))
        else:
            # it stays on the module; what it computes is nobody else's business
            made = itertools.takewhile(lambda n: n is not last, reversed(self.graph.nodes))
            self.origins.removable += reversed(list(made))
        return result

    @contextmanager
    def writing(self, op: str, target: Any, args: Any, kwargs: dict[str, Any]) -> Iterator[Written]:
        """Write a node for a call that the body makes; arguments are written before it runs."""
        inputs = Inputs(self.origins, (args, kwargs))
        self.writer.source = source = user_source(self._boundary)
        if _casting() != self._cast:
            raise TraceError(
                "FXQ112",
                "forward switches autocast on or off around recorded calls",
                at=str(source) if source else None,
                fix="cast explicitly, or keep the module as a leaf (modules_to_exclude)",
            )
        scope = self._scopes[-1]
        self.writer.meta = meta = {
            "source": source,
            "module_path": scope.path,
            "nn_module_stack": scope.stack,
        }
        node_args = self.writer.write(tuple(args))
        node_kwargs = self.writer.write(dict(kwargs))
        written = Written(op, target, meta, args, kwargs)
        self.quiet += 1
        try:
            yield written
        finally:
            self.quiet -= 1
        mutated = inputs.mutated()
        if not (mutated or has_tensor(written.result)):
            return
        if not mutated:
            written.result = _apart(written.result, inputs.tensors)
        if self.frozen and op != "call_module":
            node_args, node_kwargs = self._detached(inputs, node_args, node_kwargs)
        written.node = self.origins.create(op, target, node_args, node_kwargs)
        self._finish(written, inputs, mutated)

    # ---- results

    @property
    def frozen(self) -> bool:
        """Whether the model's own ``torch.no_grad()`` is in force."""
        return self.grad and not torch.is_grad_enabled()

    def _finish(self, written: Written, inputs: Inputs, mutated: list[Tensor]) -> None:
        node = written.node
        node.meta.update(written.meta, spec=spec_of(written.result))
        if mutated:
            node.meta["mutates"] = True
            node.meta["onto_view"] = any(_on_view(t) and t.requires_grad for t in mutated)
            self._protect_constants(mutated)
        if self.frozen and written.op == "call_module" and has_tensor(written.result):
            written.node = node = self._detach_result(written, inputs)
        call = Call(
            written.name,
            written.args,
            {**written.kwargs, **written.given},
            self._dims_of,
            inputs.sized,
            inputs.known,
        )
        depends = inputs.depends

        def finish(tensor: Tensor, origin: Origin) -> None:
            origin.dims = dynamic_dims.result_dims(call, tensor)
            origin.depends = depends
            origin.frozen = self.frozen

        if self.frozen and any(written.result is t and self._learns(t) for t in mutated):
            # an in-place write under no_grad leaves the tensor's own history alone
            return
        self.origins.bind_all(written.result, Origin(node), finish)

    def _dims_of(self, tensor: Tensor) -> Dims:
        origin = self.origins.find(tensor)
        return origin.dims if origin is not None else (Change.NEVER,) * tensor.dim()

    def _protect_constants(self, mutated: list[Tensor]) -> None:
        """A constant that the model writes to starts every run as it was."""
        names = {c.name for c in self.writer.constants if c.attribute is None}
        for tensor in mutated:
            origin = self.origins.find(tensor)
            if origin is None or origin.held not in names or origin.node is None:
                continue
            held = origin.node
            clone = self.origins.insert(held, "clone", (held,))
            clone.meta["spec"] = held.meta["spec"]
            for user in [u for u in held.users if u is not clone]:
                user.replace_input_with(held, clone)
            origin.node, origin.held = clone, None

    def _detached(self, inputs: Inputs, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Arguments cut from the gradient, for calls inside the model's own ``no_grad``."""
        cut: dict[Node, Node] = {}
        for tensor in inputs.tensors:
            node = self.origins.node(self.writer.origin(tensor))
            if self._learns(tensor) and node not in cut:
                cut[node] = self._detach(node)
        change = lambda node: cut.get(node, node)  # noqa: E731
        return fx.map_arg(args, change), fx.map_arg(kwargs, change)

    def _learns(self, tensor: Tensor) -> bool:
        """Whether a gradient may flow through a tensor in some run."""
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return False
        origin = self.writer.origin(tensor)
        return tensor.requires_grad or (origin.depends is Change.VALUE and not origin.frozen)

    def _detach(self, node: Node) -> Node:
        cut = self.origins.create("call_method", "detach", (node,))
        cut.meta.update(self.writer.meta, spec=node.meta.get("spec"))
        return cut

    def _detach_result(self, written: Written, inputs: Inputs) -> Node:
        own = written.module.parameters() if written.module is not None else ()
        trains = any(p.requires_grad for p in own) or any(map(self._learns, inputs.tensors))
        if not trains or not isinstance(written.result, Tensor):
            return written.node
        return self._detach(written.node)

    # ---- sizes

    def sizes(self, tensor: Tensor) -> list[Any]:
        """Sizes of a tensor, tracked where they can change."""
        origin = self.origins.find(tensor)
        if origin is None:
            return list(tensor.shape)
        return [self.size(tensor, origin, d) for d in range(tensor.dim())]

    def size(self, tensor: Tensor, origin: Origin, dim: int) -> Any:
        """One size of a tensor."""
        value = tensor.shape[dim]
        if dim >= len(origin.dims) or origin.dims[dim] is Change.NEVER:
            return value
        if dim not in origin.sizes:
            # the node goes where the size was read: a later in-place call may change it
            anchor = next(iter(reversed(self.graph.nodes)))
            make = lambda: self._size_node(origin, dim, anchor, value)  # noqa: E731
            origin.sizes[dim] = Trail(self, origin.dims[dim], make)
        return tracked(value, origin.sizes[dim])

    def _size_node(self, origin: Origin, dim: int, anchor: Node, value: int) -> Node:
        whole = self.origins.node(origin)
        behind = max(anchor, whole)
        node = self.origins.insert(behind, "size", (whole, dim))
        node.meta["spec"] = value
        return node

    def arithmetic(self, op: Callable[..., Any], operands: tuple[Any, ...], value: Any) -> Node:
        """A node that computes with sizes (`sizes.Keeper`)."""
        args = tuple(self.writer.write(v) for v in operands)
        node = self.origins.create("call_function", op, args)
        node.meta.update(self.place(), spec=value)
        self.origins.removable.append(node)
        return node

    # ---- looks

    def read_data(self, change: Change, what: str, value: object, *, loop: bool = False) -> None:
        """Python decided on something (`sizes.Keeper`); what can never change is no decision."""
        if self.quiet or self.closed or change is Change.NEVER:
            return
        frame = user_frame(self._boundary)
        if frame is not None and change is Change.VALUE:
            loop = loop or ends_loop(frame.f_code.co_filename, frame.f_lineno)
        source = None if frame is None else source_of(frame)
        self.reads.add(source, self._scopes[-1].path, change, what, plain(value), loop=loop)

    def depends(self, value: Any) -> Change:
        """What can make the tensors inside a value differ in another run."""
        return Inputs(self.origins, value).depends

    # ---- scopes

    @contextmanager
    def scope(self, path: str | None, kind: type) -> Iterator[None]:
        """A module's forward runs inside."""
        here = self._scopes[-1]
        path = here.path if path is None else path
        self._scopes.append(Scope(path, {**here.stack, path: (path, kind)}))
        try:
            yield
        finally:
            self._scopes.pop()

    def place(self) -> dict[str, Any]:
        """Meta of a node made here and now."""
        scope = self._scopes[-1]
        source = user_source(self._boundary)
        return {"source": source, "module_path": scope.path, "nn_module_stack": scope.stack}


def _apart(result: Any, given: list[Tensor]) -> Any:
    """A result in which inputs that were handed back are the same memory as other objects.

    Dropout in evaluation returns its very input: were that kept, whoever reads the input later
    would seem to read what was dropped, which is something else in training.
    """
    if type(result) is tuple:
        return tuple(_apart(part, given) for part in result)
    if not any(result is t for t in given):
        return result
    with torch._C.DisableTorchFunction():
        made = result.view_as(result)
    made._of_view = _on_view(result)
    return made


def _on_view(tensor: Tensor) -> bool:
    """Whether the model's own tensor is a view; one that was set apart is no more than it was."""
    return getattr(tensor, "_of_view", tensor._is_view())


def _casting() -> tuple[bool, bool]:
    return torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
