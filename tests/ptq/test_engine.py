"""Reconstruction: layers of every kind improve, the file keeps its proof, bad data are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantizationSimModel, Target
from fxquant.errors import CalibrationError, ConfigError, QuantizationError, UncalibratedError
from fxquant.nn import QuantizationMixin
from fxquant.ptq.engine import ReconstructionOptions, reconstruct
from fxquant.ptq.layer_problem import LayerProblem
from fxquant.ptq.layers.layer_search import layers_of
from fxquant.ptq.moments import Moments
from fxquant.ptq.sampling import LayerData
from fxquant.ptq.snapshot import restore, snapshot
from fxquant.ptq.solving.solver import METHODS, SolverOptions
from fxquant.quantization import affine

if TYPE_CHECKING:
    from pathlib import Path


def data(*shape: int, count: int = 96, batch: int = 32) -> list[Tensor]:
    """Correlated inputs, as activations are: white noise leaves nothing to make up for."""
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(count, *shape, generator=rng)
    for axis in (1, -1):
        x = x + 0.8 * x.flip(axis) + 2 * x.mean(axis, keepdim=True)
    return list(x.split(batch))


class Residual(nn.Module):
    """Convolutions of several kinds around an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 16, 1)
        self.down = nn.Conv2d(16, 24, 3, stride=2, padding=1, groups=2)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = x + self.point(F.relu(self.depthwise(x)))
        x = F.relu(self.down(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def simulation(
    model: nn.Module, batches: list[Tensor], bits: int = 4, **options: Any
) -> QuantizationSimModel:
    sim = QuantizationSimModel(model.eval(), batches[0], "min_max", 8, bits, **options)
    sim.compute_encodings(batches)
    return sim


@torch.no_grad()
def sqnr(model: nn.Module, sim: QuantizationSimModel, batches: list[Tensor]) -> float:
    exact = torch.cat([model(x) for x in batches])
    simulated: nn.Module = sim.model
    found = torch.cat([simulated(x).as_subclass(Tensor) for x in batches])
    return float(10 * torch.log10(exact.square().sum() / (exact - found).square().sum()))


def on_its_grid(sim: QuantizationSimModel) -> bool:
    """Whether every weight whose range was frozen is what its quantizer makes of it."""
    return all(
        torch.equal(q.transform(module.weight.detach()), module.weight)
        for module in sim.qmodules()
        if isinstance(q := module.param_quantizers._modules.get("weight"), affine.AffineQuantizer)
        and isinstance(module.weight, Tensor)
        and not q.overwritable
    )


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_network_improves_by_far_and_its_weights_lie_on_their_grids(per_channel: bool) -> None:
    model, batches = Residual(), data(3, 12, 12)
    sim = simulation(model, batches, config={"per_channel": per_channel})
    before = sqnr(model, sim, batches)
    report = reconstruct(sim, batches)
    assert sqnr(model, sim, batches) > before + 6
    assert [r.path for r in report.layers] == ["stem", "depthwise", "point", "down", "head"]
    share = 0.75 if per_channel else 0.8  # with one step for all channels less can be chosen
    assert all(
        r.changed == "weight and bias" and r.loss_after < share * r.loss_before
        for r in report.layers
    )
    assert all(r.error_after < r.error_before for r in report.layers), str(report)
    assert on_its_grid(sim)
    again = sqnr(model, sim, batches)
    sim.compute_encodings(batches)  # ranges of weights stay
    assert on_its_grid(sim)
    assert abs(sqnr(model, sim, batches) - again) < 1.5
    assert "float forward passes" in str(report)


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear of rank 3": (lambda: nn.Linear(12, 8), (5, 12)),
    "conv1d": (lambda: nn.Conv1d(8, 6, 3, groups=2), (8, 12)),
    "conv3d": (lambda: nn.Conv3d(3, 6, 2), (3, 4, 4, 4)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(8, 6, 3, stride=2), (8, 9)),
    "conv_transpose2d of groups": (
        lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2),
        (8, 6, 6),
    ),
    "without a bias": (lambda: nn.Conv2d(8, 6, 3, bias=False), (8, 6, 6)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_layer_and_every_method(kind: str, method: Any) -> None:
    make, shape = KINDS[kind]
    batches = data(*shape)
    torch.manual_seed(0)  # weights by chance may be ones that plain GPTQ rounds no better
    model = nn.Sequential(make(), nn.ReLU())
    sim = simulation(model, batches, 3)
    options = SolverOptions(method)
    if method == "adaround":
        options = SolverOptions(method, adaround=type(options.adaround)(iterations=150))
    report = reconstruct(sim, batches, ReconstructionOptions(options))
    (found,) = report.layers
    if method == "nearest":  # has next to nothing to make it better with
        assert found.error_after <= found.error_before
    else:
        assert found.changed.startswith("weight")
        assert found.loss_after < 0.9 * found.loss_before
        assert found.error_after < 0.95 * found.error_before
    assert on_its_grid(sim)


def test_weights_in_blocks_and_in_grouped_blocks() -> None:
    batches = data(32)
    for grouped in (False, True):
        model = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 4))
        sim = QuantizationSimModel(model, batches[0], "min_max", 8, 8)
        change: Any = sim.set_blockwise_quantization_for_weights
        if grouped:
            change = sim.set_grouped_blockwise_quantization_for_weights
        more = {"decompressed_bw": 8} if grouped else {}
        change([sim.model.get_submodule("0")], 3, True, block_size=8, **more)
        sim.compute_encodings(batches)
        before = sqnr(model, sim, batches)
        report = reconstruct(sim, batches)
        assert report.layers[0].changed == "weight and bias"
        assert sqnr(model, sim, batches) > before + 3
        assert on_its_grid(sim)


