"""Which dimensions of a result can have another size in another run.

A batch size must stay dynamic, a number of channels is fixed by the weights. Knowing which is
which keeps graphs free of size arithmetic that can never change, and ``1 / sqrt(head_size)`` a
plain number. An operator without a rule here gives the largest change of its inputs: a rule may
only err towards "can change".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from torch import Tensor

from fxquant.tracing import shape_rules as rules
from fxquant.tracing.shape_rules import Call, Dims, broadcast, largest

Rule: TypeAlias = Callable[[Call, Tensor], Dims]


def result_dims(call: Call, out: Tensor) -> Dims:
    """Per dimension of one tensor of a call's result: what can change its size."""
    rule = RULES.get(call.name, broadcast)
    try:
        found = rule(call, out)
    except (LookupError, TypeError, ValueError):
        # a spelling that the rule does not know
        found = ()
    return found if len(found) == out.dim() else largest(call, out)


def _table(*rows: tuple[Rule, str]) -> dict[str, Rule]:
    def names() -> Iterator[tuple[str, Rule]]:
        for rule, text in rows:
            for name in text.split():
                yield name, rule

    return dict(names())


RULES: dict[str, Rule] = _table(
    (rules.viewed, "view reshape"),
    (rules.expanded, "expand broadcast_to"),
    (rules.repeated, "repeat tile"),
    (rules.created, "zeros ones empty rand randn full"),
    (rules.created_beside, "new_zeros new_ones new_empty new_full"),
    (rules.permuted, "permute"),
    (rules.transposed, "transpose swapaxes swapdims"),
    (rules.turned, "t"),
    (rules.attribute, "getattr"),
    (rules.moved, "movedim moveaxis"),
    (rules.unsqueezed, "unsqueeze"),
    (rules.squeezed, "squeeze"),
    (rules.flattened, "flatten Flatten"),
    (rules.unflattened, "unflatten"),
    (rules.without, "unbind select"),
    (
        rules.reduced,
        "sum mean amax amin max min argmax argmin any all prod std var var_mean std_mean logsumexp "
        "median nanmean nansum count_nonzero",
    ),
    (rules.norm, "norm vector_norm"),
    (rules.top, "topk"),
    (rules.joined, "cat concat concatenate"),
    (rules.stacked, "stack"),
    (rules.product, "matmul bmm mm"),
    (rules.linear, "linear"),
    (
        rules.convolved,
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    ),
    (
        rules.inherit,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d "
        "pixel_shuffle pixel_unshuffle channel_shuffle "
        "MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool2d PixelShuffle "
        "PixelUnshuffle ChannelShuffle",
    ),
    (rules.padded, "pad ZeroPad2d ConstantPad1d ConstantPad2d ReflectionPad2d ReplicationPad2d"),
    (
        rules.resized,
        "interpolate adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d AdaptiveAvgPool1d "
        "AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d "
        "AdaptiveMaxPool3d Upsample UpsamplingNearest2d UpsamplingBilinear2d",
    ),
    (rules.alike, "batch_norm layer_norm group_norm instance_norm rms_norm prelu"),
    (rules.embedded, "embedding"),
    (rules.attention, "scaled_dot_product_attention"),
    (rules.einsum, "einsum"),
    (rules.indexed, "getitem"),
    (rules.by_index, "gather index_select take_along_dim"),
    (rules.like_other, "expand_as view_as reshape_as broadcast_as"),
    (rules.grid, "meshgrid"),
    (rules.split, "chunk split tensor_split"),
    (rules.chosen, "where"),
    (rules.copied, "repeat_interleave"),
    (rules.unfolded, "unfold Unfold"),
    (rules.by_value, "nonzero masked_select unique unique_consecutive bincount"),
    (rules.made, "tensor as_tensor asarray"),
    (rules.recurrent, "LSTM GRU RNN"),
    (rules.linear_module, "Linear"),
    (rules.embedding_module, "Embedding"),
    (rules.conv_module, "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d"),
)
