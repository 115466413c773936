"""What a command line says about data, before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxquant.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from fxquant.cli.batches import Data
    from fxquant.cli.image_folder import ImageFolder
    from fxquant.cli.input_keys import Keys

_ARRAYS = (".npy", ".npz")


@dataclass(frozen=True)
class DataRequest:
    """Data as they stand on the command line.

    Attributes:
        spec: a file, or `path.py:function`.
        shapes: of random inputs.
        folder: of images.
        preprocess: of images.
        inputs: keys of the inputs.
        labels: key of the labels.
        batch_size: rows in a batch.
    """

    spec: str | None = None
    shapes: tuple[str, ...] = ()
    folder: str | None = None
    preprocess: str | None = None
    inputs: tuple[str, ...] = ()
    labels: str | None = None
    batch_size: int = 32

    @classmethod
    def take(cls, options: dict[str, Any], name: str, *, sized: bool) -> DataRequest:
        """Take what is about data out of a command's options.

        Args:
            options: as click gives them.
            name: of the option that names the data.
            sized: whether --batch-size stands on the command line.

        Raises:
            ConfigError: FXQ731, data do not come from one place; FXQ732, an option changes nothing.
        """
        found = cls(
            spec=options.pop(name), shapes=options.pop("shapes", ()),
            folder=options.pop("image_folder"), preprocess=options.pop("preprocess"),
            inputs=options.pop("inputs"), labels=options.pop("labels", None),
            batch_size=options.pop("batch_size"),
        )  # fmt: skip
        places = [bool(found.spec), bool(found.shapes), bool(found.folder)]
        if sum(places) != 1:
            flags = [f"--{name}", *(["--input-shape"] if name == "data" else []), "--image-folder"]
            what = f"data come from one place: {', '.join(flags[:-1])} or {flags[-1]}"
            fix = "such as --input-shape 1,3,224,224" if name == "data" else "such as data.npz"
            fix = f"add one of them, {fix}" if not any(places) else "leave the others out"
            raise ConfigError("FXQ731", what, fix=fix)
        found._check_idle(sized=sized)
        return found

    def _check_idle(self, *, sized: bool) -> None:
        """Options that change nothing are mistakes."""
        if sized and not self.folder and Path(self.spec or "").suffix not in _ARRAYS:
            source = f"{self.spec} yields batches" if self.spec else "--input-shape makes one batch"
            _idle("--batch-size", source)
        if self.preprocess and not self.folder:
            _idle("--preprocess", "there is no --image-folder")
        if self.inputs and not self.spec:
            _idle("--input", "its keys are those of --data, --calibration and --evaluate")

    @property
    def keys(self) -> Keys:
        """Which arrays are inputs, and which labels."""
        from fxquant.cli.input_keys import Keys

        return Keys(self.inputs, self.labels)

    def images(self) -> ImageFolder | None:
        """The folder of images, if it is one."""
        from fxquant.cli.image_folder import load_folder

        if self.folder is None:
            return None
        return load_folder(self.folder, self.preprocess, self.batch_size)

    def load(self, model: nn.Module) -> Data:
        """The inputs of a network, batch by batch.

        Raises:
            ConfigError: FXQ72x, FXQ730 and FXQ78x.
        """
        from fxquant.cli import batches

        images = self.images()
        if images is not None:
            return batches.image_data(images)
        if self.spec is None:
            return batches.random_data(self.shapes)
        return batches.load_data(self.spec, batch_size=self.batch_size, model=model, keys=self.keys)


def _idle(option: str, why: str) -> None:
    raise ConfigError("FXQ732", f"{option} changes nothing: {why}", fix="leave it out")
