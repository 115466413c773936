"""Encodings travel with tensors through operators that move values, and through no others."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

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


FOLLOWED: dict[str, Callable[[Tensor], Tensor]] = {
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 3),
    "movedim": lambda x: torch.movedim(x, 1, -1),
    "mT": lambda x: x.mT,
    "twice": lambda x: x.transpose(0, 1).permute(2, 0, 1, 3),
    "unsqueeze": lambda x: x.unsqueeze(0),
    "squeeze": lambda x: x[:1].squeeze(0),
    "first": lambda x: x[0],
    "one channel": lambda x: x[:, 3],
    "channels": lambda x: x[:, 1:7:2],
    "slices": lambda x: x[1:, 2:, ::2, :1],
    "none": lambda x: x[:, None],
    "ellipsis": lambda x: x[..., 0],
    "select": lambda x: x.select(1, -1),
    "narrow": lambda x: x.narrow(1, 2, 3),
    "split": lambda x: x.split(3, 1)[1],
    "chunk": lambda x: torch.chunk(x, 4, 1)[2],
    "unbind": lambda x: x.unbind(1)[5],
    "flatten of others": lambda x: x.flatten(2),
    "reshape of others": lambda x: x.reshape(2, 8, -1),
    "view of others": lambda x: x.view(2, 8, 4, 9),
    "groups of channels": lambda x: x.reshape(2, 2, 4, 6, 6),
    "flatten of size one": lambda x: x[:, :, :1, :1].flatten(1),
    "expand": lambda x: x[:, :, :, :1].expand(2, 8, 6, 5),
    "expand of one channel": lambda x: x[:, 2:3].expand(2, 4, 6, 6),
    "diagonal": lambda x: x.diagonal(0, 2, 3),
    "unfold": lambda x: x.unfold(2, 3, 1),
    "contiguous": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "indices": lambda x: x[:, torch.tensor([1, 0, 5])],
    "indices of others": lambda x: x[:, :, torch.tensor([1, 0, 0, 3, 2, 1, 5, 4])],
    "more indices than channels": lambda x: x[:, torch.arange(20) % 8],
    "index_select": lambda x: torch.index_select(x, 1, torch.tensor([7, 0])),
    "channels by a mask": lambda x: x[:, torch.arange(8) > 2],
    "flip": lambda x: x.flip(1),
    "flip of others": lambda x: torch.flip(x, (2, 3)),
    "roll": lambda x: x.roll(3, 1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 4),
    "reshape after permute": lambda x: x.permute(0, 3, 1, 2).reshape(12, 8, 6),
}
# values chosen within a channel
REDUCED: dict[str, Callable[[Tensor], Tensor]] = {
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "amax of others": lambda x: x.amax((2, 3)),
    "sort of others": lambda x: x.sort(2).values,
    "topk of others": lambda x: x.topk(2, -1).values,
}
MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: x.flatten(1),
    "flatten all": lambda x: x.flatten(),
    "amax": lambda x: x.amax(1),
    "max_pool3d": lambda x: F.max_pool3d(x, 2),
    "topk": lambda x: x.topk(2, 1).values,
    "sort": lambda x: x.sort(1).values,
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "mask": lambda x: x.masked_select(x > 0),
    "unfold with zeros": lambda x: F.unfold(x, 1, padding=1),
}


def channelwise() -> Tensor:
    q = Q.affine.QuantizeDequantize((1, 8, 1, 1), 8)
    q.set_range(-torch.arange(1.0, 9.0).reshape(1, 8, 1, 1), 2.5)
    y = q(torch.randn(2, 8, 6, 6))
    assert isinstance(y, Tensor)
    return y


@pytest.mark.parametrize("name", FOLLOWED | REDUCED)
def test_an_axis_is_followed(name: str) -> None:
    y = channelwise()
    move = (FOLLOWED | REDUCED)[name]
    moved = move(y)
    assert type(moved) is Q.DequantizedTensor
    # the integers, moved by the same operator
    want = move(y.quantize().as_subclass(Tensor))  # type: ignore[attr-defined]
    assert torch.equal(moved.quantize().as_subclass(Tensor), want)
    assert torch.equal(moved.quantize().dequantize(), moved)


@pytest.mark.parametrize("name", MIXED)
def test_mixed_channels_have_no_encoding(name: str) -> None:
    assert type(MIXED[name](channelwise())) is Tensor


def test_floats_with_a_scale_a_channel_are_followed() -> None:
    q = Q.float.FloatQuantizeDequantize(dtype=torch.float8_e4m3fn, shape=(8, 1))
    q.set_range(-torch.arange(1.0, 9.0).reshape(8, 1), 1.0)
    moved = q(torch.randn(8, 5)).T
    assert isinstance(moved, Q.DequantizedTensor)
    assert isinstance(moved.encoding, Q.FloatEncoding)
    assert moved.encoding.scale is not None
    scale = q.get_scale()
    assert scale is not None
    assert torch.equal(moved.encoding.scale, scale.T)


def test_blocks_survive_only_in_place() -> None:
    q = Q.affine.QuantizeDequantize((8, 2), 4, True, block_size=(1, 3))
    q.set_range(-1.0, 1.0)
    y = q(torch.randn(8, 6))
    for same in (y.clone(), y.contiguous(), y.detach(), y.double()):
        assert type(same) is Q.DequantizedTensor
    for moved in (y.flatten(), y[0], y.T):
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


def test_backward_from_an_encoded_tensor_looks_at_no_attribute_through_the_subclass() -> None:
    seen = []

    class Watched(Q.DequantizedTensor):
        @classmethod
        def __torch_function__(cls, func: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(func)
            return super().__torch_function__(func, *args, **kwargs)

    x = torch.ones(3, requires_grad=True)
    out = (x * 2).as_subclass(Watched)
    out.backward(torch.ones(3))
    assert x.grad is not None
    assert x.grad.tolist() == [2, 2, 2]
    assert not seen


def test_a_tensor_can_be_given_its_encoding() -> None:
    x = torch.tensor([1.0, 2.0]).as_subclass(Q.QuantizedTensor)
    x.encoding = Q.AffineEncoding(torch.tensor(0.5), torch.tensor(0.0), 4)
    assert torch.equal(x.dequantize(), torch.tensor([0.5, 1.0]))
    assert x.float() is x
    x.add_(1)
    assert x.encoding is None


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_view_that_mixes_scales_is_a_plain_tensor(layout: torch.memory_format) -> None:
    q = Q.affine.QuantizeDequantize((4, 1, 1, 1), 8)
    x = torch.randn(4, 3, 2, 2).contiguous(memory_format=layout)
    with q.compute_encodings():
        q(x)
    y = q(x) if layout is torch.contiguous_format else q(x).permute(0, 2, 3, 1)
    assert type(y.view(-1)) is Tensor
    assert torch.equal(y.view(-1), y.as_subclass(Tensor).view(-1))
    assert y.view(4, -1).encoding.shape == (4, 1)
