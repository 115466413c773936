"""Whether a run left something behind in Python."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from typing import Any

import pytest
import torch
from torch import nn

from fxquant.graph.python_state import state_of_python, unchanged


def note(net: Any) -> None:
    net.parts["a"][1].append(1)


def count(net: Any) -> None:
    net.inner.count = 2


def replace(net: Any) -> None:
    net.tensor = net.tensor.clone()


def write(net: Any) -> None:
    net.parts["a"][0].add_(1)


def swap(net: Any) -> None:
    net.fn = print


def network() -> Any:
    net: Any = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    net.inner = nn.Identity()
    net.inner.count, net.inner.names = 1, {"x"}
    net.tensor, net.fn = torch.ones(2), len
    net.parts = OrderedDict(a=(torch.ones(1), [0]))
    return net


@pytest.mark.parametrize("change", [note, count, replace, write, swap])
def test_changes_are_seen(change: Any) -> None:
    net = network()
    before = state_of_python(net)
    net(torch.ones(1, 2))
    assert unchanged(before, state_of_python(net))
    change(net)
    assert not unchanged(before, state_of_python(net))


@pytest.mark.parametrize("hiding", [torch.Generator(), random.Random(0), deque(), iter("ab")])
def test_what_may_hide_a_state_is_never_unchanged(hiding: Any) -> None:
    net = network()
    net.hiding = hiding
    assert state_of_python(net) is None
    assert not unchanged(None, None)
