"""The engine and a plain AdaRound on the same problems, layer by layer.

A layer's problem is that of a reconstruction: inputs of the layers before it as they were
reconstructed, and a target that makes up for their errors. AdaRound, on the grid as it was
calibrated, minimizes the same quadratic as the engine, which is many times as fast as the paper's
random batches.

Run: python -m benchmarks.ptq_layers [--layers N] [--inputs N] [--iterations N] [--folder FOLDER]
     [NETWORK ...]
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from benchmarks.measure import cpu_seconds, one_thread, write_json
from benchmarks.ptq import DEFAULT, data_of, simulate
from fxquant.io.text_tables import table
from fxquant.models.digits import RECIPES
from fxquant.models.training import trained
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.ptq import ReconstructionOptions, SolverOptions
from fxquant.ptq.layer_problem import LayerProblem
from fxquant.ptq.layer_walk import LayerWise, Visit
from fxquant.ptq.sampling import Sampling, layer_data
from fxquant.ptq.solving.gradient_rounding import AdaroundOptions

if TYPE_CHECKING:
    from torch import Tensor

    from fxquant.ptq.layers.layer import Layer

#: bits of weights, bits of activations, one grid a channel
CASE = (4, 8, True)


@dataclass(frozen=True)
class Row:
    """A layer; losses are mean squared errors of its output against the best real weight."""

    network: str
    layer: str
    shape: tuple[int, ...]
    nearest: float
    engine: float
    adaround: float
    engine_seconds: float
    adaround_seconds: float

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        share = self.engine_seconds / self.adaround_seconds
        return (
            self.network, self.layer, "x".join(map(str, self.shape)), f"{self.nearest:.3g}",
            f"{self.engine / self.nearest:.2f}", f"{self.adaround / self.nearest:.2f}",
            f"{self.engine_seconds:.3f}", f"{self.adaround_seconds:.1f}", f"{share:.2%}",
        )  # fmt: skip


HEADS = (
    "network", "layer", "weight", "loss of nearest", "engine, of it", "AdaRound, of it",
    "engine, CPU s", "AdaRound, CPU s", "of its time",
)  # fmt: skip


def rows_of(name: str, folder: str, count: int, inputs: int, iterations: int) -> list[Row]:
    """Layers of one network, evenly spread over its depth.

    Args:
        name: the network.
        folder: where weights are kept.
        count: number of layers; 0: all.
        inputs: only layers with so many inputs of an output at most; 0: with any number.
        iterations: those of AdaRound.
    """
    model, data = trained(name, RECIPES[name], folder), data_of(name)
    sim = simulate(model, data, CASE)
    options = ReconstructionOptions()
    plain = SolverOptions("adaround", search_scale=False, adaround=AdaroundOptions(iterations))
    walk = LayerWise.of(sim.model, None)
    every = [y.node for y in walk.layers if not inputs or _inputs(y) <= inputs]
    chosen = set(every[:: max(-(-len(every) // count), 1)] if count else every)

    def visit(visit: Visit) -> Row | None:
        layer = visit.layer
        sampling = Sampling(options.columns, options.held_out, options.seed)
        found = layer_data(layer, visit.walk, visit.sim, visit.float, sampling)
        problem = LayerProblem(layer, found, options.solver)
        before = problem.before()
        seconds, ours = cpu_seconds(lambda: problem.solve(problem.grid))
        row = None
        if layer.node in chosen:
            longer, theirs = cpu_seconds(lambda: problem.solve(problem.grid, plain))
            row = Row(
                name, layer.path, tuple(layer.module.weight.shape), problem.loss(before),
                problem.loss(ours), problem.loss(theirs), seconds, longer,
            )  # fmt: skip
        layer.write(problem.whole(ours), problem.places, problem.whole_bias, problem.again)
        return row

    return walk.run(data.calibration, visit)


def _inputs(layer: Layer) -> int:
    weight: Tensor = layer.module.weight
    return weight[0].numel()


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--layers", default=3, show_default=True, help="Layers of a network; 0: all.")
@click.option("--inputs", default=128, show_default=True, help="Inputs of an output; 0: any.")
@click.option("--iterations", default=10_000, show_default=True, help="Steps of AdaRound.")
@click.option("--folder", default="trained", show_default=True, help="Where weights are kept.")
@click.option("--json", "path", metavar="FILE", help="Write the rows here too.")
def main(
    networks: tuple[str, ...], layers: int, inputs: int, iterations: int, folder: str,
    path: str | None,
) -> None:  # fmt: skip
    """Losses and costs on the same problems; 256 calibration images, one thread."""
    one_thread()
    found = [r for n in networks or DEFAULT for r in rows_of(n, folder, layers, inputs, iterations)]
    click.echo(table(HEADS, [row.cells() for row in found]))
    click.echo(f"measured on {this_cpu()}")
    write_json([asdict(r) for r in found], path)


if __name__ == "__main__":
    main()
