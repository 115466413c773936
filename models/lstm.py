"""A bidirectional LSTM that classifies sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class LstmClassifier(nn.Module):
    """Two LSTM layers in both directions; the mean over time is classified.

    Args:
        features: length of a step's vector.
        hidden: units per direction.
        layers: number of LSTM layers.
        num_classes: number of logits.
    """

    def __init__(
        self, *, features: int = 8, hidden: int = 64, layers: int = 2, num_classes: int = 10
    ) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, hidden, layers, batch_first=True, bidirectional=True)
        self.fc1 = nn.Linear(2 * hidden, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, features] -> [N, num_classes]."""
        steps, _ = self.lstm(x)
        return self.fc2(torch.relu(self.fc1(steps.mean(1))))  # type: ignore[no-any-return]
