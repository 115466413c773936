"""What the report of a search says, and what is in it as plain data."""

from __future__ import annotations

import json
import math

from fxquant.auto.journal import Trial
from fxquant.auto.scoring import Score
from fxquant.auto.search_report import AutoReport

TRIALS = (
    Trial((), "", Score(90.0, 12.5), "", "", 0.5, 0.6),
    Trial(("equalize",), "equalize", Score(95.0, 20.25), "8 channels scaled", "", 0.25, 0.3),
    Trial(("equalize", "min_max"), "min_max", Score(94.5, 20.0), "", "", 0.25, 0.3),
    Trial(
        ("equalize", "reconstruct"), "reconstruct", Score(96.5, 31.0), "3 of 3 layers", "", 2.0, 2.0
    ),
    Trial(("adaround",), "adaround", None, "FXQ446: a layer's output is not finite", "", 0.1, 0.1),
)
BEST = ("equalize", "reconstruct")
SKIPPED = {"fine_tune": "fine_tune was not passed"}


def test_what_was_tried_gained_and_cost() -> None:
    report = AutoReport(TRIALS, BEST, 97.0, 96.0, True, SKIPPED, 0.05, 64, 0, 2)
    assert (
        str(report)
        == """\
    tried        on  score  dB    gain  CPU s  forwards
--  -----------  --  -----  ----  ----  -----  --------
1   simulation       90     12.5        0.50   10
2   equalize     1   95     20.2  +5    0.25   5
3   min_max      2   94.5   20.0  -0.5  0.25   5
4*  reconstruct  2   96.5   31.0  +1.5  2.00   40

equalize: 8 channels scaled
reconstruct: 3 of 3 layers
adaround: FXQ446: a layer's output is not finite
not tried: fine_tune, fine_tune was not passed
taken (*): equalize + reconstruct, score 96.5; the float model has 97
asked for: 96, reached
dB: signal to noise against the float model, on the calibration data
3.1 s of CPU: 62 float forward passes of 64 samples
2 of 5 trials are of a run before"""
    )
    assert report.met
    assert report.score == 96.5


def test_a_target_that_is_missed() -> None:
    report = AutoReport(TRIALS, BEST, 97.0, 96.9, True)
    assert not report.met
    assert "asked for: 96.9, MISSED" in str(report).splitlines()


def test_decibels_as_the_score() -> None:
    trials = (
        Trial((), "", Score(12.5, 12.5), "", "", 0.5, 0.6),
        Trial(("min_max",), "min_max", Score(math.inf, math.inf), "", "", 0.5, 0.6),
    )
    report = AutoReport(trials, ("min_max",), math.inf, None, False, {}, 0.0, 64, 1)
    assert (
        str(report)
        == """\
    tried       on  dB    gain  CPU s  forwards
--  ----------  --  ----  ----  -----  --------
1   simulation      12.5        0.50   0
2*  min_max     1   inf   +inf  0.50   0

taken (*): min_max, score inf dB
dB: signal to noise against the float model, on 1 sample held out
1.0 s of CPU: 0 float forward passes of 64 samples"""
    )
    plain = json.loads(report.to_json(), parse_constant=lambda name: f"not JSON: {name}")
    assert plain["float_score"] is None
    assert plain["trials"][1]["score"] is None
    assert plain["trials"][1]["gain"] is None


def test_plain_data() -> None:
    found = AutoReport(TRIALS, BEST, 97.0, 96.0, True, SKIPPED, 0.05, 64).to_dict()
    assert found["best"] == ["equalize", "reconstruct"]
    assert [t["gain"] for t in found["trials"]] == [None, 5.0, -0.5, 1.5, None]
    assert found["trials"][3]["forwards"] == 40
    assert found["skipped"] == SKIPPED
    assert found["met"] is True
