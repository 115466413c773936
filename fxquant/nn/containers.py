"""Where a quantized module keeps its quantizers, `None` means float, and how it applies them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fxquant.errors import QuantizationError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fxquant.quantization import QuantizerBase


class QuantizerList(nn.ModuleList):
    """Quantizers by position; assigning beyond the end grows the list, up to its limit.

    Attributes:
        limit: how many tensors there are, once the graph around the module tells; None: not known.

    Example:
        >>> quantizers = QuantizerList([None])
        >>> quantizers[2] = None
        >>> len(quantizers)
        3
    """

    limit: int | None = None

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index)

    def __setitem__(self, index: Any, quantizer: nn.Module | None) -> None:
        number = isinstance(index, int) and not isinstance(index, bool)
        room = len(self) if self.limit is None else max(self.limit, len(self))
        if not number or index < -len(self) or (self.limit is not None and index >= room):
            what = f"{index!r} is no position of a quantizer; there are {room}"
            raise QuantizationError("FXQ427", what, fix="count tensors from 0")
        while index >= len(self):
            self.add_module(str(len(self)), None)
        if index < 0:
            index += len(self)
        check(quantizer)
        self._modules[str(index)] = quantizer  # type: ignore[assignment]

    def append(self, module: nn.Module | None) -> QuantizerList:
        """Assign behind the end."""
        self[len(self)] = module
        return self

    def active(self) -> Iterator[tuple[int, QuantizerBase]]:
        """Positions and quantizers that are not None."""
        for index, quantizer in enumerate(self._modules.values()):
            if quantizer is not None:
                yield index, quantizer  # type: ignore[misc]


class QuantizerDict(nn.ModuleDict):
    """Quantizers by the name of a parameter.

    Args:
        known: names that there are; a quantizer under another one would never be asked. None: any.
    """

    def __init__(self, known: Iterable[str] | None = None) -> None:
        super().__init__()
        self.known = None if known is None else frozenset(known)

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name)

    def __setitem__(self, name: str, quantizer: nn.Module | None) -> None:
        check(quantizer)
        if self.known is not None and name not in self.known and name not in self._modules:
            there = ", ".join(sorted(self.known))
            fix = nearest(str(name), self.known) or f"the parameters are: {there or 'none'}"
            what = f"the module has no parameter {name!r}; there are: {there or 'none'}"
            raise QuantizationError("FXQ427", what, fix=fix)
        # not by `add_module`: a parameter may be called as a method of this class, "values"
        self._modules[name] = quantizer  # type: ignore[assignment]

    def active(self) -> Iterator[tuple[str, QuantizerBase]]:
        """Names and quantizers that are not None."""
        for name, quantizer in self._modules.items():
            if quantizer is not None:
                yield name, quantizer  # type: ignore[misc]


def check(quantizer: object) -> None:
    """Refuse what is neither a quantizer nor None.

    Raises:
        QuantizationError: FXQ421, it is something else.
    """
    # any module that quantizes: users bring their own
    if quantizer is not None and not hasattr(quantizer, "get_encodings"):
        raise QuantizationError(
            "FXQ421",
            f"{type(quantizer).__name__} is no quantizer",
            fix="assign a quantizer such as Q.affine.QuantizeDequantize(shape=()), or None",
        )


class Removed:
    """Quantizers that were taken out; as a context manager it puts them back on leaving."""

    def __init__(self, taken: list[tuple[QuantizerList | QuantizerDict, Any, Any]]) -> None:
        self._taken = taken

    def __enter__(self) -> None:
        """Nothing: the quantizers are out already."""

    def __exit__(self, *_: object) -> None:
        for home, key, quantizer in self._taken:
            home[key] = quantizer


def remove(
    home: QuantizerList | QuantizerDict, keys: Any, taken: list[tuple[Any, Any, Any]]
) -> None:
    """Set the quantizers of one key, of several, or (with None) all to None; remember them."""
    if keys is None:
        # iterated, not `active`: a list may show quantizers that stand in another one
        pairs: Iterable[tuple[Any, Any]] = (
            enumerate(home) if isinstance(home, QuantizerList) else home.active()
        )
        keys = [key for key, quantizer in pairs if quantizer is not None]
    elif isinstance(keys, str | int):
        keys = [keys]
    for key in keys:
        taken.append((home, key, home[key]))
        home[key] = None


class Walk:
    """Quantizes the tensors of nested tuples, lists and dicts, by their number."""

    def __init__(self, quantizers: QuantizerList) -> None:
        self._quantizers = quantizers._modules
        self._count = 0

    def over(self, value: Any) -> Any:
        """The value with its floating-point tensors quantized."""
        if isinstance(value, Tensor):
            quantizer = self._quantizers.get(str(self._count))
            self._count += 1
            if quantizer is None or not value.is_floating_point():
                return value
            return quantizer(value)
        if isinstance(value, dict):
            return {key: self.over(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [self.over(item) for item in value]
            if type(value) in (list, tuple):
                return type(value)(items)
            # a namedtuple takes its fields, a structseq of PyTorch one iterable
            return value._make(items) if hasattr(value, "_make") else type(value)(items)
        return value
