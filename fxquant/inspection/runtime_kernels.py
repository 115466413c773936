"""The kernels that onnxruntime takes for the operators of a simulation."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fxquant.graph.rewriter import label
from fxquant.inspection.operator_kernels import FLOAT, INTEGER, Kernel
from fxquant.nn.modes import evaluating

if TYPE_CHECKING:
    from torch import fx

    from fxquant.onnx.ort.coverage import OperatorRow
    from fxquant.sim import QuantizationSimModel


def runtime_kernels(
    sim: QuantizationSimModel, known: Mapping[fx.Node, Kernel]
) -> tuple[dict[fx.Node, Kernel], str]:
    """What onnxruntime runs for each operator of the exported model, and the runtime's name.

    Args:
        sim: a calibrated simulation; it is written into a temporary folder.
        known: kernels by the rules of the target, kept where the file has no such operator.
    """
    import onnxruntime

    from fxquant.onnx.io.writer import write_model
    from fxquant.onnx.lowering.lower import lower
    from fxquant.onnx.ort.coverage import coverage

    deploy = sim.config.deploy or sim.target.deploy
    with evaluating(sim.model), torch.no_grad():
        lowered = lower(sim.model, sim.example, contrib=sim.target.contrib, deploy=deploy)
    with tempfile.TemporaryDirectory(prefix="fxquant-inspect-") as folder:
        path = Path(folder) / "model.onnx"
        write_model(lowered, path)
        rows = coverage(path, model=lowered.model)
    by_label = operators_by_label(rows, (label(n) for n in known))
    found = {n: _kernel(by_label.get(label(n), []), label(n), known[n]) for n in known}
    return found, f"onnxruntime {onnxruntime.__version__}"


def operators_by_label(
    rows: Iterable[OperatorRow], labels: Iterable[str]
) -> dict[str, list[OperatorRow]]:
    """Operators of a file by the node of the graph that they were written for.

    A node that becomes several operators names one of them as itself, and the others with its own
    name before a dot.
    """
    names = set(labels)
    found: dict[str, list[OperatorRow]] = {}
    for row in rows:
        name = row.name
        while name and name not in names:
            name = name.rpartition(".")[0]
        if name:
            found.setdefault(name, []).append(row)
    return found


def _kernel(rows: list[OperatorRow], name: str, rule: Kernel) -> Kernel:
    main = [r for r in rows if r.name == name] or rows
    if not main or rule.kind not in (INTEGER, FLOAT):
        return rule
    kernels = "+".join(dict.fromkeys(r.kernel for r in main))
    if all(r.integer for r in main):
        return rule if rule.name.startswith("in ") else Kernel(INTEGER, kernels)
    reason = next(r.reason for r in main if not r.integer)
    return Kernel(FLOAT, kernels, rule.reason or reason)
