"""The networks: shapes, the published sizes, names that people know, and that training learns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from fxquant.models import digits, training
from fxquant.models.bert import Bert, bert_small
from fxquant.models.convnext import ConvNeXt
from fxquant.models.efficientnet import EfficientNet, Stage, efficientnet_b0
from fxquant.models.gpt2 import Gpt2
from fxquant.models.mobilenet import mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small
from fxquant.models.resnet import resnet18, resnet50
from fxquant.models.squeezenet import SqueezeNet
from fxquant.models.swin import Block, Swin
from fxquant.models.unet import UNet
from fxquant.models.vit import vit_tiny

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


@pytest.mark.parametrize(
    ("factory", "millions"),
    [
        (resnet18, 11.689512),  # the numbers that torchvision, timm and the papers state
        (resnet50, 25.557032),
        (mobilenet_v2, 3.504872),
        (mobilenet_v3_small, 2.542856),
        (mobilenet_v3_large, 5.483032),
        (efficientnet_b0, 5.288548),
        (SqueezeNet, 1.235496),
        (vit_tiny, 5.717416),
        (ConvNeXt, 28.589128),
        (Swin, 28.288354),
    ],
)
def test_sizes_are_the_published_ones(factory: Callable[[], nn.Module], millions: float) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in factory().parameters()) == round(millions * 1e6)


@pytest.mark.parametrize(
    ("factory", "names"),
    [
        (resnet18, ["conv1.weight", "layer2.0.downsample.0.weight", "layer4.1.bn2.bias"]),
        (mobilenet_v2, ["features.0.0.weight", "features.2.conv.1.0.weight", "classifier.1.bias"]),
        (mobilenet_v3_small, ["features.1.block.1.fc1.weight", "classifier.3.weight"]),
        (efficientnet_b0, ["features.1.0.block.1.fc1.weight", "features.2.0.block.3.1.bias"]),
        (vit_tiny, ["patch_embed.proj.weight", "blocks.11.attn.qkv.bias", "head.weight"]),
        (bert_small, ["encoder.layer.5.attention.self.query.weight", "pooler.dense.bias"]),
    ],
)
def test_names_are_the_familiar_ones(factory: Callable[[], nn.Module], names: list[str]) -> None:
    with torch.device("meta"):
        assert set(names) <= set(factory().state_dict())


@pytest.mark.parametrize("name", sorted(digits.RECIPES))
def test_digit_networks_give_ten_logits_for_every_batch_size(name: str) -> None:
    recipe = digits.RECIPES[name]
    model = recipe.factory().eval()
    _, test = training.digits()
    with torch.no_grad():
        for size in (1, 3):
            assert model(*recipe.encode(test.images[:size])).shape == (size, 10)


def test_efficientnet_adds_where_a_block_keeps_its_shape() -> None:
    stages = (Stage(1, 3, 1, 8, 2), Stage(4, 5, 2, 16, 1))
    model = EfficientNet(stages, num_classes=5, stem=(8, 2), last=32).eval()
    kept = [m.use_res_connect for m in model.modules() if hasattr(m, "use_res_connect")]
    assert kept == [True, True, False]
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 5)


def test_unet_keeps_the_image_size() -> None:
    x = torch.randn(2, 3, 32, 32)
    for transposed in (True, False):
        assert UNet(width=8, levels=2, transposed=transposed)(x).shape == (2, 2, 32, 32)


def test_gpt2_ties_its_token_vectors_and_sees_no_future() -> None:
    model = Gpt2(vocab=20, width=16, layers=2, heads=2, positions=12).eval()
    assert model.lm_head.weight is model.wte.weight
    ids = torch.randint(0, 20, (2, 9))
    changed = ids.clone()
    changed[:, 5:] = 0
    assert torch.allclose(model(ids)[:, :5], model(changed)[:, :5], atol=1e-6)


def test_bert_ignores_what_the_mask_hides() -> None:
    model = Bert(vocab=20, hidden=16, layers=2, heads=2, positions=12).eval()
    ids = torch.randint(0, 20, (2, 9))
    mask = torch.ones_like(ids)
    mask[:, 6:] = 0
    changed = ids.clone()
    changed[:, 6:] = 3
    assert torch.allclose(model(ids, mask), model(changed, mask), atol=1e-6)
    assert not torch.allclose(model(ids), model(changed), atol=1e-6)


def test_swin_masks_what_only_the_shift_joined() -> None:
    block = digits.swin().layers[1]
    assert isinstance(block, Block)
    assert block.attn_mask is not None
    assert block.shift == 2
    assert block.attn_mask.shape == (4, 16, 16)
    assert set(block.attn_mask.unique().tolist()) == {-100.0, 0.0}
    assert not block.attn_mask[0].any()  # the first window holds one region only


def test_the_split_is_fixed() -> None:
    train, test = training.digits()
    assert (len(train.labels), len(test.labels)) == (1348, 449)
    assert test.labels[:5].tolist() == [7, 3, 3, 4, 6]


def test_training_learns_is_seeded_and_is_kept(tmp_path: Path) -> None:
    recipe = training.Recipe(digits.lstm, training.as_rows, epochs=3, rate=1e-2)
    lines: list[str] = []
    first = training.trained("lstm", recipe, tmp_path, progress=lines.append)
    assert len(lines) == 3
    assert training.accuracy(first, recipe.encode) > 0.3
    again = training.train(recipe)
    kept = training.trained("lstm", recipe, tmp_path, progress=lines.append)
    assert len(lines) == 3, "read, not trained again"
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value, kept.state_dict()[name])


def test_other_recipes_do_not_use_kept_weights(tmp_path: Path) -> None:
    short = training.Recipe(digits.lstm, training.as_rows, epochs=1)
    longer = training.Recipe(digits.lstm, training.as_rows, epochs=2)
    lines: list[str] = []
    training.trained("lstm", short, tmp_path, progress=lines.append)
    training.trained("lstm", longer, tmp_path, progress=lines.append)
    assert len(lines) == 3
