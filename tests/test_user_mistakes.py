"""The likeliest mistakes, one a row: each is an error with a code that says what to do."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fxquant import (
    QuantizationSimModel,
    choose_mixed_precision,
    insert_stubs,
    inspect_model,
    load_checkpoint,
    prepare_model,
    ptq,
    register_op,
    save_checkpoint,
    set_precision,
    validate_model,
)
from fxquant.analysis.debugging.divergence import first_divergence
from fxquant.analysis.debugging.layer_outputs import save_layer_outputs
from fxquant.analysis.debugging.what_if import what_if
from fxquant.errors import ConfigError, FxQuantError
from fxquant.inspection.node_errors import node_errors
from fxquant.targets import load_target

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LONG = torch.zeros(2, 3, 8, 8, dtype=torch.int64)
FOUR = torch.zeros(2, 4, 8, 8)
NAN = torch.full((2, 3, 8, 8), float("nan"))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


class Two(nn.Module):
    """A model with two inputs."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.relu(a) + b


@functools.cache
def _made(kind: str) -> QuantizationSimModel:
    if kind == "two":
        return QuantizationSimModel(Two(), (X, X))
    sim = QuantizationSimModel(net(), X, "percentile" if kind == "percentile" else "min_max")
    if kind == "calibrated":
        sim.compute_encodings([X])
    return sim


def sim(kind: str = "") -> QuantizationSimModel:
    """A simulation of its own."""
    return copy.deepcopy(_made(kind))


@functools.cache
def calibrated() -> QuantizationSimModel:
    """For calls that change nothing."""
    return sim("calibrated")


def used_up() -> Iterator[Tensor]:
    batches = iter([X])
    next(batches)
    return batches


Mistake = Callable[[Path], object]
ROWS: list[tuple[str, str, Mistake]] = []


def rows(code: str, what: str, call: Callable[[Any, Path], object], wrong: dict[str, Any]) -> None:
    """One mistake for each wrong value."""
    for name, value in wrong.items():
        ROWS.append((code, f"{what}: {name}", functools.partial(call, value)))


# --- calibration -----------------------------------------------------------------------------

rows("FXQ435", "a batch", lambda v, _: sim().compute_encodings([v]), {
    "channels": FOUR, "size": torch.zeros(2, 3, 9, 9), "integers": LONG, "double": X.double(),
    "half": X.half(), "complex": X.to(torch.complex64), "bool": X > 0, "numpy": X.numpy(),
    "None": None, "floats": [1.0, 2.0], "text": "a", "number": 1, "rank": X[0],
    "unknown name": {"image": X}, "one name too many": {"input": X, "label": X},
    "None by name": {"input": None}, "numpy by name": {"input": X.numpy()}, "no inputs": (),
    "nested": ((X,),), "labels first": (torch.zeros(2, dtype=torch.int64), X),
    "sparse": X.to_sparse(), "on meta": X.to("meta"), "a bool": True, "a path": Path("x"),
    "pair of numpy": (X.numpy(), 1), "a module": nn.ReLU(), "empty dict": {},
})  # fmt: skip
rows("FXQ435", "a batch for two", lambda v, _: sim("two").compute_encodings([v]), {
    "one tensor": X, "one in a tuple": (X,), "one by name": {"a": X}, "None": (X, None),
    "other names": {"x": X, "y": X}, "numpy": (X, X.numpy()),
    "three names": {"a": X, "b": X, "c": X},
})  # fmt: skip
rows("FXQ431", "data", lambda v, _: sim().compute_encodings(v), {
    "None": None, "text": "data", "number": 5, "bytes": b"x", "numpy": X.numpy(), "bool": True,
    "one batch as a dict": {"input": X}, "a path": Path("x"), "a float": 1.5,
    "a callback without arguments": lambda: None, "a callback of three": lambda a, b, c: None,
    "a model": net(), "an object": object(),
})  # fmt: skip
rows("FXQ430", "data", lambda v, _: sim().compute_encodings(v() if callable(v) else v), {
    "an empty list": [], "an empty loader": DataLoader(TensorDataset(X[:0])), "used up": used_up,
    "an empty generator": lambda: iter(()), "an empty dict's values": {}.values(),
    "a batch without samples": [X[:0]], "two without samples": [X[:0], X[:0]],
    "a callback that calls nothing": lambda: lambda model: None,
})  # fmt: skip
rows("FXQ435", "a callback", lambda v, _: sim().compute_encodings(lambda m, a: m(a), v), {
    "channels": FOUR, "numpy": X.numpy(), "None": None, "a loader": [X], "integers": LONG,
})  # fmt: skip
rows("FXQ433", "threads", lambda v, _: sim().compute_encodings([X], threads=v), {
    "none at all": 0, "negative": -1, "text": "2", "float": 2.0, "bool": True,
})  # fmt: skip
rows("FXQ4", "values", lambda v, _: sim().compute_encodings([v]), {
    "NaN": NAN, "infinity": X / 0, "one NaN": torch.where(X.max() == X, NAN, X),
})  # fmt: skip

