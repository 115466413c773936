"""The structural lint: what `onnx.checker` lets through and runtimes fail on or get wrong.

`verify_file` takes any quantized ONNX file, also one that another tool wrote.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from fxquant.errors import ExportError, Report
from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.integer.saturation import describe
from fxquant.onnx.io.reader import first_line, is_whole, read_model, readable
from fxquant.onnx.lint.fusion import check_groups
from fxquant.onnx.lint.structure import Finding, check_graph
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.onnx.weightless import without_weights

# the newest that onnxruntime 1.31 loads
_MOST_OPSET, _MOST_IR = 26, 13  # of onnxruntime 1.31, the oldest that is supported
_LEAST_OPSET = 10  # the first with QuantizeLinear
_WIDTH = 34
_ON_INTEGERS = re.compile(r"Q[A-Z]|.*(Quantize|Integer|NBits)")  # names of ONNX and onnxruntime
REFUSED = "FXQ513"  # by onnx.checker


@dataclass(frozen=True)
class VerifyReport(Report[Finding]):
    """Findings of the lint in the order of the graph; errors make a model wrong or unloadable."""

    def __str__(self) -> str:
        if not self.findings:
            return "the model is well formed"
        lines = [_line(f) for f in self.findings]
        counts = [f"{sum(f.severity == s for f in self.findings)} {s}(s)" for s in _SEVERITIES]
        return "\n".join([*lines, ", ".join(counts)])

    def to_json(self) -> str:
        """The report as JSON."""
        findings = [asdict(f) for f in self.findings]
        return json.dumps({"ok": bool(self), "findings": findings}, indent=2)


_SEVERITIES = ("error", "warning", "note")


def _line(f: Finding) -> str:
    place = f.node if len(f.node) <= _WIDTH else f"…{f.node[1 - _WIDTH :]}"
    text = f"{f.severity:<8}{f.code}  {place:<{_WIDTH}}  {f.what}"
    return f"{text}\n{'':<16}fix: {f.fix}" if f.fix else text


def verify_model(model: ir.Model | str | Path) -> VerifyReport:
    """Check the structure of a quantized model.

    Args:
        model: an `onnx_ir` model or the path of a file.

    Raises:
        ExportError: FXQ511, the file is no ONNX model.
    """
    if not isinstance(model, ir.Model):
        return verify_file(model)
    return VerifyReport(
        (*_version_findings(model), *_checked(model), *check_graph(model), *check_groups(model))
    )


def verify_file(path: str | Path, *, risks: bool = True) -> VerifyReport:
    """Check the structure of an ONNX file.

    Args:
        path: the file.
        risks: note weights that saturate on x86 CPUs without VNNI.

    Raises:
        ExportError: FXQ511 the file is no ONNX model, FXQ570 its weights are missing.
    """
    model = read_model(path)
    with readable(path):  # what is odd enough to break a check
        return _verified(model, path, risks=risks)


def _verified(model: ir.Model, path: str | Path, *, risks: bool) -> VerifyReport:
    refused = _checker(str(path))
    # what the reader mended, runtimes mend, too
    if refused and is_whole(model.graph) and not _checked(model):
        fix = "onnxruntime mends that when it loads the file, other programs may not"
        refused = [replace(f, severity="warning", fix=fix) for f in refused]
    found = [*_version_findings(model), *refused, *check_graph(model), *check_groups(model)]
    if not any(_ON_INTEGERS.match(node.op_type) for node in model.graph.all_nodes()):
        what = "no operator makes or takes integers of a grid: this is a floating-point model"
        found.append(Finding("FXQ579", "warning", "", what, "give the quantized file"))
    if risks and not any(f.severity == "error" for f in found):
        what = describe(IntegerModel(path).saturations(), exact=this_cpu().exact)
        fix = "fxquant verify --data FILE tells with figures what is lost there"
        found += [Finding("FXQ577", "note", "", what, fix)] if what else []
    return VerifyReport(tuple(found))


def verify(model: ir.Model | str | Path) -> VerifyReport:
    """Check the structure of a model that is about to be shipped.

    Raises:
        ExportError: FXQ510, it is not well formed; FXQ511, the file is no ONNX model.
    """
    report = verify_model(model)
    if not report:
        lines = "\n".join(f"    {_line(f)}" for f in report.errors[:10])
        what = f"the ONNX model is not well formed:\n{lines}"
        raise ExportError("FXQ510", what, fix="report this with the model")
    return report


def _version_findings(model: ir.Model) -> list[Finding]:
    found = []
    opset = model.opset_imports.get("", 0)
    if not _LEAST_OPSET <= opset <= _MOST_OPSET:
        span = f"{_LEAST_OPSET} to {_MOST_OPSET}"
        what = f"opset {opset} does not load: onnxruntime 1.31 takes {span}"
        found.append(Finding("FXQ512", "error", "", what, "export with opset 21"))
    if model.ir_version > _MOST_IR:
        what = f"IR version {model.ir_version} does not load: onnxruntime 1.31 takes to {_MOST_IR}"
        found.append(Finding("FXQ512", "error", "", what, "write IR version 10"))
    return found


def _checked(model: ir.Model) -> list[Finding]:
    return _checker(ir.to_proto(without_weights(model)))


def _checker(model: Any) -> list[Finding]:
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # checker and shape inference raise errors of several libraries
        what = f"onnx.checker refuses the model: {first_line(error)}"
        return [Finding(REFUSED, "error", "", what, "write a model that it accepts")]
    return []
