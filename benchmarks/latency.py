"""What quantizing gains: onnxruntime's time for integer models against that for the float model.

The float model, the one made here and the one that `onnxruntime.quantization.quantize_static` makes
of the same float file (uint8 activations, int8 weights per channel, QDQ, after `quant_pre_process`)
take turns in one run, and with them the file for CPUs without VNNI (`deploy="avx2"`).

Run: python -m benchmarks.latency [--json FILE] [NETWORK ...]
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.measure import one_thread, runner, write_json
from benchmarks.networks import NETWORKS, build, inputs
from fxquant import QuantizationSimModel, prepare_model
from fxquant.io.text_tables import table
from fxquant.onnx.io.writer import write_model
from fxquant.onnx.lowering.lower import lower
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.onnx.ort.timing import fastest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_PEER = "quantize_static"
_UNSIGNED = "avx2"


def measure(name: str, batch: int, rounds: int, *, peer: bool = True) -> dict[str, Any]:
    """One row: milliseconds on one thread, ratios to the float model and file sizes."""
    model, x = build(name), inputs(name, batch)
    prepared = prepare_model(model, x)
    sim = QuantizationSimModel(prepared, x, quant_scheme="min_max")
    sim.compute_encodings([x])
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        files = {kind: folder / f"{kind}.onnx" for kind in ("float", "fxquant", _UNSIGNED, _PEER)}
        write_model(lower(prepared, (x, {})), files["float"])
        sim.export(folder, "fxquant", x, prove=False)
        sim.export(folder, _UNSIGNED, x, prove=False, deploy="avx2")
        if peer:
            quantize_static(files["float"], files[_PEER], x)
        files = {kind: file for kind, file in files.items() if file.exists()}
        calls = {kind: runner(file, x) for kind, file in files.items()}
        times = fastest(calls, rounds=rounds)
        sizes = {kind: file.stat().st_size for kind, file in files.items()}
    return {
        "network": name,
        "ms": {kind: seconds * 1e3 for kind, seconds in times.items()},
        "speedup": {kind: times["float"] / times[kind] for kind in times if kind != "float"},
        "size_ratio": sizes["fxquant"] / sizes["float"],
    }


def quantize_static(source: Path, target: Path, x: Sequence[Tensor]) -> None:
    """The file that onnxruntime's own tool makes, with its settings for x86."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            names = [i.name for i in onnx_inputs(source)]
            self.batches = iter([dict(zip(names, (t.numpy() for t in x), strict=True))])

        def get_next(self) -> Any:
            return next(self.batches, None)

    prepared = target.with_suffix(".prepared.onnx")
    with _silent():
        # symbolic shapes fail on many graphs; those that torch recorded are in the file already
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize(
            str(prepared), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip


def onnx_inputs(source: Path) -> Sequence[Any]:
    """Inputs of an ONNX file."""
    import onnx_ir as ir

    return ir.load(source).graph.inputs


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """onnxruntime's tools print and log; the table is all there should be."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=30, show_default=True, type=click.IntRange(1))
@click.option("--peer/--no-peer", default=True, help=f"Measure {_PEER} too.", show_default=True)
@click.option("--json", "path", metavar="FILE", help="Write the rows here too.")
def main(
    networks: tuple[str, ...], *, batch: int, rounds: int, peer: bool, path: str | None
) -> None:
    """Float and integer latency in onnxruntime, one thread."""
    one_thread()
    rows = [measure(name, batch, rounds, peer=peer) for name in networks or NETWORKS]
    kinds = ("fxquant", _UNSIGNED, *((_PEER,) if peer else ()))
    heads = ("network", "float ms", *(f"{k} ms" for k in kinds), *(f"float/{k}" for k in kinds),
             "file size")  # fmt: skip
    cells = [
        (
            r["network"],
            *(f"{r['ms'][k]:.2f}" for k in ("float", *kinds)),
            *(f"{r['speedup'][k]:.2f}" for k in kinds),
            f"{r['size_ratio']:.2f}",
        )
        for r in rows
    ]
    click.echo(table(heads, cells))
    click.echo(f"measured on {this_cpu()}")
    write_json(rows, path)


if __name__ == "__main__":
    main()
