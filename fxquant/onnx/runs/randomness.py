"""Nodes that draw random numbers in evaluation: no two runs of a file with them would agree.

Which these are is seen, not looked up: whatever moves a generator of torch draws, be it a function,
a distribution, a pool with random places or a layer of somebody's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxquant.errors import ExportError
from fxquant.graph.kept_state import buffers_kept
from fxquant.graph.node_walk import depended_on
from fxquant.nn.opaque import Opaque

if TYPE_CHECKING:
    from collections.abc import Sequence


class Draws:
    """Watches the generators while nodes run.

    Attributes:
        nodes: those that drew.
    """

    def __init__(self) -> None:
        self.nodes: set[fx.Node] = set()

    @contextmanager
    def watch(self, node: fx.Node, given: Collection[Any]) -> Iterator[None]:
        """Note `node` if what runs meanwhile draws, also from a generator among its arguments."""
        own = [part for part in given if isinstance(part, torch.Generator)]
        before = _states(own)
        yield
        if not all(map(torch.equal, before, _states(own))):
            self.nodes.add(node)


def _states(own: list[torch.Generator]) -> list[Tensor]:
    """States of the CPU's generator, of those of GPUs in use, and of the given ones."""
    gpus = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
    offsets = torch.tensor([g.get_offset() for g in gpus])
    return [torch.get_rng_state(), offsets, *(g.get_state() for g in own)]


class _Run(fx.Interpreter):
    """One run of a graph."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.extra_traceback = False
        self.draws = Draws()

    def run_node(self, n: fx.Node) -> Any:
        with self.draws.watch(n, [self.env[i] for i in n.all_input_nodes]):
            return super().run_node(n)


def check_draws(gm: fx.GraphModule, drawing: Collection[fx.Node]) -> None:
    """Refuse random numbers that reach an output.

    Raises:
        ExportError: FXQ533, there are some; the first such line is named.
    """
    reached = depended_on([gm.graph.output_node()])
    found = next((n for n in gm.graph.nodes if n in drawing and n in reached), None)
    if found is not None:
        what = f"{_name(gm, found)} draws random numbers in evaluation"
        raise ExportError(
            "FXQ533", f"{what}: no two runs of the file would agree", at=found,
            fix="let it follow the mode of its module (dropout: training=self.training, and no "
            "train() that keeps it on), or hand the random numbers to the model as an input",
        )  # fmt: skip


def check_modes(gm: fx.GraphModule, values: Sequence[Any]) -> None:
    """Refuse modules that go on training, and draw, where the model itself evaluates.

    Such as dropout whose flag was set by hand, or by a `train()` that a class overrides. Lowering
    would not see them: it switches everything to evaluation.

    Args:
        gm: the graph; its flags and its state are as before afterwards.
        values: of its placeholders.

    Raises:
        ExportError: FXQ533, as `check_draws`.
    """
    flags = {module: module.training for module in gm.modules()}
    try:
        if gm.training:
            gm.eval()
        if any(module.training for module in flags):
            run = _Run(gm)
            with torch.no_grad(), torch.random.fork_rng(), buffers_kept(gm):
                run.run(*values)
            check_draws(gm, run.draws.nodes)
    finally:
        for module, flag in flags.items():
            module.training = flag


def _name(gm: fx.GraphModule, node: fx.Node) -> str:
    """What is called, for people."""
    if node.op != "call_module":
        return str(getattr(node.target, "__name__", node.target))
    module = gm.get_submodule(str(node.target))
    what = module.name if isinstance(module, Opaque) else type(module).__name__
    return f"{what} ({node.target})"
