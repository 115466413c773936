"""What lowering returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fxquant.onnx.runs.varying import Varying

if TYPE_CHECKING:
    from fxquant.quantization import QuantizerBase


@dataclass(frozen=True)
class LoweredTensor:
    """One quantized tensor.

    Attributes:
        node: name of the fx node that makes it, or that reads it if it is a weight.
        index: which of the node's outputs.
        module: path of the module.
        float_name: tensor before its QuantizeLinear; None where integers are moved or stored as
            they are. For weights and biases the float tensor's key in the state_dict.
        quantized_name: its integers.
        dequantized_name: behind its DequantizeLinear; None where nothing reads real values.
        scale: float32, `()` per tensor, `[C]` per channel, the tensor's rank per block.
        zero_point: integers, shaped like `scale`.
        axis: channel or block axis, None per tensor.
        block: elements per block, None unless per block.
        dtype: integer type.
        bits: bits of the quantizer, at most those of the type.
        symmetric: whether zero lies in the middle by construction.
        kind: "activation", "weight" or "bias".
        rounding: where ties go in the simulation.
    """

    node: str
    index: int
    module: str
    float_name: str | None
    quantized_name: str
    dequantized_name: str | None
    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    axis: int | None
    block: int | None
    dtype: ir.DataType
    bits: int
    symmetric: bool
    kind: str
    quantizer: QuantizerBase | None = field(default=None, compare=False, repr=False)
    rounding: str = "half_even"


@dataclass(frozen=True)
class Fallback:
    """A node that torch's exporter wrote.

    Attributes:
        node: name of the fx node.
        operator: what it calls.
        reason: why no emitter wrote it.
    """

    node: str
    operator: str
    reason: str


@dataclass(frozen=True)
class Lowered:
    """An ONNX model and how it corresponds to the fx graph.

    Attributes:
        model: the model; its float weights are views of the module's tensors, not copies.
        tensors: every quantized tensor, activations in graph order with the weights they need
            before them.
        input_names: graph inputs in order.
        output_names: graph outputs in order.
        fallbacks: nodes that torch's exporter wrote.
        owners: ONNX node name -> fx node name.
        batch_note: why the batch is not dynamic; empty if it is.
        varying: what may have another size in another run.
        narrow: activations in a narrow floating-point format: name of the tensor before its Cast,
            and the quantizer.
        deploy: the CPUs that the file is written for.
        notes: what else a report says about the file.
    """

    model: ir.Model
    tensors: tuple[LoweredTensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    fallbacks: tuple[Fallback, ...] = ()
    owners: Mapping[str, str] = field(default_factory=dict)
    batch_note: str = ""
    varying: Varying = field(default_factory=lambda: Varying(None))
    narrow: tuple[tuple[str, QuantizerBase], ...] = ()
    deploy: str = "any"
    notes: tuple[str, ...] = ()
