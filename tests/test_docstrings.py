"""The examples in docstrings of regions, targets, inspections and the Vitis face run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import fxquant.analysis
import fxquant.auto
import fxquant.targets
import fxquant.vitis

MODULES = sorted(
    [
        "fxquant.regions",
        "fxquant.targets",
        "fxquant.vitis",
        *(
            found.name
            for package in (fxquant.analysis, fxquant.auto, fxquant.targets, fxquant.vitis)
            for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        ),
    ]
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
