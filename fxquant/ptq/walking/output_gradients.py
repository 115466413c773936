"""How much what a layer puts out matters for what the model puts out.

An error `e` of a layer's output changes the model's output by `J e` to first order. With random
signs `v` on the model's output, `g = J^T v` has `E[(g e)^2] = |J e|^2` for every element by itself:
elements that nothing depends on, such as those of padded tokens, weigh nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant import ops
from fxquant.errors import CalibrationError
from fxquant.graph.pytree import fresh_inputs, tensors
from fxquant.tracing.signature import mismatch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence


class OutputGradients(fx.Interpreter):
    """Runs a float graph forwards and backwards.

    Args:
        gm: the graph, in evaluation.
        kept: nodes whose values are kept.
        weighed: nodes whose gradients are wanted.
        seed: of the signs.

    Attributes:
        values: node -> its value in the last run.
    """

    def __init__(
        self, gm: fx.GraphModule, kept: Collection[fx.Node], weighed: Collection[fx.Node], seed: int
    ) -> None:
        super().__init__(gm)
        self.values: dict[fx.Node, Tensor] = {}
        self._kept, self._weighed = set(kept), list(weighed)
        self._writes = any(ops.is_inplace(n) for n in gm.graph.nodes)
        self._generator = torch.Generator().manual_seed(int(seed))

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node and keep its value if that is asked for."""
        found = super().run_node(n)
        if not isinstance(found, Tensor) or n not in self._kept:
            return found
        if n in self._weighed and not found.requires_grad and found.is_floating_point():
            found = found.detach().requires_grad_()
        self.values[n] = found
        # what is written to is not the value any more, and no leaf may be written to
        return found.clone() if self._writes else found

    def of(self, inputs: Sequence[Any], batch: int) -> dict[fx.Node, Tensor]:
        """Run one batch; gradients of the nodes that the output depends on.

        Args:
            inputs: values of the placeholders.
            batch: its number, for errors.

        Returns:
            Node -> gradient in the shape of its value, for outputs whose mean square is one; nodes
            on which no output depends smoothly are missing, and all of them where an operator has
            no derivative.

        Raises:
            CalibrationError: FXQ475, the model does not take the batch.
        """
        self.values.clear()
        holders = [n for n in self.module.graph.nodes if n.op == "placeholder"]  # type: ignore[union-attr]
        with without_gradients(self.module), torch.enable_grad():
            try:
                output = self.run(*fresh_inputs(list(inputs)))
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                given = {str(h.target): v for h, v in zip(holders, inputs, strict=True)}
                wrong = mismatch(self.module, (), given, error)  # type: ignore[arg-type]
                what = f"the model does not take batch {batch}: {wrong.what}"
                raise CalibrationError("FXQ475", what, fix=wrong.fix) from error
            smooth = [t for t in tensors(output) if t.requires_grad and t.numel()]
            wanted = [n for n in self._weighed if n in self.values]
            if not smooth or not wanted:
                return {}
            signs = [self._signs(t) for t in smooth]
            values = [self.values[n] for n in wanted]
            try:
                found: Sequence[Tensor | None] = torch.autograd.grad(
                    smooth, values, signs, allow_unused=True
                )
            except RuntimeError:  # of an operator without a derivative
                return {}
        return {n: g.detach() for n, g in zip(wanted, found, strict=True) if g is not None}

    def _signs(self, output: Tensor) -> Tensor:
        signs = torch.randint(0, 2, output.shape, generator=self._generator).to(output) * 2 - 1
        size = output.detach().square().mean().sqrt()
        return signs / torch.where(size > 0, size, 1.0)


@contextmanager
def without_gradients(model: nn.Module) -> Iterator[None]:
    """Parameters need no gradients for a while."""
    learned = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in learned:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_()
