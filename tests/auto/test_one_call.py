"""`fxquant.quantize`: never worse than one technique, goes on after a kill, refuses mistakes."""

from __future__ import annotations

import json
import math
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant import QuantizationSimModel
from fxquant.auto.calibration_data import load_batches
from fxquant.auto.one_call import QuantizeResult
from fxquant.auto.scoring import output_decibels
from fxquant.auto.techniques import TECHNIQUES
from fxquant.errors import CalibrationError, ConfigError, ExportError, FxQuantError
from fxquant.ptq import reconstruct
from fxquant.ptq.reconstruction_report import ReconstructionReport
from tests.helpers.nets import Attention, Residual
from tests.helpers.shipped import Shipped


class Uneven(nn.Module):
    """Two convolutions between which channels differ by orders of magnitude."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 4)
        with torch.no_grad():
            k = 10 ** torch.linspace(-1.5, 1.5, 8)
            self.a.weight.mul_(k.view(-1, 1, 1, 1))
            self.a.bias.mul_(k)  # type: ignore[union-attr]
            self.b.weight.div_(k.view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 4]."""
        return self.fc(self.b(torch.relu(self.a(x))).relu().mean((2, 3)))  # type: ignore[no-any-return]


def images(count: int = 4, batch: int = 16) -> list[Tensor]:
    return [torch.randn(batch, 3, 8, 8) for _ in range(count)]


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "uneven": (Uneven, images),
    "residual": (Residual, images),
    "attention": (Attention, lambda: [torch.randn(8, 5, 8) for _ in range(4)]),
}
W4: dict[str, Any] = {"param_bw": 4, "config": {"per_channel": False}}


