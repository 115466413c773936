"""Models of torchvision: one or more of every family, with small images."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.zoo.entry import Built, Entry, floats, package

# family, side of the image, other options
_CLASSIFIERS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("alexnet", 64, {}),
    ("vgg11", 32, {}),
    ("vgg11_bn", 32, {}),
    ("resnet18", 64, {}),
    ("resnet50", 64, {}),
    ("resnext50_32x4d", 64, {}),
    ("wide_resnet50_2", 64, {}),
    ("densenet121", 64, {}),
    ("squeezenet1_0", 64, {}),
    ("squeezenet1_1", 64, {}),
    ("mobilenet_v2", 64, {}),
    ("mobilenet_v3_small", 64, {}),
    ("mobilenet_v3_large", 64, {}),
    ("shufflenet_v2_x0_5", 64, {}),
    ("mnasnet0_5", 64, {}),
    ("efficientnet_b0", 64, {}),
    ("efficientnet_v2_s", 64, {}),
    ("convnext_tiny", 64, {}),
    ("regnet_y_400mf", 64, {}),
    ("regnet_x_400mf", 64, {}),
    # auxiliary heads are there in training only, by a decision of Python
    ("googlenet", 64, {"init_weights": False, "aux_logits": False}),
    ("inception_v3", 96, {"init_weights": False, "aux_logits": False}),
    ("swin_t", 64, {}),
    ("swin_v2_t", 64, {}),
    ("maxvit_t", 224, {}),
    ("vit_b_16", 64, {"image_size": 64}),
)
_SEGMENTERS: tuple[str, ...] = (
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "fcn_resnet50",
    "lraspp_mobilenet_v3_large",
)
_VIDEO: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("r3d_18", (4, 32, 32)),
    ("mc3_18", (4, 32, 32)),
    ("r2plus1d_18", (4, 32, 32)),
    ("s3d", (16, 224, 224)),
    ("swin3d_t", (4, 64, 64)),
    ("mvit_v1_b", (16, 224, 224)),
    ("mvit_v2_s", (16, 224, 224)),
)


def _classifier(name: str, side: int, options: dict[str, Any]) -> Built:
    models = package("torchvision").models
    model = getattr(models, name)(weights=None, num_classes=10, **options)
    return model, floats(2, 3, side, side)


def _segmenter(name: str) -> Built:
    models = package("torchvision").models.segmentation
    model = getattr(models, name)(weights=None, weights_backbone=None, num_classes=5)
    return model, floats(2, 3, 64, 64)


def _video(name: str, size: tuple[int, int, int]) -> Built:
    models = package("torchvision").models.video
    return getattr(models, name)(weights=None, num_classes=5), floats(2, 3, *size)


def _backbone(name: str) -> Built:
    """The part of a detector that precedes its boxes: a feature pyramid."""
    utils = package("torchvision.models.detection.backbone_utils")
    return utils.resnet_fpn_backbone(backbone_name=name, weights=None), floats(2, 3, 64, 64)


def _ssd_backbone() -> Built:
    ssdlite = package("torchvision.models.detection.ssdlite")
    norm = package("torch.nn").BatchNorm2d
    net = package("torchvision").models.mobilenet_v3_large(weights=None, norm_layer=norm)
    extractor = ssdlite._mobilenet_extractor(net, 6, norm)
    return extractor, floats(2, 3, 96, 96)


def _raft() -> Built:
    models = package("torchvision").models.optical_flow
    first = floats(1, 3, 128, 128)
    return models.raft_small(weights=None), (first, first.flip(-1))


def entries() -> list[Entry]:
    """Every model of this package."""
    found = [Entry(row[0], "torchvision", partial(_classifier, *row)) for row in _CLASSIFIERS]
    found += [Entry(name, "torchvision", partial(_segmenter, name)) for name in _SEGMENTERS]
    found += [Entry(row[0], "torchvision", partial(_video, *row)) for row in _VIDEO]
    found.append(Entry("resnet18_fpn", "torchvision", partial(_backbone, "resnet18")))
    found.append(Entry("ssdlite_backbone", "torchvision", _ssd_backbone))
    found.append(Entry("raft_small", "torchvision", _raft))
    return found
