"""QuantConfig: what to quantize and how, frozen and handed in.

Fields left at None take the target's value, so an empty configuration means "as the target runs
fastest and most faithfully". Rules for operator types (`operators`) come before the defaults, rules
for named layers (`layers`) before both.
"""

from __future__ import annotations

import logging
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictBool,
    StrictInt,
    ValidationError,
)

from fxquant.aimet_config import from_aimet, is_aimet
from fxquant.errors import ConfigError, nearest
from fxquant.io import reading
from fxquant.io.writing import as_path
from fxquant.targets.schema import Deploy

log = logging.getLogger("fxquant")

Bits: TypeAlias = Annotated[StrictInt, Field(ge=2, le=32)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OutputRule(_Frozen):
    """What is asked of the output of an operator.

    Attributes:
        quantized: False: no grid; True: a grid also where nothing reads integers.
        bitwidth: bits.
        symmetric: whether the grid is symmetric (and then signed).
        min: lower end of the range, which calibration then leaves alone; 0 or less.
        max: upper end of the range, which calibration then leaves alone; 0 or more.
    """

    quantized: StrictBool | None = None
    bitwidth: Bits | None = None
    symmetric: StrictBool | None = None
    min: float | None = Field(None, allow_inf_nan=False, strict=True)
    max: float | None = Field(None, allow_inf_nan=False, strict=True)


class WeightRule(_Frozen):
    """What is asked of the weight of an operator.

    Attributes:
        quantized: False: stored in floating point.
        bitwidth: bits.
        symmetric: whether the grid is symmetric.
        per_channel: one grid per output channel instead of one for the tensor.
    """

    quantized: StrictBool | None = None
    bitwidth: Bits | None = None
    symmetric: StrictBool | None = None
    per_channel: StrictBool | None = None


class BiasRule(_Frozen):
    """What is asked of the bias of an operator.

    Attributes:
        quantized: False: stored in floating point.
    """

    quantized: StrictBool | None = None


class Rule(_Frozen):
    """What is asked of some operators; what is left out is decided elsewhere.

    Attributes:
        keep_float: compute in floating point; a neighbour's grids stay.
        output: the first output.
        weight: the weight.
        bias: the bias.
    """

    keep_float: StrictBool | None = None
    output: OutputRule = OutputRule()
    weight: WeightRule = WeightRule()
    bias: BiasRule = BiasRule()

    def asked(self) -> dict[str, Any]:
        """What is asked, by dotted key: `{"output.bitwidth": 16}`."""
        plain: dict[str, Any] = self.model_dump(exclude_none=True)
        found = {k: v for k, v in plain.items() if not isinstance(v, dict)}
        inner = {k: v for k, v in plain.items() if isinstance(v, dict)}
        return found | {f"{k}.{name}": v for k, part in inner.items() for name, v in part.items()}


_SCHEMA = "QuantConfig.json_schema() tells all keys and their values"


class QuantConfig(_Frozen):
    """What to quantize and how.

    Attributes:
        activation_bitwidth: bits of activations, 2 to 32.
        activation_symmetric: whether activation grids are symmetric (and then signed).
        weight_bitwidth: bits of weights, 2 to 32.
        weight_symmetric: whether weight grids are symmetric.
        per_channel: one weight grid per output channel instead of one per tensor.
        quantize_activations: False: outputs have a grid only where a rule asks for it.
        quantize_weights: False: weights have a grid only where a rule asks for it.
        quantize_bias: put biases on their int32 grid.
        quantize_inputs: give the graph's inputs a grid where integers are read.
        quantize_outputs: give the graph's outputs a grid even where the kernel can write floats.
        fold_batch_norms: fold batch norms into the convolution before them; "live": with every
            call, so that they go on learning in training.
        deploy: the CPUs that files are written for ("any", "vnni", "avx2", "arm"); default: what
            the target says.
        keep_float: paths or globs of modules that stay in floating point.
        supergroups: chains of operators that one kernel computes, beside those of the target.
        supergroups_only: these chains take the place of those of the target and of the activations
            that its kernels absorb.
        operators: rules by name of an operator of the table, such as "linear".
        layers: rules by path of a module, or by glob; a path decides before a glob.

    Example:
        >>> rule = {"output": {"bitwidth": 16}}
        >>> QuantConfig.load({"layers": {"head": rule}}).layers["head"].output.bitwidth
        16
    """

    activation_bitwidth: Bits | None = None
    activation_symmetric: StrictBool | None = None
    weight_bitwidth: Bits | None = None
    weight_symmetric: StrictBool | None = None
    per_channel: StrictBool | None = None
    quantize_activations: StrictBool = True
    quantize_weights: StrictBool = True
    quantize_bias: StrictBool = True
    quantize_inputs: StrictBool = True
    quantize_outputs: StrictBool = False
    fold_batch_norms: StrictBool | Literal["live"] = True
    deploy: Deploy | None = None
    keep_float: tuple[str, ...] = ()
    supergroups: tuple[tuple[str, ...], ...] = ()
    supergroups_only: StrictBool = False
    operators: dict[str, Rule] = Field(default_factory=dict)
    layers: dict[str, Rule] = Field(default_factory=dict)
    _foreign: bool = PrivateAttr(False)

    @property
    def is_foreign(self) -> bool:
        """Whether it was read from another tool's file, whose rules are meant for many networks.

        Such rules may have nothing to do; one's own are an error then.
        """
        return self._foreign

    @classmethod
    def load(cls, source: QuantConfig | dict[str, Any] | str | Path | None) -> QuantConfig:
        """A configuration from itself, a mapping, a JSON file, a preset or None (all defaults).

        Presets are `default`, `per_channel`, `per_tensor`, `integer_outputs` and `reduce_range`
        (weights of 7 bits, for x86 CPUs without VNNI); a file of that name in the current folder
        comes first. A file, or the content of a file, may be one of
        AIMET's (`fxquant.aimet_config`).

        Raises:
            ConfigError: FXQ220 the file cannot be read, FXQ221 a key or value is wrong; FXQ227 to
                FXQ229 for files of AIMET.
        """
        if source is None:
            return cls()
        if isinstance(source, QuantConfig):
            return source
        data = source if isinstance(source, dict) else read_json(_preset_or_file(source))
        if is_aimet(data):
            return _from_aimet(data)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(p) for p in first["loc"]) or "the configuration"
            what = f"{key}: {first['msg']}"
            raise ConfigError("FXQ221", what, fix=_fix(first["loc"]) or _SCHEMA) from error

    def replace(self, **changes: Any) -> QuantConfig:
        """A copy with some fields changed; values are checked."""
        return QuantConfig.load({**self.model_dump(), **changes})._as_foreign(self._foreign)

    def _as_foreign(self, foreign: bool) -> QuantConfig:
        self._foreign = foreign
        return self

    def with_bits(self, given: tuple[Any, ...], default: tuple[int, int]) -> QuantConfig:
        """A copy in which the bits of activations and of weights are set.

        Args:
            given: what a caller asks for, of activations and of weights; None for nothing.
            default: bits where neither the caller nor the configuration says anything.

        Raises:
            ConfigError: FXQ233 there is something else among the arguments, FXQ234 the caller and
                the configuration disagree, or nothing would have these bits.
        """
        names = ("default_output_bw", "default_param_bw")
        odd = [value for value in given[:2] if isinstance(value, str)]
        if odd or len(given) > len(names):
            what = f"default_output_bw is {odd[0]!r}" if odd else "too many positional arguments"
            fix = (
                "AIMET's older signature has a rounding mode in the fourth place, ties go to even "
                "here; write default_output_bw=8, default_param_bw=8, in_place=..., config_file=..."
            )
            raise ConfigError("FXQ233", f"QuantizationSimModel: {what}", fix=fix)
        fields = ("activation_bitwidth", "weight_bitwidth")
        bits: dict[str, Any] = {}
        for name, field, value, usual in zip(names, fields, given, default, strict=True):
            said = getattr(self, field)
            if value is not None and said not in (None, value):
                what = f"{name}={value}, but {field} of the configuration is {said}"
                raise ConfigError("FXQ234", what, fix="give one of them")
            bits[field] = value if said is None else said
            self._refuse_idle(field, name if said is None else field, bits[field])
            bits[field] = usual if bits[field] is None else bits[field]
        return self.replace(**bits)

    def _refuse_idle(self, field: str, name: str, value: object) -> None:
        """Bits that were asked for must be those of something."""
        switch, part = ("quantize_weights", "weight")
        if field == "activation_bitwidth":
            switch, part = ("quantize_activations", "output")
        rules = [*self.operators.values(), *self.layers.values()]
        idle = not getattr(self, switch) and not any(getattr(r, part).quantized for r in rules)
        if part == "output":
            idle = idle and not self.quantize_inputs
        if idle and value is not None and not self.is_foreign:
            what = f"{name}={value}, but with {switch}=false nothing has these bits"
            raise ConfigError("FXQ234", what, fix="leave one of them out")

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema of configuration files (`docs/quant_config.schema.json`)."""
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **cls.model_json_schema(),
        }


def _preset_or_file(source: str | Path) -> Path:
    """The file of a preset's name, or the path as it is."""
    preset = Path(__file__).parent / "presets" / f"{source}.json"
    is_name = isinstance(source, str) and source.isidentifier() and not Path(source).exists()
    return preset if is_name and preset.is_file() else as_path(source, "the configuration")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ConfigError: FXQ220, it cannot be read.
    """
    try:
        return reading.read_json(path)
    except (OSError, ValueError) as error:
        what = f"cannot read the configuration {path}: {reading.reason(error)}"
        fix = 'give the path of a JSON file, such as {"activation_bitwidth": 8}'
        raise ConfigError("FXQ220", what, fix=fix) from error


def _from_aimet(data: dict[str, Any]) -> QuantConfig:
    found = from_aimet(data)
    if found.notes:
        log.warning(
            "AIMET's file: %d key(s) mean something else here, or nothing:", len(found.notes)
        )
    for note in found.notes:
        log.warning("  %s", note)
    return QuantConfig.load(found.settings)._as_foreign(True)


def _fix(loc: tuple[int | str, ...]) -> str:
    """The keys that are known where an unknown one stands, the nearest first."""
    known = _keys_at(QuantConfig, loc[:-1])
    if loc and loc[-1] in known:  # it is the value that is wrong
        return ""
    all_of_them = f"known keys: {', '.join(known)}" if known else ""
    close = nearest(str(loc[-1]), known) if loc else ""
    return "; ".join(filter(None, (close, all_of_them)))


def _keys_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    while loc:
        name, *rest = loc
        field = model.model_fields.get(str(name))
        kind = None if field is None else field.annotation
        if typing.get_origin(kind) is dict:  # one more step: the name of the operator or layer
            kind, rest = typing.get_args(kind)[1], rest[1:]
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        model, loc = kind, tuple(rest)
    return list(model.model_fields)
