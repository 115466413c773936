"""Re-estimation of batch norms: `aimet_torch.bn_reestimation`."""

from __future__ import annotations

from fxquant.ptq.batch_norms.bn_reestimation import Handle, reestimate_bn_stats

__all__ = ["Handle", "reestimate_bn_stats"]
