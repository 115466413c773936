"""Networks and data that the tests of techniques share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantizationSimModel, Target
from fxquant.quantization import affine

if TYPE_CHECKING:
    from collections.abc import Iterable


def images(*shape: int, count: int = 128, batch: int = 32, seed: int = 1) -> list[Tensor]:
    """Correlated inputs that are not negative, as pixels are."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(count, *(shape or (3, 10, 10)), generator=rng)
    for axis in (1, -1):
        x = x + 0.8 * x.flip(axis) + x.mean(axis, keepdim=True)
    return list((x / 4).split(batch))


class Normed(nn.Module):
    """Convolutions with batch norms, one without bias or norm, one depthwise, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.point = nn.Conv2d(16, 12, 1, bias=False)
        self.head = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.stem(x)))
        x = F.relu6(self.bn2(self.depthwise(x)))
        x = F.relu(self.point(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def normed(seed: int = 0) -> Normed:
    """The network with statistics of these images."""
    torch.manual_seed(seed)
    net = Normed()
    with torch.no_grad():
        for norm in (net.bn1, net.bn2):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 1.0)
        for _ in range(30):
            net(torch.cat(images()))
    return net.eval()


def simulation(
    net: nn.Module, batches: list[Tensor], bits: int = 4, **options: Any
) -> QuantizationSimModel:
    """A calibrated simulation."""
    sim = QuantizationSimModel(net, batches[0], "min_max", 8, bits, **options)
    sim.compute_encodings(batches)
    return sim


def shifting_chip() -> Target:
    """A target whose scales are powers of two and whose weights have one."""
    rule = {"bitwidth": 8, "signed": True, "symmetric": True}
    return Target.model_validate({
        "name": "shifting", "description": "a chip that shifts", "scale": "power_of_two",
        "activation": rule, "weight": {**rule, "per_channel": False}, "absorbs": ["relu"],
        "operators": {"conv2d": {"output": "required"}, "linear": {"output": "required"}},
    })  # fmt: skip


@torch.no_grad()
def outputs(model: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """What a model puts out for all batches."""
    return torch.cat([model(x).as_subclass(Tensor) for x in batches])


def sqnr(model: nn.Module, sim: QuantizationSimModel, batches: list[Tensor]) -> float:
    """Signal to noise of the simulation's outputs, in dB."""
    exact, found = outputs(model, batches), outputs(sim.model, batches)
    return float(10 * torch.log10(exact.square().sum() / (exact - found).square().sum()))


def parameters(sim: QuantizationSimModel) -> dict[str, Tensor]:
    """Copies of all parameters, those of quantizers included."""
    return {n: p.detach().clone() for n, p in sim.model.named_parameters()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether both have the same names and values."""
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def weight_quantizers(sim: QuantizationSimModel) -> dict[str, affine.AffineQuantizer]:
    """The quantizers of weights by the path of their module."""
    return {
        path: q
        for path, m in sim.named_qmodules()
        if isinstance(q := m.param_quantizers._modules.get("weight"), affine.AffineQuantizer)
    }


def on_its_grid(sim: QuantizationSimModel) -> bool:
    """Whether every weight whose range is frozen is what its quantizer makes of it."""
    return all(
        torch.equal(q.transform(w.detach()), w)
        for path, q in weight_quantizers(sim).items()
        if not q.overwritable and isinstance(w := sim.model.get_submodule(path).weight, Tensor)
    )


def scales(sim: QuantizationSimModel) -> dict[str, Tensor]:
    """Steps of the weights by the path of their module."""
    found = {path: q.get_scale() for path, q in weight_quantizers(sim).items()}
    return {path: scale.clone() for path, scale in found.items() if scale is not None}


def blocked(*, grouped: bool) -> tuple[nn.Module, QuantizationSimModel, list[Tensor]]:
    """A network whose first weight has 3 bits and a grid for each 8 inputs, and its data."""
    rows = images(32)
    model = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    sim = QuantizationSimModel(model, rows[0], "min_max", 8, 8)
    change: Any = sim.set_blockwise_quantization_for_weights
    if grouped:
        change = sim.set_grouped_blockwise_quantization_for_weights
    more = {"decompressed_bw": 8} if grouped else {}
    change([sim.model.get_submodule("0")], 3, True, block_size=8, **more)
    sim.compute_encodings(rows)
    return model, sim, rows
