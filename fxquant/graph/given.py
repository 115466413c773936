"""Inputs that a graph does not take: how they differ from those that it was recorded with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from fxquant.graph.meta import TensorSpec, spec
from fxquant.reading import reason


@dataclass(frozen=True)
class Mismatch:
    """Why a model failed on inputs.

    Attributes:
        what: what it raised.
        at: the inputs.
        fix: how they differ from the dummy input.
    """

    what: str
    at: str
    fix: str


def mismatch(
    model: fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any], error: Exception
) -> Mismatch:
    """Describe a failed call.

    Args:
        model: the graph.
        args: positional inputs.
        kwargs: keyword inputs.
        error: what the call raised.
    """
    wanted = {str(n.target): spec(n) for n in model.graph.nodes if n.op == "placeholder"}
    names = [*wanted, *(f"input {i}" for i in range(len(wanted), len(args)))]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    told = "; ".join(f"{name}: {_described(value)}" for name, value in given.items())
    differences = [*_other_names(wanted, given), *_other_values(wanted, given)]
    fix = "; ".join(differences) or "pass inputs like those that the model was prepared with"
    return Mismatch(reason(error), told or "no inputs", fix)


def _other_names(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    unknown = [name for name in given if name not in wanted]
    missing = [name for name in wanted if name not in given]
    if not unknown and not missing:
        return []
    return [f"the model takes {', '.join(wanted)}, and was given {', '.join(given) or 'nothing'}"]


def _other_values(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in given.items():
        example = wanted.get(name)
        if not isinstance(example, TensorSpec):
            continue
        if not isinstance(value, Tensor):
            hint = " (torch.from_numpy)" if type(value).__name__ == "ndarray" else ""
            found.append(f"pass {name} as a tensor{hint}, not as a {type(value).__name__}")
        elif value.dtype != example.dtype:
            found.append(f"convert {name} with .to({example.dtype}): the dummy input had this type")
        elif not _same_sizes(value, example):
            found.append(f"{name} was {_sizes(example.shape)} in the dummy input")
    return found


def _same_sizes(value: Tensor, example: TensorSpec) -> bool:
    """Whether sizes are those of the example, the batch aside."""
    return [int(n) for n in value.shape[1:]] == [int(n) for n in example.shape[1:]] and (
        value.dim() == len(example.shape)
    )


def _sizes(shape: Sequence[Any]) -> str:
    return str([int(n) for n in shape])


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        device = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"{str(value.dtype).removeprefix('torch.')} {_sizes(value.shape)}{device}"
    kind = type(value).__name__
    return f"{kind} of {len(value)}" if isinstance(value, list | tuple | dict) else kind
