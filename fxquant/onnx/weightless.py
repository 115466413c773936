"""How much of a model its weights are, and the model without them."""

from __future__ import annotations

import onnx_ir as ir

_SMALL = 1 << 16  # bytes of a constant that may say a shape


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def without_weights(model: ir.Model) -> ir.Model:
    """A copy that takes its large weights as inputs: the checker looks at their type and shape.

    It would copy them several times, and protobuf ends at 2 GB.
    """
    light = model.clone()
    for name, value in list(light.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _SMALL and not value.is_graph_input():
            del light.graph.initializers[name]
            value.const_value = None
            light.graph.inputs.append(value)
    return light
