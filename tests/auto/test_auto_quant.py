"""`AutoQuant`: the documented calls, what they return, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import AutoQuant, QuantizationSimModel, QuantScheme
from fxquant.auto.auto_quant import AutoQuantWithAutoMixedPrecision
from fxquant.errors import ConfigError, FxQuantError, QuantizationError
from tests.helpers.nets import Residual


def images(count: int = 3) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(16, 3, 8, 8) for _ in range(count)]


def likeness(net: nn.Module, data: list[Tensor]) -> Callable[[Any], float]:
    """Decibels of a model against the float one, 100 at most."""
    with torch.no_grad():
        want = [net(x) for x in data]

    @torch.no_grad()
    def measure(model: Any) -> float:
        noise = sum(float((model(x) - y).square().sum()) for x, y in zip(data, want, strict=True))
        signal = sum(float(y.square().sum()) for y in want)
        return min(100.0, float(10 * torch.log10(torch.tensor(signal / max(noise, 1e-30)))))

    return measure


def automatic(folder: Path, **options: Any) -> tuple[AutoQuant, nn.Module, list[Tensor]]:
    net, data = Residual().eval(), images()
    measure = options.pop("eval_callback", None) or likeness(net, data)
    settings = {"param_bw": 4, "output_bw": 8, "results_dir": folder, **options}
    return AutoQuant(net, data[0], data, measure, **settings), net, data


def test_inference_is_the_plain_simulation(tmp_path: Path) -> None:
    auto, net, data = automatic(tmp_path)
    sim, score = auto.run_inference()
    assert isinstance(sim, QuantizationSimModel)
    assert likeness(net, data)(sim.model) == score
    assert auto.report is not None
    assert [t.names for t in auto.report.trials] == [()]
    assert list(tmp_path.iterdir()) == []


def test_what_is_returned_gives_the_score_again(tmp_path: Path) -> None:
    auto, net, data = automatic(tmp_path)
    _, plain = auto.run_inference()
    model, score, path = auto.optimize(allowed_accuracy_drop=0.0)
    assert score > plain + 5
    assert Path(path) == tmp_path / "auto_quant.encodings"
    suffixes = ("onnx", "encodings", "safetensors", "report.json", "txt", "recipe.yaml")
    assert {p.name for p in tmp_path.iterdir()} == {f"auto_quant.{s}" for s in suffixes}
    assert (tmp_path / "auto_quant.txt").read_text() == f"{auto.report}\n"
    sim = QuantizationSimModel(model, data[0], default_param_bw=4)
    sim.load_encodings(path)
    assert likeness(net, data)(sim.model) == pytest.approx(score, abs=1e-3)


def test_it_stops_where_the_drop_is_allowed(tmp_path: Path) -> None:
    auto, _, _ = automatic(tmp_path)
    auto.optimize(allowed_accuracy_drop=99.0)
    assert auto.report is not None
    assert auto.report.best == ()
    assert auto.report.met


def test_a_callback_of_two_arguments_gets_none(tmp_path: Path) -> None:
    seen = []

    def measure(_model: Any, samples: int | None) -> float:
        seen.append(samples)
        return 1.0

    automatic(tmp_path, eval_callback=measure)[0].optimize()
    assert set(seen) == {None}


def test_results_are_kept_under_a_name(tmp_path: Path) -> None:
    calls = []
    net, data = Residual().eval(), images()
    measure = likeness(net, data)

    def counted(model: Any) -> float:
        calls.append(model)
        return measure(model)

    found = []
    for _ in range(2):
        auto = AutoQuant(
            net, data[0], data, counted, param_bw=4, results_dir=tmp_path, cache_id="mine"
        )
        found.append((auto.optimize(0.0)[1], len(calls)))
        calls.clear()
    assert found[0][0] == found[1][0]
    assert found[0][1] > 3
    assert found[1][1] == 0, "all of it was known"
    auto.run_inference()
    assert auto.optimize(0.0)[1] == found[0][0]


def test_adaround_is_tried_with_its_parameters(tmp_path: Path) -> None:
    class Parameters:
        default_num_iterations, default_reg_param = 20, 0.01
        default_beta_range, default_warm_start = (20, 2), 0.2

    auto, _, _ = automatic(tmp_path)
    auto.set_adaround_params(Parameters())
    auto.optimize(0.0)
    assert auto.report is not None
    assert ("adaround",) in {t.names for t in auto.report.trials}


def test_bits_are_added_on_request(tmp_path: Path) -> None:
    net, data = Residual().eval(), images()
    auto = AutoQuantWithAutoMixedPrecision(
        net, data[0], data, likeness(net, data), param_bw=4, results_dir=tmp_path
    )
    auto.set_mixed_precision_params([((8, "int"), (4, "int")), ((16, "int"), (8, "int"))], 16)
    model, score, path = auto.optimize(allowed_accuracy_drop=50.0)
    assert score >= 50
    sim = QuantizationSimModel(model, data[0])
    sim.load_encodings(path)
    assert likeness(net, data)(sim.model) == pytest.approx(score, abs=1e-3)
    with pytest.raises(ConfigError, match="FXQ248"):
        auto.set_mixed_precision_params([], num_samples_for_phase_2=3)


def test_schemes_are_candidates(tmp_path: Path) -> None:
    auto, _, _ = automatic(tmp_path, quant_scheme="min_max")
    assert auto.get_quant_scheme_candidates() == ("min_max", "tf_enhanced")
    auto.set_quant_scheme_candidates([QuantScheme.post_training_percentile, "tf_enhanced"])
    assert auto.run_inference()[0].quant_scheme is QuantScheme.post_training_percentile
    auto.optimize(0.0)
    assert auto.report is not None
    assert {n for t in auto.report.trials for n in t.names} >= {"tf_enhanced", "reconstruct"}
    assert "min_max" not in {n for t in auto.report.trials for n in t.names}


def test_modules_are_kept_whole(tmp_path: Path) -> None:
    auto, _, _ = automatic(tmp_path)
    auto.set_model_preparer_params(module_classes_to_exclude=[nn.BatchNorm2d])
    auto.set_export_params(onnx_export_args=-1)
    sim, _ = auto.run_inference()
    assert "bn1" in dict(sim.model.named_modules())


def test_an_error_of_a_technique_is_raised_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise QuantizationError("FXQ400", "no luck")

    monkeypatch.setattr("fxquant.auto.techniques.reconstruct", fail)
    with pytest.raises(QuantizationError, match="no luck"):
        automatic(tmp_path / "strict")[0].optimize(0.0)
    assert list(tmp_path.iterdir()) == []
    auto, _, _ = automatic(tmp_path, strict_validation=False)
    auto.optimize(0.0)
    assert "reconstruct: FXQ400: no luck" in str(auto.report)


WRONG: dict[str, Callable[[Path], object]] = {
    "rounding": lambda p: automatic(p, rounding_mode="stochastic"),
    "callback": lambda p: AutoQuant(Residual(), images()[0], images(), 3, results_dir=p),  # type: ignore[arg-type]
    "flag": lambda p: automatic(p, strict_validation="yes"),
    "adaround": lambda p: automatic(p)[0].set_adaround_params({"iterations": 3}),
    "export": lambda p: automatic(p)[0].set_export_params({"opset_version": 11}),
    "concrete": lambda p: automatic(p)[0].set_model_preparer_params(concrete_args={"x": 1}),
    "no schemes": lambda p: automatic(p)[0].set_quant_scheme_candidates([]),
    "a scheme": lambda p: automatic(p)[0].set_quant_scheme_candidates(["min_max", "entropy"]),
    "drop": lambda p: automatic(p)[0].optimize(-1.0),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told(case: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"FXQ(248|236|255)") as error:
        WRONG[case](tmp_path)
    assert isinstance(error.value, FxQuantError)
    assert list(tmp_path.iterdir()) == []
