"""The operator table: one row says everything fxquant knows about an operator.

Preparation, placement, validation, lowering, the support table of the documentation and the
generated tests read it. To support a new operator, add one row (and, where the ONNX form is not a
plain node, one emitter in `fxquant/onnx/lowering/emit`); `register_op` does the same from outside.

A row's `params` is the canonical signature. Spellings are found by name in `torch`,
`torch.nn.functional`, `torch.Tensor`, `torch.special`, `torch.linalg` and `operator`, with their
in-place forms; a spelling whose arguments come in another order is listed in `odd` with its own.
"""

from __future__ import annotations

import ast
import enum
import functools
import inspect
import math
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxquant.errors import ConfigError
from fxquant.nn import functional as fn
from fxquant.nn.dense import Dense, adopt, layer_of


class Grid(enum.Enum):
    """How an operator's output relates to the integer grid of its inputs."""

    OWN = "own"  # new values: a grid of its own
    SAME = "same"  # values only move: the producer's grid
    SHARED = "shared"  # values of several inputs are mixed: one grid for all
    FIXED = "fixed"  # mathematics bounds the range
    FLOAT = "float"  # never on integers
    INDEX = "index"  # not a real-valued tensor


class Sized(enum.Enum):
    """How the values of an operand decide how large a result is."""

    NONZERO = "nonzero"  # as many as are not zero
    MASK = "mask"  # the same where the operand is a mask; positions decide nothing
    SUM = "sum"  # their sum
    DISTINCT = "distinct"  # as many as there are different ones
    LARGEST = "largest"  # up to the largest


class Memory(enum.Enum):
    """Whose memory the result of an operator may be."""

    NEW = "new"  # its own
    VIEW = "view"  # the first operand's, or a part of it
    PARTS = "parts"  # several parts of the first operand's, none of which overlap


class Effect(enum.Enum):
    """What an operator does besides its result: without it, later draws and states would differ."""

    RANDOM = "random"  # it draws random numbers
    STATISTICS = "statistics"  # it may update running statistics


class Moved(enum.Enum):
    """Which integers an operator between DQ and Q shall move instead of real values."""

    # onnxruntime would turn a signed pair of QuantizeLinear and DequantizeLinear unsigned, and
    # fails to load one that it has moved
    SIGNED = "signed"
    # written as several nodes: the runtime sees through one move between DQ and Q, not a chain
    BYTES = "bytes"  # signed ones and unsigned ones


class Scores(enum.Enum):
    """What an operator is to the scores of a softmax, which stay in floating point."""

    NORMALIZED = "normalized"  # it makes probabilities of them
    PASSED_ON = "passed on"  # arithmetic that makes scores of scores


class WeightUse(enum.Enum):
    """What an operator does with its parameter `weight`."""

    SUMS = "sums"  # weighted sums plus a bias: scaling and shifting a result is another layer
    TABLE = "table"  # its rows are looked up: no integer kernel computes them


class Sizes(enum.Enum):
    """How the sizes of a result follow from those of the inputs: `tracing.shape_rules` computes it.

    The default, `BROADCAST`, may only err towards "can change".
    """

    BROADCAST = "broadcast"  # element by element
    SAME = "same"  # those of the first tensor, whatever those of its parameters
    INHERIT = "inherit"  # axis by axis those of the first tensor
    OTHER = "other"  # those of the second tensor
    VIEW = "view"
    EXPAND = "expand"
    REPEAT = "repeat"
    PERMUTE = "permute"
    TRANSPOSE = "transpose"
    REVERSE = "reverse"
    MOVE = "move"
    UNSQUEEZE = "unsqueeze"
    SQUEEZE = "squeeze"
    FLATTEN = "flatten"
    UNFLATTEN = "unflatten"
    DROP = "drop"  # one axis less
    REDUCE = "reduce"
    NORM = "norm"
    TOP = "top"
    JOIN = "join"
    STACK = "stack"
    SPLIT = "split"
    PRODUCT = "product"
    LINEAR = "linear"
    CONVOLVE = "convolve"
    PAD = "pad"
    RESIZE = "resize"
    UNFOLD = "unfold"
    LOOK_UP = "look up"
    ATTENTION = "attention"
    EINSUM = "einsum"
    RECURRENT = "recurrent"
    INDEX = "index"  # x[i]
    BY_INDEX = "by index"  # those of an operand that holds positions
    WHERE = "where"
    COPIES = "copies"
    BY_VALUE = "by value"


#: operators that have no row and whose first operand's values decide the result's size, by name
SIZED_BY_VALUE = {
    "argwhere": Sized.NONZERO,
    "bincount": Sized.LARGEST,
    "unique": Sized.DISTINCT,
    "unique_consecutive": Sized.DISTINCT,
}


@dataclass(frozen=True)
class T:
    """A random tensor of a sample: shape and kind (float, positive, unit, int, bool, weight)."""

    shape: tuple[int, ...]
    kind: str = "float"
    high: int = 2

    def make(self, seed: int) -> Tensor:
        """The tensor; equal seeds give equal tensors."""
        rng = torch.Generator().manual_seed(seed)
        if self.kind == "int":
            return torch.randint(0, self.high, self.shape, generator=rng)
        if self.kind == "bool":
            return torch.randint(0, 2, self.shape, generator=rng) > 0
        if self.kind == "positive":
            return torch.rand(self.shape, generator=rng) + 0.5
        if self.kind == "unit":
            return torch.rand(self.shape, generator=rng) * 1.8 - 0.9
        scale = 0.3 if self.kind == "weight" else 1.0
        return torch.randn(self.shape, generator=rng) * scale


