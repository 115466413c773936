"""QuantAnalyzer: documented files, true numbers, few runs, and going on after a kill."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantAnalyzer, QuantizationSimModel
from fxquant.analysis.analyzer.callbacks import CallbackFunc
from fxquant.errors import CalibrationError, ConfigError
from fxquant.nn.modes import quantizers_removed
from fxquant.quantization import AffineEncoding
from tests.helpers.modules import quantized

X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(2))
LAYERS = ["input_1_stub", "0", "1", "2", "4"]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    conv, more = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
    return nn.Sequential(conv, nn.ReLU(), more, nn.Flatten(), nn.Linear(96, 5)).eval()


def feed(model: nn.Module, data: Any = None) -> None:
    for x in (X if data is None else data).split(16):
        model(x)


def score(model: nn.Module) -> float:
    return -float((model(X) - net()(X)).abs().max())


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def by_hand() -> QuantizationSimModel:
    sim = QuantizationSimModel(net(), X[:1], "min_max", 8, 4)
    sim.compute_encodings(feed)
    return sim


def test_evaluations_are_those_with_the_quantizers_of_one_layer(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    analyzer = QuantAnalyzer(
        net(), X[:1], CallbackFunc(feed, X), score, progress=lambda *at: told.append(at)
    )
    analyzer.enable_per_layer_mse_loss([(X[:16], "label"), (X[16:], "label"), (X, "label")], 2)
    found = analyzer.analyze("min_max", 4, 8, None, tmp_path)
    enabled, disabled = (
        read(tmp_path / f"per_layer_quant_{which}.json") for which in ("enabled", "disabled")
    )
    assert list(enabled) == list(disabled) == LAYERS
    sim = by_hand()
    with torch.no_grad():
        for layer in LAYERS:
            with quantizers_removed(sim.model, lambda path, *_, on=layer: path == on):
                assert enabled[layer] == score(sim.model)
            with quantizers_removed(sim.model, lambda path, *_, off=layer: path != off):
                assert disabled[layer] == score(sim.model)
        assert found.sensitivity.all_quantized == score(sim.model)
        losses = read(tmp_path / "per_layer_mse_loss.json")
        wanted = float((sim.model(X) - net()(X)).double().square().mean())
    assert list(losses) == LAYERS
    assert losses["4"] == pytest.approx(wanted, rel=1e-5)
    assert found.sensitivity.float_model == 0.0
    assert found.sensitivity.weights < found.sensitivity.activations < 0  # 4 bits, 8 bits
    assert told == [(i + 1, 14) for i in range(14)]
    worst = min(enabled, key=enabled.__getitem__)
    assert re.search(rf"^{worst} ", str(found), re.M)
    assert not list(tmp_path.glob("*.progress.json"))


def test_ranges_and_histograms_are_those_of_the_tensors(tmp_path: Path) -> None:
    sim = by_hand()
    analyzer = QuantAnalyzer(net(), X[:1], feed, score)
    analyzer.export_per_layer_encoding_min_max_range(sim, tmp_path)
    activations, weights = (
        read(tmp_path / "min_max_ranges" / f"{name}.json") for name in ("activations", "weights")
    )
    encoding = quantized(sim, "0").param_quantizers["weight"].get_encodings()
    assert isinstance(encoding, AffineEncoding)
    low, high = (end.reshape(-1)[2] for end in (encoding.min, encoding.max))
    assert weights["0_weight"]["2"] == [float(low), float(high)]
    encoding = quantized(sim, "1").output_quantizers[0].get_encodings()
    assert isinstance(encoding, AffineEncoding)
    assert activations["1_output_0"] == [float(encoding.min), float(encoding.max)]
    analyzer.export_per_layer_stats_histogram(sim, tmp_path)
    found = read(tmp_path / "activations_pdf" / "histograms.json")["1_output_0"]
    with torch.no_grad():
        real = net()[:2](X)
    assert sum(found["counts"]) == real.numel()
    assert found["largest"] == pytest.approx(float(real.max()), rel=1e-6)
    positive = int((real >= found["width"]).sum())  # beyond the bin that begins at zero
    begin = round((found["width"] - found["start"]) / found["width"])
    assert sum(found["counts"][begin:]) == positive
    assert "0_weight" in read(tmp_path / "weights_pdf" / "histograms.json")
    page = next((tmp_path / "activations_pdf").glob("*1_output_0.html")).read_text()
    assert "<svg" in page
    assert "http" not in page


class Counted(nn.Module):
    """Counts how often the model runs, without a part in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def test_without_a_callback_decibels_decide_in_few_runs(tmp_path: Path) -> None:
    analyzer = QuantAnalyzer(Counted(), X[:1], feed)
    sim = QuantizationSimModel(Counted(), X[:1], "min_max", 8, 4)
    sim.compute_encodings(feed)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    analyzer._batches(sim)  # the callback's own run
    handle = sim.model.register_forward_hook(count)
    enabled = analyzer.perform_per_layer_analysis_by_enabling_quantizers(sim, tmp_path)
    handle.remove()
    batches = 2
    assert calls <= (len(LAYERS) + 2) * batches
    nodes = {row.module: row for row in analyzer._node_errors(sim, tmp_path).rows}
    assert enabled["net.4"] == pytest.approx(nodes["net.4"].local_db, abs=1e-3)
    exact, weights, activations = analyzer.check_model_sensitivity_to_quantization(sim)
    assert exact is None
    assert weights < activations


