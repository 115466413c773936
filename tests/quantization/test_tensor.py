"""Encodings travel with tensors through operators that move values, and through no others."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant.quantization as Q
from fxquant.errors import QuantizationError

MOVE: dict[str, Callable[[Tensor], Tensor]] = {
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "MaxPool2d": nn.MaxPool2d(2),
    "max_pool2d with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 1),
    "flatten": lambda x: x.flatten(1),
    "Flatten": nn.Flatten(),
    "reshape": lambda x: torch.reshape(x, (2, -1)),
    "view": lambda x: x.view(-1),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: torch.transpose(x, 1, 2),
    "mT": lambda x: x.mT,
    "index": lambda x: x[0, 1:],
    "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: torch.split(x, 4, 1)[0],
    "unbind": lambda x: x.unbind(0)[0],
    "max": lambda x: torch.max(x, 1).values,
    "amax": lambda x: x.amax((2, 3)),
    "topk": lambda x: x.topk(2).values,
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "expand": lambda x: x[:, :, :, :1].expand(2, 8, 6, 3),
    "squeeze": lambda x: x.unsqueeze(0).squeeze(0),
    "contiguous": lambda x: x.mT.contiguous(),
    "detach": lambda x: x.detach(),
    "clone": lambda x: x.clone(),
    "to": lambda x: x.to("cpu"),
    "float": lambda x: x.float(),
}
COMPUTE: dict[str, Callable[[Tensor], Tensor]] = {
    "add": lambda x: x + 1,
    "relu": F.relu,
    "mul": lambda x: 2 * x,
    "int": lambda x: x.int(),
    "compare": lambda x: x > 0,
    "argmax": lambda x: x.argmax(1),
    "conv2d": lambda x: F.conv2d(x, torch.ones(1, 8, 1, 1)),
    "mean": lambda x: x.mean((2, 3)),
    "softmax": lambda x: x.softmax(1),
    "cat": lambda x: torch.cat([x, x]),
    "indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[1],
}


def quantizer(*shape: int) -> Q.affine.QuantizeDequantize:
    q = Q.affine.QuantizeDequantize(shape, 8)
    q.set_range(-1.0, 1.5)
    return q


@pytest.mark.parametrize("name", MOVE)
def test_moved_values_keep_a_per_tensor_encoding(name: str) -> None:
    y = MOVE[name](quantizer()(torch.randn(2, 8, 6, 6)))
    assert type(y) is Q.DequantizedTensor
    assert torch.equal(y.quantize().dequantize(), y)
    assert y.quantized_repr().dtype is torch.uint8


@pytest.mark.parametrize("name", COMPUTE)
def test_computed_values_are_plain(name: str) -> None:
    assert type(COMPUTE[name](quantizer()(torch.randn(2, 8, 6, 6)))) is Tensor


def test_per_channel_encodings_survive_only_in_place() -> None:
    y = quantizer(1, 8, 1, 1)(torch.randn(2, 8, 6, 6))
    for same in (y.clone(), y.contiguous(), y.detach(), y.double()):
        assert type(same) is Q.DequantizedTensor
    for moved in (y.flatten(1), y[0], y.permute(1, 0, 2, 3), F.max_pool2d(y, 2)):
        assert type(moved) is Tensor


@pytest.mark.parametrize(
    "write",
    [
        lambda y: y.add_(1),
        lambda y: F.relu(y, inplace=True),
        lambda y: y.__setitem__(0, 5.0),
        lambda y: torch.add(y, 1, out=y),
        lambda y: y.view(-1)[:3].zero_(),
    ],
)
def test_written_tensors_forget(write: Callable[[Tensor], object]) -> None:
    y = quantizer()(torch.randn(8)).detach().clone()
    write(y)
    assert isinstance(y, Q.DequantizedTensor)
    assert y.encoding is None
    with pytest.raises(QuantizationError, match="FXQ407"):
        y.quantize()


def test_values_and_gradients_are_those_of_a_plain_tensor() -> None:
    x = torch.randn(2, 8, requires_grad=True)
    y = quantizer()(x)
    assert y.requires_grad
    (y @ torch.ones(8)).sum().backward()
    assert x.grad is not None
    assert type(x.grad) is Tensor
    assert y.numpy(force=True).shape == (2, 8)
    assert torch.as_tensor(y).shape == (2, 8)


def test_integers() -> None:
    i = quantizer()(torch.tensor([-2.0, 0.0, 2.0])).quantize()
    assert type(i) is Q.QuantizedTensor
    assert i.quantize() is i
    assert i.quantized_repr().tolist() == [0, 102, 255]
    assert i.quantized_repr().dtype is torch.uint8
    y = i.dequantize()
    assert y.dequantize() is y


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (0, 255, torch.uint8),
        (-128, 127, torch.int8),
        (0, 15, torch.uint8),
        (-8, 7, torch.int8),
        (-32768, 32767, torch.int16),
        (0, 65535, torch.int32),
    ],
)
def test_smallest_integer_type(low: int, high: int, dtype: torch.dtype) -> None:
    one = torch.ones(())
    assert Q.AffineEncoding(one, one * 0, low, high).dtype is dtype


@pytest.mark.parametrize("kind", ["copy", "pickle"])
def test_copies(kind: str) -> None:
    y = quantizer()(torch.randn(3)).detach()
    twin = copy.deepcopy(y) if kind == "copy" else pickle.loads(pickle.dumps(y))
    assert torch.equal(twin, y)
    assert twin.encoding is not None
    assert twin.encoding.same_grid(y.encoding)


def test_encoding_facts() -> None:
    encoding = quantizer().get_encodings()
    assert encoding is not None
    assert (encoding.bitwidth, encoding.signed, encoding.symmetry) == (8, False, False)
    assert encoding.granularity == "pertensor"
    assert encoding.zero_point.item() == 102
    assert encoding.min.item() == pytest.approx(-1.0, abs=0.01)
    assert encoding.max.item() == pytest.approx(1.5, abs=0.01)
    assert encoding.same_grid(encoding.to("cpu"))
    assert not encoding.same_grid(None)


def test_inference_mode() -> None:
    with torch.inference_mode():
        y = quantizer()(torch.randn(4))
        assert y.flatten().quantize().shape == (4,)
    assert y.encoding is not None
