"""Every difficult network goes through the whole pipeline, or is refused with a typed error."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, prepare_model
from fxquant.errors import FxQuantError
from fxquant.graph.structure import leaves
from fxquant.graph.verify_replay import difference, other_batch, replay_equal
from fxquant.models.difficult import NETWORKS

pytestmark = [
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning"),
    pytest.mark.filterwarnings("ignore::fxquant.prepare.SpecialisationWarning"),
]


def _inputs(name: str) -> Any:
    """The inputs as one dummy input."""
    case = NETWORKS[name]
    if not case.kwargs:
        return case.args
    network = case.network
    names = network.forward.__code__.co_varnames[1 : len(case.args) + 1]
    return dict(zip(names, case.args, strict=True)) | case.kwargs


def _trained(model: nn.Module, inputs: Any) -> tuple[Any, dict[str, Tensor | None]]:
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    model.train()
    torch.manual_seed(0)
    result = model(*args, **kwargs)
    learnable = [t for _, t in leaves(result) if isinstance(t, Tensor) and t.requires_grad]
    if learnable:
        torch.stack([t.square().sum() for t in learnable]).sum().backward()  # type: ignore[no-untyped-call]
    return result, {name: p.grad for name, p in model.named_parameters()}
