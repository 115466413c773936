"""Every difficult network goes through the whole pipeline, or is refused with a typed error."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, prepare_model
from fxquant.errors import ExportError, ParityError
from fxquant.graph.meta import TensorSpec, spec
from fxquant.graph.pytree import fresh_inputs, leaves
from fxquant.models.difficult import NETWORKS
from fxquant.nn import QuantizationMixin
from fxquant.placement.dataflow import is_float_spec
from fxquant.prepare import SpecialisationWarning, call_arguments
from fxquant.tracing.replay import difference, other_batch, replay_equal

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings(
    # re-entrant checkpoints say so when nothing before them needs a gradient
    "ignore:None of the inputs have requires_grad:UserWarning"
)
# torch itself refuses the backward run: item assignment after an activation
UNTRAINABLE = frozenset({"Detector"})
# what a file cannot hold, and the code that says so
NOT_EXPORTED = {
    "Buffers": "FXQ529",
    "CarriedState": "FXQ529",
    "InPlace": "FXQ529",
    "RandomNumbers": "FXQ533",
    "WritesParameters": "FXQ529",
}


def prepared(name: str) -> tuple[nn.Module, Any, Any]:
    """The network, its dummy input and the prepared graph."""
    case = NETWORKS[name]
    model = case.network().eval()
    names = list(inspect.signature(case.network.forward).parameters)[1:]
    inputs: Any = case.args
    if case.kwargs:
        inputs = dict(zip(names, case.args, strict=False)) | case.kwargs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpecialisationWarning)
        return model, inputs, prepare_model(model, inputs)


def trained(model: nn.Module, inputs: Any) -> tuple[Any, dict[str, Tensor | None]]:
    """Results and gradients in training mode."""
    args, kwargs = call_arguments(inputs)
    model.train()
    torch.manual_seed(0)
    result = model(*fresh_inputs(args), **fresh_inputs(kwargs))
    learnable = [t for _, t in leaves(result) if isinstance(t, Tensor) and t.requires_grad]
    if learnable:
        torch.autograd.backward([t.square().sum() for t in learnable])
    return result, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_prepared_networks_compute_the_same_bits(name: str) -> None:
    model, inputs, gm = prepared(name)
    others = other_batch(*call_arguments(inputs))
    assert others is not None
    for given in (call_arguments(inputs), others):
        found = replay_equal(gm, model, *given)
        assert found, found.why


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - UNTRAINABLE))
def test_prepared_networks_train_alike(name: str) -> None:
    model, inputs, gm = prepared(name)
    theirs, ours = trained(model, inputs), trained(gm, inputs)
    assert difference(ours[0], theirs[0]) == ""
    assert difference(ours[1], theirs[1]) == ""


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_simulated_and_exported(name: str, tmp_path: Path) -> None:
    _, inputs, gm = prepared(name)
    args, kwargs = call_arguments(inputs)
    sim = QuantizationSimModel(gm, inputs, "tf")
    sim.compute_encodings(lambda model, _: model(*args, **kwargs), None)
    for node in sim.model.graph.nodes:
        module = sim.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, QuantizationMixin) and isinstance(spec(node), TensorSpec):
            grids = list(module.output_quantizers.children())
            assert not grids or is_float_spec(spec(node)), f"a grid on integers: {node}"
    code = NOT_EXPORTED.get(name)
    if code is None:
        assert sim.export(tmp_path, name)
        return
    with pytest.raises((ExportError, ParityError), match=code):
        sim.export(tmp_path, name)
    assert not list(tmp_path.iterdir())
