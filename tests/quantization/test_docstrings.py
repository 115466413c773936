"""The examples in docstrings of quantizers and quantized modules run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import fxquant.nn
import fxquant.quantization

MODULES = sorted(
    found.name
    for package in (fxquant.nn, fxquant.quantization)
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
