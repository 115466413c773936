"""What the commands on shards do."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from fxquant import QuantizationSimModel
from fxquant.cli.actions import built, writable
from fxquant.cli.batches import Data
from fxquant.distributed import merge_statistics, save_statistics
from fxquant.errors import ConfigError
from fxquant.io.writing import checked_prefix, reserved

if TYPE_CHECKING:
    from fxquant.cli.data_request import DataRequest
    from fxquant.cli.progress import Progress
    from fxquant.distributed import MergedShards


def calibrate(
    factory: str, shard: tuple[int, int], out: str, *, progress: Progress, **options: Any
) -> str:
    """Write the statistics of a part of the data.

    Returns:
        The file.
    """
    with writable(out):
        sim, data = _simulation(factory, progress, **options)
        number, count = shard
        with progress.bar("calibrating", None) as advance:
            name = data.name if count == 1 else f"shard {number} of {count} of {data.name}"
            part = Data(name, lambda: islice(data.read(), number - 1, None, count))
            return str(
                save_statistics(sim, part, out, shard=shard, progress=lambda done, _: advance(done))
            )


def merge(
    factory: str, shards: tuple[str, ...], out: str, name: str, *, progress: Progress,
    **options: Any,
) -> tuple[MergedShards, str]:  # fmt: skip
    """Merge statistics and write encodings.

    Returns:
        What was merged, and the file.
    """
    with reserved(out, checked_prefix(name, error=ConfigError), error=ConfigError):
        sim, _ = _simulation(factory, progress, **options)
        progress.step("merging")
        merged = merge_statistics(sim, shards[0] if len(shards) == 1 else shards)
        return merged, str(sim.save_encodings_to_json(out, name))


def _simulation(
    factory: str, progress: Progress, *, weights: str | None, data: DataRequest, scheme: str,
    param_bw: int | None, activation_bw: int | None, config: str | None, target: str,
) -> tuple[QuantizationSimModel, Data]:  # fmt: skip
    model = built(factory, weights, progress)
    found = data.load(model)
    progress.step("preparing and placing quantizers")
    sim = QuantizationSimModel(
        model, found.first(), quant_scheme=scheme, default_param_bw=param_bw,
        default_output_bw=activation_bw, config=config, target=target,
    )  # fmt: skip
    return sim, found
