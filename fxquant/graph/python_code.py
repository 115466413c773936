"""Python code of a graph whose paths hold names that Python reserves, quotes or backslashes.

``torch.fx`` writes ``self.heads.class(x)`` and ``getattr(self, "it"s")``. Here a part of a path
that cannot be written behind a dot is a text with everything escaped. The names stay as they are:
in the module tree, in ``state_dict`` and in the nodes.
"""

from __future__ import annotations

import json
import keyword
import unicodedata
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch.fx.graph import CodeGen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node


class PathCodeGen(CodeGen):
    """Writes every name of a module, parameter or buffer so that Python reads the same name."""

    def _gen_python_code(self, nodes: Iterable[Node], *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as undo:
            for node in nodes:
                if node.op in ("call_module", "get_attr") and not _is_plain(str(node.target)):
                    undo.enter_context(_spelled(node))
            return super()._gen_python_code(nodes, *args, **kwargs)  # type: ignore[arg-type]


class _Part(str):
    """One name of a path; torch.fx puts it between double quotes unless it is an identifier."""

    __slots__ = ()

    def isidentifier(self) -> bool:
        """Whether it can stand behind a dot and is read as it is: Python normalizes names."""
        plain = super().isidentifier() and not keyword.iskeyword(self)
        return plain and unicodedata.normalize("NFKC", self) == self

    def __format__(self, spec: str) -> str:
        return str(self) if self.isidentifier() else _escaped(self)


class _Path(str):
    """A path that splits into such names."""

    __slots__ = ()

    def split(self, *args: Any, **kwargs: Any) -> list[str]:
        """Its names."""
        return [_Part(part) for part in super().split(*args, **kwargs)]


def _escaped(text: str) -> str:
    """What stands between double quotes for a text: JSON's way is one of Python's."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _is_plain(path: str) -> bool:
    return all(_Part(part).isidentifier() or part.isdecimal() for part in path.split("."))


@contextmanager
def _spelled(node: Node) -> Iterator[None]:
    plain = str(node.target)
    node.target = _Path(plain)
    try:
        yield
    finally:
        node.target = plain
