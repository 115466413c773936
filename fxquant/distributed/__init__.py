"""Several processes, now or one after the other: calibration, reconstruction and training."""

from fxquant.distributed.batch_norms import average_batch_norms
from fxquant.distributed.failures import fail_together
from fxquant.distributed.over_ranks import compute_encodings
from fxquant.distributed.reconstruction import reconstruct
from fxquant.distributed.sharded_training import fully_shard, gather
from fxquant.distributed.shards import MergedShards, merge_statistics, save_statistics

__all__ = [
    "MergedShards",
    "average_batch_norms",
    "compute_encodings",
    "fail_together",
    "fully_shard",
    "gather",
    "merge_statistics",
    "reconstruct",
    "save_statistics",
]
