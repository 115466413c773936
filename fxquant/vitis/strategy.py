"""The strategy file: what to quantize and how, for everything, for a kind of tensor, for layers.

Precedence, weakest first: the target, `overall_quantize_config`, `tensor_quantize_config`, rules
for a `layer_type`, rules for a `layer_name`. In each of them what is said about a kind of tensor
counts more than what is said about all. A rule that says nothing about a property leaves it as it
is.

Layer names are module paths or globs; layer types are operators ("conv2d", "add") or module classes
("Conv2d").
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, model_validator

from fxquant.errors import ConfigError, nearest
from fxquant.io.reading import read_json, reason
from fxquant.io.writing import as_path
from fxquant.targets import RoundMode

if TYPE_CHECKING:
    from pathlib import Path

Kind = Literal["input", "weights", "bias", "activation"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Method = Literal["maxmin", "percentile", "entropy", "mse", "diffs"]
Statistic = Literal["modal", "max", "mean", "median"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorRule(_Strict):
    """How tensors are quantized; what is None is left as it is.

    Attributes:
        datatype: "int", or a floating-point type; "float32" means not quantized.
        bit_width: bits of the integers.
        method: how a range is chosen from one tensor.
        percentage: of the values that "percentile" keeps, in per cent.
        round_mode: where ties go.
        symmetry: whether zero lies in the middle.
        per_channel: one range a channel.
        signed: whether there are negative integers.
        narrow_range: leave out the smallest integer.
        scale_type: any step, or powers of two.
        calib_statistic_method: which of the ranges of all batches is taken.
    """

    datatype: Literal["int", "bfloat16", "float16", "float32"] | None = None
    bit_width: int | None = Field(None, ge=2, le=32, strict=True)
    method: Method | None = None
    percentage: float | None = Field(None, gt=0, le=100, strict=True)
    round_mode: RoundMode | None = None
    symmetry: StrictBool | None = None
    per_channel: StrictBool | None = None
    signed: StrictBool | None = None
    narrow_range: StrictBool | None = None
    scale_type: Literal["float", "poweroftwo"] | None = None
    calib_statistic_method: Statistic | None = None

    @property
    def said(self) -> dict[str, Any]:
        """Properties that are given."""
        return self.model_dump(exclude_none=True)

    def under(self, stronger: TensorRule | None) -> TensorRule:
        """This rule with what a stronger one says."""
        if stronger is None:
            return self
        return TensorRule.model_validate({**self.said, **stronger.said})

    @model_validator(mode="after")
    def _fits(self) -> TensorRule:
        if self.scale_type == "poweroftwo":
            wrong = {
                "symmetry": self.symmetry is False,
                "signed": self.signed is False,
                "method": self.method not in (None, "diffs", "maxmin"),
                "calib_statistic_method": self.calib_statistic_method not in (None, "modal"),
            }
            for key in (k for k, bad in wrong.items() if bad):
                msg = f"{key}={getattr(self, key)} does not go with scale_type=poweroftwo"
                raise ValueError(msg)
        if self.scale_type == "float" and self.method == "diffs":
            msg = "method=diffs searches powers of two: it does not go with scale_type=float"
            raise ValueError(msg)
        if self.scale_type == "float" and self.calib_statistic_method == "modal":
            msg = "calib_statistic_method=modal counts positions: not with scale_type=float"
            raise ValueError(msg)
        return self


class TensorRules(_Strict):
    """Rules by kind of tensor."""

    input: TensorRule | None = None
    weights: TensorRule | None = None
    bias: TensorRule | None = None
    activation: TensorRule | None = None

    @model_validator(mode="after")
    def _fits(self) -> TensorRules:
        for kind in ("input", "activation", "bias"):
            rule = getattr(self, kind)
            if rule is not None and rule.per_channel:
                msg = f"{kind}.per_channel=True: only weights have a range for each channel"
                raise ValueError(msg)
        return self


class LayerRule(_Strict):
    """A rule for layers of a type, or with a name."""

    layer_type: str | None = None
    layer_name: str | None = None
    quantizable_data_type: tuple[Kind, ...] | None = None
    overall_quantize_config: TensorRule = TensorRule()
    tensor_quantize_config: TensorRules = TensorRules()

    @model_validator(mode="after")
    def _one_selector(self) -> LayerRule:
        if (self.layer_type is None) == (self.layer_name is None):
            msg = "a layer rule has either a layer_type or a layer_name"
            raise ValueError(msg)
        return self

    def matches(self, path: str, operator: str, cls: str) -> bool:
        """Whether the rule speaks of a layer."""
        if self.layer_name is not None:
            return path == self.layer_name or fnmatch.fnmatchcase(path, self.layer_name)
        return self.layer_type in (operator, cls)


class Strategy(_Strict):
    """A strategy file.

    Attributes:
        target_device: "DPU" for powers of two, "CPU" or "GPU" for any step.
        quantizable_data_type: kinds of tensors that are quantized at all.
        convert_relu6_to_relu: an approximation; needs `approximate=True`.
        convert_silu_to_hswish: an approximation; needs `approximate=True`.
        include_cle: equalize layers first; refused: do it on the network itself.
        include_bias_corr: correct biases in calibration; refused, as `include_cle`.
        change_concat_input_fix: put operands of concatenations on the grid of their output.
        change_pool_input_fix: the same for average pools.
        change_add_input_fix: the same for sums.
        keep_first_last_layer_accuracy: leave the first and the last layer with weights in float.
        keep_add_layer_accuracy: leave sums in float.
        onnx_opset_version: of the exported file.
    """

    target_device: Literal["DPU", "CPU", "GPU"] = "DPU"
    quantizable_data_type: tuple[Kind, ...] = KINDS
    convert_relu6_to_relu: StrictBool = False
    convert_silu_to_hswish: StrictBool = False
    include_cle: StrictBool = False
    include_bias_corr: StrictBool = False
    change_concat_input_fix: StrictBool = False
    change_pool_input_fix: StrictBool = False
    change_add_input_fix: StrictBool = False
    keep_first_last_layer_accuracy: StrictBool = False
    keep_add_layer_accuracy: StrictBool = False
    onnx_opset_version: int | None = Field(None, ge=13, le=23, strict=True)
    overall_quantize_config: TensorRule = TensorRule()
    tensor_quantize_config: TensorRules = TensorRules()
    layer_quantize_config: tuple[LayerRule, ...] = ()

    @model_validator(mode="after")
    def _fits_device(self) -> Strategy:
        for key in ("include_cle", "include_bias_corr"):
            if getattr(self, key):
                msg = f"{key}=True is not done here: set it to false"
                raise ValueError(msg)
        methods = {rule.method for _, rule in self._all_rules()}
        for name, rule in self._all_rules():
            said = rule.said
            known = methods if rule.method is None else {rule.method}
            if rule.percentage is not None and "percentile" not in known:
                msg = f"{name}.percentage={rule.percentage} is only for method=percentile"
                raise ValueError(msg)
            if said.get("datatype", "int") != "int":
                bits = 32 if said["datatype"] == "float32" else 16
                if said.get("bit_width", bits) != bits:
                    msg = f"{name}.bit_width={said['bit_width']}: {said['datatype']} has {bits}"
                    raise ValueError(msg)
                continue
            if self.target_device == "DPU":
                _check_dpu(name, said)
        return self

    def _all_rules(self) -> list[tuple[str, TensorRule]]:
        homes: list[tuple[str, Any]] = [("", self)]
        homes += [
            (f"layer_quantize_config.{i}.", r) for i, r in enumerate(self.layer_quantize_config)
        ]
        found = [
            (f"{at}overall_quantize_config", home.overall_quantize_config) for at, home in homes
        ]
        for at, home in homes:
            rules = home.tensor_quantize_config
            found += [
                (f"{at}tensor_quantize_config.{kind}", getattr(rules, kind))
                for kind in KINDS
                if getattr(rules, kind) is not None
            ]
        return found

    def rule(self, kind: Kind, layers: list[tuple[str, str, str]]) -> TensorRule | None:
        """What holds for a tensor; None where it is not quantized.

        Args:
            kind: of the tensor.
            layers: (path, operator, class) of the layers that it belongs to, the nearest last.

        Raises:
            ConfigError: FXQ278, rules contradict each other.
        """
        kinds = self.quantizable_data_type
        found = self.overall_quantize_config.under(getattr(self.tensor_quantize_config, kind))
        for by_name in (False, True):
            for rule in self._of_layers(layers, by_name):
                found = _combined(found, rule.overall_quantize_config, layers)
                found = _combined(found, getattr(rule.tensor_quantize_config, kind), layers)
                if rule.quantizable_data_type is not None:
                    kinds = rule.quantizable_data_type
        return found if kind in kinds and found.datatype != "float32" else None

    def speaks_of(self, kind: Kind, layers: list[tuple[str, str, str]]) -> bool:
        """Whether a kind of tensor is named, not only meant with all others."""
        homes: list[Any] = [self]
        homes += [r for r in self.layer_quantize_config if any(r.matches(*x) for x in layers)]
        return any(getattr(h.tensor_quantize_config, kind) is not None for h in homes)

    def _of_layers(self, layers: list[tuple[str, str, str]], by_name: bool) -> list[LayerRule]:
        rules = [r for r in self.layer_quantize_config if (r.layer_name is not None) == by_name]
        return [r for r in rules if any(r.matches(*layer) for layer in layers)]

    def check_names(self, layers: list[tuple[str, str, str]]) -> None:
        """Refuse layer rules that match nothing.

        Raises:
            ConfigError: FXQ273, with the nearest names.
        """
        for i, rule in enumerate(self.layer_quantize_config):
            if any(rule.matches(*layer) for layer in layers):
                continue
            key = "layer_name" if rule.layer_name is not None else "layer_type"
            value = rule.layer_name or rule.layer_type or ""
            known = (
                {x[0] for x in layers}
                if key == "layer_name"
                else {n for x in layers for n in x[1:]}
            )
            fix = nearest(value, known) or f"known: {', '.join(sorted(known)[:12])}"
            raise ConfigError(
                "FXQ273", f"layer_quantize_config.{i}.{key}: {value!r} matches no layer", fix=fix
            )


_OF_DPU = {
    "symmetry": True,
    "per_channel": False,
    "scale_type": "poweroftwo",
    "narrow_range": False,
    "signed": True,
    "calib_statistic_method": "modal",
}


def _check_dpu(name: str, said: dict[str, Any]) -> None:
    for key, value in _OF_DPU.items():
        if said.get(key, value) != value:
            msg = f"{name}.{key}={said[key]} does not go with target_device=DPU (it takes {value})"
            raise ValueError(msg)
    method = said.get("method")
    if method not in (None, "diffs", "maxmin"):
        msg = f"{name}.method={method} does not go with target_device=DPU (diffs or maxmin)"
        raise ValueError(msg)


def _combined(
    weak: TensorRule, strong: TensorRule | None, layers: list[tuple[str, str, str]]
) -> TensorRule:
    try:
        return weak.under(strong)
    except ValidationError as error:
        names = ", ".join(path for path, _, _ in layers)
        what = f"rules for {names} contradict each other: {_first(error)}"
        raise ConfigError(
            "FXQ278", what, fix="say what shall hold in the rule of the layer"
        ) from error


def load_strategy(source: str | Path | dict[str, Any]) -> Strategy:
    """A strategy from a JSON file or its content.

    Raises:
        ConfigError: FXQ270 the file cannot be read, FXQ271 a key or value is wrong.
    """
    if isinstance(source, dict):
        data = source
    else:
        path = as_path(source, "the strategy")
        try:
            data = read_json(path)
        except (OSError, ValueError) as error:
            what = f"cannot read the strategy {source}: {reason(error)}"
            raise ConfigError("FXQ270", what, fix="give the path of a JSON file") from error
    try:
        return Strategy.model_validate(data)
    except ValidationError as error:
        known = ", ".join(Strategy.model_fields)
        raise ConfigError("FXQ271", _first(error), fix=f"keys of a strategy: {known}") from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "the strategy"
    return f"{key}: {first['msg']}"
