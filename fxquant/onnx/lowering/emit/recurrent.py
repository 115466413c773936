"""LSTM, GRU and RNN: any number of layers, one or both directions.

ONNX knows no LSTM that projects its hidden state, `h = P g` with `g = o * tanh(c)`. It is written
as one without, whose hidden state is `g`: the recurrent weight `W` becomes `W P`, and what comes
out is projected. A given first state becomes the least `g` whose projection it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from fxquant.onnx.lowering.context import Call, UnsupportedError
from fxquant.onnx.lowering.emitters import emits
from fxquant.onnx.lowering.stored_weights import Arrangement


@dataclass(frozen=True)
class _Kind:
    """What ONNX calls it, and the order of its gates as indices into PyTorch's."""

    name: str
    gates: tuple[int, ...]
    states: int = 1


_KINDS = {
    nn.LSTM: _Kind("LSTM", (0, 3, 1, 2), states=2),  # i f g o -> i o f g
    nn.GRU: _Kind("GRU", (1, 0, 2)),  # r z n -> z r n
    nn.RNN: _Kind("RNN", (0,)),
}


@emits("lstm", "gru", "rnn")
def _recurrent(c: Call) -> Any:
    return _Recurrent(c).write()


class _Recurrent:
    def __init__(self, c: Call) -> None:
        self.c = c
        module = c.module
        if not isinstance(module, nn.RNNBase):
            msg = "the recurrent layer is no module"
            raise UnsupportedError(msg)
        self.m: nn.RNNBase = module
        self.kind = next(k for cls, k in _KINDS.items() if isinstance(module, cls))
        self.directions = 2 if module.bidirectional else 1
        self.single = c.spec().rank == 2
        self.dtype = c.spec().dtype
        self.size = module.proj_size or module.hidden_size  # of what a step hands out

    def write(self) -> tuple[ir.Value, Any]:
        """(steps, last states) as the module returns them."""
        c = self.c
        x = c.tensor()
        if self.single:
            x = c.unsqueeze(x, [1])
        elif self.m.batch_first:
            x = c.op("Transpose", x, perm=[1, 0, 2])
        first = self._states(x)
        last: list[list[ir.Value]] = [[] for _ in range(self.kind.states)]
        for layer in range(self.m.num_layers):
            given = [self._of_layer(state, layer) for state in first]
            x, states = self._layer(x, layer, given)
            for kept, state in zip(last, states, strict=True):
                kept.append(state)
        return self._result(x, last)

    def _states(self, x: ir.Value) -> list[ir.Value]:
        """Initial states `[layers * directions, N, hidden]`; zeros where none are given."""
        hx = self.c["hx"]
        if hx is None:
            return []
        given = hx if isinstance(hx, (tuple, list)) else [hx]
        if len(given) != self.kind.states:
            found = self.c.resolve(hx)
            given = list(found) if isinstance(found, list) else given
        values = [
            g.value(self.c.builder) if hasattr(g, "constant") else self.c.value(g, "hx")
            for g in given
        ]
        return [self.c.unsqueeze(v, [1]) for v in values] if self.single else values

    def _of_layer(self, state: ir.Value, layer: int) -> ir.Value:
        if self.m.num_layers == 1:
            return state
        start = layer * self.directions
        return self.c.slice(state, 0, start, start + self.directions)

    def _layer(
        self, x: ir.Value, layer: int, states: list[ir.Value]
    ) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        weights = [self._stacked(f"weight_ih_l{layer}"), self._recurrent(layer)]
        states = self._unprojected(states, layer)
        bias = self._bias(layer)
        activations = None
        if isinstance(self.m, nn.RNN):
            name = "Relu" if self.m.nonlinearity == "relu" else "Tanh"
            activations = [name] * self.directions
        outputs = self.c.builder.ops(
            self.kind.name, 1 + self.kind.states, x, *weights, bias, self._lengths(), *states,
            hidden_size=self.m.hidden_size,
            direction="bidirectional" if self.directions == 2 else "forward",
            linear_before_reset=1 if self.kind.name == "GRU" else None,
            activations=activations,
        )  # fmt: skip
        if not self.m.proj_size:
            self.c.builder.main(outputs[0])
            return self._merged(outputs[0]), outputs[1:]
        projection = self.c.op("Transpose", self._projections(layer), perm=[0, 2, 1])
        y, h = (self.c.op("MatMul", value, projection) for value in outputs[:2])
        return self._merged(y), (h, *outputs[2:])

    def _lengths(self) -> ir.Value | None:
        if self.c["lengths"] is None:
            return None
        return self.c.op("Cast", self.c.tensor("lengths"), to=ir.DataType.INT32)

    def _recurrent(self, layer: int) -> ir.Value:
        """The weights of both directions that the hidden state meets."""
        weights = self._stacked(f"weight_hh_l{layer}")
        if not self.m.proj_size:
            return weights
        return self.c.op("MatMul", weights, self._projections(layer))

    def _projections(self, layer: int) -> ir.Value:
        """[directions, size, hidden]."""
        return self._stacked(f"weight_hr_l{layer}", gates=False)

    def _unprojected(self, states: list[ir.Value], layer: int) -> list[ir.Value]:
        """The first states of an LSTM that does not project."""
        if not self.m.proj_size or not states:
            return states
        names = self._names(f"weight_hr_l{layer}")
        projections = torch.stack([self.m.get_parameter(n) for n in names]).detach().double()
        quantizers = getattr(self.m, "param_quantizers", {})
        if any(n in quantizers and quantizers[n] is not None for n in names):
            msg = "its projection is quantized, and the first hidden state is given"
            raise UnsupportedError(msg)
        if torch.linalg.matrix_rank(projections).min() < self.size:
            msg = "its projection does not reach every hidden state, and the first one is given"
            raise UnsupportedError(msg)
        back = torch.linalg.pinv(projections).transpose(1, 2).to(self.dtype).contiguous()
        return [self.c.op("MatMul", states[0], self.c.builder.constant(back)), *states[1:]]

    def _merged(self, y: ir.Value) -> ir.Value:
        """[T, directions, N, size] -> [T, N, directions * size]."""
        c = self.c
        if self.directions == 1:
            return c.squeeze(y, [1])
        moved = c.op("Transpose", y, perm=[0, 2, 1, 3])
        return c.op("Reshape", moved, [0, 0, 2 * self.size])

    def _names(self, name: str) -> list[str]:
        return [name, f"{name}_reverse"][: self.directions]

    def _rows(self) -> tuple[int, ...]:
        hidden = self.m.hidden_size
        return tuple(g * hidden + i for g in self.kind.gates for i in range(hidden))

    def _parameter(self, name: str, *, gates: bool = True) -> ir.Value:
        rows = self._rows() if gates and len(self.kind.gates) > 1 else None
        return self.c.parameter_of(getattr(self.m, name), name, Arrangement(rows=rows))

    def _stacked(self, name: str, *, gates: bool = True) -> ir.Value:
        """The weights of both directions, gates in ONNX's order."""
        parts = [self.c.unsqueeze(self._parameter(n, gates=gates), [0]) for n in self._names(name)]
        return self.c.op("Concat", *parts, axis=0) if len(parts) > 1 else parts[0]

    def _bias(self, layer: int) -> ir.Value | None:
        if not self.m.bias:
            return None
        rows = []
        for name in self._names(f"l{layer}"):
            tail = name.removeprefix(f"l{layer}")
            both = [self._parameter(f"bias_{part}_l{layer}{tail}") for part in ("ih", "hh")]
            rows.append(self.c.unsqueeze(self.c.op("Concat", *both, axis=0), [0]))
        return self.c.op("Concat", *rows, axis=0) if len(rows) > 1 else rows[0]

    def _result(self, x: ir.Value, last: list[list[ir.Value]]) -> tuple[ir.Value, Any]:
        c = self.c
        if self.single:
            x = c.squeeze(x, [1])
        elif self.m.batch_first:
            x = c.op("Transpose", x, perm=[1, 0, 2])
        states = [c.op("Concat", *s, axis=0) if len(s) > 1 else s[0] for s in last]
        if self.single:
            states = [c.squeeze(s, [1]) for s in states]
        return x, (tuple(states) if self.kind.states > 1 else states[0])
