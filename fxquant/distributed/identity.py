"""What a simulation is, as checksums: what shards and ranks must have in common."""

from __future__ import annotations

import hashlib
import json
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

from fxquant.checkpoint import graph_digest
from fxquant.quantization import QuantizerBase
from fxquant.quantization.description import describe_quantizers
from fxquant.quantization.digest import tensors_digest

if TYPE_CHECKING:
    from fxquant.sim import QuantizationSimModel


def calibration_identity(sim: QuantizationSimModel) -> dict[str, str]:
    """What statistics of one calibration have in common, whatever data they are of.

    Returns:
        A text for the model, the configuration, the scheme, the quantizers and the weights.
    """
    quantizers = {
        name: {
            **{trait: v for trait, v in described.items() if trait != "initialized"},
            "analyzer": _text(getattr(quantizer, "encoding_analyzer", None)),
            "overwritable": quantizer.overwritable,
        }
        for (name, described), quantizer in zip(
            describe_quantizers(sim.model).items(), sim.quantizers(), strict=True
        )
    }
    config = {"config": sim.config.model_dump(mode="json"), "target": sim.target.name}
    return {
        "model": graph_digest(sim),
        "configuration": _digest_of_json(config),
        "scheme": sim.quant_scheme.name,
        "quantizers": _digest_of_json(quantizers),
        "weights": _digest_of_weights(sim),
    }


def _text(analyzer: Any) -> str:
    """A frozen set of options with all of them; the text of another object has its address."""
    return repr(analyzer) if is_dataclass(analyzer) else type(analyzer).__qualname__


def _digest_of_weights(sim: QuantizationSimModel) -> str:
    """Of everything but ranges."""
    own = {id(p) for m in sim.model.modules() if isinstance(m, QuantizerBase)
           for p in m.parameters()}  # fmt: skip
    named = (*sim.model.named_parameters(), *sim.model.named_buffers())
    return tensors_digest({name: tensor for name, tensor in named if id(tensor) not in own})


def _digest_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
