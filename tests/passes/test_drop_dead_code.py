"""What nobody reads goes, what has an effect stays."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxquant.passes import DropDeadCode, FunctionalsToModules
from tests.helpers.golden import assert_rewrites, ready, run

X = torch.randn(2, 4)


class Wasteful(nn.Module):
    """Dead arithmetic beside dead operations with effects."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn, self.drop, self.act = (
            nn.Linear(4, 4),
            nn.BatchNorm1d(4),
            nn.Dropout(),
            nn.ReLU(),
        )
        self.unused = nn.Linear(4, 4)
        self.act.register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        self.bn(x)
        self.drop(x)
        self.act(x)
        self.unused(x).exp()
        x.size(0) * 2
        return self.fc(x)  # type: ignore[no-any-return]


def test_effects_stay() -> None:
    net = Wasteful()
    gm = ready(net, FunctionalsToModules.needs, X)
    run([FunctionalsToModules()], gm)
    assert_rewrites(
        DropDeadCode(),
        gm,
        """
          %x      = input
          %bn     = batch_norm[bn](%x)
          %drop   = dropout[drop](%x)
          %act    = relu[act](%x)
        - %unused = linear[unused](%x)
        - %exp    = exp[exp](%unused)
          %fc     = linear[fc](%x)
          return %fc
    """,
    )
    assert set(net.state_dict()) <= set(gm.state_dict()), "parameters stay in the tree"