# --- example inputs ----------------------------------------------------------------------------

INPUTS: dict[str, Any] = {
    "numpy in a tuple": (X.numpy(),), "channels": FOUR, "integers": LONG, "double": X.double(),
    "a batch and labels": (X, torch.zeros(2)), "unknown name": {"image": X}, "rank": X[0],
    "a name too many": {"input": X, "label": X}, "no inputs": (), "no names": {},
    "a loader": [(X, torch.zeros(2))], "on meta": X.to("meta"), "None in a tuple": (None,),
}  # fmt: skip
NOT_INPUTS: dict[str, Any] = {
    "numpy": X.numpy(), "text": "x", "number": 5, "empty": X[:0], "empty in a tuple": (X[:0],),
    "empty by name": {"input": X[:0]}, "a generator": (x for x in [X]), "a set": {1},
    "a model": nn.ReLU(), "a function": torch.zeros,
}  # fmt: skip
rows("FXQ1", "prepare_model", lambda v, _: prepare_model(net(), v), INPUTS)
rows("FXQ210", "prepare_model", lambda v, _: prepare_model(net(), v), NOT_INPUTS | {"None": None})
rows("FXQ1", "a simulation", lambda v, _: QuantizationSimModel(net(), v), INPUTS)
rows("FXQ210", "a simulation", lambda v, _: QuantizationSimModel(net(), v), NOT_INPUTS)
rows("FXQ210", "validate_model", lambda v, _: validate_model(net(), v), NOT_INPUTS)
rows("FXQ247", "export", lambda v, d: calibrated().export(d, "n", v), INPUTS)
rows("FXQ210", "export", lambda v, d: calibrated().export(d, "n", v), NOT_INPUTS)
rows("FXQ247", "integer_model", lambda v, _: calibrated().integer_model(v), INPUTS)
rows("FXQ210", "integer_model", lambda v, _: calibrated().integer_model(v), NOT_INPUTS)
MODELS = {
    "None": None, "number": 5, "text": "resnet18", "a class": nn.Conv2d, "a list": [net()],
    "a state dict": net().state_dict(), "a function": torch.relu,
}  # fmt: skip
rows("FXQ103", "prepare_model", lambda v, _: prepare_model(v, X), MODELS)
rows("FXQ103", "a simulation", lambda v, _: QuantizationSimModel(v, X), MODELS)
rows("FXQ103", "validate_model", lambda v, _: validate_model(v, X), MODELS)
rows("FXQ103", "inspect_model", lambda v, _: inspect_model(v, X), MODELS)

# --- names and settings ------------------------------------------------------------------------

