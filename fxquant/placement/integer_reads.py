"""Who reads a value in integers, and who in floating point, seen through operators that move it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxquant.placement.dataflow import is_float_spec, is_sequence, moves_values, takes_item

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from torch import fx

    from fxquant.placement.config_rules import Settings
    from fxquant.placement.regions import Regions


class IntegerReads:
    """Answers about the consumers of values.

    Args:
        gm: prepared graph with recorded specs.
        kernels: operators that the target computes in integers; looked at with every question.
        settings: whether the graph's outputs are asked for in integers.
        regions: what leaves one is read in integers.
    """

    def __init__(
        self, gm: fx.GraphModule, kernels: Collection[fx.Node], settings: Settings,
        regions: Regions | None,
    ) -> None:  # fmt: skip
        self.gm, self.kernels = gm, kernels
        ends = set(regions.ends) if regions is not None else set()
        if settings.config.quantize_outputs and regions is None:
            ends.add(gm.graph.output_node())
        self.ends = frozenset(ends)

    def in_integers(
        self, node: fx.Node, *, but: Callable[[fx.Node], bool] = lambda _: False
    ) -> bool:
        """Whether a consumer of the value of `node`, other than some, computes on its integers."""
        return any(self._integer(user, but) for user in node.users)

    def integer_users(self, node: fx.Node) -> list[fx.Node]:
        """Direct users that are integer kernels, or move the value to one."""
        return [user for user in node.users if self._integer(user, lambda _: False)]

    def integer_kernels(self, node: fx.Node) -> set[fx.Node]:
        """What computes on the integers of a value, also through operators that move it."""
        found: set[fx.Node] = set()
        for user in self.integer_users(node):
            ends = user in self.kernels or user in self.ends
            found |= {user} if ends else self.integer_kernels(user)
        return found

    def float_users(self, node: fx.Node) -> list[fx.Node]:
        """Direct users that read the real values, and do not move them to an integer kernel."""
        integer = self.integer_users(node)
        return [u for u in node.users if u not in integer and _reads_values(u)]

    def _integer(self, user: fx.Node, but: Callable[[fx.Node], bool]) -> bool:
        if user in self.ends:
            return True
        if user in self.kernels:
            return not but(user)
        moves = moves_values(user, self.gm) is not None or takes_item(user) is not None
        return moves and any(self._integer(u, but) for u in user.users)


def _reads_values(user: fx.Node) -> bool:
    """Whether a user's result is more than a size."""
    spec = user.meta.get("spec")
    return user.op == "output" or is_float_spec(spec) or hasattr(spec, "dtype") or is_sequence(spec)
