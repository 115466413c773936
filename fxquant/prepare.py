"""prepare_model: the user's network as one graph in which every tensor operation is a module.

The network is recorded, rewritten by the passes of `PREPARE` and proven: the result computes the
same bits as the original on the dummy input, on other values and at another batch size.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, fx, nn

from fxquant.errors import ConfigError, TraceError
from fxquant.graph.kept_state import random_numbers_kept
from fxquant.graph.pass_infra import Fact, Pipeline, set_state, state_of
from fxquant.graph.pytree import tensors
from fxquant.graph.selectors import Selector, select
from fxquant.nn.modes import evaluating, restore_flags
from fxquant.passes import PREPARE, PREPARED
from fxquant.tracing import equivalence
from fxquant.tracing.record import Recording, check_model, record
from fxquant.tracing.specialization import Specialisation
from fxquant.tracing.training_mode import (
    asks_for_training,
    changed,
    mark_modes,
    may_follow,
    scopes,
    training_only,
)

if TYPE_CHECKING:
    from fxquant.tracing.leaves import Leaves

Inputs: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
OnSpecialisation: TypeAlias = Literal["warn", "error", "leaf"]

_PIPELINE = Pipeline(PREPARE, given=frozenset({Fact.RECORDED}))


class SpecialisationWarning(UserWarning):
    """The prepared graph is narrower than the model.

    Python decided on a value or a size, or modules compute something else while they train.
    """


def is_prepared(model: nn.Module) -> bool:
    """Whether a model is the result of `prepare_model`."""
    return isinstance(model, fx.GraphModule) and state_of(model).facts >= PREPARED


def call_arguments(dummy_input: Any) -> Inputs:
    """Positional and keyword arguments from a dummy input.

    Args:
        dummy_input: a tensor, a tuple or list of positional inputs, or a dict of keyword inputs.

    Raises:
        ConfigError: FXQ210, it is something else, or holds no element at all.

    Example:
        >>> call_arguments({"mask": None})
        ((), {'mask': None})
    """
    if isinstance(dummy_input, Tensor | tuple | list | dict):
        args = (dummy_input,) if isinstance(dummy_input, Tensor) else tuple(dummy_input)
        kwargs = dict(dummy_input) if isinstance(dummy_input, dict) else {}
        tensors = [v for v in (kwargs.values() if kwargs else args) if isinstance(v, Tensor)]
        if tensors and not any(t.numel() for t in tensors):
            fix = "pass a batch of at least one sample"
            raise ConfigError("FXQ210", "the dummy input is an empty batch", fix=fix)
        return (() if isinstance(dummy_input, dict) else args), kwargs
    raise ConfigError(
        "FXQ210",
        f"the dummy input is of type {type(dummy_input).__name__}",
        fix="pass a tensor, a tuple of positional inputs or a dict of keyword inputs",
    )


def prepare_model(
    model: nn.Module,
    dummy_input: Any,
    *,
    modules_to_exclude: Iterable[Selector] | Selector = (),
    on_specialisation: OnSpecialisation = "warn",
) -> fx.GraphModule:
    """Turn a model into a graph in which every tensor operation is a module that is called once.

    Nothing that existed is renamed, parameters stay shared where they were, training flags and
    hooks are kept, and the model itself is not touched. A model that is prepared already is
    returned as a copy.

    One thing cannot be had to the bit: `nn.TransformerEncoder` and `nn.MultiheadAttention` compute
    with fused kernels while they evaluate without gradients, and those round otherwise than the
    layers that they stand for. The graph is of the layers; it equals the model under
    `torch.backends.mha.set_fastpath_enabled(False)`.

    Args:
        model: any model that runs on the dummy input.
        dummy_input: a tensor, a tuple of positional inputs or a dict of keyword inputs; first
            dimension: the batch.
        modules_to_exclude: modules to keep whole: instances, classes, or paths with `*`.
        on_specialisation: what to do where Python decided on a tensor's value: "warn", "error", or
            "leaf" to keep the smallest module with the decision whole.

    Returns:
        The prepared graph; it computes the same bits as the model.

    Raises:
        TraceError: the model cannot be recorded, or the graph does not compute the same bits;
            FXQ116 and FXQ120 to FXQ123 say why, and where.
        SelectorError: FXQ213, an entry of `modules_to_exclude` matches nothing.
        ConfigError: FXQ210 or FXQ211, a wrong dummy input or `on_specialisation`.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> prepared = prepare_model(net, torch.randn(4, 3))
        >>> x = torch.randn(5, 3)
        >>> torch.equal(prepared(x), net(x))
        True
    """
    inputs = call_arguments(dummy_input)
    if on_specialisation not in ("warn", "error", "leaf"):
        fix = "use 'warn', 'error' or 'leaf'"
        raise ConfigError("FXQ211", f"on_specialisation is {on_specialisation!r}", fix=fix)
    if is_prepared(model) and isinstance(model, fx.GraphModule):
        return copy.deepcopy(model)
    check_model(model)
    excluded = select(model, modules_to_exclude)
    with random_numbers_kept(), evaluating(model) as flags:
        recorded = _record(model, inputs, excluded, on_specialisation)
        gm = recorded.recording.graph_module
        restore_flags(gm, flags)
        _PIPELINE(gm)
        with evaluating(gm):
            proof = equivalence.prove(
                recorded.recording, model, *inputs, leaves=_kept_whole(recorded.leaves)
            )
    set_state(gm, any_batch=proof.batch)
    specialisations = state_of(gm).specialisations
    _judge(proof, [s for s in specialisations if s.kind != "training"])
    _tell([s for s in specialisations if s.kind == "training"])
    return gm


@dataclass(frozen=True)
class _Recorded:
    """A recording and the modules that were kept whole in it."""

    recording: Recording
    leaves: frozenset[str]


def _kept_whole(paths: frozenset[str]) -> Leaves:
    return lambda path, _: path in paths


def _record(
    model: nn.Module, inputs: Inputs, excluded: frozenset[str], on_specialisation: str
) -> _Recorded:
    """Record, and once more with more leaves where the first recording asks for them."""
    trainers: frozenset[str] = frozenset()
    changing: frozenset[str] = frozenset()
    while True:
        leaves = excluded | trainers | changing
        recording = record(model, *inputs, leaves=_kept_whole(leaves))
        gm = recording.graph_module
        deciding = [s for s in recording.specialisations if s.kind == "value"]
        if deciding and on_specialisation == "error":
            _refuse(deciding)
        deciders = frozenset(s.module_path for s in deciding) - leaves - {""}
        idle = training_only(gm) - leaves
        if on_specialisation == "leaf" and deciders:
            excluded |= deciders
            continue
        if idle:
            trainers |= idle
            continue
        trained = _see_training(recording, model, inputs, leaves)
        bare = frozenset(s.module_path for s in trained if _is_bare(model, s.module_path)) - leaves
        if not bare:
            break
        changing |= bare
    set_state(
        gm,
        facts=frozenset({Fact.RECORDED}),
        specialisations=(*recording.specialisations, *trained),
        excluded=tuple(sorted(excluded)),
        training_only=trainers,
        names=frozenset(gm.state_dict()),
    )
    return _Recorded(recording, leaves)


def _is_bare(model: nn.Module, path: str) -> bool:
    """Whether a module has no parameters: keeping it whole costs no quantized weight."""
    return bool(path) and next(model.get_submodule(path).parameters(), None) is None


def _see_training(
    recording: Recording, model: nn.Module, inputs: Inputs, leaves: frozenset[str]
) -> list[Specialisation]:
    """The modules that compute something else while they train.

    Which arguments of functions follow the mode is noted in the graph.
    """
    gm = recording.graph_module
    through = scopes(gm)
    askers = frozenset(p for p in through if asks_for_training(type(model.get_submodule(p))))
    failed: list[Specialisation] = []
    if not askers and not may_follow(gm):
        return failed
    if not askers and not recording.asked_for_training:
        mark_modes(gm, gm)  # flags are what they were given, in training as well
        return failed
    if not recording.specialisations and _trains_alike(gm, model, inputs, leaves, askers):
        return failed
    for owners in (through, frozenset(p for p in through if _is_bare(model, p))):
        try:
            trained = _trained(model, inputs, leaves, owners).graph_module
        except TraceError as e:
            what = f"what it computes in training cannot be recorded: {e.what}"
            failed = failed or [Specialisation(None, "", "training", what, None)]
            continue
        mark_modes(gm, trained)
        found = changed(gm, trained, askers & owners).items()
        return failed + [Specialisation(at, p, "training", "training", None) for p, at in found]
    return failed


def _trains_alike(
    gm: fx.GraphModule,
    model: nn.Module,
    inputs: Inputs,
    leaves: frozenset[str],
    askers: frozenset[str],
) -> bool:
    """Whether one row of the inputs shows that training changes nothing but modes of functions.

    Where no size decides on anything, in evaluation or in training, one row shows what all show.
    """
    one = equivalence.first_rows(*inputs, 1)
    if [t.shape for t in tensors(one)] == [t.shape for t in tensors(inputs)]:
        return False
    try:
        trained = _trained(model, one, leaves, scopes(gm))
    except TraceError:  # a single row is too few for statistics, or no batch
        return False
    if trained.specialisations or changed(gm, trained.graph_module, askers):
        return False
    mark_modes(gm, trained.graph_module)
    return True


def _trained(
    model: nn.Module, inputs: Inputs, leaves: frozenset[str], owners: Collection[str]
) -> Recording:
    """The model, recorded while some of its modules train."""
    with evaluating(model), random_numbers_kept():
        torch.manual_seed(0)
        for path in owners:
            model.get_submodule(path).training = True
        return record(model, *inputs, leaves=_kept_whole(leaves))


def _refuse(deciding: list[Specialisation]) -> None:
    first = deciding[0]
    raise TraceError(
        "FXQ120",
        f"Python decides on the value of a tensor ({first.what}): the graph would hold for some "
        "inputs only",
        at=_place(first),
        fix=_keep_whole(first, "decision") + '; on_specialisation="warn" accepts it',
    )


def _judge(proof: equivalence.Proof, specialisations: list[Specialisation]) -> None:
    """Refuse a graph that is wrong, warn of one that is narrow."""
    values = [s for s in specialisations if s.kind == "value"]
    sizes = [s for s in specialisations if s.kind != "value"]
    _refuse_loops(values)
    # a loop over what a tensor's values left over turns as often as it did once
    counted = [s for s in values if s.what == "number of items"]
    if proof.misshapen and (counted or (values and not proof.values)):
        _refuse_shape((counted or values)[0], proof)
    if proof.same and (proof.values or values) and (proof.batch or sizes or values):
        narrow = values + ([] if proof.batch else sizes)
        if narrow:
            warnings.warn(_narrowness(narrow), SpecialisationWarning, stacklevel=3)
        return
    if not proof.steady:
        raise TraceError(
            "FXQ116",
            "two runs of the model itself differ: it draws random numbers from a generator of its "
            "own, or keeps state that PyTorch does not know",
            at=proof.at,
            fix="draw from torch's default generator, or hand the numbers to the model as an input",
        )
    inputs = "the dummy input" if not proof.same else "other values"
    if proof.same and proof.values:
        inputs = "another batch size"
    raise TraceError(
        "FXQ121",
        f"the graph does not compute what the model computes on {inputs}: {proof.why}",
        at=proof.at,
        fix="keep the module that computes it whole: modules_to_exclude=[...]",
    )


def _refuse_loops(deciding: list[Specialisation]) -> None:
    """A loop cannot be held by a graph: it would always turn as often as it did once."""
    for found in deciding:
        if found.loop:
            text = found.source.text if found.source else found.what
            raise TraceError(
                "FXQ122",
                "a while loop ends when the value of a tensor says so "
                f"({text}): a graph has no loops",
                at=_place(found),
                fix=_keep_whole(found, "loop"),
            )


def _refuse_shape(found: Specialisation, proof: equivalence.Proof) -> None:
    raise TraceError(
        "FXQ123",
        f"the shape of a result depends on the value of a tensor ({found.what}); on other inputs: "
        f"{proof.why}",
        at=_place(found),
        fix=_keep_whole(found, "decision"),
    )


def _keep_whole(found: Specialisation, what: str) -> str:
    if found.module_path:
        return f'on_specialisation="leaf" keeps {found.module_path}, which has the {what}, whole'
    return f"move the {what} into a module of its own and keep it whole: modules_to_exclude=[...]"


def _tell(training: list[Specialisation]) -> None:
    """Warn of modules that the graph holds as they evaluate, though they train otherwise."""
    if training:
        found = (f"{_place(s)}: {s.what}" if s.source is None else _place(s) for s in training)
        text = (
            "while it trains, the model computes something else, of which the prepared graph holds "
            "what is computed in evaluation:\n"
            + _lines(list(found))
            + "\nfix: a module of its own for what differs, kept whole: modules_to_exclude=[...]"
        )
        warnings.warn(text, SpecialisationWarning, stacklevel=3)


def _narrowness(found: list[Specialisation]) -> str:
    lines = [f"{_place(s)}: {s.kind} looked at by {s.what}" for s in found]
    values = [s for s in found if s.kind == "value"]
    fix = "compute with tensors what these lines compute with sizes"
    if values:
        inner = next((s for s in values if s.module_path), values[0])
        fix = _keep_whole(inner, "decision")
    return (
        "the prepared graph holds the decisions that Python took on the dummy input:\n"
        f"{_lines(lines)}\nfix: {fix}"
    )


def _lines(lines: list[str]) -> str:
    more = [f"and {len(lines) - 10} more"] if len(lines) > 10 else []
    return "\n".join(f"  {line}" for line in [*lines[:10], *more])


def _place(found: Specialisation) -> str:
    where = str(found.source) if found.source else "an unknown line"
    return f"{where} in {found.module_path}" if found.module_path else where
