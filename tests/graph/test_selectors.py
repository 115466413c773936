"""Selecting modules."""

from __future__ import annotations

import pytest
from torch import nn

from fxquant.errors import SelectorError
from fxquant.graph.selectors import Selector, select

NET = nn.Sequential()
NET.add_module("stem", nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
NET.add_module("head", nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("head", {"head"}),
        ("stem.*", {"stem.0", "stem.1"}),
        ("?tem", {"stem"}),
        (nn.Linear, {"head"}),
        (nn.Module, {"", "stem", "stem.0", "stem.1", "head"}),
        (NET.get_submodule("stem.1"), {"stem.1"}),
        (["head", nn.ReLU], {"head", "stem.1"}),
        ((), set()),
    ],
)
def test_names_globs_classes_and_instances(selector: Selector, found: set[str]) -> None:
    assert select(NET, selector) == found


@pytest.mark.parametrize(
    ("selector", "hint"),
    [
        ("haed", "did you mean 'head'"),
        (nn.LSTM, "the model's classes are Conv2d, Linear, ReLU, Sequential"),
        (nn.ReLU(), "not of a copy"),
        (3, "a selector is"),
    ],
)
def test_what_matches_nothing_is_an_error_with_a_hint(selector: Selector, hint: str) -> None:
    with pytest.raises(SelectorError, match=f"(?s)FXQ213.*{hint}"):
        select(NET, [selector])
