"""Let modules that do nothing in evaluation count as dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fxquant.graph.meta import TensorSpec, spec
from fxquant.graph.pass_infra import Fact, Pass, state_of
from fxquant.nn.functional import TrainingOnly

if TYPE_CHECKING:
    from fxquant.graph.rewriter import Rewriter


@dataclass(frozen=True)
class KeepTrainingModules(Pass):
    """A module of the user's that acts in training only is wrapped, so that its values just pass.

    Before::

        %drop_path = StochasticDepth[block.drop_path](%x)

    After::

        %drop_path = dropout[block.drop_path](%x)

    Which modules do nothing in evaluation was seen while recording (`State.training_only`).
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.RECORDED})

    def run(self, rw: Rewriter) -> None:
        """Wrap what is called."""
        for path in sorted(state_of(rw.gm).training_only):
            calls = rw.callers(path)
            reason = _objection(rw, path)
            if reason:
                for node in calls:
                    rw.skip(node, reason)
            elif calls:
                rw.set_module(path, TrainingOnly(rw.gm.get_submodule(path)))


def _objection(rw: Rewriter, path: str) -> str | None:
    module = rw.gm.get_submodule(path)
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks"
    if module.state_dict():
        return "it has parameters or buffers, whose names would change"
    for node in rw.callers(path):
        tensors = [n for n in node.all_input_nodes if isinstance(spec(n), TensorSpec)]
        if len(tensors) != 1 or node.args[:1] != (tensors[0],):
            return "its first argument is not its only tensor"
    return None
