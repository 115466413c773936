"""Configuration files of AIMET, as settings of `QuantConfig`.

Their six sections decide one after the other: defaults, params, op_type, supergroups, model_input,
model_output. Booleans are the texts "True" and "False". AIMET starts with everything off and takes
"True" as "has a quantizer"; here the target says where grids are needed, so "True" for all
operators is the target's choice, "True" for one operator type a grid in any case.

What the target cannot be told is an error that names the key; what needs no telling (lists of
kernels, hardware versions) is reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeGuard

from fxquant import ops
from fxquant.errors import ConfigError, nearest

SECTIONS = ("defaults", "params", "op_type", "supergroups", "model_input", "model_output")
_OPTIONAL = ("supergroup_pass_list",)
_DEFAULTS = (
    "ops", "params", "strict_symmetric", "unsigned_symmetric", "per_channel_quantization",
    "supported_kernels", "hw_version",
)  # fmt: skip
_OP = (
    "is_input_quantized", "is_output_quantized", "is_symmetric", "params",
    "per_channel_quantization", "supported_kernels", "encoding_constraints",
)  # fmt: skip

_NO_ROW = frozenset({"DepthwiseConv"})  # operator types of these files that are no row of their own


def operator_types() -> dict[str, tuple[str, ...]]:
    """Operator type of these files -> names of rows of the operator table."""
    found: dict[str, tuple[str, ...]] = dict.fromkeys(_NO_ROW, ())
    for row in ops.TABLE.rows.values():
        for name in row.onnx.split():
            found[name] = (*found.get(name, ()), row.name)
    return found


@dataclass(frozen=True)
class AimetConfig:
    """What an AIMET file says.

    Attributes:
        settings: what the file says in the keys of `fxquant.config.QuantConfig`.
        supported_kernels: lists of kernels by key, as written; they decide nothing here.
        notes: keys that were accepted without an effect, or with another one, and why.
    """

    settings: dict[str, Any]
    supported_kernels: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def is_aimet(data: Any) -> TypeGuard[dict[str, Any]]:
    """Whether the content of a JSON file is one of AIMET's."""
    return isinstance(data, dict) and {"defaults", "op_type"} <= data.keys()


def from_aimet(data: dict[str, Any]) -> AimetConfig:
    """An AIMET configuration as ours.

    Args:
        data: the content of the file.

    Raises:
        ConfigError: FXQ227 a section or key is unknown or missing, FXQ228 a value is wrong, FXQ229
            the target cannot be told.
    """
    return _Reader(data).read()


