"""Forms of quantizers: widths, blocks, narrow floats, tables, borders, grids of consumers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, fx, nn

import fxquant.quantization as Q
from fxquant import QuantizationSimModel
from fxquant.errors import ExportError
from fxquant.nn import QuantizationMixin, QuantStub
from fxquant.nn import functional as fn
from fxquant.nn.calibration import compute_encodings
from fxquant.onnx import Lowered, lower
from fxquant.onnx.lint.verify import verify_model
from tests.helpers.lowering import graph_of, run

if TYPE_CHECKING:
    from pathlib import Path


def affine(bits: int = 8, *, shape: tuple[int, ...] = (), signed: bool = False, **kw: Any) -> Any:
    """A quantizer of activations, or with a shape of weights."""
    q = Q.affine.QuantizeDequantize(shape=shape, bitwidth=bits, symmetric=bool(shape), **kw)
    q.signed = signed or bool(shape)
    return q


def quantized(module: nn.Module, output: Any = None, **params: Any) -> QuantizationMixin:
    """The module with these quantizers."""
    made = QuantizationMixin.from_module(module)
    made.output_quantizers[0] = output
    for name, quantizer in params.items():
        made.param_quantizers[name] = quantizer
    return made


def chain(*modules: nn.Module, inputs: tuple[Any, ...]) -> fx.GraphModule:
    """A calibrated graph of modules in a row; the first takes the inputs."""
    gm = _row(modules)
    with torch.no_grad(), compute_encodings(gm):
        gm(*inputs)
    return gm.eval()


def _row(modules: tuple[nn.Module, ...]) -> fx.GraphModule:
    graph, root = fx.Graph(), nn.Module()
    value = graph.placeholder("x")
    for i, module in enumerate(modules):
        root.add_module(f"m{i}", module)
        value = graph.call_module(f"m{i}", (value,))
    graph.output(value)
    return fx.GraphModule(root, graph)


def check(gm: fx.GraphModule, x: Tensor, *, exact: bool = True, **options: Any) -> Lowered:
    """Lower, verify, and compare with the simulation in onnxruntime."""
    lowered = lower(gm, ((x,), {}), **options)
    assert not lowered.fallbacks
    assert verify_model(lowered.model), str(verify_model(lowered.model))
    want = gm(x).detach().numpy()
    step = max((float(t.scale.max()) for t in lowered.tensors if t.kind == "activation"), default=0)
    assert np.allclose(run(lowered, [x])[0], want, atol=1e-6 if exact else step * 1.01)
    return lowered


def types(lowered: Lowered) -> dict[str, str]:
    """Integer types by name of the float tensor."""
    return {str(t.float_name): t.dtype.name for t in lowered.tensors}


@pytest.mark.parametrize(("bits", "signed", "name"), [
    (8, False, "UINT8"), (8, True, "INT8"), (16, False, "UINT16"), (16, True, "INT16"),
])  # fmt: skip
def test_widths_of_activations(bits: int, signed: bool, name: str) -> None:
    x = torch.randn(2, 5)
    gm = chain(quantized(QuantStub(), affine(bits, signed=signed)), nn.Tanh(), inputs=(x,))
    assert types(check(gm, x)) == {"x": name}


@pytest.mark.parametrize("bits", [3, 4, 6, 12])
def test_other_widths_are_cut_off_in_a_wider_type(bits: int) -> None:
    x = torch.randn(2, 50)
    gm = chain(quantized(QuantStub(), affine(bits)), nn.Identity(), inputs=(x,))
    lowered = check(gm, 3 * x)
    assert [n.op_type for n in lowered.model.graph][:2] == ["Clip", "QuantizeLinear"]
    assert lowered.tensors[0].bits == bits


@pytest.mark.parametrize(("bits", "name"), [(4, "INT4"), (6, "INT8"), (8, "INT8"), (16, "INT16")])
def test_widths_of_weights(bits: int, name: str) -> None:
    x = torch.randn(2, 6)
    gm = chain(quantized(nn.Linear(6, 3), weight=affine(bits, shape=(3, 1))), inputs=(x,))
    assert types(check(gm, x)) == {"m0.weight": name}


def test_weights_of_four_bits_in_an_old_opset_take_a_byte() -> None:
    x = torch.randn(2, 6)
    gm = chain(quantized(nn.Linear(6, 3), weight=affine(4, shape=(3, 1))), inputs=(x,))
    assert types(check(gm, x, opset=17)) == {"m0.weight": "INT8"}


def test_sixteen_bits_in_an_old_opset_are_refused() -> None:
    x = torch.randn(2, 6)
    gm = chain(quantized(QuantStub(), affine(16)), nn.Tanh(), inputs=(x,))
    with pytest.raises(ExportError, match="FXQ505"):
        lower(gm, ((x,), {}), opset=17)


@pytest.mark.parametrize("rank", [2, 3])
def test_weights_in_blocks(rank: int) -> None:
    x = torch.randn(*(2, 3, 32)[-rank:])
    blocks = affine(4, shape=(5, 2), block_size=(-1, 16))
    lowered = check(chain(quantized(nn.Linear(32, 5), weight=blocks), inputs=(x,)), x)
    tensor = lowered.tensors[0]
    assert tensor.block == 16
    assert tensor.scale.shape == ((5, 2) if rank == 2 else (2, 5))


def test_per_tensor_weights_and_a_transposed_convolution() -> None:
    x = torch.randn(2, 4, 6, 6)
    per_channel = quantized(nn.ConvTranspose2d(4, 6, 3), weight=affine(shape=(1, 6, 1, 1)))
    lowered = check(chain(per_channel, inputs=(x,)), x)
    assert lowered.tensors[0].axis == 1
    per_tensor = quantized(nn.Conv2d(4, 6, 3), weight=affine(shape=(1, 1, 1, 1)))
    assert check(chain(per_tensor, inputs=(x,)), x).tensors[0].axis is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_floats_are_casts(dtype: torch.dtype) -> None:
    x = torch.randn(2, 5)
    stub = quantized(QuantStub(), Q.float.FloatQuantizeDequantize(dtype=dtype))
    lowered = check(chain(stub, nn.Tanh(), inputs=(x,)), x)
    assert [n.op_type for n in lowered.model.graph] == ["Cast", "Cast", "Tanh"]


@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (1, 4)])
def test_a_table_is_dequantized_row_by_row(shape: tuple[int, ...]) -> None:
    ids = torch.randint(0, 7, (2, 5))
    gm = chain(quantized(nn.Embedding(7, 4), weight=affine(shape=shape)), inputs=(ids,))
    lowered = check(gm, ids)
    first = next(iter(lowered.model.graph))
    assert (first.op_type, str(first.inputs[0] and first.inputs[0].name)) == ("Gather", "m0.weight")


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_a_padded_convolution_reads_integers(mode: Any) -> None:
    x = torch.randn(2, 3, 6, 6)
    conv = quantized(nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode), affine(),
                     weight=affine(shape=(4, 1, 1, 1)))  # fmt: skip
    gm = chain(quantized(QuantStub(), affine()), conv, inputs=(x,))
    lowered = check(gm, x, exact=False)
    node = next(n for n in lowered.model.graph if n.op_type == "Conv")
    producer = node.inputs[0].producer() if node.inputs[0] else None
    assert producer is not None
    assert producer.op_type == "DequantizeLinear"


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("move", "kinds"), [
    (nn.Flatten(), {"Flatten"}), (nn.PixelShuffle(2), {"DepthToSpace"}),
    (nn.ChannelShuffle(2), {"Reshape", "Transpose"}), (nn.MaxPool2d(2), {"MaxPool"}),
])  # fmt: skip
def test_moves_keep_the_grid(move: nn.Module, kinds: set[str], signed: bool) -> None:
    x = torch.randn(2, 4, 6, 6)
    moved = QuantizationMixin.from_module(move)
    gm = chain(quantized(QuantStub(), affine(signed=signed)), moved, inputs=(x,))
    lowered = check(gm, x)
    assert kinds <= {n.op_type for n in lowered.model.graph}
    pairs = [n for n in lowered.model.graph if n.op_type.endswith("zeLinear")]
    assert len({n.inputs[1].name for n in pairs if n.inputs[1] is not None}) == 1


def test_a_consumer_may_read_another_grid() -> None:
    x = torch.randn(2, 5)
    tanh = QuantizationMixin.from_module(nn.Tanh())
    tanh.input_quantizers[0] = affine(4)
    gm = chain(quantized(QuantStub(), affine()), tanh, inputs=(x,))
    lowered = lower(gm, ((x,), {}))
    assert np.allclose(run(lowered, [x])[0], gm(x).detach().numpy(), atol=1e-6)
    assert [n.op_type for n in lowered.model.graph].count("QuantizeLinear") == 2


def test_a_quantized_constant_is_stored_as_integers() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.randn(1, 5))
            self.stub, self.stub_x = (quantized(QuantStub(), affine()) for _ in range(2))
            self.add = quantized(fn.Add(), affine())

        def forward(self, x: Tensor) -> Any:
            return self.add(self.stub_x(x), self.stub(self.shift))

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return isinstance(m, QuantizationMixin)

    x, net = torch.randn(2, 5), Shifted()
    gm = fx.GraphModule(net, Tracer().trace(net))
    observing = [q for q in gm.modules() if isinstance(q, Q.QuantizerBase)]
    for q in observing:
        q.set_range(-3.0, 3.0)  # type: ignore[operator]
    lowered = lower(gm, ((x,), {}))
    assert verify_model(lowered.model)
    constants = lowered.model.graph.initializers
    assert constants["stub.output_q"].dtype is ir.DataType.UINT8
    assert "shift" not in constants
    assert np.allclose(run(lowered, [x])[0], gm(x).detach().numpy(), atol=1e-6)


def test_a_module_kept_whole_loses_no_quantizer() -> None:
    pytest.importorskip("onnxscript")

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.erfc(x @ self.weight)

    x = torch.randn(2, 4)
    module = quantized(Own(), affine(), weight=affine(shape=(1, 4)))
    gm = chain(module, inputs=(x,))
    lowered = lower(gm, ((x,), {}))
    assert len(lowered.fallbacks) == 1
    step = float(lowered.tensors[-1].scale)
    assert np.abs(run(lowered, [x])[0] - gm(x).detach().numpy()).max() <= 1.01 * step


def test_multiple_outputs_each_on_its_grid() -> None:
    x = torch.randn(2, 3, 4)
    lstm = QuantizationMixin.from_module(nn.LSTM(4, 3, batch_first=True))
    for i in range(3):
        lstm.output_quantizers[i] = affine()
    for name in ("weight_ih_l0", "weight_hh_l0"):
        lstm.param_quantizers[name] = affine(shape=(12, 1))
    gm = graph_of(lstm, x)
    for q in gm.modules():
        if isinstance(q, Q.QuantizerBase):
            q.set_range(-1.0, 1.0)  # type: ignore[operator]
    lowered = lower(gm, ((x,), {}))
    assert [t.index for t in lowered.tensors if t.kind == "activation"] == [0, 1, 2]
    with torch.no_grad():
        y, (h, cell) = gm(x)
    for got, want in zip(run(lowered, [x]), (y, h, cell), strict=True):
        assert np.abs(got - want.numpy()).max() <= 1.01 * 2 / 255


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_a_projected_lstm_is_exported_and_proven(options: dict[str, Any], tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(6, 8, proj_size=3, batch_first=True, **options)
            self.fc = nn.Linear(3 * (1 + self.rnn.bidirectional), 2)

        def forward(self, x: Tensor) -> Any:
            y, (h, c) = self.rnn(x)
            return self.fc(y), h, c

    x = torch.randn(4, 7, 6)
    sim = QuantizationSimModel(Net().eval(), x)
    sim.compute_encodings([x])
    assert sim.export(tmp_path, "net")
    assert not lower(sim.model, ((x,), {})).fallbacks


def test_the_weights_of_a_projected_lstm_may_be_quantized() -> None:
    x = torch.randn(2, 3, 4)
    lstm = QuantizationMixin.from_module(nn.LSTM(4, 5, proj_size=3, batch_first=True))
    for name, rows in (("weight_hh_l0", 20), ("weight_hr_l0", 3)):
        lstm.param_quantizers[name] = affine(shape=(rows, 1))
    gm = graph_of(lstm, x)
    for q in gm.modules():
        if isinstance(q, Q.QuantizerBase):
            q.set_range(-0.5, 0.5)  # type: ignore[operator]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y, (h, cell) = gm(x)
        lowered = lower(gm, ((x,), {}))
    for got, want in zip(run(lowered, [x]), (y, h, cell), strict=True):
        assert np.abs(got - want.numpy()).max() < 1e-5  # float sums in another order
