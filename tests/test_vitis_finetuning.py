"""The Vitis-style door: fast_finetune writes parameters, load_ft_param takes them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fxquant.errors import CalibrationError, CheckpointError, ConfigError
from fxquant.ptq import FinetuneParams
from fxquant.ptq.solving.refinement import RefinementOptions
from fxquant.vitis import TorchQuantizer, torch_quantizer
from tests.helpers.techniques import images, normed, outputs

if TYPE_CHECKING:
    from pathlib import Path

DATA = images(count=160, batch=32)
QUICK = FinetuneParams(refinement=RefinementOptions(iterations=40))


def evaluate(model: nn.Module, loader: list[Tensor], loss_fn: Any) -> float:
    """As the examples of Vitis AI have it; gradients are on."""
    return sum(float(loss_fn(model(x), torch.zeros(len(x), 6)).detach()) for x in loader)


def tuned(folder: Path, **options: Any) -> TorchQuantizer:
    q = torch_quantizer("calib", normed(), (DATA[0],), output_dir=folder, **options)
    q.fast_finetune(evaluate, (q.quant_model, DATA, nn.MSELoss()), params=QUICK)
    evaluate(q.quant_model, DATA, nn.MSELoss())
    q.export_quant_config()
    return q


def noise(found: Tensor, net: nn.Module) -> float:
    want = outputs(net, DATA)
    return float((found - want).square().sum() / want.square().sum())


@pytest.mark.parametrize("target", [None, "generic_pof2"])
def test_another_process_loads_weights_scales_and_biases(tmp_path: Path, target: Any) -> None:
    options = {"target": target, "bitwidth": 5 if target is None else 4}
    q = tuned(tmp_path, **options)
    want = outputs(q.quant_model, DATA)
    assert q.finetuned is not None
    plain = torch_quantizer("calib", normed(), (DATA[0],), output_dir=tmp_path / "p", **options)
    evaluate(plain.quant_model, DATA, nn.MSELoss())
    plain.export_quant_config()
    assert noise(want, normed()) < 0.6 * noise(outputs(plain.quant_model, DATA), normed())
    info = json.loads((tmp_path / "quant_info.json").read_text())
    assert info["fast_finetuned"] is True
    assert set(load_file(tmp_path / "param.safetensors")) == {
        n for n, _ in q.quant_model.named_parameters()
    }
    later = torch_quantizer("test", normed(), (DATA[0],), output_dir=tmp_path)
    assert not torch.equal(outputs(later.quant_model, DATA), want)
    with pytest.raises(ConfigError, match="FXQ288"):
        later.export_onnx_model()
    with pytest.raises(ConfigError, match="FXQ288"):
        later.export_torch_script()
    later.load_ft_param()
    assert torch.equal(outputs(later.quant_model, DATA), want)
    assert later.export_onnx_model()


def test_what_was_not_fine_tuned_says_so_and_needs_no_file(tmp_path: Path) -> None:
    q = torch_quantizer("calib", normed(), (DATA[0],), output_dir=tmp_path)
    evaluate(q.quant_model, DATA, nn.MSELoss())
    q.export_quant_config()
    assert json.loads((tmp_path / "quant_info.json").read_text())["fast_finetuned"] is False
    later = torch_quantizer("test", normed(), (DATA[0],), output_dir=tmp_path)
    with pytest.raises(CheckpointError, match="FXQ640"):
        later.load_ft_param()
    assert later.export_onnx_model()


def test_only_so_many_samples_are_kept_and_buffers_may_be_reused(tmp_path: Path) -> None:
    q = torch_quantizer("calib", normed(), (DATA[0],), output_dir=tmp_path)
    buffer = torch.empty_like(DATA[0])

    def run(model: nn.Module) -> None:
        for x in DATA:
            model(buffer.copy_(x))
        buffer.fill_(torch.nan)

    report = q.fast_finetune(run, (q.quant_model,), params=QUICK)
    assert report.cost.samples == 128
    assert report.held_batches == 1


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    q: Any = torch_quantizer("calib", normed(), (DATA[0],), output_dir=tmp_path)
    with pytest.raises(ConfigError, match="FXQ209"):
        q.load_ft_param()
    with pytest.raises(ConfigError, match="FXQ215"):
        q.fast_finetune(DATA)
    with pytest.raises(ConfigError, match="FXQ215"):
        q.fast_finetune(evaluate, q.quant_model)
    with pytest.raises(CalibrationError, match="FXQ457"):
        q.fast_finetune(lambda: None)
    with pytest.raises(ZeroDivisionError):
        q.fast_finetune(lambda: 1 / 0)
    later = tuned(tmp_path)
    later = torch_quantizer("test", normed(), (DATA[0],), output_dir=tmp_path)
    with pytest.raises(ConfigError, match="FXQ209"):
        later.fast_finetune(evaluate, (later.quant_model, DATA, nn.MSELoss()))


def test_files_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    tuned(tmp_path)
    path = tmp_path / "param.safetensors"
    later = torch_quantizer("test", normed(), (DATA[0],), output_dir=tmp_path)
    want = outputs(later.quant_model, DATA)
    whole = path.read_bytes()
    tensors = {n: t.clone() for n, t in load_file(path).items()}  # the file is mapped, and changes
    info = json.loads((tmp_path / "quant_info.json").read_text())
    digest = {"fxquant.graph_md5": info["graph_md5"]}
    first, *others = sorted(tensors)
    cases: list[tuple[str, dict[str, Tensor] | None, dict[str, str]]] = [
        ("FXQ641", None, {}),
        ("FXQ642", tensors, {}),
        ("FXQ642", tensors, {"fxquant.graph_md5": "0"}),
        ("FXQ643", {n: tensors[n] for n in others}, digest),
        ("FXQ643", tensors | {"other": torch.zeros(1)}, digest),
        ("FXQ643", tensors | {first: torch.zeros(3, 3, 3)}, digest),
        ("FXQ643", tensors | {first: tensors[first] * torch.nan}, digest),
        ("FXQ643", tensors | {first: tensors[first].to(torch.int32)}, digest),
    ]
    for code, content, metadata in cases:
        if content is None:
            path.write_bytes(whole[: len(whole) // 2])
        else:
            save_file(content, path, metadata)
        with pytest.raises(CheckpointError, match=code):
            later.load_ft_param()
        assert torch.equal(outputs(later.quant_model, DATA), want)
    path.write_bytes(whole)
    later.load_ft_param()
    assert not torch.equal(outputs(later.quant_model, DATA), want)
