"""Fingerprints of weights: which were changed since the ranges were computed.

Activation ranges hold for the weights that they were measured with. Training moves both, which is
legitimate; a weight that was edited by hand leaves the ranges behind it as they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import fx, nn

from fxquant.nn.calibration import follow_parameters
from fxquant.quantization import QuantizerBase
from fxquant.quantization.digest import tensor_digest

CALIBRATED = "calibrated"  # key of `GraphModule.meta`


def fingerprints(model: nn.Module) -> dict[str, str]:
    """A checksum of every parameter that is no quantizer's, by name.

    Args:
        model: a simulated model.
    """
    inner = {id(p) for m in model.modules() if isinstance(m, QuantizerBase) for p in m.parameters()}
    return {n: tensor_digest(p) for n, p in model.named_parameters() if id(p) not in inner}


def mark_calibrated(model: fx.GraphModule) -> None:
    """Remember the weights and the ranges of a model that was just calibrated, in its `meta`."""
    model.meta[CALIBRATED] = fingerprints(model), _ranges(model)


@contextmanager
def ranges_change(model: fx.GraphModule) -> Iterator[None]:
    """Ranges are chosen anew for other bits: weights that were not changed by then still fit."""
    known = model.meta.get(CALIBRATED)
    fits = known is not None and not changed_since(model, known)
    yield
    if fits:
        mark_calibrated(model)


def changed_since(model: nn.Module, before: tuple[Mapping[str, str], str] | None) -> list[str]:
    """Names of weights that changed while the ranges did not, in the order of the model.

    Training moves both, which is legitimate.

    Args:
        model: a simulated model.
        before: what `mark_calibrated` put into its `meta`; None if it was never called.
    """
    for module in model.modules():
        follow_parameters(module)
    if before is None or _ranges(model) != before[1]:
        return []
    return [name for name, found in fingerprints(model).items() if before[0].get(name) != found]


def _ranges(model: nn.Module) -> str:
    """A checksum of all ranges."""
    digest = hashlib.blake2b(digest_size=16)
    for module in model.modules():
        if isinstance(module, QuantizerBase):
            for value in module.parameters(recurse=False):
                digest.update(tensor_digest(value).encode())
    return digest.hexdigest()