TARGETS = {
    "None": None, "number": 5, "another": "x", "a list": ["onnxruntime_x86"], "a path": Path("x"),
    "a dict": {"name": "x"}, "bytes": b"x", "bool": True, "empty": "",
}  # fmt: skip
rows("FXQ260", "load_target", lambda v, _: load_target(v), TARGETS)
rows("FXQ260", "target", lambda v, _: QuantizationSimModel(net(), X, target=v), TARGETS)
rows("FXQ260", "inspect", lambda v, _: inspect_model(net(), X, target=v), TARGETS)
rows("FXQ2", "config", lambda v, _: QuantizationSimModel(net(), X, config=v), {
    "missing file": "nofile.json", "unknown key": {"x": 1}, "no table": {"layers": 5},
    "text for a number": {"activation_bitwidth": "8"}, "number for a key": {1: 2},
    "no such layer": {"layers": {"nothing": {"output": {"bitwidth": 8}}}},
})  # fmt: skip
rows("FXQ750", "config", lambda v, _: QuantizationSimModel(net(), X, config=v), {
    "number": 5, "a list": ["a"], "bytes": b"a", "bool": True, "empty": "",
})  # fmt: skip
rows("FXQ", "bits", lambda v, _: QuantizationSimModel(net(), X, default_output_bw=v), {
    "zero": 0, "one": 1, "33": 33, "negative": -1, "float": 8.5, "text": "8", "a list": [8],
})  # fmt: skip
rows("FXQ", "bits of weights", lambda v, _: QuantizationSimModel(net(), X, default_param_bw=v), {
    "zero": 0, "one": 1, "33": 33, "negative": -1, "float": 8.5, "text": "8", "a list": [8],
})  # fmt: skip
rows("FXQ", "scheme", lambda v, _: QuantizationSimModel(net(), X, v), {
    "None": None, "number": 5, "another": "nothing", "a list": ["min_max"], "empty": "",
})  # fmt: skip
SELECTORS = {"no such": "nothing", "no glob": "9*", "None": None, "number": 5, "float": 3.5,
             "None in a list": [None], "an object": object()}  # fmt: skip
rows("FXQ2", "exclude", lambda v, _: sim().exclude_layers_from_quantization(v), SELECTORS)
rows("FXQ243", "parameters", lambda v, _: sim().exclude_param_from_quantization(v), SELECTORS)
rows("FXQ240", "explain", lambda v, _: calibrated().explain(v), SELECTORS)
rows("FXQ", "percentile", lambda v, _: sim("percentile").set_percentile_value(v), {
    "text": "99", "None": None, "too large": 200, "negative": -1, "NaN": float("nan"), "list": [99],
})  # fmt: skip
rows("FXQ", "blocks",
     lambda v, _: sim().set_blockwise_quantization_for_weights(["3"], 4, True, v), {
         "no divisor": 7, "zero": 0, "text": "12", "None": None, "too many": [1, 2, 3, 4],
     })  # fmt: skip
rows("FXQ", "stubs", lambda v, _: insert_stubs(prepare_model(net(), X), v), {
    "nothing": ["nothing"], "number": 5, "None in a list": [None], "text in a list": ["9"],
})  # fmt: skip
rows("FXQ", "on_specialisation", lambda v, _: prepare_model(net(), X, on_specialisation=v), {
    "another": "x", "None": None, "bool": True,
})  # fmt: skip

rows("FXQ235", "argument", lambda v, _: QuantizationSimModel(net(), X, **v), {
    "of an older signature": {"rounding_mode": "nearest"}, "a typo": {"target_": "x"},
    "of another class": {"dummy": X}, "bits": {"param_bw": 8},
})  # fmt: skip
SWITCHES = {"text": "yes", "number": 1, "None": None, "a list": []}
rows("FXQ236", "in_place", lambda v, _: QuantizationSimModel(net(), X, in_place=v), SWITCHES)
rows("FXQ236", "prove", lambda v, d: calibrated().export(d, "n", prove=v), SWITCHES)
rows("FXQ236", "contrib", lambda v, d: calibrated().export(d, "n", contrib=v), {
    "text": "no", "number": 5,
})  # fmt: skip
rows("FXQ236", "strict", lambda v, _: sim().load_encodings({}, strict=v), SWITCHES)
rows("FXQ431", "progress", lambda v, _: sim().compute_encodings([X], progress=v), {
    "number": 5, "bool": True, "text": "x",
})  # fmt: skip
rows("FXQ214", "predicate", lambda v, _: sim().exclude_layers_from_quantization(v), {
    "of three": lambda a, b, c: True, "that fails": lambda p: 1 / 0,
})  # fmt: skip
rows("FXQ204", "register_op", lambda v, _: register_op(v), {
    "None": None, "text": "conv", "a function": torch.relu, "a class": nn.ReLU,
})  # fmt: skip


def first(sim: QuantizationSimModel) -> Any:
    return next(sim.quantizers())