def test_frozen_ranges_stay_and_powers_of_two_stay_powers_of_two() -> None:
    model, batches = Residual(), data(3, 12, 12)
    sim = simulation(model, batches)
    for _, q in sim.named_quantizers():
        q.allow_overwrite(False)
    scales = {n: q.get_scale() for n, q in sim.named_quantizers()}
    before = sqnr(model, sim, batches)
    reconstruct(sim, batches)
    assert sqnr(model, sim, batches) > before + 3
    for name, q in sim.named_quantizers():
        if not isinstance(q, affine.BiasQuantizeDequantize):
            now, then = q.get_scale(), scales[name]
            assert now is not None
            assert then is not None
            assert torch.equal(now, then)
    assert on_its_grid(sim)


def test_powers_of_two_stay_powers_of_two() -> None:
    model, batches = Residual(), data(3, 12, 12)
    rule = {"bitwidth": 8, "signed": True, "symmetric": True}
    target = Target.model_validate({
        "name": "shifting", "description": "a chip that shifts", "scale": "power_of_two",
        "activation": rule, "weight": {**rule, "per_channel": False}, "absorbs": ["relu"],
        "operators": {"conv2d": {"output": "required"}, "linear": {"output": "required"}},
    })  # fmt: skip
    sim = QuantizationSimModel(model.eval(), batches[0], "min_max", 8, 5, target=target)
    sim.compute_encodings(batches)
    before = sqnr(model, sim, batches)
    reconstruct(sim, batches)
    assert sqnr(model, sim, batches) > before + 1
    assert on_its_grid(sim)
    for module in sim.qmodules():
        scale = module.param_quantizers._modules.get("weight")
        if isinstance(scale, affine.AffineQuantizer):
            assert bool((torch.frexp(scale.min).mantissa.abs() == 0.5).all())


def test_weights_that_functions_are_called_with_are_layers_like_others() -> None:
    """They are registered twice, by the network and by the module that the function became."""

    class Functional(nn.Module):
        def __init__(self, *, again: bool) -> None:
            super().__init__()
            self.again = again
            self.kernel = nn.Parameter(torch.randn(8, 8) / 3)
            self.register_buffer("basis", torch.randn(8, 8) / 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.linear(torch.relu(F.linear(x, self.kernel)), self.basis)  # type: ignore[arg-type]
            return x * self.kernel.sum() if self.again else x

    batches = data(8)
    report = reconstruct(simulation(Functional(again=False), batches), batches)
    assert [y.changed for y in report.layers] == ["weight", "weight"]
    report = reconstruct(simulation(Functional(again=True), batches), batches)
    assert report.skipped == {"linear": "its weight is used in several places"}


def test_weights_that_are_no_matrix_product_of_the_input_are_listed() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(16, 8), nn.Linear(8, 4)
            self.rnn = nn.LSTM(8, 8, batch_first=True)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.rnn(self.words(ids))[0])  # type: ignore[no-any-return]

    batches = list(torch.randint(0, 16, (64, 5)).split(16))
    sim = simulation(Rows(), batches)
    report = reconstruct(sim, batches)
    weights = {
        n
        for n, m in sim.named_qmodules()
        if any(k.startswith("weight") for k, _ in m.param_quantizers.active())
    }
    assert weights | {"rnn"} == {r.path for r in report.layers} | set(report.skipped)
    assert [r.path for r in report.layers] == ["words", "head"]
    why = "weight_hh_l0, weight_ih_l0: in floating point, see quantize_recurrent_weights"
    assert report.skipped == {"rnn": why}


