"""The page: one file of HTML with its style, its script and its data; nothing is fetched.

Names and texts of the network reach the page as JSON in a data block and are put into the document
as text only. Why a policy as well: even if that were broken, no other script could run and nothing
could be sent, because the page allows one script, by its hash, and no connections.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from typing import Any

# in the order in which they are put together; each may use what stands before it
SCRIPTS = (
    "basics.js", "charts.js", "coloring.js", "placing.js", "graph_view.js", "node_panel.js",
    "tabs.js", "start.js",
)  # fmt: skip


def html(data: dict[str, Any]) -> str:
    """The whole page.

    Args:
        data: plain data, see `fxquant.inspection.report.page_data`.
    """
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {"style": _file("page.css"), "script": script, "digest": digest, "data": as_block(data)}
    text = _file("page.html")
    # one step over the template: what is put in is not searched for places again
    pieces = text.split("{{")
    made = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        made += [parts[name], rest]
    return "".join(made)


def as_block(data: Any) -> str:
    """JSON that can stand in a `<script>` element: no character in it ends one or begins a tag."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@cache
def _script() -> str:
    whole = "\n".join(_file(name) for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{whole}\n}})();\n'


@cache
def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
