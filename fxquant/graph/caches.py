"""What functions remember: a tensor of an earlier run would be a constant of this one's graph."""

from __future__ import annotations

import functools
import gc
import sys

# their caches hold no tensors of models, and much depends on them
_OURS = sys.stdlib_module_names | {"fxquant", "numpy", "torch", "torchgen"}


def forget_results() -> bool:
    """Empty the ``functools.lru_cache`` of every function of the models' packages.

    Returns:
        Whether any had kept a result.
    """
    found = False
    for cached in gc.get_objects():
        if type(cached) is not functools._lru_cache_wrapper:  # isinstance would run foreign code
            continue
        package = (getattr(cached, "__module__", None) or "").partition(".")[0]
        if package not in _OURS and cached.cache_info().currsize:
            cached.cache_clear()
            found = True
    return found
