"""Trains the small networks on scikit-learn's digits: 1797 images of 8×8 pixels, 17 grey levels.

The split is fixed: the last quarter (other writers than the first) is the test set. Training is
seeded, takes seconds on two cores, and its result is kept as safetensors in a folder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from fxquant.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    Inputs = tuple[Tensor, ...]
    Encode = Callable[[Tensor], Inputs]

TEST_SHARE = 0.25
LEVELS = 5  # grey levels of a pixel in a token
START = LEVELS**4  # the token before all others


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on digits.

    Attributes:
        factory: makes the network, untrained.
        encode: turns grey images [N, 8, 8] in 0..16 into the network's inputs.
        epochs: passes over the training images.
        rate: highest learning rate.
        batch: images in a step.
        seed: seed of weights, order and distortions.
    """

    factory: Callable[[], nn.Module]
    encode: Encode
    epochs: int
    rate: float = 3e-3
    batch: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Split:
    """Grey images [N, 8, 8] in 0..16 and their labels [N]."""

    images: Tensor
    labels: Tensor

    def batches(self, encode: Encode, size: int = 64) -> Iterator[tuple[Inputs, Tensor]]:
        """The images in order, encoded, with their labels."""
        for i in range(0, len(self.labels), size):
            yield encode(self.images[i : i + size]), self.labels[i : i + size]


@cache
def digits() -> tuple[Split, Split]:
    """The training and the test images.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # only here: the networks do not need it
    except ImportError as error:
        raise ConfigError(
            "FXQ790", "the digits come with scikit-learn", fix="pip install 'fxquant[demo]'"
        ) from error
    data = load_digits()
    images = torch.from_numpy(data.images).float()
    labels = torch.from_numpy(data.target).long()
    cut = len(labels) - round(len(labels) * TEST_SHARE)
    return Split(images[:cut], labels[:cut]), Split(images[cut:], labels[cut:])


def as_images(size: int, channels: int = 3) -> Encode:
    """An encoder to images [N, channels, size, size] of mean 0 and deviation 1, about."""

    def encode(grey: Tensor) -> Inputs:
        x = ((grey / 16 - 0.3) / 0.37).unsqueeze(1)
        x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
        return (x.expand(-1, channels, -1, -1).contiguous(),)

    return encode


def as_rows(grey: Tensor) -> Inputs:
    """Each image row is one step of a sequence: [N, 8, 8]."""
    return ((grey / 16 - 0.3) / 0.37,)


def as_tokens(grey: Tensor) -> Inputs:
    """Each 2×2 patch is a token, behind a start token; blank patches are padding.

    Returns:
        Ids and mask, both [N, 17]: a patch's id has its four pixels, on 5 levels, as digits.
    """
    levels = (grey / 4).round().clamp(0, LEVELS - 1).long()
    patches = levels.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).flatten(1, 2)  # [N, 16, 4]
    ids = (patches * LEVELS ** torch.arange(4)).sum(-1)
    ids = F.pad(ids, (1, 0), value=START)
    return ids, (ids > 0).long()


def token_pixels() -> Tensor:
    """The four pixels, in 0..1, of every token but the start token: [START, 4]."""
    return torch.arange(START)[:, None] // LEVELS ** torch.arange(4) % LEVELS / (LEVELS - 1)


def distort(grey: Tensor, generator: torch.Generator) -> Tensor:
    """Turned, scaled, sheared and shifted a little, each image differently: [N, 8, 8]."""
    n = len(grey)

    def uniform(limit: float) -> Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * limit

    angle, shear = uniform(math.radians(8)), uniform(0.1)
    sx, sy = 1 + uniform(0.1), 1 + uniform(0.1)
    rows = torch.stack(
        [
            torch.stack([angle.cos() * sx, (shear - angle.sin()) * sx, uniform(0.25)], 1),
            torch.stack([angle.sin() * sy, angle.cos() * sy, uniform(0.25)], 1),
        ],
        1,
    )
    grid = F.affine_grid(rows, [n, 1, 8, 8], align_corners=False)
    return F.grid_sample(grey[:, None], grid, align_corners=False)[:, 0]


def train(recipe: Recipe, *, progress: Callable[[str], None] | None = None) -> nn.Module:
    """A network trained by ``recipe``, in evaluation mode."""
    data, _ = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = recipe.factory().train()
        _fit(model, recipe, data, progress)
    return model.eval()


def _fit(
    model: nn.Module, recipe: Recipe, data: Split, progress: Callable[[str], None] | None
) -> None:
    generator = torch.Generator().manual_seed(recipe.seed)
    steps = math.ceil(len(data.labels) / recipe.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, total_steps=recipe.epochs * steps, pct_start=0.25
    )
    for epoch in range(recipe.epochs):
        total = 0.0
        for index in torch.randperm(len(data.labels), generator=generator).split(recipe.batch):
            inputs = recipe.encode(distort(data.images[index], generator))
            loss = F.cross_entropy(model(*inputs), data.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(index)
        if progress:
            mean = total / len(data.labels)
            progress(f"epoch {epoch + 1}/{recipe.epochs}, loss {mean:.3f}")


@torch.no_grad()
def accuracy(model: Callable[..., Tensor], encode: Encode) -> float:
    """Share of the test images that ``model`` classifies rightly."""
    _, test = digits()
    hits = sum(int((model(*x).argmax(-1) == y).sum()) for x, y in test.batches(encode))
    return hits / len(test.labels)


def trained(
    name: str,
    recipe: Recipe,
    folder: str | Path,
    *,
    progress: Callable[[str], None] | None = None,
) -> nn.Module:
    """The network of ``recipe`` with weights from ``folder``, trained first if there are none.

    Args:
        name: name of the weights' file, without ``.safetensors``.
        recipe: how to train.
        folder: where weights are kept.
        progress: called with a line of text after each epoch.
    """
    file = Path(folder) / f"{name}.safetensors"
    if (state := _load(file, _key(recipe))) is not None:
        model = recipe.factory().eval()
        model.load_state_dict(state)
        return model
    model = train(recipe, progress=progress)
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}
    save_file(state, file, metadata={"recipe": _key(recipe)})
    return model


def _load(file: Path, key: str) -> dict[str, Tensor] | None:
    """Weights of ``file`` if it exists and was trained by the recipe with this key."""
    if not file.exists():
        return None
    with safe_open(file, framework="pt") as weights:
        if (weights.metadata() or {}).get("recipe") != key:
            return None
        return {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118


def _key(recipe: Recipe) -> str:
    with torch.device("meta"):
        shapes = [tuple(p.shape) for p in recipe.factory().state_dict().values()]
    return f"{recipe.epochs} {recipe.rate} {recipe.batch} {recipe.seed} {shapes}"
