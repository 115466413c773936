"""Recipes from Python: what one run decided, done again or checked; see `docs/recipes.md`."""

from __future__ import annotations

from fxquant.cli.recipe_actions import RecipeRun, Replay, replay, run_recipe
from fxquant.records.recipe_schema import Recipe, Settings
from fxquant.records.recording import Sources

__all__ = ["Recipe", "RecipeRun", "Replay", "Settings", "Sources", "replay", "run_recipe"]
