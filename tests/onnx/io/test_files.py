"""The files: encodings, metadata, external weights; equal models give equal bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from torch import fx

from fxquant.encodings.file import digest
from fxquant.errors import ExportError
from fxquant.onnx import Lowered, lower, verify_file
from fxquant.onnx.encodings_file import encodings_of, write_encodings
from fxquant.onnx.io.writer import write_model
from tests.helpers.nets import Residual, image, param_quantizers, simulated


@pytest.fixture(scope="module")
def exported() -> tuple[fx.GraphModule, Lowered]:
    """A quantized network and its lowering."""
    sim = simulated(Residual(), image())
    return sim.model, lower(sim.model, ((image(),), {}))


def opened(path: Path) -> Any:
    """An onnxruntime session."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def by_name(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {e["name"]: e for e in entries}


def test_encodings_have_the_fields_of_version_1(
    exported: tuple[fx.GraphModule, Lowered], tmp_path: Path
) -> None:
    gm, lowered = exported
    write_encodings(gm, lowered, tmp_path / "net.encodings", scheme="min_max")
    content = json.loads((tmp_path / "net.encodings").read_text())
    assert list(content) == ["version", "producer", "activation_encodings", "param_encodings",
                             "excluded_layers", "quantizer_args"]  # fmt: skip
    assert content["version"] == "1.0.0"
    assert content["producer"]["package"] == "fxquant"
    assert content["excluded_layers"] == []
    assert content["quantizer_args"] == {
        "quant_scheme": "min_max", "activation_bitwidth": 8, "param_bitwidth": 8, "dtype": "int",
        "is_symmetric": True, "per_channel_quantization": True,
    }  # fmt: skip


def test_encodings_say_what_the_quantizers_say(
    exported: tuple[fx.GraphModule, Lowered],
) -> None:
    gm, lowered = exported
    content = encodings_of(gm, lowered)
    weight = by_name(content["param_encodings"])["conv2.weight"]
    assert (weight["enc_type"], weight["bw"], weight["is_sym"]) == ("PER_CHANNEL", 8, True)
    assert weight["offset"] == [-128] * 8
    quantizer = param_quantizers(gm, "conv2")["weight"]
    want = quantizer.get_scale().flatten().tolist()
    assert weight["scale"] == want
    relu = by_name(content["activation_encodings"])["relu.output"]
    assert (relu["enc_type"], relu["dtype"], relu["offset"]) == ("PER_TENSOR", "INT", [0])
    names = {v.name for n in lowered.model.graph for v in n.outputs}
    names |= set(lowered.input_names) | set(lowered.model.graph.initializers)
    entries = [*content["activation_encodings"], *content["param_encodings"]]
    assert {e["name"] for e in entries} <= names


def test_a_layer_without_quantized_weights_is_listed() -> None:
    sim = simulated(Residual(), image())
    for name in ("weight", "bias"):
        param_quantizers(sim.model, "fc")[name] = None
    lowered = lower(sim.model, ((image(),), {}))
    assert encodings_of(sim.model, lowered)["excluded_layers"] == ["fc"]


def test_equal_models_give_equal_bytes(
    exported: tuple[fx.GraphModule, Lowered], tmp_path: Path
) -> None:
    gm, lowered = exported
    again = lower(gm, ((image(),), {}))
    for name, model in (("a", lowered), ("b", again)):
        encodings = write_encodings(gm, model, tmp_path / f"{name}.encodings")
        write_model(model, tmp_path / f"{name}.onnx", encodings=encodings)
    for suffix in ("onnx", "encodings"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_the_model_carries_the_hash_of_its_encodings(
    exported: tuple[fx.GraphModule, Lowered], tmp_path: Path
) -> None:
    gm, lowered = exported
    encodings = write_encodings(gm, lowered, tmp_path / "net.encodings")
    assert write_model(lowered, tmp_path / "net.onnx", encodings=encodings) == [
        tmp_path / "net.onnx"
    ]
    session = opened(tmp_path / "net.onnx")
    props = session.get_modelmeta().custom_metadata_map
    want = hashlib.sha256((tmp_path / "net.encodings").read_bytes()).hexdigest()
    assert props["fxquant.encodings_sha256"] == want == digest(encodings)
    assert {p.name for p in tmp_path.iterdir()} == {"net.onnx", "net.encodings"}


def test_large_weights_lie_beside_the_model(
    exported: tuple[fx.GraphModule, Lowered], tmp_path: Path
) -> None:
    _, lowered = exported
    paths = write_model(lowered, tmp_path / "net.onnx", external_from=100)
    assert [p.name for p in paths] == ["net.onnx.data", "net.onnx"]
    assert verify_file(tmp_path / "net.onnx")
    x = image()
    write_model(lowered, tmp_path / "whole.onnx")
    outputs = []
    for name in ("net", "whole"):
        session = opened(tmp_path / f"{name}.onnx")
        outputs.append(session.run(None, {"x": x.numpy()})[0])
    assert np.array_equal(*outputs)
    assert (tmp_path / "net.onnx.data").stat().st_size >= 8 * 8 * 9
    onnx.checker.check_model(str(tmp_path / "net.onnx"), full_check=True)


def test_a_file_that_cannot_be_written_leaves_nothing(
    exported: tuple[fx.GraphModule, Lowered], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="FXQ509"):
        write_model(exported[1], tmp_path / "missing" / "net.onnx")
    (tmp_path / "net.onnx").mkdir()
    with pytest.raises(ExportError, match="FXQ509"):
        write_model(exported[1], tmp_path / "net.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
