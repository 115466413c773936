"""Export: from a calibrated simulation to files that are whole and proven.

Everything is written into a folder beside the final names, compared with onnxruntime there, and
only then renamed, the model last (`fxquant.io.writing`). Whatever fails leaves the final names as
they were; a process that is killed leaves the old files or the new ones, or what readers refuse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from fxquant.errors import UncalibratedError
from fxquant.graph.pass_infra import state_of
from fxquant.io.state_dicts import write_tensors
from fxquant.io.writing import as_path, checked_prefix, made_folder, publish, remove_unused, stage
from fxquant.nn.modes import evaluating
from fxquant.nn.stored_tensors import other_names
from fxquant.onnx.parity.report import ParityReport
from fxquant.onnx.runs.observed import bound_example
from fxquant.onnx.runs.randomness import check_modes
from fxquant.quantization import QuantizerBase

if TYPE_CHECKING:
    from fxquant.targets import Deploy, Target

Example = tuple[tuple[Any, ...], Mapping[str, Any]]

_LISTED = 12


def export_model(
    sim_model: fx.GraphModule,
    path: str | Path,
    filename_prefix: str,
    example: Example,
    *,
    opset: int = 21,
    prove: bool = True,
    contrib: bool = False,
    deploy: Deploy = "any",
    scheme: str = "",
    encoding_version: str = "1.0.0",
    target: Target | None = None,
    companion: Callable[[Path], object] | None = None,
) -> ParityReport:
    """Write `<prefix>.onnx`, `.encodings`, `.safetensors` (float weights) and `.report.json`.

    Args:
        sim_model: the calibrated model of a simulation; its training flags are left as they are.
        path: folder; it is made when missing.
        filename_prefix: how the files are called; no path separators.
        example: positional and keyword inputs for the proof.
        opset: ONNX opset.
        prove: compare with onnxruntime before the files get their names.
        contrib: write what onnxruntime runs fastest, also in operators of its own.
        deploy: the CPUs that the file is written for, see `fxquant.onnx.lowering.deployment`.
        scheme: name of the quantization scheme, for the encodings file.
        encoding_version: version of the encodings file: 0.6.1, 1.0.0, 2.0.0 or 2.1.0.
        target: whose table the report quotes.
        companion: called with the folder that holds the finished files before they get their names;
            what it writes there becomes one of them.

    Returns:
        The report of the proof.

    Raises:
        UncalibratedError: FXQ540, quantizers have no range; nothing was written.
        ExportError: FXQ541 to FXQ544 a path cannot be used; or lowering or verification failed.
        ParityError: the runtime computes something else than the simulation.
    """
    prefix = checked_prefix(filename_prefix)
    home = as_path(path)
    _check_calibrated(sim_model)
    check_modes(sim_model, bound_example(sim_model, example))
    with made_folder(home) as folder, stage(folder, prefix) as work, evaluating(sim_model):
        report = _write_all(
            sim_model, work, prefix, example, prove=prove,
            lowering={"opset": opset, "contrib": contrib, "deploy": deploy},
            file={"scheme": scheme, "version": encoding_version}, target=target,
        )  # fmt: skip
        if companion is not None:
            companion(work)
        weights = next((p.name for p in work.glob("*.data")), None)
        publish(work, folder)
        remove_unused(folder / f"{prefix}.onnx", weights)
    return report


def _write_all(
    sim_model: fx.GraphModule,
    work: Path,
    prefix: str,
    example: Example,
    *,
    lowering: Mapping[str, Any],
    prove: bool,
    file: Mapping[str, str],
    target: Target | None,
) -> ParityReport:
    from fxquant.onnx.encodings_file import write_encodings
    from fxquant.onnx.io.node_notes import note_nodes
    from fxquant.onnx.io.writer import write_model
    from fxquant.onnx.lint.verify import verify
    from fxquant.onnx.lowering.lower import lower
    from fxquant.onnx.parity.fidelity import fidelity
    from fxquant.onnx.parity.prove import notes_of
    from fxquant.onnx.parity.prove import prove as compare
    from fxquant.onnx.parity.target_coverage import target_coverage

    found = fidelity(sim_model, example)
    lowered = lower(sim_model, example, **lowering)
    verify(lowered.model)
    note_nodes(lowered, sim_model)
    encodings = write_encodings(sim_model, lowered, work / f"{prefix}.encodings", **file)
    write_model(lowered, work / f"{prefix}.onnx", encodings=encodings, home=work.parent)
    _write_weights(sim_model, work / f"{prefix}.safetensors")
    report = ParityReport(proven=False, notes=notes_of(lowered))
    if prove:
        report = compare(sim_model, lowered, example, work / f"{prefix}.onnx")
        report.raise_unless_proven()
    report = dataclasses.replace(
        report, samples=found.samples, fidelity=found.outputs, warnings=found.warnings,
        notes=(*report.notes, *found.notes), compared_with_float=found.compared,
        target=None if target is None else target_coverage(sim_model, target),
    )  # fmt: skip
    (work / f"{prefix}.report.json").write_text(report.to_json(), encoding="utf-8")
    return report


# --- before anything is written ------------------------------------------------------------------


def _check_calibrated(model: fx.GraphModule) -> None:
    """Every quantizer that the graph uses has a range.

    Raises:
        UncalibratedError: FXQ540, with the list of those that have none.
    """
    called = [n for n in model.graph.nodes if n.op == "call_module"]
    missing: dict[int, str] = {}
    for node in called:
        for name, part in model.get_submodule(str(node.target)).named_modules():
            if isinstance(part, QuantizerBase) and not part.is_initialized():
                source = node.meta.get("source")
                text = part.where or f"{node.target}.{name}"
                missing.setdefault(id(part), f"{text}, {source}" if source else text)
    if not missing:
        return
    names = list(missing.values())
    shown = "\n".join(f"    {name}" for name in names[:_LISTED])
    more = f"\n    ... and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    raise UncalibratedError(
        "FXQ540",
        f"{len(names)} tensor(s) have no range:\n{shown}{more}",
        fix="run sim.compute_encodings(...) with data that reaches them before exporting",
    )


# --- files ---------------------------------------------------------------------------------------


def _write_weights(model: fx.GraphModule, path: Path) -> None:
    """Float parameters and persistent buffers under the user's names, without quantizers."""
    parts = model.named_modules(remove_duplicate=False)
    inner = {name for name, part in parts if isinstance(part, QuantizerBase)}
    others = other_names(model, state_of(model).names)
    weights = {
        name: value for name, value in model.state_dict().items()
        if isinstance(value, Tensor) and not _inside(name, inner) and name not in others
    }  # fmt: skip
    write_tensors(_separate(weights), path)


def _inside(name: str, modules: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:i]) in modules for i in range(1, len(parts)))


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies where tensors share memory: safetensors stores each name on its own."""
    seen: set[int] = set()
    result = {}
    for name, value in tensors.items():
        plain = value.detach().as_subclass(Tensor).cpu()
        storage = plain.untyped_storage().data_ptr()
        whole = plain.untyped_storage().nbytes() == plain.numel() * plain.element_size()
        own = whole and storage not in seen
        result[name] = (plain if own else plain.clone()).contiguous()
        seen.add(storage)
    return result
