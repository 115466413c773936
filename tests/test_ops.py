"""Every row of the operator table, every spelling, every sample: one module, the same bits."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn

from fxquant import ops
from fxquant.errors import ConfigError
from fxquant.graph.meta import spec_of
from fxquant.graph.pass_infra import Fact, Pipeline, set_state
from fxquant.nn.functional import Functional
from fxquant.passes import DropDeadCode, FunctionalsToModules, RemoveWrites

_STEPS = Pipeline(
    (RemoveWrites(), FunctionalsToModules(), DropDeadCode()), frozenset({Fact.UNIQUE_MODULES})
)


class Call(NamedTuple):
    """One call of one spelling, as fx writes it."""

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call with these arguments."""
        if self.op == "call_method":
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)


def spellings(row: ops.Op) -> list[tuple[str, Any, ops.Spelling]]:
    """(kind of node, target, spelling) of everything that means the row."""
    table = ops.TABLE
    methods = [("call_method", k, s) for k, s in table._methods.items() if s.op is row]
    functions = [("call_function", k, s) for k, s in table._functions.items() if s.op is row]
    return functions + methods


def made(value: Any) -> Any:
    """Sample tensors as tensors, in containers too; the n-th gets seed n."""
    count = iter(range(100))

    def one(part: Any) -> Any:
        if isinstance(part, ops.T):
            return part.make(next(count))
        if isinstance(part, list | tuple):
            return type(part)(one(p) for p in part)
        return {k: one(v) for k, v in part.items()} if isinstance(part, dict) else part

    return one(value)


def calls(
    row: ops.Op, sample: ops.Sample, spelled: tuple[str, Any, ops.Spelling]
) -> Iterator[Call]:
    """The sample in this spelling: positional, by keyword."""
    kind, target, spelling = spelled
    values = ops.bind(row.signature, made(sample.args), made(dict(sample.kwargs)))
    given = ops.bind(row.signature, sample.args, sample.kwargs)
    default = {n: p.default for n, p in row.signature.parameters.items()}
    asked = [n for n in given if not _same(given[n], default[n])]
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    named: dict[str, Any] = {}
    first = True
    for name, p in spelling.signature.parameters.items():
        own = name if name in values else ops._ALIASES.get(name, name)
        if own not in asked and (own not in values or p.default is not p.empty):
            if p.kind is not p.KEYWORD_ONLY and any(n in asked for n in _after(spelling, name)):
                positional.append(p.default)
            continue
        if p.kind is p.VAR_POSITIONAL:
            positional += values[own]
        elif p.kind is p.KEYWORD_ONLY:
            keywords[name] = values[own]
        else:
            positional.append(values[own])
        if p.kind is not p.VAR_POSITIONAL and not first:
            named[name] = values[own]
        first = False
    yield Call(kind, target, tuple(positional), keywords)
    if len(positional) > 1 and len(named) + 1 >= len(positional):
        yield Call(kind, target, tuple(positional[:1]), named)


def _after(spelling: ops.Spelling, name: str) -> list[str]:
    names = [n for n, p in spelling.signature.parameters.items() if p.kind is not p.KEYWORD_ONLY]
    return names[names.index(name) + 1 :]


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and not isinstance(a, ops.T) and bool(a == b)


def copied(value: Any) -> Any:
    """Tensors as copies."""
    return fx.node.map_aggregate(value, lambda v: v.clone() if isinstance(v, Tensor) else v)


def graph_of(
    call: Call, row: ops.Op, *, held: bool, value: Any
) -> tuple[fx.GraphModule, list[Tensor]]:
    """A graph with this one call; with `held`, tensors that are no inputs become parameters."""
    root, graph = nn.Module(), fx.Graph()
    inputs: list[Tensor] = []
    weights = set(_weights(call, row)) if held else set()
    statistics = {k for k, name in _weights(call, row).items() if name.startswith("running")}

    def operand(part: Any) -> Any:
        if not isinstance(part, Tensor):
            return part
        if id(part) in weights:
            name = f"w{len(root.state_dict())}"
            if part.is_floating_point() and id(part) not in statistics:
                root.register_parameter(name, nn.Parameter(part))
            else:
                root.register_buffer(name, part)
            node = graph.get_attr(name)
        else:
            node = graph.placeholder(f"x{len(inputs)}")
            inputs.append(part)
        node.meta["spec"] = spec_of(part)
        return node

    args = fx.node.map_aggregate(call.args, operand)
    kwargs = fx.node.map_aggregate(call.kwargs, operand)
    node = graph.create_node(call.op, call.target, args, dict(kwargs))
    node.meta["spec"] = spec_of(value)
    graph.output(node)
    # placeholders come first
    for holder in reversed([n for n in graph.nodes if n.op == "placeholder"]):
        graph._root.append(holder)
    gm = fx.GraphModule(root.eval(), graph)
    set_state(gm, facts=frozenset({Fact.UNIQUE_MODULES}))
    return gm, inputs