class _Reader:
    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.types = operator_types()
        self.notes: list[str] = []
        self.kernels: dict[str, Any] = {}
        self.operators: dict[str, dict[str, dict[str, Any]]] = {}
        self.asked_by: dict[tuple[str, str, str], str] = {}

    def read(self) -> AimetConfig:
        """Read the sections in the order in which they decide."""
        _keys(self.data, (*SECTIONS, *_OPTIONAL), "the file")
        for name in SECTIONS:
            if name not in self.data:
                fix = "the six sections are " + ", ".join(SECTIONS)
                raise ConfigError("FXQ227", f"the section {name!r} is missing", fix=fix)
        settings = self._defaults(self.data["defaults"])
        settings |= self._params(self.data["params"], settings)
        for name, rule in self.data["op_type"].items():
            self._op_type(name, rule, f"op_type.{name}")
        # the list is the whole truth: without (Conv, Relu) in it both have a grid
        settings["supergroups_only"] = True
        settings["supergroups"] = self._supergroups(self.data["supergroups"])
        self._unsigned(settings)
        inputs = self._edge("model_input", "is_input_quantized")
        outputs = self._edge("model_output", "is_output_quantized")
        if "supergroup_pass_list" in self.data:
            self.notes.append("supergroup_pass_list: the target's passes decide")
        settings |= {"quantize_inputs": inputs, "quantize_outputs": outputs}
        settings["operators"] = self.operators
        return AimetConfig(settings, self.kernels, tuple(self.notes))

    def _defaults(self, section: dict[str, Any]) -> dict[str, Any]:
        _keys(section, _DEFAULTS, "defaults")
        outputs, params = section.get("ops", {}), section.get("params", {})
        _keys(outputs, ("is_output_quantized", "is_symmetric"), "defaults.ops")
        _keys(params, ("is_quantized", "is_symmetric"), "defaults.params")
        if _flag(section, "strict_symmetric", "defaults"):
            fix = "take it out: symmetric grids use every integer"
            what = "defaults.strict_symmetric: there is no such grid here"
            raise ConfigError("FXQ229", what, fix=fix)
        if "hw_version" in section:
            self.notes.append("defaults.hw_version: choose a target instead")
        if "supported_kernels" in section:
            self._kernels("defaults", section["supported_kernels"])
        quantized = _flag(outputs, "is_output_quantized", "defaults.ops")
        if quantized is False:
            fix = 'write "True", or leave the key out'
            raise ConfigError("FXQ228", "defaults.ops.is_output_quantized: 'False'", fix=fix)
        if quantized:
            self.notes.append("defaults.ops.is_output_quantized: where the target needs a grid")
        return {
            "quantize_activations": bool(quantized),
            "activation_symmetric": bool(_flag(outputs, "is_symmetric", "defaults.ops")),
            "quantize_weights": bool(_flag(params, "is_quantized", "defaults.params")),
            "quantize_bias": bool(_flag(params, "is_quantized", "defaults.params")),
            "weight_symmetric": bool(_flag(params, "is_symmetric", "defaults.params")),
            "per_channel": bool(_flag(section, "per_channel_quantization", "defaults")),
        }

    def _unsigned(self, settings: dict[str, Any]) -> None:
        """Unsigned symmetric grids, which most files ask for and few use: for activations only."""
        if not _flag(self.data["defaults"], "unsigned_symmetric", "defaults"):
            return
        rules = (parts.get("output", {}) for parts in self.operators.values())
        if settings["activation_symmetric"] or any(rule.get("symmetric") for rule in rules):
            what = "defaults.unsigned_symmetric: symmetric grids of activations are signed here"
            fix = "take it out, or the is_symmetric of operators"
            raise ConfigError("FXQ229", what, fix=fix)
        self.notes.append("defaults.unsigned_symmetric: symmetric grids of weights stay signed")

    def _params(self, section: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
        _keys(section, ("weight", "bias"), "params")
        found: dict[str, Any] = {}
        for name, rule in section.items():
            where = f"params.{name}"
            _keys(rule, ("is_quantized", "is_symmetric"), where)
            quantized = _flag(rule, "is_quantized", where)
            symmetric = _flag(rule, "is_symmetric", where)
            if quantized is not None:
                found["quantize_weights" if name == "weight" else "quantize_bias"] = quantized
            if symmetric is not None and name == "weight":
                found["weight_symmetric"] = symmetric
            elif symmetric is False:
                fix = "leave it out: a bias lies on the grid of its layer's sum"
                raise ConfigError("FXQ229", f"{where}.is_symmetric: 'False'", fix=fix)
        if not found.get("quantize_weights", before["quantize_weights"]):
            found["quantize_bias"] = False
        return found

    def _op_type(self, name: str, rule: dict[str, Any], where: str) -> None:
        _keys(rule, _OP, where)
        if name not in self.types or not self.types[name]:
            hint = nearest(name, self.types)
            self.notes.append(
                f"{where}: no operator of the table is called so" + (f" ({hint})" if hint else "")
            )
            return
        if "supported_kernels" in rule:
            self._kernels(where, rule["supported_kernels"])
        asked = {"output": self._output(rule, where), "weight": {}, "bias": {}}
        for param, wanted in rule.get("params", {}).items():
            key = f"{where}.params.{param}"
            _keys({param: 0}, ("weight", "bias"), f"{where}.params")
            _keys(wanted, ("is_quantized", "is_symmetric"), key)
            asked[param]["quantized"] = _flag(wanted, "is_quantized", key)
            if param == "weight":
                asked[param]["symmetric"] = _flag(wanted, "is_symmetric", key)
        asked["weight"]["per_channel"] = _flag(rule, "per_channel_quantization", where)
        for row in self.types[name]:
            self._ask(row, asked, where)

    def _output(self, rule: dict[str, Any], where: str) -> dict[str, Any]:
        if _flag(rule, "is_input_quantized", where) is not None:
            self.notes.append(f"{where}.is_input_quantized: inputs lie on their producers' grids")
        output: dict[str, Any] = {
            "quantized": _flag(rule, "is_output_quantized", where),
            "symmetric": _flag(rule, "is_symmetric", where),
        }
        limits = rule.get("encoding_constraints", {})
        _keys(limits, ("min", "max"), f"{where}.encoding_constraints")
        for end, value in limits.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                what = f"{where}.encoding_constraints.{end}: {value!r} is no number"
                raise ConfigError("FXQ228", what, fix="give min, max or both")
            output[end] = float(value)
        return output

    def _ask(self, row: str, asked: dict[str, dict[str, Any]], where: str) -> None:
        """Enter what is asked of one operator of the table."""
        for part, wanted in asked.items():
            for key, value in wanted.items():
                if value is None:
                    continue
                if part == "output" and _may_move(row):
                    self.notes.append(f"{where}: {row} keeps its producer's grid")
                elif part != "output" and not _has_grid(row, part):
                    self.notes.append(f"{where}: {row} has no {part} with a grid")
                else:
                    self._enter(row, part, key, value, where)

    def _enter(self, row: str, part: str, key: str, value: Any, where: str) -> None:
        held = self.operators.setdefault(row, {}).setdefault(part, {})
        before = self.asked_by.setdefault((row, part, key), where)
        if held.setdefault(key, value) != value:
            what = f"{before} and {where} ask for different things of {row}: {part}.{key}"
            raise ConfigError("FXQ229", what, fix="both name the same operator: change one")

    def _supergroups(self, section: list[dict[str, Any]]) -> list[tuple[str, ...]]:
        found: list[tuple[str, ...]] = []
        for i, group in enumerate(section):
            where = f"supergroups.{i}"
            _keys(group, ("op_list",), where)
            names = group.get("op_list", [])
            unknown = [n for n in names if n not in self.types]
            if len(names) < 2 or unknown:
                what = (
                    f"{where}.op_list: {unknown[0]!r} is unknown"
                    if unknown
                    else f"{where}.op_list: two or more"
                )
                raise ConfigError(
                    "FXQ228", what, fix=nearest(unknown[0], self.types) if unknown else None
                )
            chains: list[tuple[str, ...]] = [()]
            for name in names:
                chains = [(*chain, row) for chain in chains for row in self.types[name]]
            # batch norms are folded into the operator before them
            folded = [tuple(row for row in chain if row != "batch_norm") for chain in chains]
            chains += [chain for chain in folded if len(chain) > 1]
            found += [c for c in dict.fromkeys(chains) if not any(map(_may_move, c))]
        return list(dict.fromkeys(found))

    def _edge(self, section: str, key: str) -> bool:
        _keys(self.data[section], (key,), section)
        wanted = _flag(self.data[section], key, section)
        if wanted is False:
            raise ConfigError("FXQ228", f"{section}.{key}: 'False'", fix='write "True" or nothing')
        return bool(wanted)

    def _kernels(self, where: str, kernels: Any) -> None:
        self.kernels[where] = kernels
        self.notes.append(f"{where}.supported_kernels: the target knows its kernels")


def _may_move(row: str) -> bool:
    """Whether an operator keeps its producer's grid, at least with some arguments."""
    found = ops.TABLE.rows[row]
    return found.grid is ops.Grid.SAME or found.when is not None


def _has_grid(row: str, part: str) -> bool:
    """Whether some target has a grid for a parameter; which one has is the target's to say."""
    found = ops.TABLE.rows[row]
    own = part == "weight" and "weight" in found.signature.parameters
    return own or found.weight_axis is not None


def _keys(section: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(section, dict):
        what = f"{where}: {type(section).__name__} where keys and values should be"
        raise ConfigError("FXQ228", what, fix=f"write an object of {', '.join(known)}")
    for key in section:
        if key not in known:
            fix = nearest(key, known) or f"known keys: {', '.join(known)}"
            raise ConfigError("FXQ227", f"{where}: unknown key {key!r}", fix=fix)


def _flag(section: dict[str, Any], key: str, where: str) -> bool | None:
    """A boolean, written as a text."""
    if key not in section:
        return None
    value = section[key]
    if value not in ("True", "False"):
        fix = 'write the text "True" or "False"'
        raise ConfigError("FXQ228", f"{where}.{key}: {value!r} is no boolean of AIMET", fix=fix)
    return bool(value == "True")
