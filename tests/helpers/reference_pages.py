"""Pages of the documentation that are made from tables: operators, targets, configuration."""

from __future__ import annotations

import inspect
import json
import re
import typing
from pathlib import Path
from typing import Any, get_args

from fxquant import config, ops
from fxquant.onnx.lowering import emitters

ROOT = Path(__file__).parent.parent.parent
GRIDS = {
    ops.Grid.OWN: "its own",
    ops.Grid.SAME: "its input's",
    ops.Grid.SHARED: "shared with its inputs",
    ops.Grid.FIXED: "fixed",
    ops.Grid.FLOAT: "none: floating point",
    ops.Grid.INDEX: "none: not real values",
}
OPERATORS = """\
# Operators

One row of `fxquant/ops.py` an operator: the module that `prepare_model` makes of it, the grid of
its result, what each target says of it, and who writes its ONNX form. Made from that table
(`pytest tests/test_reference_pages.py --accept`).

| a target says | |
| --- | --- |
| **int** | it has an integer kernel that writes integers: the result always has a grid |
| int | its integer kernel can write floats: it has a grid where an integer operator reads it |
| (int) | it computes cheaply in floating point: integers only between integer operators |
| fused | the kernel of the product before it computes it too |
| grid | the result has a grid, and the arithmetic is floating point |
| | nothing: floating point; where the grid is its input's, the integers just move |

What has no row runs too: it stays floating point, is listed in the report, and is exported by
torch's own exporter (`pip install fxquant[exporter]`).
"""
CONFIGURATION = """\
# Configuration

What `QuantizationSimModel(config=...)`, `--config FILE` and `fxquant.quantize(config=...)` take: a
dictionary, a JSON file, the name of a preset (`fxquant presets`), or AIMET's configuration file.
What is left out is decided by the target. This page is made from the schema
([quant_config.schema.json](quant_config.schema.json), `pytest tests/test_reference_pages.py
--accept`).

```json
{
  "weight_bitwidth": 4,
  "keep_float": ["head*"],
  "operators": {"embedding": {"weight": {"bitwidth": 8}}},
  "layers": {"blocks.0.fc1": {"output": {"bitwidth": 16}}}
}
```
"""


def operators_page() -> str:
    """`docs/operators.md`."""
    targets = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "fxquant" / "targets").glob("*.json"))
    }
    head = ["operator", "module", "grid of the result", *targets, "ONNX"]
    lines = [OPERATORS, _row(head), _row(["---"] * len(head))]
    for row in ops.TABLE.rows.values():
        grid = GRIDS[row.grid] + (", by its arguments" if row.when else "")
        if row.fixed:
            grid += f" [{row.fixed[0]:g}, {row.fixed[1]:g}]"
        told = [_told(row.name, target) for target in targets.values()]
        own = emitters.emitter_of_row(row.name) is not None
        lines.append(
            _row([f"`{row.name}`", f"`{row.module.__name__}`", grid, *told,
                  "fxquant" if own else "torch's exporter"])
        )  # fmt: skip
    return "\n".join(lines) + "\n"


def _told(name: str, target: dict[str, Any]) -> str:
    entry = target["operators"].get(name)
    if entry is None:
        return "fused" if name in target.get("absorbs", ()) else ""
    if entry.get("kernel") == "float":
        return "grid"
    if entry.get("for_consumers") or entry.get("elementwise"):
        return "(int)"
    return "**int**" if entry.get("output") == "required" else "int"


def configuration_page() -> str:
    """`docs/configuration.md`."""
    parts = [CONFIGURATION]
    for cls, title in (
        (config.QuantConfig, "Keys"), (config.Rule, "A rule of `operators` or `layers`"),
        (config.OutputRule, "`output` of a rule"), (config.WeightRule, "`weight` of a rule"),
        (config.BiasRule, "`bias` of a rule"),
    ):  # fmt: skip
        described = _attributes(inspect.getdoc(cls) or "")
        parts += [f"## {title}\n", _row(["key", "values", "default", "meaning"]), _row(["---"] * 4)]
        for name, field in cls.model_fields.items():
            default = field.get_default(call_default_factory=True)
            inner = isinstance(default, config.OutputRule | config.WeightRule | config.BiasRule)
            shown = "" if inner or default is None else f"`{json.dumps(default, default=list)}`"
            parts.append(_row([f"`{name}`", _values(field.annotation), shown, described[name]]))
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


_KINDS = {bool: "true, false", int: "whole number", float: "number", str: "text"}


def _values(annotation: Any) -> str:
    """A type in words of JSON."""
    if annotation in _KINDS:
        return _KINDS[annotation]
    if typing.get_origin(annotation) is typing.Annotated:
        return _values(get_args(annotation)[0])
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in get_args(annotation))
    found = [a for a in get_args(annotation) if a is not type(None)]
    origin = typing.get_origin(annotation)
    if inspect.isclass(origin) and issubclass(origin, dict):
        return f"object: {_values(found[-1])}"
    if inspect.isclass(origin) and issubclass(origin, tuple | list):
        return f"list of {_values(found[0])}"
    if found:
        return ", ".join(dict.fromkeys(_values(a) for a in found))
    return "a rule" if annotation is config.Rule else "object"


def _attributes(doc: str) -> dict[str, str]:
    """The `Attributes:` of a docstring by name."""
    section = doc.partition("Attributes:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text) for name, text in found}


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
