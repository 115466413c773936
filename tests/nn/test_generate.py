"""Quantized classes are made on demand, once, for any module class."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant.nn as qnn
from fxquant.errors import QuantizationError
from fxquant.nn import QuantizationMixin, functional, implements, quantized_class

# deprecated ones warn when they are subclassed
OLD = {"Container", "NLLLoss2d"}
PUBLIC = sorted(
    name
    for name, kind in vars(nn).items()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and name not in OLD
    # where a functional module has the name of a class of torch, the name means the former
    if kind is not nn.Module and name not in functional.CLASSES
)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_class_of_torch_has_a_twin(name: str) -> None:
    twin: Any = getattr(qnn, f"Quantized{name}")
    float_class = getattr(nn, name)
    assert issubclass(twin, float_class)
    assert issubclass(twin, QuantizationMixin)
    assert twin.__name__ == f"Quantized{float_class.__name__}"
    assert twin is quantized_class(float_class) is quantized_class(twin)


@pytest.mark.parametrize("name", sorted(functional.CLASSES))
def test_every_functional_module_has_a_twin(name: str) -> None:
    twin: Any = getattr(qnn, f"Quantized{name}")
    module = twin()
    assert isinstance(module, getattr(qnn, name))
    assert len(module.input_quantizers) == twin.arity


def test_stubs_pass_everything_through() -> None:
    for stub in (qnn.QuantStub(), qnn.DeQuantStub(), qnn.QuantizedQuantStub()):
        x = torch.ones(2)
        assert torch.equal(stub(x), x)
        assert torch.equal(stub([x, (x,)])[1][0], x)
        assert torch.equal(stub({"a": x})["a"], x)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("QuantizedConv2D", "'QuantizedConv2d'"),
        ("Conv2d", "no attribute"),
        ("Quantized", "no attr"),
    ],
)
def test_unknown_names(name: str, hint: str) -> None:
    with pytest.raises(AttributeError, match=hint):
        getattr(qnn, name)


def test_pickled_classes_are_found_again() -> None:
    twin: Any = qnn.QuantizedConv2d
    assert pickle.loads(pickle.dumps(twin)) is twin
    assert (twin.__module__, twin.__qualname__) == ("fxquant.nn", "QuantizedConv2d")


def test_handwritten_twins() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    @QuantizationMixin.implements(Doubled)
    class QuantizedDoubled(QuantizationMixin, Doubled):
        def __quant_init__(self) -> None:
            super().__quant_init__()
            self.output_quantizers[1] = None

    twin = QuantizationMixin.from_module(Doubled())
    assert type(twin) is QuantizedDoubled
    assert len(twin.output_quantizers) == 2
    assert type(twin.get_original_module()) is Doubled
    with pytest.raises(QuantizationError, match="FXQ420"):
        implements(nn.Linear)(QuantizedDoubled)


def test_classes_with_the_same_name_stay_apart() -> None:
    def make() -> type[nn.Module]:
        class Same(nn.Module):
            pass

        return Same

    first, second = make(), make()
    assert quantized_class(first) is not quantized_class(second)


def test_names_are_listed() -> None:
    assert {"Add", "QuantStub", "QuantizationMixin", "compute_encodings"} <= set(qnn.__all__)
    assert len(qnn.__all__) == len(set(qnn.__all__))
