"""Names of modules and parameters that no operator of a graph is called by: what became of them.

A person names what the model has: the batch norm that was folded, the attention that is several
products by now, a weight. Whatever selects by name asks here before it says that there is no such
thing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import fx, nn

from fxquant.errors import SelectorError
from fxquant.graph.meta import path_matches
from fxquant.graph.pass_infra import state_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHOWN = 3


class Absence(NamedTuple):
    """Why a name is that of no operator.

    Attributes:
        what: what became of it.
        fix: what acts in its place.
    """

    what: str
    fix: str

    def error(self, code: str, prefix: str = "") -> SelectorError:
        """The error that says so."""
        return SelectorError(code, prefix + self.what, fix=self.fix)


def absence(gm: nn.Module, name: object) -> Absence | None:
    """What became of what a path or glob names, or None if there has never been such a thing.

    Args:
        gm: a prepared graph, or the graph of a simulation.
        name: what matched no operator.
    """
    if not isinstance(gm, fx.GraphModule) or not isinstance(name, str) or not name:
        return None
    called = {str(n.target) for n in gm.graph.nodes if n.op == "call_module"}
    return replaced(gm, name) or _parameter(gm, name, called) or _uncalled(gm, name, called)


def replaced(gm: fx.GraphModule, name: object) -> Absence | None:
    """What a pass has put in the place of a module, or of the module of a parameter."""
    if not isinstance(name, str):
        return None
    called = {str(n.target) for n in gm.graph.nodes if n.op == "call_module"}
    owner = name.rpartition(".")[0]
    if owner not in state_of(gm).gone:
        return _replaced(gm, name, called)
    found = _replaced(gm, owner, called)
    return None if found is None else Absence(f"{name!r}: {found.what}", found.fix)


def _replaced(gm: fx.GraphModule, name: str, called: set[str]) -> Absence | None:
    """A pass has put something else in its place."""
    gone = state_of(gm).gone
    for path in gone:
        if path_matches(name, path, below=True) and path not in called:
            how, by = gone[path]
            while by in gone and by not in called:
                by = gone[by].by
            if not by:
                return Absence(f"{path!r} {how}", "leave it out: nothing computes it")
            fix = f"name {by!r}, which computes what {path!r} did"
            if how == FOLDED:
                fix += ", or keep it with fold_batch_norms=false"
            return Absence(f"{path!r} {how} {by!r}", fix)
    return None


def _parameter(gm: fx.GraphModule, name: str, called: set[str]) -> Absence | None:
    """It is a parameter of a module, or was one of a module that is gone."""
    owner, _, last = name.rpartition(".")
    at = {p for p, _ in gm.named_parameters(remove_duplicate=False)}
    at |= {p for p, _ in gm.named_buffers(remove_duplicate=False)}
    if name not in at:
        return None
    consumers = [owner] if owner in called else _consumers(gm, name, called)
    what = f"{name!r} is a parameter, not a module"
    if not consumers:
        return Absence(what, "leave it out: no operator reads it")
    key = "bias" if last.endswith("bias") else "weight"
    fix = f"name the module: {_listed(consumers)}, with a rule for its {key!r}"
    return Absence(what, fix)


def _uncalled(gm: fx.GraphModule, name: str, called: set[str]) -> Absence | None:
    """A module that is there, while nothing calls it, or nothing but what is in it."""
    paths = [p for p, _ in gm.named_modules() if path_matches(name, p)]
    inside = {str(n.meta.get("module_path", "")) for n in gm.graph.nodes} | called
    for path in paths:
        own = [n for n, _ in gm.get_submodule(path).named_parameters()]
        found = {r: None for n in own for r in _consumers(gm, f"{path}.{n}", called)}
        if found:
            what = f"{path!r} is not called itself: its parameters are read by {_listed(found)}"
            return Absence(what, f"name {next(iter(found))!r}")
        if not any(p == path or p.startswith(f"{path}.") for p in inside):
            what = f"nothing calls {path!r} on the dummy input"
            return Absence(what, "leave it out, or give a dummy input that uses it")
    return Absence(f"{paths[0]!r} holds no operator", "leave it out") if paths else None


def _consumers(gm: fx.GraphModule, name: str, called: set[str]) -> list[str]:
    """Operators that use a parameter, also under another name."""
    owner, _, last = name.rpartition(".")
    wanted = getattr(gm.get_submodule(owner), last)
    found = []
    for node in gm.graph.nodes:
        if node.op == "get_attr" and _value(gm, str(node.target)) is wanted:
            found += [str(u.target) for u in node.users if u.op == "call_module"]
        elif node.op == "call_module":
            module = gm.get_submodule(str(node.target))
            own = module.parameters(recurse=str(node.target) in called)
            if any(p is wanted for p in own):
                found.append(str(node.target))
    return list(dict.fromkeys(found))


def _value(gm: fx.GraphModule, target: str) -> object:
    owner, _, last = target.rpartition(".")
    return getattr(gm.get_submodule(owner), last, None)


def _listed(names: list[str] | Mapping[str, None]) -> str:
    shown = [repr(n) for n in names][:_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


FOLDED = "was folded into"
