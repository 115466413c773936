"""Recurrent layers over packed sequences read padded ones and lengths, and are exported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fxquant import QuantizationSimModel, prepare_model
from fxquant.graph.pass_infra import state_of
from tests.helpers.golden import assert_dump

if TYPE_CHECKING:
    from pathlib import Path

X, LENGTHS = torch.randn(5, 7, 4), torch.tensor([7, 3, 5, 1, 6])


class Net(nn.Module):
    """A layer over packed sequences; what it returns is its last state, its steps, or both."""

    def __init__(
        self, kind: Any = nn.GRU, *, steps: bool = False, total: bool = True, first: bool = True,
        ordered: bool = False, given: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.rnn = kind(4, 8, batch_first=first, **options)
        self.steps, self.total, self.first, self.ordered = steps, total, first, ordered
        self.given = given
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        x = x if self.first else x.transpose(0, 1)
        hx = torch.stack([x.mean(1 if self.first else 0).repeat(1, 2)]) if self.given else None
        packed = pack_padded_sequence(
            x, lengths, batch_first=self.first, enforce_sorted=self.ordered
        )
        packed, last = self.rnn(packed, hx)
        last = last[0] if isinstance(last, tuple) else last
        if not self.steps:
            return self.fc(last[-1])
        total = x.size(1 if self.first else 0) if self.total else None
        y, _ = pad_packed_sequence(packed, batch_first=self.first, total_length=total)
        return self.fc(last[-1]), y


CASES: dict[str, nn.Module] = {
    "gru": Net(),
    "lstm": Net(nn.LSTM),
    "rnn": Net(nn.RNN),
    "deep": Net(nn.LSTM, num_layers=2, bidirectional=True),
    "time-first": Net(first=False),
    "first-state": Net(given=True),
    "steps": Net(steps=True),
    "steps-both": Net(nn.LSTM, steps=True, bidirectional=True),
    "steps-time-first": Net(steps=True, first=False),
}


@pytest.mark.parametrize("name", CASES)
def test_exported_and_right_for_other_lengths(name: str, tmp_path: Path) -> None:
    net = CASES[name].eval()
    gm = prepare_model(net, (X, LENGTHS))
    assert not any("pack" in str(n.target) for n in gm.graph.nodes)
    sim = QuantizationSimModel(gm, (X, LENGTHS))
    sim.compute_encodings([(X, LENGTHS)])
    assert sim.export(tmp_path, "net")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    lengths = torch.tensor([2, 7, 7, 4, 3])
    names = [i.name for i in session.get_inputs()]
    got = session.run(None, dict(zip(names, (X.numpy(), lengths.numpy()), strict=True)))
    with torch.no_grad():
        want = sim.model(X, lengths)
    want = want if isinstance(want, tuple) else (want,)
    grids: list[Any] = [q for q in sim.quantizers() if q.is_initialized()]
    step = max(float((q.get_max() - q.get_min()).max()) / 255 for q in grids)
    for g, w in zip(got, want, strict=True):
        # the optimized kernels may round a value or two to the next step
        assert np.abs(g - w.numpy()).max() <= 2 * step


@pytest.mark.parametrize("ordered", [False, True])
def test_the_same_bits_and_gradients(ordered: bool) -> None:
    net = Net(steps=True, ordered=ordered, bidirectional=True).train()
    net.fc = nn.Linear(8, 3)
    lengths = LENGTHS.sort(descending=True).values if ordered else LENGTHS
    gm = prepare_model(net, (X, lengths))
    for model in (net, gm):
        sum(y.square().sum() for y in model(X, lengths)).backward()
    theirs = dict(net.named_parameters())
    assert all(torch.equal(p.grad, theirs[n].grad) for n, p in gm.named_parameters())  # type: ignore[arg-type]
    assert list(gm.state_dict()) == list(net.state_dict())


def test_packing_and_sorting_go() -> None:
    assert_dump(
        prepare_model(Net().eval(), (X, LENGTHS)),
        """
            %x         = input
            %lengths   = input
            %to        = to[to_1](%lengths, dtype=int64)
            %rnn       = gru[rnn](%x, lengths=%to)
            %getitem_4 = getitem(%rnn, 1)
            %getitem_5 = getitem[getitem](%getitem_4, -1)
            %fc        = linear[fc](%getitem_5)
            return %fc
        """,
    )


def test_steps_as_many_as_the_longest_sequence_has_stay_packed() -> None:
    net = Net(steps=True, total=False).eval()
    gm = prepare_model(net, (X, LENGTHS))
    assert any("not padded to the length" in s.reason for s in state_of(gm).skips)
    lengths = torch.tensor([2, 3, 1, 4, 3])
    for got, want in zip(gm(X, lengths), net(X, lengths), strict=True):
        assert torch.equal(got, want)


def test_lengths_that_come_back_from_padding_keep_it_packed() -> None:
    class Lengths(Net):
        def forward(self, x: Tensor, lengths: Tensor) -> Any:
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(
                self.rnn(packed)[0], batch_first=True, total_length=x.size(1)
            )

    net = Lengths().eval()
    gm = prepare_model(net, (X, LENGTHS))
    for got, want in zip(gm(X, LENGTHS), net(X, LENGTHS), strict=True):
        assert torch.equal(got, want)