rows("FXQ409", "set_range", lambda v, _: first(sim()).set_range(*v), {
    "text": ("a", 1), "lists of text": (["a"], [1]), "upside down": (2.0, 1.0),
    "NaN": (float("nan"), 1.0), "infinity": (0.0, float("inf")), "objects": (object(), 1.0),
})  # fmt: skip
rows("FXQ4", "bitwidth", lambda v, _: setattr(first(sim()), "bitwidth", v), {
    "zero": 0, "one": 1, "negative": -1, "text": "8", "None": None, "64": 64, "float": 8.5,
    "bool": True,
})  # fmt: skip
rows("FXQ410", "symmetric", lambda v, _: setattr(first(sim()), "symmetric", v), {
    "text": "yes", "None": None, "number": 1,
})  # fmt: skip
rows("FXQ414", "narrow floats",
     lambda v, _: sim().set_activation_quantizers_to_float(["1"], **v), {
         "nothing": {}, "negative": {"exponent_bits": -1, "mantissa_bits": 3},
         "integers": {"dtype": torch.int8},
         "twice": {"exponent_bits": 5, "mantissa_bits": 10, "dtype": torch.float16},
     })  # fmt: skip


def outputs_of(sim: QuantizationSimModel) -> Any:
    return dict(sim.named_qmodules())["0"].output_quantizers


rows("FXQ427", "quantizers by position", lambda v, _: outputs_of(sim()).__setitem__(v, None), {
         "past the end": 7, "the next": 1, "far before": -5, "text": "0", "bool": True,
     })  # fmt: skip


class Texts(nn.Module):
    """Returns more than numbers."""

    def forward(self, x: Tensor) -> Any:
        return torch.relu(x), "label"


def with_text(folder: Path) -> object:
    sim = QuantizationSimModel(Texts(), X)
    sim.compute_encodings([X])
    return sim.export(folder, "n")


rows("FXQ590", "returned", lambda v, d: v(d), {"text": with_text})

# --- files -------------------------------------------------------------------------------------

PREFIXES = {"a path": Path("n"), "above": "../x", "None": None, "number": 5, "empty": "",
            "bytes": b"n", "a folder": "a/b", "dots": "..", "NUL": "a\0b"}  # fmt: skip
rows("FXQ541", "prefix", lambda v, d: calibrated().export(d, v), PREFIXES)
rows("FXQ541", "prefix of encodings",
     lambda v, d: calibrated().save_encodings_to_json(d, v), PREFIXES)  # fmt: skip
PATHS = {"None": None, "number": 5, "NUL": "a\0b", "bytes": b"x", "a list": ["x"], "empty": ""}
rows("FXQ750", "folder", lambda v, _: calibrated().export(v, "n"), PATHS)
rows(
    "FXQ750", "folder of encodings", lambda v, _: calibrated().save_encodings_to_json(v, "n"), PATHS
)
rows("FXQ750", "checkpoint", lambda v, _: save_checkpoint(calibrated(), v), PATHS)
rows("FXQ750", "checkpoint to load", lambda v, _: load_checkpoint(sim(), v), PATHS)
rows("FXQ750", "encodings to load", lambda v, _: sim().load_encodings(v), PATHS)
rows("FXQ600", "simulation of a checkpoint", lambda v, d: save_checkpoint(v, d / "c"), {
    "the model": net(), "None": None, "its graph": calibrated().model, "a path": Path("x"),
})  # fmt: skip
rows("FXQ600", "simulation to load into", lambda v, d: load_checkpoint(v, d / "c"), {
    "the model": net(), "None": None, "a path": Path("x"),
})  # fmt: skip
rows("FXQ", "file as a folder", lambda v, d: v((d / "file").write_text("x") and d / "file"), {
    "export": lambda p: calibrated().export(p, "n"),
    "export below": lambda p: calibrated().export(p / "x", "n"),
    "encodings": lambda p: calibrated().save_encodings_to_json(p, "n"),
    "checkpoint": lambda p: save_checkpoint(calibrated(), p),
    "checkpoint below": lambda p: save_checkpoint(calibrated(), p / "x"),
    "load": lambda p: load_checkpoint(sim(), p),
    "load encodings": lambda p: sim().load_encodings(p),
    "load encodings of a folder": lambda p: sim().load_encodings(p.parent),
})  # fmt: skip
rows("FXQ500", "opset", lambda v, d: calibrated().export(d, "n", opset=v), {
    "too old": 12, "too new": 24, "text": "21", "None": None, "float": 21.0, "bool": True,
})  # fmt: skip
rows("FXQ631", "encodings", lambda v, d: calibrated().export(d, "n", encoding_version=v), {
    "another": "x", "None": None, "number": 1,
})  # fmt: skip
rows("FXQ", "deploy", lambda v, d: calibrated().export(d, "n", deploy=v), {"x": "gpu", "number": 5})
rows("FXQ63", "content of encodings", lambda v, _: sim().load_encodings(v), {
    "nothing": {}, "no version": {"version": None}, "another": {"version": "9"},
    "a number": {"version": "1.0.0", "activation_encodings": [5]},
    "a dict": {"version": "1.0.0", "param_encodings": {"a": 1}}, "list": {"version": ["1.0.0"]},
})  # fmt: skip
rows("FXQ", "uncalibrated", lambda v, d: v(d), {
    "export": lambda d: sim().export(d, "n"), "integer_model": lambda d: sim().integer_model(),
})  # fmt: skip
rows(
    "FXQ230", "twice", lambda v, _: QuantizationSimModel(v(), X), {"sim.model": lambda: sim().model}
)