def made(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    net, data = NETS[name]
    return net().eval(), data()


class AgreesWithFloat:
    """A measure: share of rows that are labelled as the float model does."""

    def __init__(self, net: nn.Module, batches: list[Tensor]) -> None:
        self.batches, self.calls = batches, 0
        with torch.no_grad():
            self.labels = [net(x).argmax(-1) for x in batches]

    def __call__(self, model: Any) -> float:
        self.calls += 1
        same = [
            (torch.as_tensor(model(x)).argmax(-1) == y).float().mean()
            for x, y in zip(self.batches, self.labels, strict=True)
        ]
        return float(torch.stack(same).mean())


# --- what it promises ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("measured", [True, False])
def test_it_is_never_worse_than_one_technique_alone(
    name: str, measured: bool, tmp_path: Path
) -> None:
    net, data = made(name)
    evaluate = AgreesWithFloat(net, data) if measured else None
    found = fxquant.quantize(net, data, out=tmp_path, evaluate=evaluate, prove=False, **W4)
    assert len(found.tried) > 3
    for row in TECHNIQUES:
        if row.auto and row.name not in found.report.skipped:
            alone = fxquant.quantize(
                net, data, out=tmp_path / "alone", evaluate=evaluate, techniques=[row.name],
                prove=False, **W4,
            )  # fmt: skip
            assert found.score >= alone.score, row.name


def test_its_score_is_that_of_what_it_returns(tmp_path: Path) -> None:
    net, data = made("uneven")
    found = fxquant.quantize(net, data, out=tmp_path, prove=False, **W4)
    assert found.techniques
    held = data[3:]
    assert output_decibels(net, found.sim.model, held) == pytest.approx(found.score, abs=1e-9)
    by_hand = QuantizationSimModel(net, data[0], **_by_hand(W4))
    by_hand.compute_encodings(data[:3])
    assert found.score > output_decibels(net, by_hand.model, held) + 10  # type: ignore[operator]
    reconstruct(by_hand, data[:3])
    assert found.score >= output_decibels(net, by_hand.model, held)  # type: ignore[operator]


def _by_hand(options: dict[str, Any]) -> dict[str, Any]:
    return {"default_param_bw": options["param_bw"], "config": options["config"]}


def test_it_stops_where_the_target_is_met(tmp_path: Path) -> None:
    net, data = made("residual")
    evaluate = AgreesWithFloat(net, data)
    found = fxquant.quantize(net, data, out=tmp_path, evaluate=evaluate, accuracy_drop=0.5)
    assert found.met
    assert found.techniques == ()
    assert len(found.tried) == 1
    assert evaluate.calls == 3, "float, simulation, file"
    assert found.float_score == 1.0
    assert found.runtime_score is not None


def test_a_target_that_is_missed_is_told_and_the_best_is_written(tmp_path: Path) -> None:
    net, data = made("uneven")
    calls = []

    def evaluate(_: Any) -> float:
        calls.append(1)
        return 1.0 if len(calls) == 1 else 0.5

    found = fxquant.quantize(net, data, out=tmp_path, evaluate=evaluate, accuracy_drop=0.1, **W4)
    assert not found.met
    assert "asked for: 0.9, MISSED" in str(found.report)
    assert found.export
    assert (tmp_path / "model.onnx").exists()


def test_the_file_is_proven_and_computes_what_the_simulation_does(tmp_path: Path) -> None:
    net, data = made("uneven")
    found = fxquant.quantize(net, data, out=tmp_path, name="net", **W4)
    assert found.export.proven
    assert {p.name for p in found.files} == {p.name for p in tmp_path.iterdir()}
    shipped = Shipped(tmp_path / "net.onnx")
    simulated = found.sim.model(data[3]).detach()
    for (runtime,) in shipped.run([data[3]]):
        noise = (simulated - torch.from_numpy(runtime)).square().sum()
        assert noise < simulated.square().sum() * 1e-4, "40 dB: a step here and there"


@pytest.mark.parametrize("on", ["sim", "integer", "onnxruntime"])
def test_evaluate_is_given_what_was_asked_for(on: Any, tmp_path: Path) -> None:
    net, data = made("residual")
    seen = []

    def evaluate(model: Any) -> float:
        seen.append(type(model).__name__)
        result = model(data[0])
        assert isinstance(result, Tensor)
        assert result.shape == (16, 5)
        return float(-(result - net(data[0])).abs().max())

    found = fxquant.quantize(
        net, data, out=tmp_path, evaluate=evaluate, on=on, techniques="none", prove=False
    )
    kinds = {"sim": "GraphModule", "integer": "IntegerSimulation"}
    assert seen[1] == kinds.get(on, "RuntimeSimulation")
    assert seen[2:] == ([] if on == "onnxruntime" else ["RuntimeSimulation"]), "the file"
    assert found.runtime_score is not None
    assert abs(found.runtime_score - found.score) < 0.05
    assert 0 < -found.score < 0.2


def test_the_callers_training_comes_last(tmp_path: Path) -> None:
    net, data = made("uneven")

    def fine_tune(sim: QuantizationSimModel) -> None:
        optimizer = torch.optim.Adam([p for p in sim.model.parameters() if p.requires_grad], 1e-4)
        for x in data:
            optimizer.zero_grad()
            (sim.model(x) - net(x)).square().sum().backward()
            optimizer.step()

    found = fxquant.quantize(net, data, out=tmp_path, fine_tune=fine_tune, prove=False, **W4)
    assert found.tried[-1].added == "fine_tune"
    assert found.tried[-1].note == "trained by the caller's function"


def likeness(net: nn.Module, data: list[Tensor]) -> Callable[[Any], float]:
    """Decibels, 60 at most."""

    @torch.no_grad()
    def measure(model: Any) -> float:
        real, found = (torch.cat([torch.as_tensor(m(x)) for x in data]) for m in (net, model))
        noise = float((real - found).square().sum() / real.square().sum())
        return min(60.0, -10 * math.log10(max(noise, 1e-9)))

    return measure


def _weight_bits(sim: QuantizationSimModel) -> list[Any]:
    return [q.bitwidth for name, q in sim.named_quantizers() if name.endswith(".weight")]


def test_bits_are_added_where_all_else_misses_the_target(tmp_path: Path) -> None:
    net, data = made("residual")
    measure = likeness(net, data)
    given = {"evaluate": measure, "prove": False, "out": tmp_path, **W4}
    without = fxquant.quantize(net, data, techniques=["equalize", "reconstruct"], **given)
    drop = 60 - without.score - 4
    found = fxquant.quantize(net, data, accuracy_drop=drop, **given)
    assert found.met
    assert found.techniques[-2:] == ("mixed_precision", "reconstruct")
    assert found.score > without.score + 4
    assert measure(found.sim.model) == found.score
    assert any(bits == 8 for bits in _weight_bits(found.sim)), "it was asked for 4"
    assert "groups A" in found.tried[-1].note


def test_what_has_nothing_to_do_on_top_of_others_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_plain(sim: QuantizationSimModel, *_: Any) -> Any:
        if 8 in _weight_bits(sim):
            return ReconstructionReport()
        return reconstruct(sim, *_)

    monkeypatch.setattr("fxquant.auto.techniques.reconstruct", only_plain)
    net, data = made("residual")
    found = fxquant.quantize(
        net, data, out=tmp_path, evaluate=likeness(net, data), accuracy_drop=15, prove=False, **W4
    )
    assert [t.idle for t in found.tried[-2:]] == ["reconstruct", ""]
    assert found.techniques[-1] == "mixed_precision"


def test_time_that_is_up_begins_nothing_new(tmp_path: Path) -> None:
    net, data = made("uneven")
    found = fxquant.quantize(net, data, out=tmp_path, max_seconds=0, prove=False, **W4)
    assert [t.names for t in found.tried] == [()]


# --- data ----------------------------------------------------------------------------------------


class Masked(nn.Module):
    """A network with an optional input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        """[N, 4] -> [N, 4]."""
        y = self.fc(x)
        y = y if mask is None else y * mask
        return y if labels is None else nn.functional.cross_entropy(y, labels)


X, MASK, Y = torch.ones(8, 4), torch.ones(8, 1), torch.arange(8) % 4


@pytest.mark.parametrize(
    ("batch", "inputs"),
    [
        (X, 1),
        ((X, Y), 1),
        ([X, MASK], 2),
        ((X, MASK, Y), 2),
        ({"x": X, "labels": Y}, 1),
        ({"x": X, "mask": MASK, "y": Y, "id": Y}, 2),
    ],
)
def test_labels_are_left_out(batch: Any, inputs: int, tmp_path: Path) -> None:
    found = fxquant.quantize(Masked().eval(), [batch], out=tmp_path, techniques="none", prove=False)
    holders = [n for n in found.sim.model.graph.nodes if n.op == "placeholder" and n.users]
    assert len(holders) == inputs
    assert tuple(found.sim.model(X, *[MASK] * (inputs - 1)).shape) == (8, 4)


class Shuffled(torch.utils.data.Dataset[Tensor]):
    """Rows that a loader shuffles."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((3, 8, 8), index / 32)


def test_shuffled_data_are_the_same_in_every_pass_and_leave_the_generator_alone() -> None:
    loader = torch.utils.data.DataLoader(Shuffled(), batch_size=8, shuffle=True)
    net, state = Residual(), torch.get_rng_state()
    batches = load_batches(loader, net)
    first, second = (torch.cat(list(batches))[:, 0, 0, 0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, first.sort().values)
    assert torch.equal(torch.get_rng_state(), state)


def test_data_are_held_out_where_there_are_any() -> None:
    def parts(data: list[Any], *, by_rows: bool = True) -> tuple[list[float], list[float]]:
        shown, held = load_batches(data, nn.Linear(1, 1)).split(by_rows=by_rows)
        found = [torch.cat(list(part))[:, 0].tolist() for part in (shown, held)]
        assert [shown.samples, held.samples] == [len(f) for f in found]
        return found[0], found[1]

    def rows(*numbers: int) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float32)[:, None]

    assert parts([rows(i) for i in range(5)]) == ([0, 1, 2, 4], [3])
    assert parts([rows(0, 1), rows(2)]) == ([0, 1], [2])
    assert parts([rows(*range(8))]) == ([0, 1, 2, 4, 5, 6], [3, 7])
    assert parts([rows(*range(8))], by_rows=False) == ([*range(8)], [*range(8)])
    assert parts([rows(0, 1)]) == ([0, 1], [0, 1])


# --- after a kill --------------------------------------------------------------------------------

FILES = ("net.onnx", "net.encodings", "net.safetensors")


def _content(folder: Path) -> list[object]:
    """Everything that was written but the duration of the proof."""
    report = json.loads((folder / "net.report.json").read_text())
    return [report | {"seconds": 0}, *((folder / name).read_bytes() for name in FILES)]


def _run(
    folder: Path, progress: Callable[[str], None] | None = None,
    techniques: Sequence[str] = ("equalize", "reconstruct", "correct_bias"),
) -> QuantizeResult:  # fmt: skip
    net, data = made("uneven")
    return fxquant.quantize(
        net, data, out=folder, name="net", evaluate=AgreesWithFloat(net, data), progress=progress,
        techniques=list(techniques), **W4,
    )  # fmt: skip


def _killed(folder: Path, step: int) -> bool:
    """Run in a copy of this process that dies when the n-th step begins; whether it died."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads
        child = os.fork()
    if child == 0:
        seen: list[str] = []

        def progress(text: str) -> None:
            seen.append(text)
            if len(seen) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            _run(folder, progress)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked and killed")
def test_a_run_that_is_killed_at_any_step_ends_in_the_same_bytes(tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole")
    assert len(whole.techniques) > 1, "there is something to go on from"
    want = _content(tmp_path / "whole")
    for step in range(1, 40):
        folder = tmp_path / str(step)
        if not _killed(folder, step):
            break
        said: list[str] = []
        again = _run(folder, said.append)
        assert _content(folder) == want, step
        assert again.report.resumed == max(0, min(step - 3, len(whole.tried)))
        assert len(said) == len(set(said))
        assert [p.name for p in folder.glob(".*")] == []
    assert step > 7, "float model, trials, export, file"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked and killed")
def test_a_run_of_other_data_does_not_go_on_from_there(tmp_path: Path) -> None:
    assert _killed(tmp_path, 7)
    net, data = made("uneven")
    other = fxquant.quantize(net, data[:3], out=tmp_path, name="net", prove=False, **W4)
    assert other.report.resumed == 0


def test_what_was_found_before_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(text: str) -> None:
        if text.startswith("exporting"):
            raise KeyboardInterrupt

    names = ("equalize", "reconstruct")
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, stop, names)
    monkeypatch.setattr("fxquant.auto.techniques.reconstruct", lambda *_: pytest.fail("again"))
    assert "reconstruct" in _run(tmp_path, techniques=names).techniques


@pytest.mark.parametrize("last", ["mixed_precision", "correct_bias", "reconstruct"])
def test_what_changes_more_than_values_is_made_again(last: str, tmp_path: Path) -> None:
    net, data = made("residual")
    names = ["mixed_precision", "reconstruct", "correct_bias"]
    given = {
        "evaluate": likeness(net, data), "accuracy_drop": 10, "prove": False, "name": "net",
        "techniques": names[: names.index(last) + 1], **W4,
    }  # fmt: skip

    def stop(text: str) -> None:
        if text.startswith("exporting"):
            raise KeyboardInterrupt

    whole = fxquant.quantize(net, data, out=tmp_path / "whole", **given)
    with pytest.raises(KeyboardInterrupt):
        fxquant.quantize(net, data, out=tmp_path / "again", progress=stop, **given)
    again = fxquant.quantize(net, data, out=tmp_path / "again", **given)
    assert again.report.resumed == len(again.tried)
    assert again.techniques == whole.techniques
    assert "mixed_precision" in again.techniques
    assert _content(tmp_path / "again") == _content(tmp_path / "whole")


def test_an_interruption_keeps_what_was_found(tmp_path: Path) -> None:
    def stop(text: str) -> None:
        if "+" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, stop)
    assert [p.name for p in tmp_path.iterdir()] == [".fxquant-auto-net"]
    assert _run(tmp_path).report.resumed > 0


@pytest.mark.parametrize("damage", [b"{", b"[]", b'{"format": 1}'])
def test_a_damaged_journal_is_begun_anew(damage: bytes, tmp_path: Path) -> None:
    work = tmp_path / ".fxquant-auto-net"
    work.mkdir()
    (work / "journal.json").write_bytes(damage)
    assert _run(tmp_path).report.resumed == 0


# --- what is wrong -------------------------------------------------------------------------------


def _raise(_: Any) -> float:
    msg = "no labels today"
    raise OSError(msg)


WRONG: dict[str, tuple[type[FxQuantError], str, dict[str, Any]]] = {
    "no data": (CalibrationError, "FXQ481", {"data": []}),
    "empty batches": (CalibrationError, "FXQ481", {"data": [torch.ones(0, 3, 8, 8)]}),
    "NaN": (CalibrationError, "FXQ482", {"data": [torch.full((2, 3, 8, 8), float("nan"))]}),
    "no batches": (CalibrationError, "FXQ480", {"data": 3}),
    "one batch": (CalibrationError, "FXQ480", {"data": {"x": torch.ones(1)}}),
    "texts": (CalibrationError, "FXQ480", {"data": ["text"]}),
    "a function of nothing": (CalibrationError, "FXQ480", {"data": lambda: 3}),
    "evaluate fails": (ConfigError, "FXQ258", {"evaluate": _raise}),
    "evaluate gives NaN": (ConfigError, "FXQ249", {"evaluate": lambda _: float("nan")}),
    "evaluate gives a text": (ConfigError, "FXQ249", {"evaluate": lambda _: "0.5"}),
    "evaluate gives truth": (ConfigError, "FXQ249", {"evaluate": lambda _: True}),
    "evaluate gives many": (ConfigError, "FXQ249", {"evaluate": lambda _: torch.ones(2)}),
    "evaluate is a number": (ConfigError, "FXQ255", {"evaluate": 3}),
    "on": (ConfigError, "FXQ255", {"on": "gpu"}),
    "a drop of nothing": (ConfigError, "FXQ255", {"accuracy_drop": 0.1}),
    "a drop below zero": (
        ConfigError, "FXQ255", {"accuracy_drop": -1, "evaluate": lambda _: 1.0},
    ),
    "a text as seconds": (ConfigError, "FXQ255", {"max_seconds": "1"}),
    "options of nothing": (ConfigError, "FXQ255", {"options": {"reconstrukt": {}}}),
    "unknown technique": (ConfigError, "FXQ257", {"techniques": ["reconstrukt"]}),
    "a technique alone": (ConfigError, "FXQ257", {"techniques": "reconstrukt"}),
    "no names": (ConfigError, "FXQ257", {"techniques": 3}),
    "a name with a folder": (ExportError, "FXQ541", {"name": "a/b"}),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_and_leaves_nothing(case: str, tmp_path: Path) -> None:
    kind, code, given = WRONG[case]
    arguments: dict[str, Any] = {"data": images(2), "out": tmp_path / "out", **given}
    with pytest.raises(kind, match=code):
        fxquant.quantize(Residual().eval(), **arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_a_technique_is_told_or_raised_if_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise CalibrationError("FXQ446", "no luck")

    net, data = made("uneven")
    monkeypatch.setattr("fxquant.auto.techniques.reconstruct", fail)
    found = fxquant.quantize(net, data, out=tmp_path / "auto", prove=False, **W4)
    assert "reconstruct: FXQ446: no luck" in str(found.report)
    with pytest.raises(CalibrationError, match="no luck"):
        fxquant.quantize(net, data, out=tmp_path / "named", techniques=["reconstruct"], **W4)
    assert not (tmp_path / "named").exists()


def test_evaluate_that_fails_later_leaves_nothing(tmp_path: Path) -> None:
    calls = []

    def evaluate(_: Any) -> float:
        calls.append(1)
        return 1.0 if len(calls) < 3 else float("nan")

    with pytest.raises(ConfigError, match="FXQ249") as error:
        fxquant.quantize(Uneven().eval(), images(), out=tmp_path / "out", evaluate=evaluate, **W4)
    assert error.value.at == "equalize"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def evaluate(_: Any) -> float:
        pytest.fail("work was begun")

    with pytest.raises(ExportError, match="FXQ542"):
        fxquant.quantize(Residual().eval(), images(), out=tmp_path / "file", evaluate=evaluate)
