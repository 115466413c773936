"""validate_model: every guideline, with the place and the fix."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import ModelValidator, prepare_model, validate_model
from fxquant.errors import SelectorError
from fxquant.prepare import SpecialisationWarning
from fxquant.validate import Finding, validate_preparation

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Raw(nn.Module):
    """Breaks most guidelines."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.fc = nn.ReLU(), nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: float = 2.0, flag: Tensor | None = None) -> dict[str, Any]:
        x = self.act(self.fc(x))
        x = self.act(F.gelu(x) * scale)
        if x.mean() > 100:
            x = x + 1
        return {"x": torch.special.entr(x.double()).float(), "scale": scale}


def codes(report: Any, severity: str) -> dict[str, int]:
    found = [f.code for f in report.findings if f.severity == severity]
    return {code: found.count(code) for code in sorted(set(found))}


def test_a_raw_model() -> None:
    report = validate_model(Raw(), (X, 3.0))
    assert not report
    assert codes(report, "error") == {"FXQ130": 6, "FXQ131": 1, "FXQ132": 1}
    assert codes(report, "warning") == {"FXQ136": 1}
    assert codes(report, "note") == {"FXQ134": 2, "FXQ135": 1}
    assert all(f.fix for f in report.errors)
    reused = next(f for f in report.findings if f.code == "FXQ131")
    assert (reused.what, reused.module, reused.node) == (
        "module 'act' is called 2 times",
        "act",
        "act_1",
    )
    assert reused.at.startswith("tests/test_validate.py:")


def test_a_prepared_model() -> None:
    with pytest.warns(SpecialisationWarning):
        gm = prepare_model(Raw(), (X, 3.0))
    report = validate_model(gm, (X, 3.0))
    assert codes(report, "error") == {"FXQ132": 1}, "nobody can repair a decision on a value"

    class Tame(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x) + 1

    assert str(validate_model(prepare_model(Tame(), X), X)) == "the model follows all guidelines"


def test_the_report_as_text_and_data() -> None:
    report = validate_model(Raw(), (X, 3.0))
    text = str(report)
    assert "gelu is called as a function" in text
    assert "FXQ131: run prepare_model(model, dummy_input) first" in text
    data = json.loads(report.to_json())
    assert data["valid"] is False
    assert data["blocked"] is False
    assert data["findings"][0]["code"] == "FXQ130"
    assert len(data["findings"]) == len(report.findings)


def test_what_blocks_is_told_apart_from_what_preparation_repairs() -> None:
    report = validate_model(Raw(), (X, 3.0))
    assert report.blocking == ()
    assert {f.code for f in report.repaired} == {"FXQ130", "FXQ131"}
    with pytest.warns(SpecialisationWarning):
        prepared = prepare_model(Raw(), (X, 3.0))
    left = validate_model(prepared, (X, 3.0))
    assert {f.code for f in left.errors} == {"FXQ132"}, "the others are repaired, as told"
    assert left.errors[0].effect == "narrows"
    lines = str(report).splitlines()
    assert lines[2].startswith("FXQ132  narrows")
    assert lines[-1] == "nothing blocks quantization"
    assert "repaired: 7 finding(s) that preparation repairs by itself, before quantizing" in lines


class Signed(nn.Module):
    """Decides on the sum of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


def test_what_was_seen_to_block() -> None:
    kind = {f.code: f.effect for f in validate_preparation(Raw(), (X, 3.0)).findings}
    assert kind["FXQ132"] == "narrows", "no input of this size reaches the other branch"
    assert kind["FXQ130"] == "repaired"
    (found,) = validate_preparation(Signed(), X).blocking
    assert found.code == "FXQ139"
    assert found.at.startswith("tests/test_validate.py:")
    (found,) = validate_preparation(nn.Linear(5, 5), X).blocking
    assert found.code == "FXQ107"


def test_a_long_report_is_cut() -> None:
    class Long(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(80):
                x = x + 1
            return x

    assert "and 20 more" in str(validate_model(Long(), X))


def test_a_model_that_cannot_be_recorded() -> None:
    report = validate_model(nn.Linear(5, 5), X)
    assert [f.code for f in report.errors] == ["FXQ107"]
    assert not report


def test_a_write_that_stays_says_why() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        count: Tensor

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return x * self.count

    report = validate_model(prepare_model(Written(), X), X)
    assert report
    assert codes(report, "warning") == {"FXQ137": 1}
    assert "it changes count, which outlives the call" in report.findings[0].what


def test_a_loop_over_the_batch() -> None:
    class Loop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([row * (i + 1) for i, row in enumerate(x)])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpecialisationWarning)
        gm = prepare_model(Loop(), X)
    assert "this batch size only" in validate_model(gm, X).errors[0].what


def test_excluded_modules_are_not_looked_into() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x)

    net = nn.Sequential(nn.Linear(4, 4), Inner())
    assert not validate_model(net, X)
    assert validate_model(net, X, modules_to_exclude=[Inner])
    with pytest.raises(SelectorError):
        validate_model(net, X, modules_to_exclude=["outer"])


def test_own_checks_belong_to_one_validator() -> None:
    validator = ModelValidator()
    validator.add_check(lambda gm: [Finding("OWN1", "error", f"{len(gm.graph.nodes)} nodes")])
    assert [f.code for f in validator.validate_model(nn.Sequential(nn.ReLU()), X).errors] == [
        "OWN1"
    ]
    assert ModelValidator().validate_model(nn.Sequential(nn.ReLU()), X)
    assert ModelValidator(checks=[]).validate_model(Raw(), X)


def test_the_model_is_not_touched() -> None:
    net: Any = nn.Sequential(nn.BatchNorm1d(4)).train()
    validate_model(net, X)
    assert net.training
    assert int(net[0].num_batches_tracked) == 0
