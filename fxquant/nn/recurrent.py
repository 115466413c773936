"""Recurrent layers over padded sequences of given lengths.

PyTorch runs them over a `PackedSequence`, whose layout no runtime has. These take what was packed,
the padded input, and the lengths; what they compute is the same.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def _forward(layer: Any, plain: Any, input: Tensor, hx: Any, lengths: Tensor | None) -> Any:
    """Run a layer over the first `lengths[i]` steps of each sequence."""
    if lengths is None:
        return plain(input, hx)
    first = bool(layer.batch_first)
    packed = pack_padded_sequence(input, lengths.cpu(), batch_first=first, enforce_sorted=False)
    steps, last = plain(packed, hx)
    # as long as the input, whatever the longest sequence is
    total = input.shape[1 if first else 0]
    return pad_packed_sequence(steps, batch_first=first, total_length=total)[0], last


class PaddedLSTM(nn.LSTM):
    """`nn.LSTM` that takes lengths [N]; steps after the end of a sequence are zero."""

    def forward(self, input: Tensor, hx: Any = None, lengths: Tensor | None = None) -> Any:  # type: ignore[override]
        """Steps, and the states after the last step of each sequence."""
        return _forward(self, super().forward, input, hx, lengths)


class PaddedGRU(nn.GRU):
    """`nn.GRU` that takes lengths [N]; steps after the end of a sequence are zero."""

    def forward(self, input: Tensor, hx: Any = None, lengths: Tensor | None = None) -> Any:  # type: ignore[override]
        """Steps, and the state after the last step of each sequence."""
        return _forward(self, super().forward, input, hx, lengths)


class PaddedRNN(nn.RNN):
    """`nn.RNN` that takes lengths [N]; steps after the end of a sequence are zero."""

    def forward(self, input: Tensor, hx: Any = None, lengths: Tensor | None = None) -> Any:  # type: ignore[override]
        """Steps, and the state after the last step of each sequence."""
        return _forward(self, super().forward, input, hx, lengths)


def padded(layer: nn.RNNBase) -> nn.RNNBase | None:
    """The same layer, with the same parameters and hooks, for padded input; None for other classes.

    >>> type(padded(nn.GRU(2, 3))).__name__
    'PaddedGRU'
    """
    kind: Any = _PADDED.get(type(layer))
    if kind is None:
        return None
    made: nn.RNNBase = kind.__new__(kind)
    vars(made).update(vars(layer))
    return made


_PADDED = {nn.LSTM: PaddedLSTM, nn.GRU: PaddedGRU, nn.RNN: PaddedRNN}