def _weights(call: Call, row: ops.Op) -> dict[int, str]:
    spelling = ops.TABLE.spelling(fx.Graph().create_node(call.op, call.target, (), {}))
    assert spelling is not None
    bound = ops.bind(spelling.signature, call.args, call.kwargs)
    return {id(v): k for k, v in bound.items() if k not in row.inputs and isinstance(v, Tensor)}


def assert_equal(got: Any, want: Any) -> None:
    """Bit-equal, structure included."""
    if isinstance(want, Tensor):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)
    elif isinstance(want, list | tuple):
        assert len(got) == len(want)
        for g, w in zip(got, want, strict=True):
            assert_equal(g, w)
    else:
        assert got == want


def _label(kind: str, target: Any) -> str:
    if kind == "call_method":
        return f".{target}"
    return f"{getattr(target, '__module__', None)}.{getattr(target, '__name__', target)}"


CASES = [
    pytest.param(
        row,
        spelled,
        id=f"{row.name}-{_label(*spelled[:2])}",
    )
    for row in ops.TABLE.rows.values()
    if row.samples
    for spelled in spellings(row)
]


@pytest.mark.filterwarnings("ignore:.*deprecated.*")
@pytest.mark.parametrize(("row", "spelled"), CASES)
def test_every_spelling_becomes_the_same_module(
    row: ops.Op, spelled: tuple[str, Any, ops.Spelling]
) -> None:
    tried = 0
    for sample in row.samples:
        for call in calls(row, sample, spelled):
            if spelled[2].inplace and not isinstance(call.args[0], Tensor):
                continue  # nothing to write into
            if _is_reflected(spelled[1]) and all(isinstance(a, Tensor) for a in call.args):
                continue  # Python asks the left tensor
            try:
                want = call(copied(call.args), copied(call.kwargs))
            except (TypeError, RuntimeError, AttributeError):
                continue  # torch itself does not take this form
            if want is NotImplemented:
                continue
            tried += 1
            for held in (True, False):
                check(call, row, want, held=held)
    assert tried, "no sample fits this spelling"


def _is_reflected(target: Any) -> bool:
    return target in ("__rtruediv__", "__rdiv__")


def check(call: Call, row: ops.Op, want: Any, *, held: bool) -> None:
    """The call becomes a module of the row and computes the same."""
    gm, inputs = graph_of(call, row, held=held, value=want)
    _STEPS(gm)
    made_nodes = [n for n in gm.graph.nodes if n.op.startswith("call")]
    assert [n.op for n in made_nodes] == ["call_module"], gm.graph
    module = gm.get_submodule(str(made_nodes[0].target))
    assert type(module) in {row.module, row.dynamic}
    if held and not isinstance(module, Functional):
        assert type(module) is row.module
    assert ops.row_of(made_nodes[0], gm) is row
    assert_equal(gm(*copied(inputs)), want)


@pytest.mark.parametrize("row", list(ops.TABLE.rows.values()), ids=list(ops.TABLE.rows))
def test_every_row_has_samples_or_is_a_module_class(row: ops.Op) -> None:
    assert row.samples or not spellings(row), "a spelling without a sample is untested"


def test_sizes_are_no_tensor_operations() -> None:
    graph = fx.Graph()
    size = graph.call_method("size", (graph.placeholder("x"), 0))
    size.meta["spec"] = 4
    double = graph.call_function(operator.mul, (size, 2))
    double.meta["spec"] = 8
    assert ops.row_of(double, nn.Module()) is None


def test_an_own_operator_gets_the_same_treatment() -> None:
    class Swish(nn.Module):
        """`x * sigmoid(beta * x)`."""

        def __init__(self, beta: float = 1.0) -> None:
            super().__init__()
            self.beta = beta

        def forward(self, input: Tensor) -> Tensor:
            return input * torch.sigmoid(self.beta * input)

    def swish(input: Tensor, beta: float = 1.0) -> Tensor:
        return input * torch.sigmoid(beta * input)

    table = ops.Table(tuple(ops.TABLE.rows.values()))
    row = ops.Op("swish", "input, beta=1.0", Swish, names="", odd={swish: "input, beta=1.0"})
    table.add(row)
    assert table.of_class(Swish) is row
    node = fx.Graph().create_node("call_function", swish, (), {"beta": 2.0})
    spelled = table.spelling(node)
    assert spelled is not None
    module, holds = ops.module_for(row, {"input": node, "beta": 2.0})
    assert isinstance(module, Swish)
    assert (module.beta, holds) == (2.0, True)
    with pytest.raises(ConfigError, match="FXQ201"):
        table.add(row)
    with pytest.raises(ConfigError, match="FXQ202"):
        table.add(ops.Op("mine", "input", Swish, names="relu"))
    assert "swish" not in ops.TABLE.rows
