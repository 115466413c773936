"""Folders of images as data: a folder for each class, read with Pillow.

Every mistake is a `ConfigError` with a code 78x.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxquant.cli.loading import RAISED, failed, load_function
from fxquant.errors import ConfigError, FxQuantError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
Preprocess = Callable[[Any], Any]

# of the images of ImageNet's training set, scaled to [0, 1]; red, green, blue
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SHORTER, _CROP = 256, 224  # pixels


@dataclass(frozen=True)
class ImageFolder:
    """Images and the numbers of their classes.

    Attributes:
        root: the folder.
        files: the images and their classes, in the order of their paths; -1 without classes.
        classes: names of the folders of the classes, sorted: their places are the labels.
        preprocess: from a Pillow image to a tensor [C, H, W].
        batch_size: images in a batch.
    """

    root: Path
    files: tuple[tuple[Path, int], ...]
    classes: tuple[str, ...]
    preprocess: Preprocess
    batch_size: int

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [N, C, H, W] and labels [N].

        Raises:
            ConfigError: FXQ782 an image cannot be read, FXQ783 the preprocessing gives something
                else than tensors of one shape.
        """
        for i in range(0, len(self.files), self.batch_size):
            part = self.files[i : i + self.batch_size]
            images = [self._image(path) for path, _ in part]
            shapes = {tuple(image.shape) for image in images}
            if len(shapes) > 1:
                what = f"preprocessed images differ in shape: {sorted(shapes)}"
                fix = "resize and crop to one size, as --preprocess imagenet does"
                raise ConfigError("FXQ783", what, at=str(self.root), fix=fix)
            yield torch.stack(images), torch.tensor([label for _, label in part])

    def split(self, calibration: int) -> tuple[ImageFolder, ImageFolder]:
        """Images to calibrate with, from all classes, and the others to judge by.

        Args:
            calibration: how many to calibrate with, at most; where that is more than half of them,
                half.
        """
        count = max(1, min(calibration, len(self.files) // 2))
        # evenly over the files, which are sorted by class
        taken = {i * len(self.files) // count for i in range(count)}
        parts = [(f, i in taken) for i, f in enumerate(self.files)]
        first, rest = (tuple(f for f, t in parts if t is which) for which in (True, False))
        return self._with(first), self._with(rest or self.files)

    def _with(self, files: Sequence[tuple[Path, int]]) -> ImageFolder:
        return ImageFolder(self.root, tuple(files), self.classes, self.preprocess, self.batch_size)

    def _image(self, path: Path) -> Tensor:
        image = _opened(path)
        try:
            found = self.preprocess(image)
        except FxQuantError:
            raise
        except RAISED as error:  # the user's function may raise anything; say which image it was
            raise failed(error, f"preprocessing {path} failed") from error
        found = torch.from_numpy(found) if isinstance(found, np.ndarray) else found
        if isinstance(found, Tensor) and found.dim() == 3 and found.is_floating_point():
            return found.float()
        kind = type(found).__name__
        kind += f" {list(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else ""
        fix = "return the floating-point tensor [C, H, W] of one Pillow image"
        raise ConfigError("FXQ783", f"the preprocessing returned a {kind}", at=str(path), fix=fix)


def load_folder(root: str, preprocess: str | None, batch_size: int) -> ImageFolder:
    """The images of a folder.

    Args:
        root: has a folder for each class; images right inside it have no class.
        preprocess: "imagenet", or ``file.py:function`` from a Pillow image to a tensor [C, H, W];
            None: "imagenet".
        batch_size: images in a batch.

    Raises:
        ConfigError: FXQ780 there is no such folder or no image in it, FXQ781 Pillow is not
            installed, FXQ701 to FXQ704 there is no such function.
    """
    folder = Path(root)
    if not folder.is_dir():
        what = f"the image folder {root} {'is a file' if folder.exists() else 'does not exist'}"
        raise ConfigError("FXQ780", what, fix="give a folder with a folder for each class")
    pillow()
    function = imagenet
    if preprocess not in (None, "imagenet"):
        function = load_function(str(preprocess), what="preprocessing")
    classes = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."))
    files = [(path, i) for i, name in enumerate(classes) for path in _images(folder / name)]
    if not files:
        classes, files = (), [(path, -1) for path in _images(folder)]
    if not files:
        what = f"there is no image in {root} and the folders in it"
        raise ConfigError("FXQ780", what, fix=f"images end with {', '.join(sorted(SUFFIXES))}")
    return ImageFolder(folder, tuple(files), classes, function, batch_size)


def imagenet(image: Any) -> Tensor:
    """The usual preprocessing of networks trained on ImageNet: [3, 224, 224].

    The shorter side becomes 256 pixels (bilinear, antialiased), the middle 224 × 224 are cut out,
    and values in [0, 1] are normalized with ImageNet's mean and standard deviation.
    """
    width, height = image.size
    scale = _SHORTER / min(width, height)
    size = (max(_SHORTER, int(width * scale)), max(_SHORTER, int(height * scale)))
    image = image.convert("RGB").resize(size, pillow().Resampling.BILINEAR)
    left, top = (round((side - _CROP) / 2) for side in size)
    image = image.crop((left, top, left + _CROP, top + _CROP))
    pixels = torch.from_numpy(np.array(image, np.float32)) / 255
    return ((pixels - torch.tensor(_MEAN)) / torch.tensor(_STD)).permute(2, 0, 1).contiguous()


def pillow() -> Any:
    """The module `PIL.Image`.

    Raises:
        ConfigError: FXQ781, it is not installed.
    """
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        fix = "pip install fxquant[images], or give the data as .npz"
        raise ConfigError("FXQ781", "reading images needs Pillow", fix=fix) from error


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _opened(path: Path) -> Any:
    try:
        with pillow().open(path) as image:
            image.load()
            return image.copy()
    except ConfigError:
        raise
    except Exception as error:  # Pillow lets through whatever damage makes of a file
        what = f"{path} is no image that Pillow can read: {error}"
        raise ConfigError("FXQ782", what, fix="take the file out of the folder") from error
