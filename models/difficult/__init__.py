"""Small networks, one for each thing that makes tracing hard; `NETWORKS` lists them with inputs."""

from __future__ import annotations

from fxquant.models.difficult import calls, heads, layers, values
from fxquant.models.difficult.register import NETWORKS, Case, rows

__all__ = ["NETWORKS", "Case", "calls", "heads", "layers", "rows", "values"]
