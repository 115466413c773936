"""Graph passes, one a file, and the pipelines as literal tuples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxquant.graph.pass_infra import Fact, Pipeline
from fxquant.nn import dense
from fxquant.passes.align_grids import AlignGrids
from fxquant.passes.align_shifts import AlignShifts
from fxquant.passes.approximate import Approximate
from fxquant.passes.decompose_attention import DecomposeAttention
from fxquant.passes.drop_dead_code import DropDeadCode
from fxquant.passes.enclose_complex import EncloseComplex
from fxquant.passes.fold_batch_norms import FoldBatchNorms
from fxquant.passes.fold_computed_weights import FoldComputedWeights
from fxquant.passes.fold_live_norms import FoldLiveNorms
from fxquant.passes.fold_parametrizations import FoldParametrizations
from fxquant.passes.functionals_to_modules import FunctionalsToModules
from fxquant.passes.insert_stubs import InsertStubs
from fxquant.passes.keep_training_modules import KeepTrainingModules
from fxquant.passes.linear_einsums import LinearEinsums
from fxquant.passes.linear_products import LinearProducts
from fxquant.passes.move_scales import MoveScales
from fxquant.passes.pad_packed_sequences import PadPackedSequences
from fxquant.passes.place_quantizers import PlaceQuantizers
from fxquant.passes.remove_writes import RemoveWrites
from fxquant.passes.separate_sums import SeparateSums
from fxquant.passes.stable_sorts import StableSorts
from fxquant.passes.unique_modules import UniqueModules

if TYPE_CHECKING:
    from fxquant.config import QuantConfig
    from fxquant.quantization import QuantScheme
    from fxquant.targets import Target

PREPARE = (
    KeepTrainingModules(),
    UniqueModules(),
    PadPackedSequences(),
    RemoveWrites(),
    EncloseComplex(),
    FunctionalsToModules(),
    DropDeadCode(),
)

PREPARED = frozenset({Fact.UNIQUE_MODULES, Fact.NO_WRITES, Fact.MODULES_ONLY})


def simulation_pipeline(config: QuantConfig, target: Target, scheme: QuantScheme) -> Pipeline:
    """The passes from a prepared model to its simulation."""
    live = config.fold_batch_norms == "live"
    folding = (FoldBatchNorms(live),) if config.fold_batch_norms else ()
    # a kernel that writes floats multiplies its sums by a number in any case
    product = target.operators.get("matmul")
    moving = (MoveScales(),) if product is not None and product.output == "optional" else ()
    # twice: a product keeps its name unless it has to be taken out of a sum first
    linear = (LinearProducts(),) if dense.ROW in target.operators else ()
    sums = (SeparateSums(), *linear) if product is not None else ()
    einsums = (LinearEinsums(),) if linear else ()
    computed = (FoldComputedWeights(), DropDeadCode()) if linear else ()
    apart = (DecomposeAttention(), *computed, *einsums, *linear, *sums)
    placing = PlaceQuantizers(config=config, target=target, scheme=scheme)
    return Pipeline(
        (*apart, *moving, FoldParametrizations(), StableSorts(), *folding, placing),
        given=PREPARED,
    )


__all__ = [
    "PREPARE",
    "PREPARED",
    "AlignGrids",
    "AlignShifts",
    "Approximate",
    "DecomposeAttention",
    "DropDeadCode",
    "EncloseComplex",
    "FoldBatchNorms",
    "FoldComputedWeights",
    "FoldLiveNorms",
    "FoldParametrizations",
    "FunctionalsToModules",
    "InsertStubs",
    "KeepTrainingModules",
    "LinearEinsums",
    "LinearProducts",
    "MoveScales",
    "PadPackedSequences",
    "PlaceQuantizers",
    "RemoveWrites",
    "SeparateSums",
    "StableSorts",
    "UniqueModules",
    "simulation_pipeline",
]
