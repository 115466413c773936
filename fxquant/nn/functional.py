"""Functional modules: an `nn.Module` class for every tensor function that has none in `torch.nn`.

A functional module holds nothing: it is called with the arguments of its function, so sizes that
are known at run time only (`Reshape()(x, (n, 16))`) and static ones look the same in the graph, and
a quantizer has a module to live in. Which spelling becomes which class is written in `ops.py`.

Why generated: a class a function by hand is two hundred times the same three lines, and the one
that differs by a typing slip is the one nobody notices.
"""

from __future__ import annotations

import functools
import inspect
import operator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.quantization.gradients import poles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Functional(nn.Module):
    """A function as a module: `forward` takes the function's own arguments.

    Attributes:
        function: what is called; a class attribute.
        arity: number of tensor arguments a quantized counterpart has input quantizers for.
        simulated: whether arguments may have been rounded, as those of a quantized counterpart.
        onto_view: it stands for a write into a view, whose gradient PyTorch lays out as the view.
        in_training: keyword arguments that are others while training, such as `training=True`.
    """

    function: ClassVar[Callable[..., Any]]
    arity: ClassVar[int] = 1
    simulated: ClassVar[bool] = False
    onto_view: bool = False
    in_training: Mapping[str, Any] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        if self.training and self.in_training:
            kwargs = {**kwargs, **self.in_training}
        call = type(self).function
        result = poles.run(call, args, kwargs) if self.simulated else call(*args, **kwargs)
        if self.onto_view and result.requires_grad:
            # sums over a gradient round by the order of its memory
            result.register_hook(functools.partial(_laid_out, result.size(), result.stride()))
        return result


def arity_of(module: nn.Module, cls: type[nn.Module]) -> int:
    """Number of tensor arguments: what the function says, or the arguments without a default.

    Args:
        module: the module.
        cls: the class that its `forward` is of.
    """
    if isinstance(module, Functional):
        return module.arity
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(cls.forward).parameters.values()
    return max(1, sum(p.kind in kinds and p.default is p.empty for p in parameters) - 1)


def _laid_out(size: Sequence[int], stride: Sequence[int], gradient: Tensor) -> Tensor:
    """The gradient in memory of these strides."""
    return gradient.new_empty_strided(size, stride).copy_(gradient)


def _functional(name: str, function: Callable[..., Any], arity: int = 1) -> type[Functional]:
    label = getattr(function, "__name__", name)
    space = {
        "function": staticmethod(function),
        "arity": arity,
        "__module__": __name__,
        "__doc__": f"`{label}` as a module.",
    }
    return type(name, (Functional,), space)


class ScaledDotProductAttention(Functional):
    """`scaled_dot_product_attention` as a module.

    Attributes:
        dropout: probability while training, where the caller gave `p if self.training else 0`.
    """

    function: ClassVar[Callable[..., Any]] = staticmethod(F.scaled_dot_product_attention)
    arity: ClassVar[int] = 3

    def __init__(self) -> None:
        super().__init__()
        self.dropout = 0.0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        if self.training and self.dropout:
            kwargs["dropout_p"] = self.dropout
        return type(self).function(*args, **kwargs)


class TrainingOnly(nn.Module):
    """A module that is not there in evaluation: stochastic depth, noise.

    Args:
        inner: the module; its first argument is what it returns in evaluation.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.training = inner.training

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Call the module in training, return the input in evaluation."""
        return self.inner(input, *args, **kwargs) if self.training else input


def _select_index(input: Tensor, index: Any) -> Any:
    return operator.getitem(input, index)


def _set_item(input: Tensor, index: Any, value: Any) -> Tensor:
    """The tensor after `input[index] = value`, as a new tensor."""
    result = input.clone()
    result[index] = value
    return result


def _sort(input: Tensor, dim: int = -1, descending: bool = False, *, stable: bool = False) -> Any:
    """`torch.sort`, which takes `dim` by position only where nothing is said of `stable`."""
    return torch.sort(input, stable=stable, dim=dim, descending=descending)