@dataclass(frozen=True)
class Sample:
    """Arguments for one generated test of a row: tensors are `T`, the rest is taken as it is."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def s(*args: Any, **kwargs: Any) -> Sample:
    """A sample with these arguments."""
    return Sample(args, kwargs)


def t(*shape: int, kind: str = "float", high: int = 2) -> T:
    """A tensor of a sample."""
    return T(shape, kind, high)


@dataclass(frozen=True)
class Op:
    """One operator.

    Attributes:
        name: unique lower-case name; inserted modules are named after it.
        params: canonical signature, e.g. ``"input, other, *, alpha=1"``.
        module: class that `prepare_model` makes: a `torch.nn` class or a `Functional`.
        grid: behaviour of the output's grid.
        names: space-separated spellings looked up in torch's namespaces; default: `name`.
        odd: spellings whose arguments bind differently: object -> signature.
        classes: further module classes that are this operator.
        dynamic: functional module used when `module` cannot hold the arguments (sizes known at run
            time, computed weights).
        inputs: parameters that are activations in the quantized class's forward, in order.
        build: makes `module` from bound arguments; None: its constructor's parameters by name.
        read: reads arguments from a `torch.nn` module whose attributes are named differently.
        fixed: (low, high) of a FIXED grid.
        when: refines `grid` by the arguments (`interpolate` moves values only when nearest).
        absorbs: names of activations that an integer kernel takes in.
        weight_axis: output-channel axis of `weight`, as `module` stores it: see `weight_axes`.
        weight_use: what it does with `weight`.
        memory: whose memory the result may be.
        effect: what it does besides its result.
        moved: which integers it moves instead of real values.
        sizes: how the sizes of its result follow from those of its inputs.
        scores: what it is to the scores of a softmax.
        clips: an activation that only cuts values off: the ends of a range go through as values do.
        onnx: space-separated names of operator types by which AIMET's files mean it.
        sized_by: the parameter whose values decide how large the result is, and how.
        sized_open: the argument, and its value, without which `sized_by` does not hold.
        mode: arguments that may follow the mode of the module that calls, the flag first:
            `training=self.training`. `build` takes the flag for one that follows.
        constant: as `build`, where the flag is the same in training; default: `dynamic`.
        samples: arguments for the generated tests.
    """

    name: str
    params: str
    module: type[nn.Module]
    grid: Grid = Grid.OWN
    names: str | None = None
    odd: Mapping[Any, str] = field(default_factory=dict)
    classes: tuple[type[nn.Module], ...] = ()
    dynamic: type[fn.Functional] | None = None
    inputs: tuple[str, ...] = ("input",)
    build: Callable[[dict[str, Any]], nn.Module | None] | None = None
    read: Callable[[nn.Module], dict[str, Any]] | None = None
    fixed: tuple[float, float] | None = None
    when: Callable[[Mapping[str, Any]], Grid] | None = None
    absorbs: frozenset[str] = frozenset()
    weight_axis: int | None = None
    weight_use: WeightUse | None = None
    memory: Memory = Memory.NEW
    effect: Effect | None = None
    moved: Moved | None = None
    sizes: Sizes = Sizes.BROADCAST
    scores: Scores | None = None
    clips: bool = False
    onnx: str = ""
    sized_by: tuple[str, Sized] | None = None
    sized_open: tuple[str, Any] | None = None
    mode: tuple[str, ...] = ()
    constant: Callable[[dict[str, Any]], nn.Module | None] | None = None
    samples: tuple[Sample, ...] = ()

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """The canonical signature."""
        return parse_signature(self.params)

    def grid_for(self, arguments: Mapping[str, Any]) -> Grid:
        """The grid behaviour with these arguments."""
        return self.when(arguments) if self.when else self.grid


def parse_signature(text: str) -> inspect.Signature:
    """A signature from its text; defaults are literals."""
    args = ast.parse(f"def f({text}): ...").body[0].args  # type: ignore[attr-defined]
    kinds = inspect.Parameter
    defaults = [None] * (len(args.args) - len(args.defaults)) + list(args.defaults)
    params = [
        _parameter(a, d, kinds.POSITIONAL_OR_KEYWORD)
        for a, d in zip(args.args, defaults, strict=True)
    ]
    if args.vararg:
        params.append(kinds(args.vararg.arg, kinds.VAR_POSITIONAL))
    params += [
        _parameter(a, d, kinds.KEYWORD_ONLY)
        for a, d in zip(args.kwonlyargs, args.kw_defaults, strict=True)
    ]
    return inspect.Signature(params)


def _parameter(arg: ast.arg, default: ast.expr | None, kind: Any) -> inspect.Parameter:
    value = inspect.Parameter.empty if default is None else ast.literal_eval(default)
    return inspect.Parameter(arg.arg, kind, default=value)


# --- builders: a torch.nn module from the arguments of its function ------------------------------


def _held(*values: Any) -> bool:
    """Whether all are tensors or None, so that a module can hold them."""
    return all(v is None or isinstance(v, Tensor) for v in values)


def _conv(
    cls: type[nn.Module], transposed: bool = False
) -> Callable[[dict[str, Any]], nn.Module | None]:
    def build(a: dict[str, Any]) -> nn.Module | None:
        w = a["weight"]
        if not isinstance(w, Tensor) or not _held(a["bias"]):
            return None
        groups = a["groups"]
        out, inner = (
            (w.shape[1] * groups, w.shape[0]) if transposed else (w.shape[0], w.shape[1] * groups)
        )
        extra = {"output_padding": a["output_padding"]} if transposed else {}
        with torch.device("meta"):
            module = cls(
                inner,
                out,
                tuple(w.shape[2:]),
                stride=a["stride"],
                padding=a["padding"],
                dilation=a["dilation"],
                groups=groups,
                bias=a["bias"] is not None,
                **extra,
            )
        return adopt(module, weight=w, bias=a["bias"])

    return build


def _linear(a: dict[str, Any]) -> nn.Module | None:
    w = a["weight"]
    if not isinstance(w, Tensor) or w.dim() != 2 or not _held(a["bias"]):
        return None
    return layer_of(w, a["bias"], outputs=(0,))


def _channels(module: nn.Module) -> dict[str, Any]:
    """Channels of a layer whose weight does not tell them by its shape."""
    if not isinstance(module, Dense):
        return {}
    *_, inner, out = module.size
    return {"in_channels": inner, "out_channels": out}


def _embedding(a: dict[str, Any]) -> nn.Module | None:
    w = a["weight"]
    if not isinstance(w, Tensor) or a["max_norm"] is not None:
        return None
    with torch.device("meta"):
        module = nn.Embedding(
            w.shape[0],
            w.shape[1],
            padding_idx=a["padding_idx"],
            scale_grad_by_freq=a["scale_grad_by_freq"],
            sparse=a["sparse"],
        )
    return adopt(module, weight=w)


def _embedding_bag(a: dict[str, Any]) -> nn.Module | None:
    w = a["weight"]
    if not isinstance(w, Tensor) or a["max_norm"] is not None:
        return None
    names = ("scale_grad_by_freq", "mode", "sparse", "include_last_offset", "padding_idx")
    with torch.device("meta"):
        module = nn.EmbeddingBag(*w.shape, **{name: a[name] for name in names})
    return adopt(module, weight=w)


def _prelu(a: dict[str, Any]) -> nn.Module | None:
    w = a["weight"]
    if not isinstance(w, Tensor):
        return None
    with torch.device("meta"):
        module = nn.PReLU(w.numel())
    return adopt(module, weight=w)


def _layer_norm(a: dict[str, Any]) -> nn.Module | None:
    if not _held(a["weight"], a["bias"]) or not _static(a["normalized_shape"]):
        return None
    module = nn.LayerNorm(a["normalized_shape"], a["eps"], elementwise_affine=False)
    return adopt(module, weight=a["weight"], bias=a["bias"])


def _rms_norm(a: dict[str, Any]) -> nn.Module | None:
    if not _held(a["weight"]) or not _static(a["normalized_shape"]):
        return None
    module = nn.RMSNorm(a["normalized_shape"], a["eps"], elementwise_affine=False)
    return adopt(module, weight=a["weight"])


def _dropout(cls: type[nn.Module]) -> Callable[[dict[str, Any]], nn.Module | None]:
    # `training` is what the flag was while recording; True in a module that evaluates means that
    # the user drops always, which torch's modules cannot say
    return lambda a: None if a["training"] else cls(a["p"])


def _rrelu(a: dict[str, Any]) -> nn.Module | None:
    return None if a["training"] else nn.RReLU(a["lower"], a["upper"])


def _group_norm(a: dict[str, Any]) -> nn.Module | None:
    w = a["weight"]
    if not isinstance(w, Tensor) or not isinstance(a["bias"], Tensor):
        return None
    module = nn.GroupNorm(a["num_groups"], w.numel(), a["eps"], affine=False)
    return adopt(module, weight=w, bias=a["bias"])


def _static(value: Any) -> bool:
    """Whether a value holds no fx node."""
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return not found


def _pad_arguments(module: nn.Module) -> dict[str, Any]:
    name = type(module).__name__
    mode = {"Ref": "reflect", "Rep": "replicate", "Cir": "circular"}
    prefixes = [
        m
        for p, m in mode.items()
        if p + "lectionPad" in name or p + "licationPad" in name or p + "cularPad" in name
    ]
    found = prefixes[0] if prefixes else "constant"
    return {
        "pad": tuple(getattr(module, "padding", ())),
        "mode": found,
        "value": getattr(module, "value", 0.0),
    }


def _when_pad(a: Mapping[str, Any]) -> Grid:
    value = a.get("value") if a.get("mode", "constant") == "constant" else None
    # infinity, for a max pooling to step over, is the end of any grid
    return Grid.OWN if value and not math.isinf(value) else Grid.SAME


def _when_interpolate(a: Mapping[str, Any]) -> Grid:
    return Grid.SAME if a.get("mode", "nearest") in ("nearest", "nearest-exact") else Grid.OWN


def _when_cast(a: Mapping[str, Any]) -> Grid:
    wanted = [v for v in a.values() if isinstance(v, torch.dtype)]
    return Grid.INDEX if any(not d.is_floating_point for d in wanted) else Grid.SAME


def _when_grid_sample(a: Mapping[str, Any]) -> Grid:
    return Grid.SAME if a.get("mode") == "nearest" else Grid.OWN


_ACTIVATIONS = frozenset({"relu", "relu6", "hardtanh"})
_X = (s(t(2, 4, 5, 5)),)
_V = (s(t(2, 6)),)
_POSITIVE = (s(t(2, 6, kind="positive")),)
_UNIT = (s(t(2, 6, kind="unit")),)
_PAIR = (s(t(2, 4, 5), t(2, 4, 5)), s(t(2, 4, 5), t(4, 1)), s(t(2, 4, 5), 1.5))
_INTS = (s(t(2, 6, kind="int", high=9), t(2, 6, kind="int", high=9)),)
_BOOLS = (s(t(2, 6, kind="bool"), t(2, 6, kind="bool")),)
_SAME, _INDEX, _FLOAT, _SHARED, _FIXED = Grid.SAME, Grid.INDEX, Grid.FLOAT, Grid.SHARED, Grid.FIXED
_TWO = ("input", "other")
_RECURRENT = "input, hx=None, lengths=None"  # lengths: of a layer that was given packed sequences


def _activations() -> tuple[Op, ...]:
    def row(name: str, params: str, module: type[nn.Module], **kw: Any) -> Op:
        full = f"input, {params}" if params else "input"
        return Op(name, full, module, samples=kw.pop("samples", _X), **kw)

    return (
        row("relu", "inplace=False", nn.ReLU, onnx="Relu", clips=True),
        row("relu6", "inplace=False", nn.ReLU6, onnx="Clip", clips=True),
        row(
            "hardtanh",
            "min_val=-1.0, max_val=1.0, inplace=False",
            nn.Hardtanh,
            onnx="Clip",
            clips=True,
        ),
        row("leaky_relu", "negative_slope=0.01, inplace=False", nn.LeakyReLU, onnx="LeakyRelu"),
        row("elu", "alpha=1.0, inplace=False", nn.ELU, onnx="Elu"),
        row("selu", "inplace=False", nn.SELU, onnx="Selu"),
        row("celu", "alpha=1.0, inplace=False", nn.CELU, onnx="Celu"),
        row(
            "gelu",
            "*, approximate='none'",
            nn.GELU,
            samples=(*_X, s(t(2, 6), approximate="tanh")),
            onnx="Gelu",
        ),
        row("silu", "inplace=False", nn.SiLU, onnx="Swish"),
        row("mish", "inplace=False", nn.Mish, onnx="Mish"),
        row("hardswish", "inplace=False", nn.Hardswish, onnx="HardSwish"),
        row(
            "hardsigmoid",
            "inplace=False",
            nn.Hardsigmoid,
            grid=_FIXED,
            fixed=(0.0, 1.0),
            onnx="HardSigmoid",
        ),
        row(
            "sigmoid",
            "",
            nn.Sigmoid,
            grid=_FIXED,
            fixed=(0.0, 1.0),
            names="sigmoid expit",
            onnx="Sigmoid",
        ),
        row("tanh", "", nn.Tanh, grid=_FIXED, fixed=(-1.0, 1.0), onnx="Tanh"),
        row("logsigmoid", "", nn.LogSigmoid),
        row("softplus", "beta=1.0, threshold=20.0", nn.Softplus, onnx="Softplus"),
        row("softsign", "", nn.Softsign, grid=_FIXED, fixed=(-1.0, 1.0), onnx="Softsign"),
        row("tanhshrink", "", nn.Tanhshrink),
        row("softshrink", "lambd=0.5", nn.Softshrink),
        row("hardshrink", "lambd=0.5", nn.Hardshrink),
        row(
            "threshold",
            "threshold, value, inplace=False",
            nn.Threshold,
            samples=(s(t(2, 6), 0.1, -2.0),),
        ),
        row("glu", "dim=-1", nn.GLU, samples=_V),
        row(
            "rrelu",
            "lower=0.125, upper=0.3333333333333333, training=False, inplace=False",
            nn.RReLU,
            dynamic=fn.DynamicRReLU,
            build=_rrelu,
            mode=("training",),
            memory=Memory.VIEW,
            effect=Effect.RANDOM,
        ),
        Op(
            "prelu",
            "input, weight",
            nn.PReLU,
            dynamic=fn.DynamicPReLU,
            build=_prelu,
            samples=(s(t(2, 4, 5), t(4, kind="positive")),),
            sizes=Sizes.SAME,
            onnx="PRelu",
        ),
        Op(
            "softmax",
            "input, dim=None, _stacklevel=3, dtype=None",
            nn.Softmax,
            _FIXED,
            names="softmax",
            dynamic=fn.DynamicSoftmax,
            odd={torch.softmax: "input, dim, dtype=None", Tensor.softmax: "input, dim, dtype=None"},
            build=lambda a: nn.Softmax(a["dim"]) if a.get("dtype") is None else None,
            classes=(nn.Softmax2d,),
            read=lambda m: {"dim": -3} if isinstance(m, nn.Softmax2d) else {},
            fixed=(0.0, 1.0),
            samples=(s(t(2, 3, 5), -1), s(t(2, 3, 5), dim=1)),
            onnx="Softmax",
            scores=Scores.NORMALIZED,
        ),
        Op(
            "softmin",
            "input, dim=None, _stacklevel=3, dtype=None",
            nn.Softmin,
            _FIXED,
            fixed=(0.0, 1.0),
            samples=(s(t(2, 5), dim=1),),
            scores=Scores.NORMALIZED,
        ),
        Op(
            "log_softmax",
            "input, dim=None, _stacklevel=3, dtype=None",
            nn.LogSoftmax,
            dynamic=fn.DynamicLogSoftmax,
            odd={
                torch.log_softmax: "input, dim, dtype=None",
                Tensor.log_softmax: "input, dim, dtype=None",
            },
            build=lambda a: nn.LogSoftmax(a["dim"]) if a.get("dtype") is None else None,
            samples=(s(t(2, 5), dim=1),),
            onnx="LogSoftmax",
            scores=Scores.NORMALIZED,
        ),
    )


_CONV = "input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1"
_CONVT = "input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1"


def _weighted() -> tuple[Op, ...]:
    def conv(n: int, module: type[nn.Module], dynamic: type[fn.Functional]) -> Op:
        x, w = (2, 4, *(9,) * n), (6, 2, *(3,) * n)
        return Op(
            f"conv{n}d",
            _CONV,
            module,
            dynamic=dynamic,
            build=_conv(module),
            absorbs=_ACTIVATIONS,
            weight_axis=0,
            weight_use=WeightUse.SUMS,
            sizes=Sizes.CONVOLVE,
            onnx="Conv" if n == 2 else f"Conv Conv{n}d",
            samples=(
                s(t(*x), t(*w, kind="weight"), t(6), groups=2),
                s(t(*x), t(6, 4, *(3,) * n, kind="weight"), None, 2, 1),
            ),
        )

    def conv_transpose(n: int, module: type[nn.Module], dynamic: type[fn.Functional]) -> Op:
        x, w = (2, 4, *(5,) * n), (4, 6, *(3,) * n)
        return Op(
            f"conv_transpose{n}d",
            _CONVT,
            module,
            dynamic=dynamic,
            build=_conv(module, transposed=True),
            weight_axis=1,
            weight_use=WeightUse.SUMS,
            sizes=Sizes.CONVOLVE,
            onnx="ConvTranspose",
            samples=(
                s(t(*x), t(*w, kind="weight"), t(6)),
                s(t(*x), t(*w, kind="weight"), None, 2, 1, 1),
            ),
        )

    return (
        conv(1, nn.Conv1d, fn.DynamicConv1d),
        conv(2, nn.Conv2d, fn.DynamicConv2d),
        conv(3, nn.Conv3d, fn.DynamicConv3d),
        conv_transpose(1, nn.ConvTranspose1d, fn.DynamicConvTranspose1d),
        conv_transpose(2, nn.ConvTranspose2d, fn.DynamicConvTranspose2d),
        conv_transpose(3, nn.ConvTranspose3d, fn.DynamicConvTranspose3d),
        Op(
            "linear",
            "input, weight, bias=None",
            nn.Linear,
            classes=(Dense,),
            dynamic=fn.DynamicLinear,
            build=_linear,
            read=_channels,
            absorbs=_ACTIVATIONS,
            weight_axis=0,
            samples=(
                s(t(2, 6), t(4, 6, kind="weight"), t(4)),
                s(t(2, 3, 6), t(4, 6, kind="weight")),
            ),
            sizes=Sizes.LINEAR,
            onnx="Gemm",
            weight_use=WeightUse.SUMS,
        ),
        Op(
            "embedding",
            "input, weight, padding_idx=None, max_norm=None, norm_type=2.0, "
            "scale_grad_by_freq=False, sparse=False",
            nn.Embedding,
            names="F.embedding",
            dynamic=fn.DynamicEmbedding,
            build=_embedding,
            weight_axis=0,
            samples=(s(t(2, 5, kind="int", high=7), t(7, 4, kind="weight")),),
            odd={
                torch.embedding: (
                    "weight, input, padding_idx=None, scale_grad_by_freq=False, sparse=False"
                )
            },
            sizes=Sizes.LOOK_UP,
            onnx="Gather",
            weight_use=WeightUse.TABLE,
        ),
        Op(
            "embedding_bag",
            "input, weight, offsets=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False, "
            "mode='mean', sparse=False, per_sample_weights=None, include_last_offset=False, "
            "padding_idx=None",
            nn.EmbeddingBag,
            names="F.embedding_bag",
            dynamic=fn.DynamicEmbeddingBag,
            inputs=("input", "offsets", "per_sample_weights"),
            build=_embedding_bag,
            samples=(
                s(t(3, 5, kind="int", high=7), t(7, 4, kind="weight")),
                s(t(3, 5, kind="int", high=7), t(7, 4, kind="weight"), mode="max", padding_idx=2),
                s(
                    t(3, 5, kind="int", high=7),
                    t(7, 4, kind="weight"),
                    mode="sum",
                    per_sample_weights=t(3, 5),
                ),
            ),
        ),
        Op(
            "matmul",
            "input, other",
            fn.MatMul,
            names="matmul mm __matmul__",
            inputs=_TWO,
            absorbs=_ACTIVATIONS,
            odd={Tensor.__rmatmul__: "other, input", torch.linalg.matmul: "input, other"},
            samples=(s(t(2, 3, 4, 5), t(2, 3, 5, 6)), s(t(2, 4, 5), t(5, 3)), s(t(4, 5), t(5, 3))),
            sizes=Sizes.PRODUCT,
            onnx="MatMul",
        ),
        Op(
            "bmm",
            "input, mat2",
            fn.Bmm,
            inputs=("input", "mat2"),
            absorbs=_ACTIVATIONS,
            samples=(s(t(2, 4, 5), t(2, 5, 3)),),
            sizes=Sizes.PRODUCT,
            onnx="MatMul",
        ),
        Op(
            "baddbmm",
            "input, batch1, batch2, *, beta=1, alpha=1",
            fn.Baddbmm,
            inputs=("input", "batch1", "batch2"),
            samples=(
                s(t(2, 4, 3), t(2, 4, 5), t(2, 5, 3)),
                s(t(2, 4, 3), t(2, 4, 5), t(2, 5, 3), beta=0.5, alpha=2.0),
            ),
        ),
        Op(
            "addmm",
            "input, mat1, mat2, *, beta=1, alpha=1",
            fn.Addmm,
            inputs=("input", "mat1", "mat2"),
            samples=(s(t(3), t(2, 5), t(5, 3)), s(t(2, 3), t(2, 5), t(5, 3))),
            onnx="Gemm",
        ),
        Op(
            "einsum",
            "equation, *operands",
            fn.Einsum,
            inputs=("operands",),
            samples=(
                s("bij,bjk->bik", t(2, 3, 4), t(2, 4, 5)),
                s("nchw,oc->nohw", t(2, 3, 4, 4), t(5, 3)),
            ),
            sizes=Sizes.EINSUM,
        ),
        Op(
            "outer",
            "input, vec2",
            fn.Outer,
            names="outer ger",
            inputs=("input", "vec2"),
            samples=(s(t(4), t(3)),),
        ),
        Op(
            "scaled_dot_product_attention",
            "query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, "
            "enable_gqa=False",
            fn.ScaledDotProductAttention,
            names="F.scaled_dot_product_attention",
            mode=("dropout_p",),
            inputs=("query", "key", "value", "attn_mask"),
            samples=(
                s(t(2, 2, 5, 4), t(2, 2, 6, 4), t(2, 2, 6, 4)),
                s(t(2, 2, 5, 4), t(2, 2, 5, 4), t(2, 2, 5, 4), is_causal=True, scale=0.3),
                s(t(2, 2, 5, 4), t(2, 2, 6, 4), t(2, 2, 6, 4), t(5, 6)),
                s(t(2, 4, 5, 4), t(2, 2, 5, 4), t(2, 2, 5, 4), enable_gqa=True),
            ),
            sizes=Sizes.ATTENTION,
        ),
        Op("causal_mask", "input", fn.CausalMask, _FLOAT, names=""),
        Op(
            "lstm",
            _RECURRENT,
            nn.LSTM,
            names="",
            inputs=("input", "hx", "lengths"),
            sizes=Sizes.RECURRENT,
            onnx="LSTM",
        ),
        Op(
            "gru",
            _RECURRENT,
            nn.GRU,
            names="",
            inputs=("input", "hx", "lengths"),
            sizes=Sizes.RECURRENT,
            onnx="GRU",
        ),
        Op(
            "rnn",
            _RECURRENT,
            nn.RNN,
            names="",
            inputs=("input", "hx", "lengths"),
            sizes=Sizes.RECURRENT,
            onnx="RNN",
        ),
    )


_BN = (
    "input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, "
    "eps=1e-05"
)


def _frozen_batch_norm(a: dict[str, Any]) -> nn.Module | None:
    return _made_batch_norm(a, _FrozenBatchNorm)


def _batch_norm(a: dict[str, Any]) -> nn.Module | None:
    return _made_batch_norm(a, _AnyBatchNorm)


def _made_batch_norm(a: dict[str, Any], kind: type[_AnyBatchNorm]) -> nn.Module | None:
    tensors = {k: a[k] for k in ("weight", "bias", "running_mean", "running_var")}
    mean = a["running_mean"]
    if not isinstance(mean, Tensor) or not _held(*tensors.values()) or a["training"]:
        return None
    with torch.device("meta"):
        module = kind(mean.numel(), a["eps"], a["momentum"], affine=False).train()
    module.num_batches_tracked = torch.tensor(0)
    for name in ("running_mean", "running_var"):
        module._buffers[name] = tensors[name]
    return adopt(module, weight=tensors["weight"], bias=tensors["bias"])


class _AnyBatchNorm(nn.BatchNorm2d):
    """Batch norm for any number of dimensions, made from a functional call."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            msg = f"expected at least a 2D input (got {input.dim()}D input)"
            raise ValueError(msg)


