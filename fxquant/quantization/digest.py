"""Whether a tensor is what it was: a checksum of it."""

from __future__ import annotations

import hashlib
import zlib

import torch
from torch import Tensor


def tensor_digest(value: Tensor) -> str:
    """Type, shape and a checksum of the bytes of a tensor.

    A checksum finds every change of one number, and costs a quarter of a cryptographic hash.
    """
    plain = value.detach().as_subclass(Tensor).cpu().contiguous()
    found = zlib.crc32(plain.reshape(-1).view(torch.uint8).numpy().data)
    return f"{plain.dtype} {tuple(plain.shape)} {found:08x}"


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """Digest of tensors, whatever file they are in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
