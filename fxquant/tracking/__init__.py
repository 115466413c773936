"""Events of runs, and adapters that write them to experiment trackers."""

from fxquant.tracking.events import OnEvent, Value
from fxquant.tracking.trackers import MlflowTracker, TensorBoardTracker, WandbTracker

__all__ = ["MlflowTracker", "OnEvent", "TensorBoardTracker", "Value", "WandbTracker"]