class _FrozenBatchNorm(_AnyBatchNorm):
    """Batch norm with `training=False`, whatever the mode of the model."""

    def train(self, mode: bool = True) -> _FrozenBatchNorm:
        """Stay in evaluation."""
        super().train(False)
        return self


def _norms() -> tuple[Op, ...]:
    return (
        Op(
            "batch_norm",
            _BN,
            _AnyBatchNorm,
            names="F.batch_norm",
            classes=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
            dynamic=fn.DynamicBatchNorm,
            build=_batch_norm,
            constant=_frozen_batch_norm,
            mode=("training",),
            samples=(s(t(2, 4, 5, 5), t(4), t(4, kind="positive"), t(4), t(4)),),
            effect=Effect.STATISTICS,
            sizes=Sizes.SAME,
            onnx="BatchNormalization",
        ),
        Op(
            "instance_norm",
            "input, running_mean=None, running_var=None, weight=None, bias=None, "
            "use_input_stats=True, momentum=0.1, eps=1e-05",
            fn.DynamicInstanceNorm,
            names="F.instance_norm",
            mode=("use_input_stats",),
            classes=(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
            samples=(s(t(2, 4, 5, 5)),),
            effect=Effect.STATISTICS,
            sizes=Sizes.SAME,
            onnx="InstanceNormalization",
        ),
        Op(
            "layer_norm",
            "input, normalized_shape, weight=None, bias=None, eps=1e-05",
            nn.LayerNorm,
            names="F.layer_norm",
            dynamic=fn.DynamicLayerNorm,
            build=_layer_norm,
            odd={
                torch.layer_norm: (
                    "input, normalized_shape, weight=None, bias=None, eps=1e-05, cudnn_enable=True"
                )
            },
            samples=(s(t(2, 3, 6), (6,), t(6), t(6)), s(t(2, 3, 6), (3, 6))),
            sizes=Sizes.SAME,
            onnx="LayerNormalization",
        ),
        Op(
            "group_norm",
            "input, num_groups, weight=None, bias=None, eps=1e-05",
            nn.GroupNorm,
            names="F.group_norm",
            dynamic=fn.DynamicGroupNorm,
            build=_group_norm,
            odd={
                torch.group_norm: (
                    "input, num_groups, weight=None, bias=None, eps=1e-05, cudnn_enabled=True"
                )
            },
            samples=(s(t(2, 4, 5, 5), 2, t(4), t(4)), s(t(2, 4, 5, 5), 4)),
            sizes=Sizes.SAME,
            onnx="GroupNormalization",
        ),
        Op(
            "rms_norm",
            "input, normalized_shape, weight=None, eps=None",
            nn.RMSNorm,
            names="F.rms_norm torch.rms_norm",
            dynamic=fn.DynamicRMSNorm,
            build=_rms_norm,
            samples=(s(t(2, 3, 6), (6,), t(6)),),
            sizes=Sizes.SAME,
            onnx="RMSNormalization",
        ),
        Op(
            "local_response_norm",
            "input, size, alpha=0.0001, beta=0.75, k=1.0",
            nn.LocalResponseNorm,
            samples=(s(t(2, 6, 5, 5), 3),),
            onnx="LRN",
        ),
        Op(
            "normalize",
            "input, p=2.0, dim=1, eps=1e-12, out=None",
            fn.Normalize,
            names="F.normalize",
            samples=(s(t(2, 5)), s(t(2, 5, 3), dim=-1)),
        ),
        Op(
            "norm",
            "input, p='fro', dim=None, keepdim=False, out=None, dtype=None",
            fn.Norm,
            samples=(s(t(2, 5)), s(t(2, 5), 2, -1, True)),
            sizes=Sizes.NORM,
        ),
        Op(
            "vector_norm",
            "x, ord=2, dim=None, keepdim=False, *, dtype=None",
            fn.VectorNorm,
            names="linalg.vector_norm",
            inputs=("x",),
            samples=(s(t(2, 5), 2, -1, True),),
            sizes=Sizes.NORM,
        ),
        Op(
            "linalg_norm",
            "A, ord=None, dim=None, keepdim=False, *, dtype=None",
            fn.LinalgNorm,
            names="linalg.norm",
            inputs=("A",),
            samples=(s(t(2, 5)), s(t(2, 5), 2, -1, True)),
        ),
        Op(
            "cosine_similarity",
            "x1, x2, dim=1, eps=1e-08",
            fn.CosineSimilarity,
            inputs=("x1", "x2"),
            classes=(nn.CosineSimilarity,),
            samples=(s(t(2, 5), t(2, 5)),),
        ),
    )


def _pools() -> tuple[Op, ...]:
    rows: list[Op] = []
    for n in (1, 2, 3):
        x = t(2, 4, *(8,) * n)
        rows += (
            Op(
                f"max_pool{n}d",
                "input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, "
                "return_indices=False",
                getattr(nn, f"MaxPool{n}d"),
                _SAME,
                sizes=Sizes.INHERIT,
                onnx="MaxPool",
                dynamic=getattr(fn, f"DynamicMaxPool{n}d"),
                names=f"max_pool{n}d F.max_pool{n}d",
                odd={
                    getattr(F, f"max_pool{n}d_with_indices"): (
                        "input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, "
                        "return_indices=True"
                    )
                },
                samples=(s(x, 2), s(x, 3, 2, 1), s(x, 3, stride=2, ceil_mode=True)),
            ),
            Op(
                f"avg_pool{n}d",
                "input, kernel_size, stride=None, padding=0, ceil_mode=False, "
                "count_include_pad=True" + (", divisor_override=None" if n > 1 else ""),
                getattr(nn, f"AvgPool{n}d"),
                sizes=Sizes.INHERIT,
                onnx="AveragePool",
                dynamic=getattr(fn, f"DynamicAvgPool{n}d"),
                samples=(
                    s(x, 2),
                    s(x, 3, 2, 1),
                    s(x, 3, stride=2, padding=1, count_include_pad=False),
                ),
            ),
            Op(
                f"adaptive_avg_pool{n}d",
                "input, output_size",
                getattr(nn, f"AdaptiveAvgPool{n}d"),
                sizes=Sizes.RESIZE,
                onnx="GlobalAveragePool",
                dynamic=getattr(fn, f"DynamicAdaptiveAvgPool{n}d"),
                samples=(s(x, 1), s(x, 4)),
            ),
            Op(
                f"adaptive_max_pool{n}d",
                "input, output_size, return_indices=False",
                getattr(nn, f"AdaptiveMaxPool{n}d"),
                _SAME,
                sizes=Sizes.RESIZE,
                dynamic=getattr(fn, f"DynamicAdaptiveMaxPool{n}d"),
                names=f"F.adaptive_max_pool{n}d",
                samples=(s(x, 1), s(x, 4)),
                odd={
                    getattr(
                        F, f"adaptive_max_pool{n}d_with_indices"
                    ): "input, output_size, return_indices=True"
                }
                | (
                    {torch.adaptive_max_pool1d: "input, output_size, return_indices=True"}
                    if n == 1
                    else {}
                ),
            ),
        )
    lp = "input, norm_type, kernel_size, stride=None, ceil_mode=False"
    rows += (
        Op(
            "lp_pool1d",
            lp,
            nn.LPPool1d,
            dynamic=fn.DynamicLPPool1d,
            samples=(s(t(2, 4, 8, kind="positive"), 2, 2),),
            sizes=Sizes.INHERIT,
            onnx="LpPool",
        ),
        Op(
            "lp_pool2d",
            lp,
            nn.LPPool2d,
            dynamic=fn.DynamicLPPool2d,
            samples=(s(t(2, 4, 8, 8, kind="positive"), 2, 2),),
            sizes=Sizes.INHERIT,
            onnx="LpPool",
        ),
    )
    return tuple(rows)


def _elementwise() -> tuple[Op, ...]:
    def one(
        name: str,
        module: type[nn.Module],
        samples: tuple[Sample, ...] = _V,
        names: str | None = None,
        grid: Grid = Grid.OWN,
        **kw: Any,
    ) -> Op:
        return Op(name, "input", module, grid, names=names, samples=samples, **kw)

    return (
        Op(
            "add",
            "input, other, *, alpha=1",
            fn.Add,
            names="add __add__ __radd__ __iadd__ operator.iadd",
            inputs=_TWO,
            absorbs=_ACTIVATIONS,
            samples=(*_PAIR, s(t(2, 3), t(2, 3), alpha=2)),
            onnx="Add",
            scores=Scores.PASSED_ON,
        ),
        Op(
            "sub",
            "input, other, *, alpha=1",
            fn.Subtract,
            names="sub subtract __sub__ __isub__ operator.isub",
            inputs=_TWO,
            samples=(*_PAIR, s(1.5, t(2, 3))),
            odd={torch.rsub: "other, input, *, alpha=1", Tensor.__rsub__: "other, input"},
            onnx="Sub",
            scores=Scores.PASSED_ON,
        ),
        Op(
            "mul",
            "input, other",
            fn.Multiply,
            names="mul multiply __mul__ __rmul__ __imul__ operator.imul",
            inputs=_TWO,
            samples=_PAIR,
            onnx="Mul",
            scores=Scores.PASSED_ON,
        ),
        Op(
            "div",
            "input, other, *, rounding_mode=None",
            fn.Divide,
            names=(
                "div divide true_divide truediv __truediv__ __itruediv__ __div__ operator.itruediv"
            ),
            inputs=_TWO,
            samples=(
                s(t(2, 4), t(2, 4, kind="positive")),
                s(t(2, 4), 3.0),
                s(2.0, t(2, 4, kind="positive")),
            ),
            odd={Tensor.__rtruediv__: "other, input"},
            onnx="Div",
            scores=Scores.PASSED_ON,
        ),
        Op(
            "floor_divide",
            "input, other",
            fn.FloorDivide,
            _FLOAT,
            names="floor_divide floordiv __floordiv__",
            inputs=_TWO,
            samples=(s(t(2, 4), 0.5),),
        ),
        Op(
            "remainder",
            "input, other",
            fn.Remainder,
            _FLOAT,
            names="remainder __mod__ operator.mod",
            inputs=_TWO,
            samples=(s(t(2, 4), 0.7),),
        ),
        Op("fmod", "input, other", fn.Fmod, _FLOAT, inputs=_TWO, samples=(s(t(2, 4), 0.7),)),
        Op(
            "pow",
            "input, exponent",
            fn.Pow,
            names="pow __pow__",
            inputs=("input", "exponent"),
            samples=(
                s(t(2, 4), 2),
                s(t(2, 4, kind="positive"), 0.5),
                s(t(2, 4), 3.0),
                s(2.0, t(2, 4)),
            ),
            odd={Tensor.__rpow__: "exponent, input"},
            onnx="Pow",
        ),
        Op(
            "atan2",
            "input, other",
            fn.Atan2,
            names="atan2 arctan2",
            inputs=_TWO,
            samples=(s(t(2, 4), t(2, 4)),),
        ),
        Op(
            "maximum",
            "input, other",
            fn.Maximum,
            _SHARED,
            inputs=_TWO,
            samples=(s(t(2, 4), t(2, 4)),),
            onnx="Max",
        ),
        Op(
            "minimum",
            "input, other",
            fn.Minimum,
            _SHARED,
            inputs=_TWO,
            samples=(s(t(2, 4), t(2, 4)),),
            onnx="Min",
        ),
        Op(
            "lerp",
            "input, end, weight",
            fn.Lerp,
            inputs=("input", "end"),
            samples=(s(t(2, 4), t(2, 4), 0.3),),
        ),
        Op(
            "addcmul",
            "input, tensor1, tensor2, *, value=1",
            fn.Addcmul,
            inputs=("input", "tensor1", "tensor2"),
            samples=(s(t(2, 4), t(2, 4), t(2, 4), value=0.5),),
        ),
        Op(
            "where",
            "condition, input, other",
            fn.Where,
            _SHARED,
            names="torch.where",
            inputs=_TWO,
            odd={Tensor.where: "input, condition, other"},
            samples=(
                s(t(2, 4, kind="bool"), t(2, 4), t(2, 4)),
                s(t(2, 4, kind="bool"), t(2, 4), 0.0),
            ),
            sizes=Sizes.WHERE,
            onnx="Where",
            scores=Scores.PASSED_ON,
        ),
        one("neg", fn.Neg, names="neg negative __neg__", onnx="Neg"),
        one("abs", fn.Abs, names="abs absolute __abs__", onnx="Abs"),
        one("sqrt", fn.Sqrt, _POSITIVE, onnx="Sqrt"),
        one("rsqrt", fn.RSqrt, _POSITIVE),
        one("square", fn.Square),
        one("reciprocal", fn.Reciprocal, _POSITIVE),
        one("exp", fn.Exponential, onnx="Exp"),
        one("exp2", fn.Exp2),
        one("expm1", fn.Expm1),
        one("log", fn.Log, _POSITIVE, onnx="Log"),
        one("log2", fn.Log2, _POSITIVE),
        one("log10", fn.Log10, _POSITIVE),
        one("log1p", fn.Log1p, _POSITIVE),
        one("erf", fn.Erf, grid=_FIXED, fixed=(-1.0, 1.0), onnx="Erf"),
        one("sin", fn.Sin, grid=_FIXED, fixed=(-1.0, 1.0), onnx="Sin"),
        one("cos", fn.Cos, grid=_FIXED, fixed=(-1.0, 1.0), onnx="Cos"),
        one("tan", fn.Tan, _UNIT),
        one("asin", fn.Asin, _UNIT, "asin arcsin"),
        one("acos", fn.Acos, _UNIT, "acos arccos"),
        one("atan", fn.Atan, names="atan arctan"),
        one("sinh", fn.Sinh),
        one("cosh", fn.Cosh),
        one("floor", fn.Floor, grid=_FLOAT, onnx="Floor"),
        one("ceil", fn.Ceil, grid=_FLOAT, onnx="Ceil"),
        Op("round", "input, *, decimals=0", fn.Round, _FLOAT, samples=_V, onnx="Round"),
        one("trunc", fn.Trunc, names="trunc fix", grid=_FLOAT),
        one("frac", fn.Frac, grid=_FLOAT),
        one("sign", fn.Sign, names="sign sgn", grid=_FLOAT),
        Op(
            "clamp",
            "input, min=None, max=None",
            fn.Clamp,
            names="clamp clip",
            samples=(s(t(2, 4), -0.5, 0.5), s(t(2, 4), min=0.0), s(t(2, 4), max=0.3)),
            onnx="Clip",
        ),
        Op("clamp_min", "input, min", fn.ClampMin, samples=(s(t(2, 4), 0.0),)),
        Op("clamp_max", "input, max", fn.ClampMax, samples=(s(t(2, 4), 0.5),)),
        Op("nan_to_num", "input, nan=0.0, posinf=None, neginf=None", fn.NanToNum, samples=_V),
        *(
            Op(
                name,
                "input, other",
                cls,
                _INDEX,
                names=names,
                inputs=_TWO,
                samples=(s(t(2, 4), t(2, 4)), s(t(2, 4), 0.5)),
            )
            for name, cls, names in (
                ("eq", fn.Equal, "eq __eq__"),
                ("ne", fn.NotEqual, "ne not_equal __ne__"),
                ("gt", fn.Greater, "gt greater __gt__"),
                ("ge", fn.GreaterEqual, "ge greater_equal __ge__"),
                ("lt", fn.Less, "lt less __lt__"),
                ("le", fn.LessEqual, "le less_equal __le__"),
            )
        ),
        Op("logical_and", "input, other", fn.LogicalAnd, _INDEX, inputs=_TWO, samples=_BOOLS),
        Op("logical_or", "input, other", fn.LogicalOr, _INDEX, inputs=_TWO, samples=_BOOLS),
        Op("logical_xor", "input, other", fn.LogicalXor, _INDEX, inputs=_TWO, samples=_BOOLS),
        Op("logical_not", "input", fn.LogicalNot, _INDEX, samples=(s(t(2, 6, kind="bool")),)),
        Op(
            "bitwise_and",
            "input, other",
            fn.BitwiseAnd,
            _INDEX,
            names="bitwise_and __and__ __rand__ operator.and_",
            inputs=_TWO,
            samples=(*_BOOLS, *_INTS),
        ),
        Op(
            "bitwise_or",
            "input, other",
            fn.BitwiseOr,
            _INDEX,
            names="bitwise_or __or__ __ror__ operator.or_",
            inputs=_TWO,
            samples=(*_BOOLS, *_INTS),
        ),
        Op(
            "bitwise_xor",
            "input, other",
            fn.BitwiseXor,
            _INDEX,
            names="bitwise_xor __xor__ __rxor__ operator.xor",
            inputs=_TWO,
            samples=(*_BOOLS, *_INTS),
        ),
        Op(
            "bitwise_not",
            "input",
            fn.BitwiseNot,
            _INDEX,
            names="bitwise_not __invert__ operator.invert",
            samples=(s(t(2, 6, kind="bool")),),
        ),
        one("isnan", fn.IsNan, grid=_INDEX),
        one("isinf", fn.IsInf, grid=_INDEX),
    )


def _reductions() -> tuple[Op, ...]:
    dims = (s(t(2, 4, 5), 1), s(t(2, 4, 5), dim=(1, 2), keepdim=True), s(t(2, 4, 5), -1, True))
    one_dim = (s(t(2, 4, 5), 1), s(t(2, 4, 5), dim=-1))
    return (
        Op(
            "mean",
            "input, dim=None, keepdim=False, *, dtype=None",
            fn.Mean,
            samples=(*dims, s(t(2, 4))),
            sizes=Sizes.REDUCE,
            onnx="ReduceMean",
        ),
        Op(
            "sum",
            "input, dim=None, keepdim=False, *, dtype=None",
            fn.Sum,
            samples=(*dims, s(t(2, 4))),
            sizes=Sizes.REDUCE,
            onnx="ReduceSum",
        ),
        Op(
            "prod",
            "input, dim=None, keepdim=False, *, dtype=None",
            fn.Prod,
            samples=(s(t(2, 4, kind="positive"), 1),),
            sizes=Sizes.REDUCE,
            onnx="ReduceProd",
        ),
        Op(
            "var",
            "input, dim=None, unbiased=True, keepdim=False, *, correction=None",
            fn.Var,
            samples=(s(t(2, 4, 5), -1, False), s(t(2, 4, 5), dim=1, unbiased=False, keepdim=True)),
            sizes=Sizes.REDUCE,
        ),
        Op(
            "std",
            "input, dim=None, unbiased=True, keepdim=False, *, correction=None",
            fn.Std,
            samples=(s(t(2, 4, 5), -1, False),),
            sizes=Sizes.REDUCE,
        ),
        Op(
            "var_mean",
            "input, dim=None, unbiased=True, keepdim=False, *, correction=None",
            fn.VarMean,
            samples=(s(t(2, 4, 5), -1, False),),
            sizes=Sizes.REDUCE,
        ),
        Op(
            "logsumexp",
            "input, dim, keepdim=False",
            fn.LogSumExp,
            samples=one_dim,
            sizes=Sizes.REDUCE,
        ),
        Op(
            "max",
            "input, dim=None, keepdim=False",
            fn.Max,
            _SAME,
            samples=(
                s(t(2, 4)),
                s(t(2, 4, 5), 1),
                s(t(2, 4, 5), dim=-1, keepdim=True),
                s(t(2, 4), t(2, 4)),
            ),
            sizes=Sizes.REDUCE,
        ),
        Op(
            "min",
            "input, dim=None, keepdim=False",
            fn.Min,
            _SAME,
            samples=(s(t(2, 4)), s(t(2, 4, 5), 1), s(t(2, 4), t(2, 4))),
            sizes=Sizes.REDUCE,
        ),
        Op(
            "amax",
            "input, dim=(), keepdim=False",
            fn.AMax,
            _SAME,
            samples=dims,
            sizes=Sizes.REDUCE,
            onnx="ReduceMax",
        ),
        Op(
            "amin",
            "input, dim=(), keepdim=False",
            fn.AMin,
            _SAME,
            samples=dims,
            sizes=Sizes.REDUCE,
            onnx="ReduceMin",
        ),
        Op(
            "argmax",
            "input, dim=None, keepdim=False",
            fn.ArgMax,
            _INDEX,
            samples=one_dim,
            sizes=Sizes.REDUCE,
            onnx="ArgMax",
        ),
        Op(
            "argmin",
            "input, dim=None, keepdim=False",
            fn.ArgMin,
            _INDEX,
            samples=one_dim,
            sizes=Sizes.REDUCE,
            onnx="ArgMin",
        ),
        Op(
            "any",
            "input, dim=None, keepdim=False",
            fn.ReduceAny,
            _INDEX,
            samples=(s(t(2, 4, kind="bool"), 1),),
            sizes=Sizes.REDUCE,
        ),
        Op(
            "all",
            "input, dim=None, keepdim=False",
            fn.ReduceAll,
            _INDEX,
            samples=(s(t(2, 4, kind="bool"), 1),),
            sizes=Sizes.REDUCE,
        ),
        Op("cumsum", "input, dim, *, dtype=None", fn.CumSum, samples=one_dim, onnx="CumSum"),
        Op("cumprod", "input, dim, *, dtype=None", fn.CumProd, samples=one_dim),
        Op(
            "topk",
            "input, k, dim=-1, largest=True, sorted=True, *, stable=False",
            fn.TopK,
            _SAME,
            samples=(s(t(2, 7), 3),),
            sizes=Sizes.TOP,
            onnx="TopK",
        ),
        Op(
            "sort",
            "input, dim=-1, descending=False, *, stable=False",
            fn.Sort,
            _SAME,
            names="torch.sort Tensor.sort",
            samples=(
                s(t(2, 7)),
                s(t(2, 7), dim=1, descending=True),
                s(t(2, 7, kind="int"), stable=True),
            ),
        ),
        Op(
            "argsort",
            "input, dim=-1, descending=False, *, stable=False",
            fn.ArgSort,
            _INDEX,
            samples=(s(t(2, 7)), s(t(2, 7, kind="int"), stable=True)),
        ),
    )


def _moves() -> tuple[Op, ...]:
    def move(name: str, params: str, module: type[nn.Module], *samples: Sample, **kw: Any) -> Op:
        full = f"input, {params}" if params else "input"
        return Op(name, full, module, kw.pop("grid", _SAME), samples=samples, **kw)

    def view(name: str, params: str, module: type[nn.Module], *samples: Sample, **kw: Any) -> Op:
        shared = {"memory": Memory.VIEW, "moved": Moved.SIGNED} | kw
        return move(name, params, module, *samples, **shared)

    x = t(2, 3, 4)
    image = t(2, 4, 6, 6)
    index = t(2, 3, 2, kind="int", high=4)
    pads = (
        nn.ConstantPad1d,
        nn.ConstantPad2d,
        nn.ConstantPad3d,
        nn.ZeroPad1d,
        nn.ZeroPad2d,
        nn.ZeroPad3d,
        nn.ReflectionPad1d,
        nn.ReflectionPad2d,
        nn.ReflectionPad3d,
        nn.ReplicationPad1d,
        nn.ReplicationPad2d,
        nn.ReplicationPad3d,
        nn.CircularPad1d,
        nn.CircularPad2d,
        nn.CircularPad3d,
    )
    return (
        Op(
            "cat",
            "tensors, dim=0",
            fn.Concat,
            _SHARED,
            names="torch.cat torch.concat torch.concatenate",
            inputs=("tensors",),
            samples=(s([t(2, 3), t(2, 4)], 1), s((t(2, 3), t(2, 3)), dim=-1)),
            sizes=Sizes.JOIN,
            onnx="Concat",
        ),
        Op(
            "stack",
            "tensors, dim=0",
            fn.Stack,
            _SHARED,
            inputs=("tensors",),
            samples=(s([t(2, 3), t(2, 3)]), s((t(2, 3), t(2, 3)), dim=1)),
            sizes=Sizes.STACK,
        ),
        move(
            "chunk",
            "chunks, dim=0",
            fn.Chunk,
            s(t(2, 6), 2, 1),
            s(t(2, 6), 3, dim=-1),
            memory=Memory.PARTS,
            moved=Moved.SIGNED,
            sizes=Sizes.SPLIT,
            onnx="Split",
        ),
        move(
            "split",
            "split_size_or_sections, dim=0",
            fn.Split,
            s(t(2, 6), 2, 1),
            s(t(2, 6), [2, 4], dim=1),
            names="split split_with_sizes",
            odd={Tensor.split: "input, split_size_or_sections, dim=0"},
            memory=Memory.PARTS,
            moved=Moved.SIGNED,
            sizes=Sizes.SPLIT,
            onnx="Split",
        ),
        move(
            "tensor_split",
            "indices_or_sections, dim=0",
            fn.TensorSplit,
            s(t(2, 6), 2, 1),
            memory=Memory.PARTS,
            moved=Moved.SIGNED,
            sizes=Sizes.SPLIT,
        ),
        move(
            "unbind",
            "dim=0",
            fn.Unbind,
            s(t(2, 3, 4), 1),
            memory=Memory.PARTS,
            moved=Moved.SIGNED,
            sizes=Sizes.DROP,
        ),
        view("view", "*shape", fn.View, s(x, 2, 12), s(x, 2, -1), sizes=Sizes.VIEW, onnx="Reshape"),
        view(
            "reshape",
            "*shape",
            fn.Reshape,
            s(x, 2, 12),
            s(x, 2, -1),
            names="Tensor.reshape",
            odd={torch.reshape: "input, shape"},
            sizes=Sizes.VIEW,
            onnx="Reshape",
        ),
        view(
            "view_as",
            "other",
            fn.ViewAs,
            s(x, t(2, 12)),
            names="view_as reshape_as",
            sizes=Sizes.OTHER,
        ),
        view(
            "flatten",
            "start_dim=0, end_dim=-1",
            nn.Flatten,
            s(x, 1),
            s(t(2, 3, 4, 5), 1, 2),
            s(t(2, 3, 4, 5), start_dim=2),
            odd={torch.ravel: "input", Tensor.ravel: "input"},
            dynamic=fn.DynamicFlatten,
            sizes=Sizes.FLATTEN,
            onnx="Flatten",
        ),
        view(
            "unflatten",
            "dim, unflattened_size",
            nn.Unflatten,
            s(t(2, 12), 1, (3, 4)),
            dynamic=fn.DynamicUnflatten,
            odd={
                Tensor.unflatten: "input, dim, unflattened_size",
                torch.unflatten: "input, dim, unflattened_size",
            },
            names="",
            sizes=Sizes.UNFLATTEN,
        ),
        view(
            "permute",
            "*dims",
            fn.Permute,
            s(x, 0, 2, 1),
            names="Tensor.permute",
            odd={torch.permute: "input, dims"},
            sizes=Sizes.PERMUTE,
            onnx="Transpose",
        ),
        view(
            "transpose",
            "dim0, dim1",
            fn.Transpose,
            s(x, 1, 2),
            sizes=Sizes.TRANSPOSE,
            onnx="Transpose",
        ),
        view(
            "swapaxes",
            "axis0, axis1",
            fn.SwapDims,
            s(x, 1, 2),
            names="swapaxes swapdims",
            sizes=Sizes.TRANSPOSE,
        ),
        view(
            "movedim",
            "source, destination",
            fn.MoveDim,
            s(x, 1, 2),
            names="movedim moveaxis",
            sizes=Sizes.MOVE,
        ),
        view("t", "", fn.MatrixTranspose, s(t(3, 4)), sizes=Sizes.REVERSE),
        view("adjoint", "", fn.AdjointTranspose, s(x)),
        view(
            "squeeze", "dim=None", fn.Squeeze, s(t(2, 1, 3), 1), sizes=Sizes.SQUEEZE, onnx="Squeeze"
        ),
        view("unsqueeze", "dim", fn.Unsqueeze, s(x, 1), sizes=Sizes.UNSQUEEZE, onnx="Unsqueeze"),
        view(
            "expand",
            "*size",
            fn.Expand,
            s(t(2, 1, 4), 2, 3, 4),
            s(t(2, 1, 4), -1, 3, -1),
            sizes=Sizes.EXPAND,
            onnx="Expand",
        ),
        view("expand_as", "other", fn.ExpandAs, s(t(2, 1, 4), x), sizes=Sizes.OTHER),
        view("broadcast_to", "size", fn.BroadcastTo, s(t(2, 1, 4), (2, 3, 4)), sizes=Sizes.EXPAND),
        move(
            "repeat",
            "*repeats",
            fn.Repeat,
            s(x, 1, 2, 1),
            moved=Moved.BYTES,
            sizes=Sizes.REPEAT,
            onnx="Tile",
        ),
        move(
            "tile",
            "*dims",
            fn.Tile,
            s(x, 1, 2, 1),
            names="Tensor.tile",
            odd={torch.tile: "input, dims"},
            moved=Moved.SIGNED,
            sizes=Sizes.REPEAT,
            onnx="Tile",
        ),
        move(
            "repeat_interleave",
            "repeats, dim=None",
            fn.RepeatInterleave,
            s(x, 2, 1),
            sized_by=("repeats", Sized.SUM),
            moved=Moved.BYTES,
            sizes=Sizes.COPIES,
        ),
        move(
            "roll",
            "shifts, dims=None",
            fn.Roll,
            s(x, 1, 1),
            s(image, (1, -2), (2, 3)),
            moved=Moved.BYTES,
        ),
        move(
            "flip",
            "*dims",
            fn.Flip,
            s(x, 1),
            names="Tensor.flip",
            odd={torch.flip: "input, dims"},
            moved=Moved.SIGNED,
        ),
        move("rot90", "k=1, dims=(0, 1)", fn.Rot90, s(image, 1, (2, 3)), moved=Moved.BYTES),
        view("narrow", "dim, start, length", fn.Narrow, s(x, 1, 0, 2), onnx="Slice"),
        view("select", "dim, index", fn.Select, s(x, 1, 0), sizes=Sizes.DROP, onnx="Gather"),
        view(
            "getitem",
            "index",
            fn.GetItem,
            s(x, (slice(None), 0)),
            s(x, (slice(None), slice(1, None, 2))),
            s(x, (Ellipsis, None, 1)),
            names="operator.getitem __getitem__",
            sized_by=("index", Sized.MASK),
            sizes=Sizes.INDEX,
            onnx="Slice",
        ),
        move("setitem", "index, value", fn.SetItem, names="", grid=_FLOAT),
        move(
            "index_select",
            "dim, index",
            fn.IndexSelect,
            s(x, 1, t(4, kind="int", high=3)),
            moved=Moved.SIGNED,
            sizes=Sizes.BY_INDEX,
            onnx="Gather",
        ),
        move(
            "gather",
            "dim, index",
            fn.Gather,
            s(x, 2, index),
            sizes=Sizes.BY_INDEX,
            onnx="GatherElements",
        ),
        move(
            "take_along_dim",
            "indices, dim=None",
            fn.TakeAlongDim,
            s(x, index, 2),
            sizes=Sizes.BY_INDEX,
        ),
        move(
            "diagonal",
            "offset=0, dim1=0, dim2=1",
            fn.Diagonal,
            s(t(2, 4, 4), 0, 1, 2),
            memory=Memory.VIEW,
            moved=Moved.BYTES,
        ),
        move("tril", "diagonal=0", fn.Tril, s(t(2, 4, 4))),
        move("triu", "diagonal=0", fn.Triu, s(t(2, 4, 4), 1)),
        move(
            "scatter",
            "dim, index, src",
            fn.Scatter,
            s(x, 2, index, t(2, 3, 2)),
            grid=_FLOAT,
            odd={Tensor.scatter: "input, dim, index, src"},
            onnx="ScatterElements",
        ),
        move(
            "scatter_add", "dim, index, src", fn.ScatterAdd, s(x, 2, index, t(2, 3, 2)), grid=_FLOAT
        ),
        move(
            "index_add",
            "dim, index, source, *, alpha=1",
            fn.IndexAdd,
            s(x, 1, t(5, kind="int", high=3), t(2, 5, 4)),
            s(x, 0, t(2, kind="int", high=2), t(2, 3, 4), alpha=0.5),
            grid=_FLOAT,
        ),
        move(
            "masked_fill",
            "mask, value",
            fn.MaskedFill,
            s(x, t(2, 3, 4, kind="bool"), -1e9),
            grid=_FLOAT,
            scores=Scores.PASSED_ON,
        ),
        move(
            "masked_select",
            "mask",
            fn.MaskedSelect,
            s(x, t(2, 3, 4, kind="bool")),
            grid=_FLOAT,
            sized_by=("mask", Sized.NONZERO),
            sizes=Sizes.BY_VALUE,
        ),
        move(
            "pad",
            "pad, mode='constant', value=None",
            fn.Pad,
            s(image, (1, 2, 1, 0)),
            s(image, (1, 1, 1, 1), mode="reflect"),
            s(image, (1, 1), "constant", 2.5),
            names="F.pad",
            classes=pads,
            read=_pad_arguments,
            when=_when_pad,
            sizes=Sizes.PAD,
            onnx="Pad",
        ),
        move(
            "interpolate",
            "size=None, scale_factor=None, mode='nearest', align_corners=None, "
            "recompute_scale_factor=None, antialias=False",
            fn.Interpolate,
            s(image, scale_factor=2),
            s(image, (12, 12), mode="bilinear", align_corners=False),
            s(image, size=(12, 9), mode="bilinear", align_corners=True),
            names="F.interpolate F.upsample",
            classes=(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
            when=_when_interpolate,
            sizes=Sizes.RESIZE,
            onnx="Resize Upsample",
        ),
        move(
            "grid_sample",
            "grid, mode='bilinear', padding_mode='zeros', align_corners=None",
            fn.GridSample,
            s(image, T((2, 5, 5, 2), "unit"), align_corners=False),
            names="F.grid_sample",
            when=_when_grid_sample,
            onnx="GridSample",
        ),
        Op(
            "affine_grid",
            "theta, size, align_corners=None",
            fn.IntegerRange,
            _FLOAT,
            inputs=("theta",),
            names="F.affine_grid",
            samples=(s(t(2, 2, 3), (2, 4, 5, 5), align_corners=False),),
        ),
        move(
            "pixel_shuffle",
            "upscale_factor",
            nn.PixelShuffle,
            s(image, 2),
            names="pixel_shuffle F.pixel_shuffle",
            memory=Memory.VIEW,
            sizes=Sizes.INHERIT,
            onnx="DepthToSpace",
        ),
        move(
            "pixel_unshuffle",
            "downscale_factor",
            nn.PixelUnshuffle,
            s(image, 2),
            names="pixel_unshuffle F.pixel_unshuffle",
            memory=Memory.VIEW,
            moved=Moved.BYTES,
            sizes=Sizes.INHERIT,
            onnx="SpaceToDepth",
        ),
        move(
            "channel_shuffle",
            "groups",
            nn.ChannelShuffle,
            s(image, 2),
            names="channel_shuffle F.channel_shuffle",
            memory=Memory.VIEW,
            moved=Moved.BYTES,
            sizes=Sizes.INHERIT,
        ),
        move(
            "unfold",
            "kernel_size, dilation=1, padding=0, stride=1",
            nn.Unfold,
            s(image, 2),
            names="F.unfold",
            dynamic=fn.DynamicUnfold,
            sizes=Sizes.UNFOLD,
        ),
        move(
            "tensor_unfold",
            "dimension, size, step",
            fn.TensorUnfold,
            s(x, 2, 2, 1),
            names="Tensor.unfold",
            memory=Memory.VIEW,
            moved=Moved.BYTES,
            sizes=Sizes.UNFOLD,
        ),
        move(
            "fold",
            "output_size, kernel_size, dilation=1, padding=0, stride=1",
            nn.Fold,
            s(t(2, 16, 9), (6, 6), 2, stride=2),
            names="F.fold",
            grid=Grid.OWN,
            dynamic=fn.DynamicFold,
        ),
        move("contiguous", "*, memory_format=None", fn.Contiguous, s(x), memory=Memory.VIEW),
        move("clone", "*, memory_format=None", fn.Clone, s(x)),
        move("detach", "", fn.Detach, s(x), names="torch.detach Tensor.detach", memory=Memory.VIEW),
        move(
            "identity",
            "",
            nn.Identity,
            s(x),
            names="torch.positive Tensor.positive operator.pos",
            memory=Memory.VIEW,
            onnx="Identity",
        ),
        move(
            "dropout",
            "p=0.5, training=True, inplace=False",
            nn.Dropout,
            s(x, 0.5, False),
            names="F.dropout",
            dynamic=fn.DynamicDropout,
            build=_dropout(nn.Dropout),
            mode=("training", "p"),
            odd={torch.dropout: "input, p, train"},
            classes=(fn.TrainingOnly,),
            memory=Memory.VIEW,
            effect=Effect.RANDOM,
            onnx="Dropout",
        ),
        *(
            move(
                name,
                f"p=0.5, training={name.endswith('d')}, inplace=False",
                cls,
                s(t(2, *(3,) * rank), 0.5, False),
                names=f"F.{name}",
                dynamic=dynamic,
                build=_dropout(cls),
                mode=("training", "p"),
                memory=Memory.VIEW,
                effect=Effect.RANDOM,
                odd={getattr(torch, name): "input, p, train"} if hasattr(torch, name) else {},
            )
            for name, rank, cls, dynamic in (
                ("dropout1d", 2, nn.Dropout1d, fn.DynamicDropout1d),
                ("dropout2d", 3, nn.Dropout2d, fn.DynamicDropout2d),
                ("dropout3d", 4, nn.Dropout3d, fn.DynamicDropout3d),
                ("alpha_dropout", 2, nn.AlphaDropout, fn.DynamicAlphaDropout),
                (
                    "feature_alpha_dropout",
                    2,
                    nn.FeatureAlphaDropout,
                    fn.DynamicFeatureAlphaDropout,
                ),
            )
        ),
        move(
            "to",
            "*args, dtype=None, device=None, non_blocking=False, copy=False, memory_format=None",
            fn.Cast,
            s(x, torch.float64),
            names="Tensor.to",
            odd={Tensor.type: "input, *args"},
            when=_when_cast,
            memory=Memory.VIEW,
        ),
        move("type_as", "other", fn.TypeAs, s(x, t(1)), names="Tensor.type_as", memory=Memory.VIEW),
        move("float", "", fn.ToFloat, s(x), names="Tensor.float", memory=Memory.VIEW),
        move("double", "", fn.ToDouble, s(x), names="Tensor.double", memory=Memory.VIEW),
        move("half", "", fn.ToHalf, s(x), names="Tensor.half", memory=Memory.VIEW),
        move("bfloat16", "", fn.ToBFloat16, s(x), names="Tensor.bfloat16", memory=Memory.VIEW),
        move(
            "long",
            "",
            fn.ToLong,
            s(t(2, 3, kind="bool")),
            names="Tensor.long",
            grid=_INDEX,
            memory=Memory.VIEW,
        ),
        move(
            "int",
            "",
            fn.ToInt,
            s(t(2, 3, kind="bool")),
            names="Tensor.int",
            grid=_INDEX,
            memory=Memory.VIEW,
        ),
        move(
            "bool",
            "",
            fn.ToBool,
            s(t(2, 3, kind="int")),
            names="Tensor.bool",
            grid=_INDEX,
            memory=Memory.VIEW,
        ),
        move(
            "one_hot",
            "num_classes=-1",
            fn.OneHot,
            s(t(2, 3, kind="int", high=4), 4),
            names="F.one_hot",
            grid=_INDEX,
            sized_by=("input", Sized.LARGEST),
            sized_open=("num_classes", -1),
        ),
        move(
            "bucketize",
            "boundaries, *, out_int32=False, right=False",
            fn.Bucketize,
            s(x, t(1)),
            grid=_INDEX,
        ),
        move(
            "nonzero",
            "*, as_tuple=False",
            fn.NonZero,
            s(t(2, 3, kind="int")),
            grid=_INDEX,
            sized_by=("input", Sized.NONZERO),
            sizes=Sizes.BY_VALUE,
        ),
    )


# --- the table ------------------------------------------------------------------------------------

_NAMESPACES: tuple[Any, ...] = (torch, F, Tensor, torch.special, operator)
_NAMED = {
    "torch": torch,
    "F": F,
    "Tensor": Tensor,
    "operator": operator,
    "linalg": torch.linalg,
    "special": torch.special,
}


@dataclass(frozen=True)
class Spelling:
    """One way to call an operator: which row, how its arguments bind, and whether it writes."""

    op: Op
    signature: inspect.Signature
    inplace: bool = False


class Table:
    """Rows by name, by spelling and by module class."""

    def __init__(self, rows: tuple[Op, ...]) -> None:
        self.rows: dict[str, Op] = {}
        self._functions: dict[Any, Spelling] = {}
        self._methods: dict[str, Spelling] = {}
        self._classes: dict[type[nn.Module], Op] = {}
        self._named: dict[str, Op] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Op) -> None:
        """Enter a row; a name, spelling or class that is taken is an error."""
        if row.name in self.rows:
            raise ConfigError(
                "FXQ201", f"operator {row.name!r} has a row already", fix="choose another name"
            )
        self.rows[row.name] = row
        names = row.name if row.names is None else row.names
        for name in names.split():
            for target, inplace in _objects(name):
                if (
                    inplace
                    and row.grid is Grid.INDEX
                    and not name.startswith(("bitwise", "__", "operator"))
                ):
                    continue  # `x.eq_(y)` keeps x's type where `x.eq(y)` gives a bool
                self._enter(target, Spelling(row, row.signature, inplace))
        for target, text in row.odd.items():
            self._enter(target, Spelling(row, parse_signature(text)), replace=True)
        for cls in (row.module, *row.classes, *([row.dynamic] if row.dynamic else [])):
            self._classes.setdefault(cls, row)
            self._named.setdefault(cls.__name__, row)

    def _enter(self, target: Any, spelling: Spelling, *, replace: bool = False) -> None:
        if _is_method(target):
            table: dict[Any, Spelling] = self._methods
            key: Any = target.__name__
        else:
            table, key = self._functions, target
        taken = table.get(key)
        if taken and taken.op is not spelling.op and not replace:
            raise ConfigError(
                "FXQ202",
                f"{key} is a spelling of {taken.op.name!r} and of {spelling.op.name!r}",
                fix="leave it out of the names of one of them",
            )
        table[key] = spelling
        name = str(getattr(target, "__name__", target))
        if not name.startswith("__"):  # `__rmatmul__`: the operands are the other way round
            self._named.setdefault(name, spelling.op)

    def spelling(self, node: fx.Node) -> Spelling | None:
        """The spelling that a call_function or call_method node uses."""
        if node.op == "call_method":
            return self._methods.get(str(node.target))
        return self._functions.get(node.target) if node.op == "call_function" else None

    def named(self, name: str) -> Op | None:
        """The row of a function, method or module class with this plain name."""
        return self._named.get(name)

    def of_class(self, cls: type) -> Op | None:
        """The row of a module class or of its nearest base class."""
        return next((self._classes[c] for c in cls.__mro__ if c in self._classes), None)


def _is_method(target: Any) -> bool:
    name = getattr(target, "__name__", None)
    return name is not None and getattr(Tensor, name, None) is target


def _objects(name: str) -> list[tuple[Any, bool]]:
    """All objects called `name` (or `space.name`) in torch's namespaces, with in-place forms."""
    if "." in name:
        space, short = name.split(".")
        spaces: tuple[Any, ...] = (_NAMED[space],)
    else:
        # every Python object has some of the double-underscore names
        short, spaces = name, (Tensor, operator) if name.startswith("__") else _NAMESPACES
    found: list[tuple[Any, bool]] = []
    dunder_write = short.startswith("__i") and short not in ("__invert__",)
    for space_ in spaces:
        target = getattr(space_, short, None)
        if target is not None:
            found.append(
                (
                    target,
                    dunder_write
                    or (space_ is operator and short.startswith("i") and short != "invert"),
                )
            )
        written = getattr(space_, f"{short}_", None)
        if written is not None and not short.startswith("__") and space_ is not operator:
            found.append((written, True))
    return found


TABLE = Table(
    (
        *_activations(),
        *_weighted(),
        *_norms(),
        *_pools(),
        *_elementwise(),
        *_reductions(),
        *_moves(),
    )
)


def register_op(row: Op) -> None:
    """Give an operator of your own a row: preparation, placement and lowering then know it.

    Raises:
        ConfigError: FXQ201 or FXQ202, the name or a spelling is taken; FXQ204, it is no row.
    """
    if not isinstance(row, Op):
        what = f"a row of the table is an Op, not a {type(row).__name__}"
        raise ConfigError("FXQ204", what, fix='write register_op(Op(name="...", ...))')
    TABLE.add(row)


def row_for_module(module: nn.Module) -> Op | None:
    """The row of a module, by its class; quantized classes answer as the class they extend."""
    return TABLE.of_class(type(module))


def weight_axes(module: nn.Module) -> tuple[int, ...]:
    """Axes of a module's weight along which every place is an output channel; none if unknown.

    A weight that is several matrices has none: its channels are those of each matrix.
    """
    if isinstance(module, Dense):
        return () if module.batch else module.outputs
    row = row_for_module(module)
    return () if row is None or row.weight_axis is None else (row.weight_axis,)


def weight_axis(module: nn.Module) -> int:
    """Axis of the output channels of a weight that has one; the first one where it has several."""
    return next(iter(weight_axes(module)), 0)


def row_of(node: fx.Node, root: nn.Module) -> Op | None:
    """The row of a node, or None for what is no tensor operation or has no row.

    `operator.*` on sizes and `getitem` on tuples share spellings with tensor operations: the
    recorded value of the node (`meta["spec"]`) tells them apart.
    """
    if node.op == "call_module":
        return row_for_module(root.get_submodule(str(node.target)))
    spelling = TABLE.spelling(node)
    if spelling is None or not _computes_tensor(node):
        return None
    return spelling.op


def _computes_tensor(node: fx.Node) -> bool:
    if node.target is operator.getitem or node.target == "__getitem__":
        first = node.args[0]
        return isinstance(first, fx.Node) and _is_tensor_spec(first.meta.get("spec"))
    spec = node.meta.get("spec")
    if _is_tensor_spec(spec) or "spec" not in node.meta:
        return True
    return isinstance(spec, (tuple, list)) and any(_is_tensor_spec(x) for x in spec)


def _is_tensor_spec(spec: Any) -> bool:
    return hasattr(spec, "dtype") and hasattr(spec, "shape")


def is_sum(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node adds two tensors, as a shortcut does."""
    row = row_of(node, root)
    return row is not None and row.name == "add"


def is_inplace(node: fx.Node) -> bool:
    """Whether a function or method node writes into its first argument."""
    spelling = TABLE.spelling(node)
    if spelling is not None and spelling.inplace:
        return True
    return bool(node.kwargs.get("inplace")) or _is_item_write(node)


def _is_item_write(node: fx.Node) -> bool:
    return node.target in (operator.setitem, "__setitem__")


def bind(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Canonical names -> values, defaults filled in; torch's aliases (axis, self, x ...) are taken.

    Raises:
        TypeError: the arguments do not fit the signature.
    """
    known = signature.parameters
    renamed = {
        (_ALIASES[k] if k not in known and _ALIASES.get(k) in known else k): v
        for k, v in kwargs.items()
    }
    variadic = next((p.name for p in known.values() if p.kind is p.VAR_POSITIONAL), None)
    if variadic and variadic in renamed:
        value = renamed.pop(variadic)
        args = (*args, *(value if isinstance(value, (tuple, list)) else (value,)))
    bound = signature.bind(*args, **renamed)
    bound.apply_defaults()
    return {k: _unpacked(v) if k == variadic else v for k, v in bound.arguments.items()}


_ALIASES = {
    "axis": "dim",
    "self": "input",
    "keepdims": "keepdim",
    "tensor": "input",
    "size": "shape",
    "dims": "dim",
    "x": "input",
    "split_size": "split_size_or_sections",
    "mat2": "other",
    "indices": "indices_or_sections",
    "sections": "indices_or_sections",
    "vec1": "input",
    "train": "training",
}


def _unpacked(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """`x.view((2, 3))` and `x.view(2, 3)` mean the same."""
    return tuple(values[0]) if len(values) == 1 and isinstance(values[0], (tuple, list)) else values


def arguments(node: fx.Node, root: nn.Module) -> dict[str, Any]:
    """Canonical argument names of a node's row -> values, whatever its form.

    Tensor operands are fx nodes; static arguments are Python values; what a `torch.nn` module holds
    is read from its attributes (weights come as parameters).

    Raises:
        TypeError: the node's arguments do not fit its row.
        KeyError: the node has no row.
    """
    if node.op != "call_module":
        spelling = TABLE.spelling(node)
        if spelling is None:
            raise KeyError(str(node.target))
        return _canonical(spelling, node)
    module = root.get_submodule(str(node.target))
    row = row_for_module(module)
    if row is None:
        raise KeyError(str(node.target))
    if isinstance(module, fn.Functional):
        return bind(row.signature, node.args, node.kwargs)
    values = {
        name: p.default for name, p in row.signature.parameters.items() if p.default is not p.empty
    }
    values |= {
        name: getattr(module, name) for name in row.signature.parameters if hasattr(module, name)
    }
    if row.read:
        values |= row.read(module)
    for name, value in (*zip(row.inputs, node.args, strict=False), *node.kwargs.items()):
        values[name if name in row.signature.parameters else row.inputs[0]] = value
    return values


def _canonical(spelling: Spelling, node: fx.Node) -> dict[str, Any]:
    """The arguments of an odd spelling, moved to the row's own names."""
    values = bind(spelling.signature, node.args, node.kwargs)
    row = spelling.op.signature.parameters
    if spelling.signature is spelling.op.signature:
        return values
    filled = {n: p.default for n, p in row.items() if p.default is not p.empty}
    filled |= {
        _ALIASES[k] if k not in row and values[k] is not None and k in _ALIASES else k: v
        for k, v in values.items()
    }
    variadic = next((p.name for p in row.values() if p.kind is p.VAR_POSITIONAL), None)
    if variadic and isinstance(filled.get(variadic), (tuple, list)):
        filled[variadic] = tuple(filled[variadic])
    return {k: v for k, v in filled.items() if k in row}


def module_for(row: Op, values: dict[str, Any], *, follows: bool = True) -> tuple[nn.Module, bool]:
    """A module for a call: (module, whether it holds the static arguments).

    Args:
        row: the operator.
        values: canonical arguments; parameters and buffers as tensors, run-time values as nodes.
        follows: whether the flag among `row.mode` follows the mode of the model.

    Returns:
        A `torch.nn` module to be called with the row's `inputs` only, and True; or a functional
        module to be called with all arguments, and False.
    """
    cls = row.module
    if issubclass(cls, fn.Functional):
        return cls(), False
    others = {k: v for k, v in values.items() if k not in row.inputs}
    module = None
    if not follows:
        module = row.constant(values) if row.constant else None
    elif _static({k: v for k, v in others.items() if not isinstance(v, Tensor)}):
        module = row.build(values) if row.build else _by_name(cls, others)
    if module is not None:
        return module, True
    if row.dynamic is None:
        raise ConfigError(
            "FXQ203",
            f"operator {row.name!r} has arguments known at run time only, and no functional module",
            fix="give its row a `dynamic` class",
        )
    return row.dynamic(), False


def _by_name(cls: type[nn.Module], values: Mapping[str, Any]) -> nn.Module:
    wanted = inspect.signature(cls.__init__).parameters
    return cls(**{k: v for k, v in values.items() if k in wanted and k != "inplace"})


def call_arguments(
    row: Op, values: Mapping[str, Any], *, by_name: Collection[str] = ()
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for a functional module from canonical values.

    Values equal to their defaults are left out, so that graphs read well.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    skipped = False
    for name, p in row.signature.parameters.items():
        value = values.get(name, p.default)
        if p.kind is p.VAR_POSITIONAL:
            args += value
        elif p.default is not p.empty and _same(value, p.default):
            skipped = True
        elif name in by_name:
            kwargs[name], skipped = value, True
        elif p.kind is p.KEYWORD_ONLY or skipped:
            kwargs[name] = value
        else:
            args.append(value)
    return tuple(args), kwargs


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b)
