"""Boundaries: one stub for every value that enters the chosen nodes or leaves them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxquant.nn import DeQuantStub, QuantStub
from fxquant.passes import InsertStubs
from tests.helpers.golden import assert_rewrites, ready

X = torch.randn(2, 3)


class Net(nn.Module):
    """`b` between `a` and `c`; what `a` computes is read by all that follows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        a = self.a(x)
        b = self.b(a)
        return self.c(b) + a, b.shape[0]


def test_golden() -> None:
    assert_rewrites(InsertStubs(nodes=frozenset({"a", "c"})), Net().eval(), """
          %x         = input
        + %quant_x   = QuantStub[quant_x](%x)
        - %a         = linear[a](%x)
        + %a         = linear[a](%quant_x)
        + %dequant_a = DeQuantStub[dequant_a](%a)
        - %b         = linear[b](%a)
        + %b         = linear[b](%dequant_a)
        + %quant_b   = QuantStub[quant_b](%b)
        - %c         = linear[c](%b)
        + %c         = linear[c](%quant_b)
        - %add       = add[add](%c, %a)
        + %dequant_c = DeQuantStub[dequant_c](%c)
        + %add       = add[add](%dequant_c, %dequant_a)
          %size      = .size(%b, 0)
          return (%add, %size)
    """, inputs=X)  # fmt: skip


def test_a_value_that_is_read_twice_has_one_stub() -> None:
    outcome = assert_rewrites(InsertStubs(nodes=frozenset({"b", "add"})), Net().eval(), """
          %x           = input
          %a           = linear[a](%x)
        + %quant_a     = QuantStub[quant_a](%a)
        - %b           = linear[b](%a)
        + %b           = linear[b](%quant_a)
        + %dequant_b   = DeQuantStub[dequant_b](%b)
        - %c           = linear[c](%b)
        + %c           = linear[c](%dequant_b)
        + %quant_c     = QuantStub[quant_c](%c)
        - %add         = add[add](%c, %a)
        + %add         = add[add](%quant_c, %quant_a)
        + %dequant_add = DeQuantStub[dequant_add](%add)
        - %size        = .size(%b, 0)
        + %size        = .size(%dequant_b, 0)
        - return (%add, %size)
        + return (%dequant_add, %size)
    """, inputs=X)  # fmt: skip
    assert outcome.modified


def test_numbers_stay_and_the_stubs_say_who_put_them_there() -> None:
    gm = ready(Net().eval(), InsertStubs.needs, X)
    want = gm(X)
    InsertStubs(nodes=frozenset({"b"}))(gm)
    got = gm(X)
    assert torch.equal(got[0], want[0])
    assert got[1] == want[1]
    stubs = [m for m in gm.modules() if isinstance(m, QuantStub | DeQuantStub)]
    assert len(stubs) == 2
    assert all(stub.inserted for stub in stubs)


def test_nothing_chosen_changes_nothing() -> None:
    gm = ready(Net().eval(), InsertStubs.needs, X)
    assert not InsertStubs()(gm).modified
