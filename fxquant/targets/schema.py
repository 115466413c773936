"""What one target file says: grids, operators with their constraints, groups, ranges of shifts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from fxquant.errors import ConfigError
from fxquant.targets.rules import OperatorRule

ScaleKind = Literal["float", "power_of_two"]
RoundMode = Literal["half_even", "half_up", "half_down", "std_round"]
Deploy = Literal["any", "vnni", "avx2", "arm"]
DEPLOYMENTS: tuple[str, ...] = get_args(Deploy)
Bits = Annotated[int, Field(ge=2, le=32)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _TensorType(_Frozen):
    """What activations and weights have in common.

    Attributes:
        bitwidth: bits where a configuration asks for nothing else.
        bitwidths: bits that a configuration may ask for; empty: all of them.
        kernels: bits that its integer kernels take; empty: all. Others it computes in floating
            point.
        symmetries: kinds of zero points that a configuration may ask for.
        rounding: where ties go.
    """

    bitwidth: Bits = 8
    bitwidths: tuple[Bits, ...] = ()
    kernels: tuple[Bits, ...] = ()
    symmetries: tuple[Literal["symmetric", "asymmetric"], ...] = ("symmetric", "asymmetric")
    rounding: RoundMode = "half_even"


class ActivationType(_TensorType):
    """Grid of activations."""

    signed: bool = False
    symmetric: bool = False


class WeightType(_TensorType):
    """Grid of weights."""

    signed: bool = True
    symmetric: bool = True
    per_channel: bool = True
    granularities: tuple[Literal["per_tensor", "per_channel"], ...] = ("per_tensor", "per_channel")


class BiasGrid(_Frozen):
    """Grid of biases.

    Attributes:
        scale: "product": the step of the accumulator, input times weight; "own": a step of its own.
        bitwidth: bits; a bias with the step of the accumulator has 32.
        rounding: where ties go.
    """

    scale: Literal["product", "own"] = "product"
    bitwidth: Bits = 32
    rounding: RoundMode = "half_even"


class Search(_Frozen):
    """How the position of the point is searched where scales are powers of two.

    Attributes:
        scope: positions that are tried, from the coarsest that clips nothing to finer ones.
        entry_scope: the same for values that enter the quantized part.
        narrow_cap: finest position for at most 8 bits.
        wide_cap: finest position for more bits.
    """

    scope: int = Field(5, ge=1, le=16)
    entry_scope: int = Field(1, ge=1, le=16)
    narrow_cap: int = 12
    wide_cap: int = 15


class Shifts(_Frozen):
    """Ranges of the shifts in the data path of a chip; None: it has no such limit.

    Attributes:
        cut: of a product: positions of weight plus input minus output.
        bias: of a bias: positions of weight plus input minus bias; `bias_floor` replaces a lower
            bound that depends on the cut, `min(0, -(bias_floor - (8 + cut)))`.
        bias_floor: bits of the accumulator that the lower bound of `bias` is made of.
        read: of a sum's operands: largest position minus smallest.
        write_add: of a sum: smallest position of the operands minus that of the output.
        write_mul: of an elementwise product: positions of the operands minus that of the output.
    """

    cut: tuple[int, int] | None = None
    bias: tuple[int, int] | None = None
    bias_floor: int | None = None
    read: tuple[int, int] | None = None
    write_add: tuple[int, int] | None = None
    write_mul: tuple[int, int] | None = None


class Target(_Frozen):
    """A runtime or chip: its grids and its operators.

    Attributes:
        name: what `QuantizationSimModel(target=...)` takes.
        description: one sentence for people.
        aliases: other names it answers to, with `*` and `?`.
        scale: kind of steps: any number, or powers of two.
        activation: grid of activations.
        weight: grid of weights.
        bias: grid of biases.
        search: how powers of two are chosen.
        absorbs: activations whose producer's kernel takes them in, where the operator allows it.
        supergroups: chains of operators that one kernel computes; only the last has a grid.
        shares: operators whose operands and output must lie on one grid.
        approximations: operators that it computes by simpler ones, which is done on request only.
        align: operators whose operands `AlignGrids` puts on the grid of their output.
        moves: operators that move values and that the target takes; None: all of them.
        shifts: ranges that `check_shifts` compares with.
        contrib: it is onnxruntime: exported files use its own operators and the forms of others
            that it runs fastest.
        deploy: the CPUs that files are written for, see `fxquant.onnx.lowering.deployment`.
        operators: row name -> rule; what is not listed is computed in floating point.
    """

    name: str
    description: str = ""
    aliases: tuple[str, ...] = ()
    scale: ScaleKind = "float"
    activation: ActivationType = ActivationType()
    weight: WeightType = WeightType()
    bias: BiasGrid = BiasGrid()
    search: Search = Search()
    absorbs: tuple[str, ...] = ()
    supergroups: tuple[tuple[str, ...], ...] = ()
    shares: tuple[str, ...] = ()
    approximations: tuple[str, ...] = ()
    align: tuple[str, ...] = ()
    moves: tuple[str, ...] | None = None
    shifts: Shifts = Shifts()
    contrib: bool = False
    deploy: Deploy = "any"
    operators: dict[str, OperatorRule] = Field(default_factory=dict)

    @property
    def powers_of_two(self) -> bool:
        """Whether every step is a power of two."""
        return self.scale == "power_of_two"

    @property
    def bitwidths(self) -> tuple[int, int]:
        """Bits of activations and of weights where nothing else is asked for."""
        return self.activation.bitwidth, self.weight.bitwidth

    @property
    def computes_floats(self) -> bool:
        """Whether its kernels of products can write floats; those of chips for integers cannot."""
        rules = (self.operators.get(name) for name in ("linear", "matmul", "bmm"))
        return any(rule is not None and rule.output == "optional" for rule in rules)

    def followers(self, chain: tuple[str, ...]) -> frozenset[str]:
        """Names of operators that continue a chain of rows inside one kernel."""
        size = len(chain)
        return frozenset(g[size] for g in self.supergroups if len(g) > size and g[:size] == chain)

    def check(self, wanted: Any) -> None:
        """Refuse a configuration that the target cannot compute.

        Args:
            wanted: the configuration (`QuantConfig`); what it leaves open is the target's choice.

        Raises:
            ConfigError: FXQ262; the key, its value and what the target offers are named.
        """
        self._check_bits("activation_bitwidth", wanted, self.activation.bitwidths)
        self._check_bits("weight_bitwidth", wanted, self.weight.bitwidths)
        self._check_symmetry("activation_symmetric", wanted, self.activation.symmetries)
        self._check_symmetry("weight_symmetric", wanted, self.weight.symmetries)
        if wanted.per_channel is not None:
            kind = "per_channel" if wanted.per_channel else "per_tensor"
            if kind not in self.weight.granularities:
                self._refuse("per_channel", wanted.per_channel, self.weight.granularities)

    def check_precision(self, kind: Literal["activation", "weight"], bits: int | None) -> None:
        """Refuse bits, or floating point (None), that the target cannot compute.

        Raises:
            ConfigError: FXQ262; what the target offers is named.
        """
        offered = (self.activation if kind == "activation" else self.weight).bitwidths
        if bits is None and not self.computes_floats:
            self._refuse(kind, "float", tuple(f"{n} bits" for n in offered) or ("integers only",))
        if bits is not None and offered and bits not in offered:
            self._refuse(kind, f"{bits} bits", tuple(f"{n} bits" for n in offered))

    def has_kernel(self, kind: Literal["activation", "weight"], bits: int | None) -> bool:
        """Whether integer kernels take activations or weights of so many bits; None: float."""
        taken = (self.activation if kind == "activation" else self.weight).kernels
        return bits is not None and (not taken or bits in taken)

    def _check_bits(self, key: str, wanted: Any, offered: tuple[int, ...]) -> None:
        bits = getattr(wanted, key)
        if bits is not None and offered and bits not in offered:
            self._refuse(key, bits, offered)

    def _check_symmetry(self, key: str, wanted: Any, offered: tuple[str, ...]) -> None:
        symmetric = getattr(wanted, key)
        kind = "symmetric" if symmetric else "asymmetric"
        if symmetric is not None and kind not in offered:
            self._refuse(key, symmetric, offered)

    def _refuse(self, key: str, value: object, offered: tuple[object, ...]) -> None:
        raise ConfigError(
            "FXQ262",
            f"{key}={value} is not possible on {self.name}",
            fix=f"it offers {', '.join(map(str, offered))}",
        )