def _argsort(
    input: Tensor, dim: int = -1, descending: bool = False, *, stable: bool = False
) -> Tensor:
    """`torch.argsort`, see `_sort`."""
    return torch.argsort(input, stable=stable, dim=dim, descending=descending)


def _top_k(
    input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True, *,
    stable: bool = False,
) -> Any:  # fmt: skip
    """`torch.topk`; if `stable`, of equal values the one at the lower place comes first.

    Both results are contiguous, whatever the input's strides are, as those of `torch.topk` are.
    """
    if not stable:
        return torch.topk(input, k, dim, largest, sorted)
    values, places = torch.sort(input, stable=True, dim=dim, descending=largest)
    first = (values.narrow(dim, 0, k).contiguous(), places.narrow(dim, 0, k).contiguous())
    return torch.return_types.topk(first)


def _causal_mask(input: Tensor) -> Tensor:
    """Scores [..., L, S] with -inf for keys after the query, as `is_causal` attention has them."""
    keep = torch.ones(input.shape[-2:], dtype=torch.bool, device=input.device).tril()
    return input.masked_fill(~keep, float("-inf"))


def _subtract(input: Any, other: Any, *, alpha: float = 1) -> Any:
    """`input - alpha * other`; `input` may be a number (`1 - x`), which `torch.sub` refuses."""
    return torch.sub(input, other, alpha=alpha) if isinstance(input, Tensor) else input - other


