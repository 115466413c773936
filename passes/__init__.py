"""Graph passes, one a file, and the pipelines as literal tuples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxquant.graph.passes import Fact, Pass, Pipeline
from fxquant.passes.decompose_attention import DecomposeAttention
from fxquant.passes.drop_dead_code import DropDeadCode
from fxquant.passes.fold_batch_norms import FoldBatchNorms
from fxquant.passes.functionals_to_modules import FunctionalsToModules
from fxquant.passes.place_quantizers import PlaceQuantizers
from fxquant.passes.remove_writes import RemoveWrites
from fxquant.passes.unique_modules import UniqueModules

if TYPE_CHECKING:
    from fxquant.config import QuantConfig
    from fxquant.quantization import QuantScheme
    from fxquant.targets import Target

PREPARE = (
    UniqueModules(),
    RemoveWrites(),
    FunctionalsToModules(),
    DropDeadCode(),
)

PREPARED = frozenset({Fact.MODULES_ONLY, Fact.UNIQUE_MODULES})


def simulation_pipeline(config: QuantConfig, target: Target, scheme: QuantScheme) -> Pipeline:
    """The passes from a prepared graph to a simulated one."""
    folding: tuple[Pass, ...] = (FoldBatchNorms(),) if config.fold_batch_norms else ()
    return Pipeline(
        (*folding, DecomposeAttention(), PlaceQuantizers(config, target, scheme)), given=PREPARED
    )


__all__ = [
    "PREPARE",
    "PREPARED",
    "DecomposeAttention",
    "DropDeadCode",
    "FoldBatchNorms",
    "FunctionalsToModules",
    "PlaceQuantizers",
    "RemoveWrites",
    "UniqueModules",
    "simulation_pipeline",
]
