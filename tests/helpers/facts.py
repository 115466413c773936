"""What facts about a graph mean, as checks: after every pass in every test they must hold.

`Pass.call` is wrapped for the whole session (see conftest): whatever facts a graph states when a
pass is done are looked for in the graph, and a pass that says that it changed nothing must have
changed nothing.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from fxquant import ops
from fxquant.graph.alias_analysis import written
from fxquant.graph.pass_infra import Fact, Outcome, Pass, state_of
from fxquant.nn import DeQuantStub, QuantizationMixin, QuantStub
from fxquant.nn.mixin import is_ignored
from fxquant.placement.dataflow import moves_values, resolve_grids
from fxquant.quantization import affine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CALLS = ("call_function", "call_method", "call_module")


def _recorded(gm: fx.GraphModule) -> Iterator[str]:
    for node in gm.graph.nodes:
        # the line may be None: a size, or a model of torch's modules alone
        missing = {"spec", "module_path", "source"} - node.meta.keys()
        if node.op in _CALLS and not _is_stub(node, gm) and missing:
            yield f"{node.name} does not know its {' and '.join(sorted(missing))}"


def _is_stub(node: fx.Node, gm: fx.GraphModule) -> bool:
    """Whether fxquant put the node behind an input or a constant, for which no line stands."""
    stub = node.op == "call_module" and gm.get_submodule(str(node.target))
    return isinstance(stub, QuantStub | DeQuantStub)


def _unique_modules(gm: fx.GraphModule) -> Iterator[str]:
    first: dict[int, fx.Node] = {}
    for node in gm.graph.find_nodes(op="call_module", sort=True):
        before = first.setdefault(id(gm.get_submodule(str(node.target))), node)
        if before is not node:
            yield f"{before.name} and {node.name} call one module"


def _no_writes(gm: fx.GraphModule) -> Iterator[str]:
    logged = {skip.node for skip in state_of(gm).skips if skip.by == "RemoveWrites"}
    for node in gm.graph.nodes:
        target = written(node, gm)
        if target is not None and node.name not in logged:
            yield f"{node.name} writes into {target.name}, and the log does not say why"


def _modules_only(gm: fx.GraphModule) -> Iterator[str]:
    for node in gm.graph.nodes:
        if node.op not in ("call_function", "call_method") or written(node, gm) is not None:
            continue
        row = ops.row_of(node, gm)
        if row is not None:
            yield f"{node.name} calls {row.name}, but no module"


def _placed(gm: fx.GraphModule) -> Iterator[str]:
    grids = resolve_grids(gm)
    for node in gm.graph.find_nodes(op="call_module", sort=True):
        module = gm.get_submodule(str(node.target))
        row = ops.row_for_module(module)
        quantizable = row is not None and row.grid is not ops.Grid.INDEX
        if not isinstance(module, QuantizationMixin):
            if quantizable and not is_ignored(module):
                yield f"{node.name} is no quantized module"
            continue
        above = moves_values(node, gm)
        own = [q for _, q in module.output_quantizers.active()]
        if own and above is not None and any(q is not None for q in grids[above]):
            yield f"{node.name} only moves values and has a grid beside that of {above.name}"
        yield from _bias_problems(node, module, gm, grids)


def _bias_problems(
    node: fx.Node, module: QuantizationMixin, gm: fx.GraphModule, grids: dict[fx.Node, Any]
) -> Iterator[str]:
    bias = dict(module.param_quantizers.active()).get("bias")
    if not isinstance(bias, affine.BiasQuantizeDequantize):
        return
    if bias.weight_quantizer is not dict(module.param_quantizers.active()).get("weight"):
        yield f"the bias of {node.name} is on another grid than its weight's"
    source = ops.arguments(node, gm)["input"]
    own = dict(module.input_quantizers.active()).get(0)
    if bias.input_quantizer is not (own or grids[source][0]):
        yield f"the bias of {node.name} is on another grid than its input's"


CHECKS: dict[Fact, Callable[[fx.GraphModule], Iterator[str]]] = {
    Fact.RECORDED: _recorded,
    Fact.UNIQUE_MODULES: _unique_modules,
    Fact.NO_WRITES: _no_writes,
    Fact.MODULES_ONLY: _modules_only,
    Fact.PLACED: _placed,
}


def problems(gm: fx.GraphModule) -> list[str]:
    """Where the graph is not as the facts in its state say."""
    facts = sorted(state_of(gm).facts, key=lambda fact: fact.name)
    return [f"{fact.name}: {text}" for fact in facts for text in CHECKS[fact](gm)]


def imprint(gm: fx.GraphModule) -> tuple[Any, ...]:
    """What a pass can change: nodes, modules with their flags, tensors (and writes into them)."""
    nodes = [(n.name, n.op, str(n.target), str(n.args), str(n.kwargs)) for n in gm.graph.nodes]
    modules = [_module_imprint(p, m) for p, m in gm.named_modules(remove_duplicate=False)]
    return nodes, modules


def _module_imprint(path: str, module: nn.Module) -> tuple[Any, ...]:
    tensors = {**module._parameters, **module._buffers}
    known = [(n, id(t), t._version) for n, t in tensors.items() if t is not None]
    hooks = tuple(module._forward_pre_hooks), tuple(module._forward_hooks)
    return path, id(module), type(module), getattr(module, "inplace", None), known, hooks


def checked(call: Callable[[Pass, fx.GraphModule], Outcome]) -> Any:
    """`Pass.call` that looks at what the pass did."""

    @functools.wraps(call)
    def looking(step: Pass, graph_module: fx.GraphModule) -> Outcome:
        before = imprint(graph_module)
        outcome = call(step, graph_module)
        found = problems(graph_module)
        assert not found, f"after {step.name}:\n" + "\n".join(found)
        same = outcome.modified or imprint(graph_module) == before
        assert same, f"{step.name} says that it changed nothing"
        return outcome

    return looking
