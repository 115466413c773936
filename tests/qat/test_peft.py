"""Networks with adapters of the package peft: they train in simulation on a base that is frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, qat
from fxquant.models.vit import VisionTransformer

if TYPE_CHECKING:
    from pathlib import Path

peft = pytest.importorskip("peft")

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 4


def network() -> Any:
    """A vision transformer with adapters that are not zero."""
    torch.manual_seed(0)
    net = VisionTransformer(image=8, patch=4, width=16, depth=1, heads=2, num_classes=4)
    config = peft.LoraConfig(r=2, target_modules=["qkv", "proj"], lora_dropout=0.1)
    adapted = peft.get_peft_model(net, config).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return adapted


def outputs(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(X).as_subclass(Tensor)
    return found


@pytest.mark.parametrize("scheme", ["min_max", "training_range_learning_with_tf_init"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the packages at hand
def test_adapters_train_are_kept_in_the_file_and_merged(scheme: str, tmp_path: Path) -> None:
    adapted = network()
    sim = QuantizationSimModel(adapted, X, scheme, 8, 4)
    sim.compute_encodings([X])
    base = {n: p.detach().clone() for n, p in sim.model.named_parameters() if "base_layer" in n}
    weights = {n for n in base if n.endswith((".weight", ".bias"))}
    assert len(weights) >= 4
    optimizer = torch.optim.Adam(qat.parameter_groups(sim.model, 1e-2, 1e-3))
    sim.model.train()
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(sim.model(X), Y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    sim.model.eval()
    assert losses[-1] < losses[0]
    trained = dict(sim.model.named_parameters())
    assert all(torch.equal(trained[n], base[n]) for n in weights)
    assert sim.export(tmp_path, "adapted", X), "each adapter is operators of the file"

    # the trained adapters go back to where they came from, and become part of its weights there
    original = sim.get_original_model()
    want = outputs(original)
    state = {n: p for n, p in original.state_dict().items() if "lora_" in n}
    assert len(state) == 6  # of a convolution and two linear layers
    adapted.load_state_dict(state, strict=False)
    # sums may be in another order in the simulation
    torch.testing.assert_close(outputs(adapted), want, rtol=1e-4, atol=1e-4)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(outputs(merged), want, rtol=1e-4, atol=1e-4)
    sim = QuantizationSimModel(merged, X, scheme, 8, 4)
    sim.compute_encodings([X])
    assert sim.export(tmp_path, "merged", X)
