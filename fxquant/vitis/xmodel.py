"""xmodel files, which only the vendor's compiler writes: the documented calls say so."""

from __future__ import annotations

from typing import Any, NoReturn

from fxquant.errors import ExportError


def dump_xmodel(
    output_dir: str = "quantize_result", deploy_check: bool = False, *others: Any, **options: Any
) -> NoReturn:
    """Refused: xmodel is the format of a closed compiler.

    Raises:
        ExportError: FXQ912, always.
    """
    raise ExportError(
        "FXQ912",
        "an xmodel file cannot be written: its format belongs to the vendor's compiler, XIR",
        fix="call export_onnx_model(): the vendor's onnxruntime provider takes ONNX",
    )


class RefusesXmodel:
    """A quantizer that has the documented method, which refuses."""

    def export_xmodel(
        self,
        output_dir: str = "quantize_result",
        deploy_check: bool = False,
        dynamic_batch: bool = False,
    ) -> NoReturn:
        """Refused: see `dump_xmodel`.

        Raises:
            ExportError: FXQ912, always.
        """
        dump_xmodel(output_dir, deploy_check)
