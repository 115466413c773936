"""What differs between two artifacts, and what it is expected to do."""

from fxquant.comparison.artifact_diff import ArtifactDiff, TensorChange, diff_artifacts

__all__ = ["ArtifactDiff", "TensorChange", "diff_artifacts"]