def test_rows_that_are_looked_up_get_better_steps(tmp_path: Path) -> None:
    class Tables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(64, 48), nn.Embedding(8, 48)
            self.words.weight.data[:, 0] *= 3  # an outlier in every row

        def forward(self, ids: Tensor) -> Tensor:
            return self.words(ids) + self.places(torch.arange(ids.shape[1]))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, batches = Tables(), list(torch.randint(0, 64, (64, 8)).split(16))
    sim = simulation(model, batches)

    def row_errors(path: str) -> Tensor:
        module: Any = sim.model.get_submodule(path)
        exact: Tensor = model.get_parameter(f"{path}.weight")
        found: Tensor = module.param_quantizers["weight"].transform(module.weight)
        return (found - exact).detach().square().sum(1)

    before, db = {n: row_errors(n) for n in ("words", "places")}, sqnr(model, sim, batches)
    report = reconstruct(sim, batches)
    assert sqnr(model, sim, batches) > db
    for layer in report.layers:
        after = row_errors(layer.path)
        assert bool((after <= before[layer.path] * (1 + 1e-5)).all())
        assert layer.changed == "weight"
        # the report tells what the grid makes of the rows
        torch.testing.assert_close(
            layer.error_before, float(before[layer.path].mean()), rtol=1e-4, atol=0
        )
        torch.testing.assert_close(layer.error_after, float(after.mean()), rtol=1e-4, atol=0)
    assert report.skipped == {}
    assert on_its_grid(sim)
    assert sim.export(tmp_path, "tables")
    # ranges are frozen now
    again = reconstruct(sim, batches)
    assert again.layers == []
    assert set(again.skipped) == {"words", "places"}


def test_no_step_is_made_towards_a_fit_that_held_out_data_do_not_confirm() -> None:
    """The wanted outputs are those of the weight, and another weight was fitted to other data."""
    layer, x = nn.Linear(12, 3), torch.randn(1, 200, 12)
    sim = simulation(nn.Sequential(layer), [x[0]], 8)
    found = layers_of(sim.model)[0][0]
    own, other = layer.weight.detach()[None], torch.randn(1, 3, 12)
    for fitted, targeted in ((other, own), (own, own)):
        rows = torch.bmm(x, fitted.mT)
        held = x, torch.bmm(x, own.mT) + layer.bias.detach()
        seen = Moments.of(x, rows + layer.bias.detach())
        assert seen is not None
        data = LayerData(torch.arange(12), seen, held)
        target = LayerProblem(found, data, SolverOptions()).target
        torch.testing.assert_close(target, targeted, rtol=0, atol=1e-5)
    # held-out data that say the same as the others: nearly all of the way is gone
    rows = torch.bmm(x, other.mT)
    seen = Moments.of(x, rows)
    assert seen is not None
    problem = LayerProblem(found, LayerData(torch.arange(12), seen, (x, rows)), SolverOptions())
    assert float((problem.target - other).norm() / (own - other).norm()) < 0.2


@pytest.mark.parametrize(("inputs", "samples", "searched"), [
    (12, 1, False), (24, 2, True), (25, 2, False), (25, 3, True), (25, None, True),
])  # fmt: skip
def test_steps_are_searched_where_samples_show_what_clips(
    inputs: int, samples: int | None, searched: bool
) -> None:
    """A sample beyond the first is worth 4 rows, however many it has, and a row 6 inputs."""
    layer, x = nn.Linear(inputs, 3), torch.randn(1, 200, inputs)
    sim = simulation(nn.Sequential(layer), [x[0]])
    found, y = layers_of(sim.model)[0][0], layer(x).detach()
    seen = Moments.of(x, y)
    assert seen is not None
    few = LayerData(torch.arange(inputs), seen, (x, y), samples=samples)
    problem = LayerProblem(found, few, SolverOptions())
    scale = problem.solve(problem.grid).scale.double()
    kept = torch.allclose(scale, problem.grid.scale, rtol=1e-6, atol=0)
    assert kept is not searched
    assert problem.moved is (samples != 1)


def test_one_sample_changes_integers_alone_and_other_data_gain() -> None:
    def kept() -> dict[str, Tensor]:
        found = {n: q.get_scale() for n, q in sim.named_quantizers()}
        found |= {n: p for n, p in sim.model.named_parameters() if n.endswith("bias")}
        return {n: value.detach().clone() for n, value in found.items() if value is not None}

    model, batches = Residual(), data(3, 12, 12)
    sim = simulation(model, batches)
    state, before = kept(), sqnr(model, sim, batches)
    assert {"stem.bias", "stem.param_quantizers.weight"} <= state.keys()
    report = reconstruct(sim, batches[0][:1])
    assert "weight" in {r.changed for r in report.layers}
    torch.testing.assert_close(kept(), state)
    assert sqnr(model, sim, batches) > before + 2


def test_the_file_keeps_its_proof(tmp_path: Path) -> None:
    model, batches = Residual(), data(3, 12, 12)
    for bits in (4, 8):
        sim = simulation(model, batches, bits)
        reconstruct(sim, batches)
        assert sim.export(tmp_path / str(bits), "net")


