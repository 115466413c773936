"""Fingerprints of weights: which were changed since the ranges were computed.

Activation ranges hold for the weights that they were measured with. Training moves both, which is
legitimate; a weight that was edited by hand leaves the ranges behind it as they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fxquant.quantization import QuantizerBase


def fingerprints(model: nn.Module) -> dict[str, str]:
    """A hash of every parameter that is no quantizer's, by name.

    Args:
        model: a simulated model.
    """
    inner = {id(p) for m in model.modules() if isinstance(m, QuantizerBase) for p in m.parameters()}
    return {n: _hash(p) for n, p in model.named_parameters() if id(p) not in inner}


def changed(model: nn.Module, before: Mapping[str, str]) -> list[str]:
    """Names of parameters that are not what they were, in the order of the model."""
    return [name for name, digest in fingerprints(model).items() if before.get(name) != digest]


def _hash(value: Tensor) -> str:
    plain = value.detach().as_subclass(Tensor).cpu().contiguous()
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
