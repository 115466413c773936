"""Whether tensors are what they were: checksums of one, a hash of many."""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping


def tensor_digest(value: Tensor) -> str:
    """Type, shape and a checksum of the bytes of a tensor.

    A checksum finds every change of one number, and costs a quarter of a cryptographic hash.
    """
    return f"{value.dtype} {tuple(value.shape)} {zlib.crc32(_bytes(value)):08x}"


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of named tensors such as a state dict, whatever file or order they are in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(value: Tensor) -> memoryview:
    plain = value.detach().as_subclass(Tensor).cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data