def test_memory_is_bounded_and_results_do_not_depend_on_it(tmp_path: Path) -> None:
    batches = data(3, 24, 24, batch=8)
    limit = 2 * 1_000_000
    results = []
    for most in (None, limit):
        torch.manual_seed(0)
        model = Residual()
        sim = simulation(model, batches)
        options = ReconstructionOptions(max_memory=most, folder=tmp_path)
        report = reconstruct(sim, batches, options)
        results.append((report, [p.detach().clone() for p in sim.model.parameters()]))
    free, bound = results
    assert free[0].peak_bytes > 1.5 * limit
    assert bound[0].peak_bytes <= 1.1 * limit
    assert bound[0].written_bytes > 0
    assert all(torch.equal(a, b) for a, b in zip(free[1], bound[1], strict=True))
    assert not list(tmp_path.iterdir())


def test_progress_is_told() -> None:
    batches, seen = data(8), list[tuple[int, int]]()
    sim = simulation(nn.Sequential(nn.Linear(8, 4)), batches)
    reconstruct(sim, batches, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(sim.model.graph.nodes),) * 2
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))


def test_one_sample_and_other_batch_sizes() -> None:
    model, batches = Residual(), data(3, 12, 12)
    sim = simulation(model, batches)
    reconstruct(sim, [batches[0][:1]])
    assert on_its_grid(sim)
    sim = simulation(model, batches)
    before = sqnr(model, sim, batches)
    reconstruct(sim, [batches[0], batches[1][:5], batches[2][:1]])
    assert sqnr(model, sim, batches) > before + 3
    sim = simulation(nn.Sequential(nn.Linear(12, 4)), data(12))
    reconstruct(sim, [data(12)[0][:1]])  # one row for a layer: nothing that can be learned from


def test_images_of_several_sizes_reach_all_of_a_kernel() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    large = data(3, 6, 6)
    sim = simulation(model, large)
    small = [x[:, :, :1, :1].contiguous() for x in large]
    before = sqnr(model, sim, large)
    report = reconstruct(sim, [small[0], *large[1:]])
    assert report.layers[0].changed == "weight and bias"
    assert sqnr(model, sim, large) > before + 3


NAN = data(3, 12, 12)[0] * torch.tensor(float("nan"))


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ([], "FXQ442"),
        ([torch.zeros(0, 3, 12, 12)], "FXQ442"),
        ({"x": 1}, "FXQ443"),
        (7, "FXQ443"),
        ([{"y": 1}], "FXQ444"),
        ([NAN], "FXQ445"),
        ([torch.full((2, 3, 12, 12), torch.inf)], "FXQ446"),
        ([torch.zeros(2, 5, 12, 12)], "FXQ441"),
    ],
)
def test_bad_data_are_refused_and_nothing_is_changed(given: Any, code: str) -> None:
    batches = data(3, 12, 12)
    sim = simulation(Residual(), batches)
    before = [p.detach().clone() for p in sim.model.parameters()]
    with pytest.raises(CalibrationError, match=code):
        reconstruct(sim, given)
    assert all(torch.equal(a, b) for a, b in zip(before, sim.model.parameters(), strict=True))


def test_wrong_options_and_an_uncalibrated_simulation_are_refused() -> None:
    with pytest.raises(ConfigError, match="FXQ291"):
        ReconstructionOptions(held_out=1)
    sim = QuantizationSimModel(nn.Sequential(nn.Linear(8, 4)), data(8)[0])
    with pytest.raises(UncalibratedError, match="FXQ401"):
        reconstruct(sim, data(8))


def test_a_snapshot_undoes_everything() -> None:
    model, batches = Residual(), data(3, 12, 12)
    sim = simulation(model, batches)
    want = sim.model(batches[0])
    taken = snapshot(sim)
    for _ in range(2):
        reconstruct(sim, batches)
        for module in sim.qmodules():
            for home in (module.output_quantizers, module.param_quantizers):
                for key, q in list(home.active()):
                    if isinstance(q, affine.AffineQuantizer) and key == "weight":
                        q.bitwidth = 8
        owner = next(n for n, m in sim.named_qmodules() if next(m.output_quantizers.active(), None))
        sim.set_activation_quantizers_to_float([owner], dtype=torch.half)
        assert not torch.equal(sim.model(batches[0]), want)
        restore(sim, taken)
        assert torch.equal(sim.model(batches[0]), want)
    quantizers = [m.param_quantizers["weight"] for m in sim.qmodules() if _weighted(m)]
    assert all(q.overwritable and q.bitwidth == 4 for q in quantizers)
    with pytest.raises(QuantizationError, match="FXQ448"):
        restore(simulation(model, batches), taken)


def _weighted(module: QuantizationMixin) -> bool:
    return module.param_quantizers._modules.get("weight") is not None