def _divide(input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    """`input / other`; for a number over a tensor PyTorch multiplies by the reciprocal."""
    if rounding_mode is None and isinstance(other, Tensor) and not isinstance(input, Tensor):
        return input / other
    return torch.div(input, other, rounding_mode=rounding_mode)


poles.register(_divide, like=torch.div)

# arithmetic of two tensors, or of a tensor and a number
Add = _functional("Add", torch.add, 2)
Subtract = _functional("Subtract", _subtract, 2)
Multiply = _functional("Multiply", torch.mul, 2)
Divide = _functional("Divide", _divide, 2)
FloorDivide = _functional("FloorDivide", torch.floor_divide, 2)
Remainder = _functional("Remainder", torch.remainder, 2)
Fmod = _functional("Fmod", torch.fmod, 2)
Pow = _functional("Pow", torch.pow, 2)
Atan2 = _functional("Atan2", torch.atan2, 2)
Maximum = _functional("Maximum", torch.maximum, 2)
Minimum = _functional("Minimum", torch.minimum, 2)
Lerp = _functional("Lerp", torch.lerp, 2)
Addcmul = _functional("Addcmul", torch.addcmul, 3)
Where = _functional("Where", torch.where, 3)

# arithmetic of one tensor
Neg = _functional("Neg", torch.neg)
Abs = _functional("Abs", torch.abs)
Sqrt = _functional("Sqrt", torch.sqrt)
RSqrt = _functional("RSqrt", torch.rsqrt)
Square = _functional("Square", torch.square)
Reciprocal = _functional("Reciprocal", torch.reciprocal)
Exponential = _functional("Exponential", torch.exp)
Exp2 = _functional("Exp2", torch.exp2)
Expm1 = _functional("Expm1", torch.expm1)
Log = _functional("Log", torch.log)
Log2 = _functional("Log2", torch.log2)
Log10 = _functional("Log10", torch.log10)
Log1p = _functional("Log1p", torch.log1p)
Erf = _functional("Erf", torch.erf)
Sin = _functional("Sin", torch.sin)
Cos = _functional("Cos", torch.cos)
Tan = _functional("Tan", torch.tan)
Asin = _functional("Asin", torch.asin)
Acos = _functional("Acos", torch.acos)
Atan = _functional("Atan", torch.atan)
Sinh = _functional("Sinh", torch.sinh)
Cosh = _functional("Cosh", torch.cosh)
Floor = _functional("Floor", torch.floor)
Ceil = _functional("Ceil", torch.ceil)
Round = _functional("Round", torch.round)
Trunc = _functional("Trunc", torch.trunc)
Frac = _functional("Frac", torch.frac)
Sign = _functional("Sign", torch.sign)
Clamp = _functional("Clamp", torch.clamp)
ClampMin = _functional("ClampMin", torch.clamp_min)
ClampMax = _functional("ClampMax", torch.clamp_max)
NanToNum = _functional("NanToNum", torch.nan_to_num)

# comparison and logic
Equal = _functional("Equal", torch.eq, 2)
NotEqual = _functional("NotEqual", torch.ne, 2)
Greater = _functional("Greater", torch.gt, 2)
GreaterEqual = _functional("GreaterEqual", torch.ge, 2)
Less = _functional("Less", torch.lt, 2)
LessEqual = _functional("LessEqual", torch.le, 2)
LogicalAnd = _functional("LogicalAnd", torch.logical_and, 2)
LogicalOr = _functional("LogicalOr", torch.logical_or, 2)
LogicalXor = _functional("LogicalXor", torch.logical_xor, 2)
LogicalNot = _functional("LogicalNot", torch.logical_not)
BitwiseAnd = _functional("BitwiseAnd", torch.bitwise_and, 2)
BitwiseOr = _functional("BitwiseOr", torch.bitwise_or, 2)
BitwiseXor = _functional("BitwiseXor", torch.bitwise_xor, 2)
BitwiseNot = _functional("BitwiseNot", torch.bitwise_not)
IsNan = _functional("IsNan", torch.isnan)
IsInf = _functional("IsInf", torch.isinf)

# matrix products
MatMul = _functional("MatMul", torch.matmul, 2)
Bmm = _functional("Bmm", torch.bmm, 2)
Baddbmm = _functional("Baddbmm", torch.baddbmm, 3)
Addmm = _functional("Addmm", torch.addmm, 3)
Einsum = _functional("Einsum", torch.einsum, 2)
Outer = _functional("Outer", torch.outer, 2)
CausalMask = _functional("CausalMask", _causal_mask)
DynamicLinear = _functional("DynamicLinear", F.linear, 2)
DynamicConv1d = _functional("DynamicConv1d", F.conv1d, 2)
DynamicConv2d = _functional("DynamicConv2d", F.conv2d, 2)
DynamicConv3d = _functional("DynamicConv3d", F.conv3d, 2)
DynamicConvTranspose1d = _functional("DynamicConvTranspose1d", F.conv_transpose1d, 2)
DynamicConvTranspose2d = _functional("DynamicConvTranspose2d", F.conv_transpose2d, 2)
DynamicConvTranspose3d = _functional("DynamicConvTranspose3d", F.conv_transpose3d, 2)
DynamicEmbedding = _functional("DynamicEmbedding", F.embedding)
DynamicEmbeddingBag = _functional("DynamicEmbeddingBag", F.embedding_bag)
DynamicRReLU = _functional("DynamicRReLU", F.rrelu)
DynamicPReLU = _functional("DynamicPReLU", F.prelu)
DynamicBatchNorm = _functional("DynamicBatchNorm", F.batch_norm)
DynamicInstanceNorm = _functional("DynamicInstanceNorm", F.instance_norm)
DynamicLayerNorm = _functional("DynamicLayerNorm", F.layer_norm)
DynamicGroupNorm = _functional("DynamicGroupNorm", F.group_norm)
DynamicRMSNorm = _functional("DynamicRMSNorm", F.rms_norm)
DynamicDropout = _functional("DynamicDropout", F.dropout)
DynamicDropout1d = _functional("DynamicDropout1d", F.dropout1d)
DynamicDropout2d = _functional("DynamicDropout2d", F.dropout2d)
DynamicDropout3d = _functional("DynamicDropout3d", F.dropout3d)
DynamicAlphaDropout = _functional("DynamicAlphaDropout", F.alpha_dropout)
DynamicFeatureAlphaDropout = _functional("DynamicFeatureAlphaDropout", F.feature_alpha_dropout)
DynamicMaxPool1d = _functional("DynamicMaxPool1d", F.max_pool1d)
DynamicMaxPool2d = _functional("DynamicMaxPool2d", F.max_pool2d)
DynamicMaxPool3d = _functional("DynamicMaxPool3d", F.max_pool3d)
DynamicAvgPool1d = _functional("DynamicAvgPool1d", F.avg_pool1d)
DynamicAvgPool2d = _functional("DynamicAvgPool2d", F.avg_pool2d)
DynamicAvgPool3d = _functional("DynamicAvgPool3d", F.avg_pool3d)
DynamicLPPool1d = _functional("DynamicLPPool1d", F.lp_pool1d)
DynamicLPPool2d = _functional("DynamicLPPool2d", F.lp_pool2d)
DynamicAdaptiveAvgPool1d = _functional("DynamicAdaptiveAvgPool1d", F.adaptive_avg_pool1d)
DynamicAdaptiveAvgPool2d = _functional("DynamicAdaptiveAvgPool2d", F.adaptive_avg_pool2d)
DynamicAdaptiveAvgPool3d = _functional("DynamicAdaptiveAvgPool3d", F.adaptive_avg_pool3d)
DynamicAdaptiveMaxPool1d = _functional("DynamicAdaptiveMaxPool1d", F.adaptive_max_pool1d)
DynamicAdaptiveMaxPool2d = _functional("DynamicAdaptiveMaxPool2d", F.adaptive_max_pool2d)
DynamicAdaptiveMaxPool3d = _functional("DynamicAdaptiveMaxPool3d", F.adaptive_max_pool3d)
DynamicUnflatten = _functional("DynamicUnflatten", torch.unflatten)
DynamicSoftmax = _functional("DynamicSoftmax", F.softmax)
DynamicLogSoftmax = _functional("DynamicLogSoftmax", F.log_softmax)
DynamicFlatten = _functional("DynamicFlatten", torch.flatten)
Normalize = _functional("Normalize", F.normalize)
Norm = _functional("Norm", torch.norm)
VectorNorm = _functional("VectorNorm", torch.linalg.vector_norm)
LinalgNorm = _functional("LinalgNorm", torch.linalg.norm)
CosineSimilarity = _functional("CosineSimilarity", F.cosine_similarity, 2)

# reductions
Mean = _functional("Mean", torch.mean)
Sum = _functional("Sum", torch.sum)
Prod = _functional("Prod", torch.prod)
Var = _functional("Var", torch.var)
Std = _functional("Std", torch.std)
VarMean = _functional("VarMean", torch.var_mean)
LogSumExp = _functional("LogSumExp", torch.logsumexp)
Max = _functional("Max", torch.max)
Min = _functional("Min", torch.min)
AMax = _functional("AMax", torch.amax)
AMin = _functional("AMin", torch.amin)
ArgMax = _functional("ArgMax", torch.argmax)
ArgMin = _functional("ArgMin", torch.argmin)
ReduceAny = _functional("ReduceAny", torch.any)
ReduceAll = _functional("ReduceAll", torch.all)
CumSum = _functional("CumSum", torch.cumsum)
CumProd = _functional("CumProd", torch.cumprod)
TopK = _functional("TopK", _top_k)
Sort = _functional("Sort", _sort)
ArgSort = _functional("ArgSort", _argsort)

# joining and splitting
Concat = _functional("Concat", torch.cat)
Stack = _functional("Stack", torch.stack)
Chunk = _functional("Chunk", torch.chunk)
Split = _functional("Split", torch.split)
TensorSplit = _functional("TensorSplit", torch.tensor_split)
Unbind = _functional("Unbind", torch.unbind)

# views and moves
View = _functional("View", Tensor.view)
Reshape = _functional("Reshape", Tensor.reshape)
ViewAs = _functional("ViewAs", Tensor.view_as, 2)
Permute = _functional("Permute", Tensor.permute)
Transpose = _functional("Transpose", torch.transpose)
SwapDims = _functional("SwapDims", torch.swapaxes)
MoveDim = _functional("MoveDim", torch.movedim)
MatrixTranspose = _functional("MatrixTranspose", torch.t)
AdjointTranspose = _functional("AdjointTranspose", torch.adjoint)
Squeeze = _functional("Squeeze", torch.squeeze)
Unsqueeze = _functional("Unsqueeze", torch.unsqueeze)
Expand = _functional("Expand", Tensor.expand)
ExpandAs = _functional("ExpandAs", Tensor.expand_as, 2)
BroadcastTo = _functional("BroadcastTo", torch.broadcast_to)
Repeat = _functional("Repeat", Tensor.repeat)
Tile = _functional("Tile", Tensor.tile)
RepeatInterleave = _functional("RepeatInterleave", torch.repeat_interleave)
Roll = _functional("Roll", torch.roll)
Flip = _functional("Flip", Tensor.flip)
Rot90 = _functional("Rot90", torch.rot90)
Narrow = _functional("Narrow", torch.narrow)
Select = _functional("Select", torch.select)
GetItem = _functional("GetItem", _select_index)
SetItem = _functional("SetItem", _set_item, 3)
IndexSelect = _functional("IndexSelect", torch.index_select)
Gather = _functional("Gather", torch.gather)
TakeAlongDim = _functional("TakeAlongDim", torch.take_along_dim)
Diagonal = _functional("Diagonal", torch.diagonal)
Tril = _functional("Tril", torch.tril)
Triu = _functional("Triu", torch.triu)
Scatter = _functional("Scatter", torch.scatter, 4)
IndexAdd = _functional("IndexAdd", torch.index_add, 3)
ScatterAdd = _functional("ScatterAdd", torch.scatter_add, 4)
MaskedFill = _functional("MaskedFill", torch.masked_fill)
MaskedSelect = _functional("MaskedSelect", torch.masked_select)
Pad = _functional("Pad", F.pad)
Interpolate = _functional("Interpolate", F.interpolate)
GridSample = _functional("GridSample", F.grid_sample)
IntegerRange = _functional("IntegerRange", F.affine_grid)
DynamicUnfold = _functional("DynamicUnfold", F.unfold)
TensorUnfold = _functional("TensorUnfold", Tensor.unfold)
DynamicFold = _functional("DynamicFold", F.fold)
Contiguous = _functional("Contiguous", Tensor.contiguous)
Clone = _functional("Clone", torch.clone)
Detach = _functional("Detach", torch.detach)
Cast = _functional("Cast", Tensor.to)
TypeAs = _functional("TypeAs", Tensor.type_as, 2)
ToFloat = _functional("ToFloat", Tensor.float)
ToDouble = _functional("ToDouble", Tensor.double)
ToHalf = _functional("ToHalf", Tensor.half)
ToBFloat16 = _functional("ToBFloat16", Tensor.bfloat16)
ToLong = _functional("ToLong", Tensor.long)
ToInt = _functional("ToInt", Tensor.int)
ToBool = _functional("ToBool", Tensor.bool)
OneHot = _functional("OneHot", F.one_hot)
Bucketize = _functional("Bucketize", torch.bucketize)
NonZero = _functional("NonZero", torch.nonzero)

CLASSES: dict[str, type[Functional]] = {
    name: value
    for name, value in list(globals().items())
    if isinstance(value, type) and issubclass(value, Functional) and value is not Functional
}
__all__ = ["CLASSES", "Functional", *CLASSES]