def test_an_analysis_that_was_killed_goes_on(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    calls = 0
    most = 7

    def evaluate(model: nn.Module) -> float:
        nonlocal calls
        calls += 1
        if calls > most:
            raise Killed
        return score(model)

    analyzer = QuantAnalyzer(net(), X[:1], feed, evaluate)
    with pytest.raises(Killed):
        analyzer.analyze("min_max", 4, results_dir=tmp_path)
    assert len(list(tmp_path.glob("*.progress.json"))) == 1
    calls, most = 0, 100
    found = analyzer.analyze("min_max", 4, results_dir=tmp_path)
    assert calls == 14 - 7
    whole = QuantAnalyzer(net(), X[:1], feed, score).analyze(
        "min_max", 4, results_dir=tmp_path / "b"
    )
    assert (found.enabled, found.disabled) == (whole.enabled, whole.disabled)
    calls, most = 0, 3
    with pytest.raises(Killed):
        analyzer.analyze("min_max", 4, results_dir=tmp_path)
    calls, most = 0, 100
    analyzer.analyze("min_max", 3, results_dir=tmp_path)  # another analysis begins anew
    assert calls == 14


def test_ignored_modules_stay_float_and_odd_names_are_no_paths(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("/<b>", nn.Linear(4, 4))
            self.last = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self._modules["/<b>"](x))  # type: ignore[misc, no-any-return]

    model, x = Odd().eval(), torch.randn(16, 4)
    analyzer = QuantAnalyzer(model, x, lambda m: m(x), modules_to_ignore=[model.last])
    found = analyzer.analyze(results_dir=tmp_path / "a" / "results")
    assert not any(name.startswith("last") for name in found.enabled)
    assert "/<b>" in found.enabled
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    for page in tmp_path.rglob("*.html"):
        assert "<b>" not in page.read_text()


def test_what_cannot_be_called_or_has_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"FXQ237.*forward_pass_callback is a list"):
        QuantAnalyzer(net(), X, [X])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"FXQ237.*takes neither"):
        QuantAnalyzer(net(), X, feed, lambda: 1.0)
    with pytest.raises(ConfigError, match=r"FXQ296.*num_batches"):
        QuantAnalyzer(net(), X, feed).enable_per_layer_mse_loss([X], num_batches=0)
    with pytest.raises(CalibrationError, match="FXQ430"):
        QuantAnalyzer(net(), X, lambda _: None).analyze(results_dir=tmp_path)
    with pytest.raises(ConfigError, match="FXQ249"):
        QuantAnalyzer(net(), X, feed, lambda _: float("nan")).analyze(results_dir=tmp_path)