def test_there_are_some_hundred() -> None:
    assert len(ROWS) > 350


@pytest.mark.parametrize(
    ("code", "mistake"), [(c, m) for c, _, m in ROWS], ids=[w for _, w, _ in ROWS]
)
def test_a_mistake_has_a_code(code: str, mistake: Mistake, tmp_path: Path) -> None:
    with pytest.raises(FxQuantError) as error:
        mistake(tmp_path)
    assert error.value.code.startswith(code)
    assert error.value.what
    assert not list(tmp_path.glob(".*")), "leftovers"


def test_a_model_in_the_place_of_the_simulation_is_named() -> None:
    model, data = nn.Sequential(nn.Linear(8, 4)), [torch.randn(4, 8)]
    looks: dict[str, Callable[[Any], object]] = {
        "node_errors": lambda sim: node_errors(sim, data),
        "what_if": lambda sim: what_if(sim, data, ["0"]),
        "first_divergence": first_divergence,
        "save_layer_outputs": lambda sim: save_layer_outputs(sim, data, "absent"),
        "choose_mixed_precision": lambda sim: choose_mixed_precision(sim, data=data),
        "reconstruct": lambda sim: ptq.reconstruct(sim, data),
        "choose_activation_ranges": lambda sim: ptq.choose_activation_ranges(sim, data),
        "set_precision": lambda sim: set_precision(sim, "0", activation=8),
    }
    for name, look in looks.items():
        for given in (model, None, "net"):
            with pytest.raises(ConfigError, match=f"{name} was given a") as caught:
                look(given)
            assert caught.value.code == "FXQ297"


def test_a_path_that_no_file_system_takes_is_refused(tmp_path: Path) -> None:
    x = torch.randn(4, 8)
    sim = QuantizationSimModel(nn.Sequential(nn.Linear(8, 4)), x)
    sim.compute_encodings([x])
    with pytest.raises(ConfigError, match="a name of 300 bytes") as caught:
        choose_mixed_precision(sim, data=[x], results_dir=tmp_path / ("x" * 300))
    assert caught.value.code == "FXQ750"


@pytest.mark.parametrize("evaluate", [lambda model: 1 / 0, lambda: 1.0, lambda model: 10**400])
def test_an_evaluation_that_fails_is_quoted(evaluate: Callable[..., object]) -> None:
    x = torch.randn(4, 8)
    sim = QuantizationSimModel(nn.Sequential(nn.Linear(8, 4)), x)
    sim.compute_encodings([x])
    with pytest.raises(ConfigError, match=r"evaluate (failed|returned)") as caught:
        choose_mixed_precision(sim, evaluate=evaluate, data=[x])
    assert caught.value.code in ("FXQ249", "FXQ258")
