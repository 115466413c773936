"""The rewriter: edits, what new nodes inherit, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from fxquant.errors import PassError
from fxquant.graph.meta import TensorSpec, computes_floats, module_path, source, spec
from fxquant.graph.rewriter import Rewriter, producer
from fxquant.nn.functional import Add
from tests.helpers.golden import assert_dump, recorded

X = torch.randn(2, 3)


class Net(nn.Module):
    """A block in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.scale  # type: ignore[no-any-return]


def rewriter() -> Rewriter:
    return Rewriter(recorded(Net(), X), "Test")


def node(rw: Rewriter, name: str) -> fx.Node:
    return next(n for n in rw.nodes if n.name == name)


def test_reading() -> None:
    rw = rewriter()
    linear, mul, scale = node(rw, "body_0"), node(rw, "mul"), node(rw, "scale")
    assert isinstance(rw.module(linear), nn.Linear)
    assert rw.module(linear, nn.Conv2d) is None
    assert rw.module(mul) is None
    assert rw.constant(scale) is rw.gm.scale
    assert rw.constant(linear) is None
    assert rw.callers("body.0") == [linear]
    assert rw.shape(linear) == (2, 3)
    assert rw.output.op == "output"
    row = rw.op(mul)
    assert row is not None
    assert row.name == "mul"
    assert rw.arguments(mul) == {"input": node(rw, "body_1"), "other": scale}
    assert producer(mul, rw.gm) is node(rw, "body_1")
    assert producer(mul, rw.gm, "other") is scale
    assert producer(rw.output, rw.gm) is None


def test_new_nodes_inherit_what_is_known() -> None:
    rw = rewriter()
    mul = node(rw, "mul")
    made = rw.new_module(Add(), mul.args[0], 1, like=mul, name="add")
    assert (source(made), module_path(made), spec(made)) == (source(mul), "", spec(mul))
    other = rw.new_module(Add(), made, 1, like=mul, name="add", spec=TensorSpec((1,), torch.int64))
    assert other.target == "add_1"
    assert spec(other) == TensorSpec((1,), torch.int64)


def test_replace_redirect_and_erase() -> None:
    rw = rewriter()
    relu, mul = node(rw, "body_1"), node(rw, "mul")
    with rw.after(relu):
        double = rw.new_module(Add(), relu, relu, like=relu, name="double")
    rw.redirect(relu, double, [mul])
    rw.replace(mul, double)
    rw.finish()
    assert_dump(
        rw.gm,
        """
        %x             = input
        %body_0        = linear[body.0](%x)
        %body_1        = relu[body.1](%body_0)
        %body_double_1 = add[body.double_1](%body_1, %body_1)
        %scale         = attr[scale]
        return %body_double_1
    """,
    )
    assert rw.changes == 4, "a module, a call, a redirection, an erasure"
    assert rw.gm(X).shape == (2, 3)


def test_insertion_keeps_inputs_first() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    rw = Rewriter(recorded(Two(), (X, X)))
    x = node(rw, "x")
    with rw.after(x):
        made = rw.call_module(rw.add_module("", "id", nn.Identity()), x, like=x)
    rw.redirect(x, made, [node(rw, "add")])
    rw.finish()
    assert_dump(
        rw.gm,
        """
        %x    = input
        %y    = input
        %id_1 = identity[id](%x)
        %add  = .add(%id_1, %y)
        return %add
    """,
    )


def test_calls_of_functions_and_methods() -> None:
    rw = rewriter()
    mul = node(rw, "mul")
    size = rw.call_method("size", mul.args[0], 0, like=mul)
    total = rw.call_function(torch.mul, mul.args[0], size, like=mul)
    rw.become_call(mul, "add", total, kwargs={"other": size})
    rw.finish()
    assert_dump(
        rw.gm,
        """
        %x      = input
        %body_0 = linear[body.0](%x)
        %body_1 = relu[body.1](%body_0)
        %scale  = attr[scale]
        %size   = .size(%body_1, 0)
        %mul_1  = mul(%body_1, %size)
        %mul    = .add(%mul_1, other=%size)
        return %mul
    """,
    )


def test_names_that_are_taken_get_numbers() -> None:
    rw = rewriter()
    assert rw.add_module("", "body", nn.ReLU()) == "body_1"
    assert rw.add_module("body", "float", nn.ReLU()) == "body.float_1", "a method of every module"
    assert rw.add_module("body", "0", nn.ReLU()) == "body.0_1"
    with pytest.raises(PassError, match=r"FXQ303.*no module 'head'"):
        rw.add_module("head", "relu", nn.ReLU())


def test_modules_are_swapped_and_retargeted() -> None:
    rw = rewriter()
    rw.set_module("body.1", nn.Tanh())
    rw.retarget(node(rw, "body_0"), rw.add_module("body", "other", nn.Identity()))
    rw.finish()
    torch.testing.assert_close(rw.gm(X), X.tanh())


def test_a_node_with_readers_is_not_erased() -> None:
    rw = rewriter()
    with pytest.raises(
        PassError, match=r"(?s)FXQ304: Test erases a node that mul reads.*test_rewriter.py:"
    ):
        rw.erase(node(rw, "body_1"))


def test_skips_and_reasons_name_the_place() -> None:
    rw = rewriter()
    mul = node(rw, "mul")
    rw.skip(mul, "it is odd")
    rw.explain(mul, "a", "b")
    rw.explain(mul, "b", "c")
    assert str(rw.skips[0]).startswith("Test: left mul, tests/graph/test_rewriter.py:")
    assert rw.skips[0].reason == "it is odd"
    assert rw.reasons == {"mul": ("a", "b", "c")}
    assert rw.changes == 0


def test_computes_floats() -> None:
    rw = rewriter()
    assert [n.name for n in rw.nodes if computes_floats(n)] == ["body_0", "body_1", "mul"]
