"""Changing the quantizers of a finished simulation: leave out, replace, take away.

The grids of a model hang together: the step of an int32 bias is made of the steps of its layer's
input and weight. Whatever changes one of them ends in `refresh_biases`, so that a simulation stays
one that can be exported.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant import ops
from fxquant.errors import ConfigError, SelectorError, nearest
from fxquant.graph.absent_names import absence, replaced
from fxquant.graph.meta import path_matches
from fxquant.graph.pass_infra import Fact, set_state, state_of
from fxquant.graph.rewriter import Rewriter
from fxquant.graph.selectors import select_in, several
from fxquant.nn import QuantizationMixin
from fxquant.nn.calibration import weight_of
from fxquant.nn.dense import Dense, adopt
from fxquant.nn.stored_tensors import keep_own_names, replace_stored
from fxquant.passes.fold_parametrizations import unfold
from fxquant.placement.dataflow import resolve_grids
from fxquant.quantization import QuantizerBase, affine
from fxquant.quantization.affine import AffineQuantizer
from fxquant.quantization.analyzers import Percentile
from fxquant.quantization.encodings import AffineEncoding
from fxquant.quantization.float import FloatQuantizeDequantize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fxquant.graph.selectors import Selector
    from fxquant.nn.containers import QuantizerList

    Make = Callable[[tuple[int, ...], tuple[int, ...]], AffineQuantizer]

_GIVEN = "it was given a bias"
_HOMES = frozenset({"input_quantizers", "output_quantizers", "param_quantizers"})


def quantized_modules(
    gm: fx.GraphModule, selectors: Iterable[Selector] | Selector
) -> dict[str, QuantizationMixin]:
    """Quantized modules that selectors name; a container stands for all modules below it.

    Raises:
        SelectorError: FXQ213 a selector matches nothing, FXQ241 it matches nothing quantized.
    """
    named = {p: m for p, m in gm.named_modules() if p and _HOMES.isdisjoint(p.split("."))}
    found: dict[str, QuantizationMixin] = {}
    for selector in several(selectors):
        paths = select_in(gm, selector, named)
        below = tuple(f"{p}." for p in paths)
        chosen = {
            p: m
            for p, m in named.items()
            if isinstance(m, QuantizationMixin) and (p in paths or p.startswith(below))
        }
        if not chosen:
            lost = absence(gm, selector)
            if lost is not None:
                raise lost.error("FXQ241")
            what = f"nothing in {', '.join(paths)} is quantized"
            raise SelectorError("FXQ241", what, fix="sim.named_qmodules() lists what is")
        found |= chosen
    return found


def exclude_layers(gm: fx.GraphModule, selectors: Iterable[Selector] | Selector) -> None:
    """Put the float modules back in the place of quantized ones."""
    rw = Rewriter(gm, "exclude_layers")
    chosen = quantized_modules(gm, selectors)
    for path, module in chosen.items():
        rw.set_module(path, module.get_original_module())
    rw.finish()
    explain(gm, chosen, "it was excluded from quantization")
    refresh_biases(gm)


def exclude_params(gm: fx.GraphModule, pattern: str) -> None:
    """Take away the quantizers of parameters by name ("bias") or path, or by a glob of either."""
    homes = {
        f"{path}.{name}": (path, module.param_quantizers, name)
        for path, module in gm.named_modules()
        if isinstance(module, QuantizationMixin)
        for name in module.param_quantizers
    }
    names = {name for _, _, name in homes.values()}
    found = [
        home for full, home in homes.items()
        if path_matches(pattern, home[2]) or path_matches(pattern, full)
    ]  # fmt: skip
    if not found:
        lost = replaced(gm, pattern)
        if lost is not None:
            raise lost.error("FXQ243")
        fix = nearest(pattern, [*names, *homes]) or f"the names are {', '.join(sorted(names))}"
        raise SelectorError("FXQ243", f"no parameter is called {pattern!r}", fix=fix)
    for path, home, name in found:
        if home[name] is not None:
            home[name] = None
            explain(gm, [path], f"its {name} was excluded from quantization")
    refresh_biases(gm)


def set_percentile(gm: fx.GraphModule, percentile: float) -> None:
    """Set the share of values that the percentile scheme keeps; it counts from calibration on."""
    found = [
        q for q in gm.modules()
        if isinstance(q, AffineQuantizer) and isinstance(q.encoding_analyzer, Percentile)
    ]  # fmt: skip
    if not found:
        fix = "build the simulation with quant_scheme='percentile'"
        raise ConfigError("FXQ242", "no quantizer uses percentiles", fix=fix)
    for q in found:
        analyzer: Any = q.encoding_analyzer
        q.encoding_analyzer = dataclasses.replace(analyzer, percentile=percentile)


def set_activations_to_float(
    gm: fx.GraphModule, selectors: Iterable[Selector] | Selector, **kind: Any
) -> None:
    """Round activations to a narrow floating-point format instead of integers."""
    chosen: dict[str, QuantizationMixin] = {}
    for selector in several(selectors):
        found = quantized_modules(gm, selector)
        if not any(next(home.active(), None) for m in found.values() for home in _activations(m)):
            what = f"no activation of {', '.join(found)} is quantized"
            raise SelectorError("FXQ244", what, fix="sim.explain(path) tells who owns the grid")
        chosen |= found
    made: dict[int, FloatQuantizeDequantize] = {}
    for module in chosen.values():
        for home in _activations(module):
            for index, old in list(home.active()):
                if id(old) not in made:
                    made[id(old)] = FloatQuantizeDequantize(**kind)
                    made[id(old)].where = old.where
                home[index] = made[id(old)]
    explain(gm, chosen, "its activations were set to a floating-point format")
    refresh_biases(gm)


def _activations(module: QuantizationMixin) -> tuple[QuantizerList, QuantizerList]:
    return module.input_quantizers, module.output_quantizers


def set_blocks(
    gm: fx.GraphModule,
    selectors: Iterable[Selector] | Selector,
    block_size: int | Sequence[int],
    make: Make,
) -> None:
    """Give weights one grid per block.

    Args:
        gm: the simulated model.
        selectors: modules; those of a glob or class without a quantized weight are passed over.
        block_size: elements per block along the input channels, or along every axis (-1: all).
        make: makes a quantizer of (number of blocks, block size).
    """
    chosen: dict[str, QuantizationMixin] = {}
    for selector in several(selectors):
        found = quantized_modules(gm, selector)
        if all(_weight_quantizer(m) is None for m in found.values()):
            what = f"no weight of {', '.join(found)} is quantized"
            raise SelectorError("FXQ245", what, fix="choose convolutions or linear layers")
        chosen |= found
    weights = [(p, m) for p, m in chosen.items() if _weight_quantizer(m) is not None]
    sizes = [_blocks(path, module, block_size) for path, module in weights]
    made: dict[tuple[int, Any], AffineQuantizer] = {}
    for (path, module), blocks in zip(weights, sizes, strict=True):
        weight, old = _tensor(module, "weight"), module.param_quantizers["weight"]
        key = (id(weight), blocks)
        if key not in made:
            counts = tuple(
                1 if b == -1 else n // b for n, b in zip(weight.shape, blocks, strict=True)
            )
            new = made[key] = make(counts, blocks)
            new.where = old.where
            if old.is_initialized():
                with torch.no_grad(), new.compute_encodings():
                    new(weight)
        module.param_quantizers["weight"] = made[key]
        explain(gm, [path], f"its weight was given a grid per block of {blocks}")
    refresh_biases(gm)


def original_model(gm: fx.GraphModule, *, qdq_weights: bool) -> fx.GraphModule:
    """A copy without quantizers; with the weights on their grids if that is wanted."""
    copied = copy.deepcopy(gm)
    rw = Rewriter(copied, "original_model")
    rounded: list[tuple[nn.Module, str, Tensor]] = []
    for node in rw.nodes:
        module = rw.module(node)
        if not isinstance(module, QuantizationMixin):
            continue
        if getattr(module, "placed", False):
            rw.replace(node, node.all_input_nodes[0])
            copied.delete_submodule(str(node.target))
            continue
        plain = module.get_original_module()
        if qdq_weights:
            with torch.no_grad():
                values = module._quantized_parameters().items()
                rounded += [(plain, name, value.detach().clone()) for name, value in values]
        rw.set_module(str(node.target), plain)
    _round(copied, rounded)
    for module in () if qdq_weights else list(copied.modules()):
        unfold(module)
    rw.finish()
    state = state_of(copied)
    set_state(copied, facts=state.facts - {Fact.PLACED}, why={})
    keep_own_names(copied, state.names)
    return copied


def _round(gm: fx.GraphModule, rounded: Iterable[tuple[nn.Module, str, Tensor]]) -> None:
    """Give modules rounded parameters; one that is shared stays so unless its grids differ."""
    known: dict[int, tuple[Tensor, Tensor]] = {}
    for module, name, value in rounded:
        old = _tensor(module, name)
        if not any(old is new for _, new in known.values()):
            replace_stored(gm, module, name, value)
            known[id(old)] = old, _tensor(module, name)
        elif not torch.equal(old, value):
            trains = isinstance(old, nn.Parameter)
            adopt(module, **{name: nn.Parameter(value, old.requires_grad) if trains else value})


def refresh_biases(gm: fx.GraphModule) -> None:
    """Put int32 biases on the grids of their input and weight as they are now, or into float."""
    grids = resolve_grids(gm)
    for node in gm.graph.nodes:
        module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, QuantizationMixin):
            continue
        bias = module.param_quantizers._modules.get("bias")
        if not isinstance(bias, affine.BiasQuantizeDequantize):
            continue
        source, weight = _input_quantizer(gm, node, module, grids), _weight_quantizer(module)
        if not _is_plain(source) or not _is_plain(weight) or source is None or weight is None:
            module.param_quantizers["bias"] = None
            explain(gm, [str(node.target)], f"its bias is float: {_obstacle(source, weight)}")
        elif source is not bias.input_quantizer or weight is not bias.weight_quantizer:
            fresh = affine.BiasQuantizeDequantize(source, weight)
            fresh.where = bias.where
            module.param_quantizers["bias"] = fresh


def add_bias(
    gm: fx.GraphModule, node: fx.Node, own: Callable[[], QuantizerBase] | None, *, integer: bool
) -> None:
    """Give a layer that has none a bias of zeros, on the grid that a bias has there.

    Args:
        gm: a simulated graph.
        node: the layer.
        own: makes a quantizer where biases have steps of their own; None: they have that of the
            integer sum.
        integer: whether biases are quantized.
    """
    module: Any = gm.get_submodule(str(node.target))
    weight, axes = module.weight, ops.weight_axes(module)
    groups = int(getattr(module, "groups", 1)) if axes == (1,) else 1
    count = math.prod(weight.shape[axis] for axis in axes) * groups
    rw = Rewriter(gm, "add_bias")
    rw.set_parameter(module, "bias", weight.new_zeros(count), weight.requires_grad)
    home = module.param_quantizers
    home.known = None if home.known is None else home.known | {"bias"}
    home["bias"] = None
    source = _input_quantizer(gm, node, module, resolve_grids(gm))
    quantizer = _weight_quantizer(module)
    if integer and _is_plain(source) and _is_plain(quantizer):
        if own is not None:
            home["bias"] = own()
        elif source is not None and quantizer is not None:
            home["bias"] = affine.BiasQuantizeDequantize(source, quantizer)
        home["bias"].where = f"the bias of {node.target}"
    rw.finish()
    explain(gm, [str(node.target)], _GIVEN)


def remove_bias(gm: fx.GraphModule, node: fx.Node) -> None:
    """Take away a bias that `add_bias` has given a layer."""
    module: Any = gm.get_submodule(str(node.target))
    module.bias = None
    module.param_quantizers._modules.pop("bias")
    home = module.param_quantizers
    home.known = None if home.known is None else home.known - {"bias"}
    path, why = str(node.target), dict(state_of(gm).why)
    why[path] = tuple(reason for reason in why.get(path, ()) if reason != _GIVEN)
    set_state(gm, why=why)


def _obstacle(source: QuantizerBase | None, weight: QuantizerBase | None) -> str:
    """Why there is no int32 bias.

    A weight in blocks is no operand of an integer kernel: its blocks are summed in floating point,
    where an int32 bias would only be rounded, to the coarsest of the blocks' steps.
    """
    if isinstance(weight, AffineQuantizer) and weight.block_size is not None:
        return "the sum over a weight in blocks has no single step"
    missing = "input" if source is None or not _is_plain(source) else "weight"
    return f"its {missing} has no grid for an integer sum"


def _input_quantizer(
    gm: fx.GraphModule, node: fx.Node, module: QuantizationMixin, grids: dict[fx.Node, Any]
) -> QuantizerBase | None:
    own = module.input_quantizers._modules.get("0")
    if isinstance(own, QuantizerBase):
        return own
    producer = ops.arguments(node, gm).get("input")
    found = grids.get(producer, (None,)) if isinstance(producer, fx.Node) else (None,)
    return found[0] if found else None


def _is_plain(quantizer: QuantizerBase | None) -> bool:
    """Whether an integer kernel's sum can have a step made of this quantizer's."""
    encoding = quantizer.get_encodings() if quantizer is not None else None
    if encoding is not None and not isinstance(encoding, AffineEncoding):
        return False
    return isinstance(quantizer, AffineQuantizer) and quantizer.block_size is None


def _weight_quantizer(module: QuantizationMixin) -> QuantizerBase | None:
    found = module.param_quantizers._modules.get("weight")
    return found if isinstance(found, QuantizerBase) else None


def _tensor(module: nn.Module, name: str) -> Tensor:
    found = weight_of(module, name)
    return torch.empty(0) if found is None else found


def _require_sizes(size: Any) -> None:
    parts = size if isinstance(size, list | tuple) else [size]
    if not all(isinstance(part, int) for part in parts):
        what = f"the size of blocks is {size!r}"
        raise ConfigError("FXQ246", what, fix="pass a number, or one for every axis")


def _blocks(path: str, module: nn.Module, size: int | Sequence[int]) -> tuple[int, ...]:
    """Block size along every axis of the weight."""
    shape = tuple(_tensor(module, "weight").shape)
    _require_sizes(size)
    if isinstance(size, int):
        if isinstance(module, Dense):
            blocks, cut = [1] * len(shape), module.inputs[-1]
        else:
            blocks, cut = [-1] * len(shape), 1 - ops.weight_axis(module)
            blocks[1 - cut] = 1
        blocks[cut] = size
    else:
        blocks = list(size)
    fits = len(blocks) == len(shape) and all(
        b == -1 or (b > 0 and n % b == 0) for n, b in zip(shape, blocks, strict=False)
    )
    if not fits:
        what = f"blocks of {tuple(blocks)} do not divide the weight of {path}, {shape}"
        raise ConfigError("FXQ246", what, fix="choose divisors, -1 for a whole axis")
    return tuple(blocks)


def grouping(
    shape: tuple[int, ...], blocks: tuple[int, ...], size: int | Sequence[int]
) -> tuple[int, ...]:
    """Blocks per group along every axis; one number is for the axis that is cut into blocks."""
    if not isinstance(size, int):
        return tuple(size)
    # blocks of one are channels: every output channel is a group of its own
    cut = max(range(len(shape)), key=lambda i: (blocks[i] != 1, shape[i]))
    return tuple(size if i == cut else 1 for i in range(len(shape)))


def explain(gm: fx.GraphModule, paths: Iterable[str], reason: str) -> None:
    """Add a reason to what `sim.explain` says of modules."""
    why = dict(state_of(gm).why)
    for path in paths:
        why[path] = (*why.get(path, ()), reason)
    set_state(gm, why=why)
