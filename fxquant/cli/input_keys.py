"""Which arrays of a file, or entries of a batch, are inputs of a network, and which the labels."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fxquant.auto.calibration_data import LABELS, Inputs
from fxquant.errors import ConfigError, nearest

_PLAIN = re.compile(r"arr_\d+")  # names that numpy gives to arrays without one


@dataclass(frozen=True)
class Keys:
    """What --input and --labels say.

    Attributes:
        inputs: keys in the order of the network's inputs, or "argument=key"; none: all that are not
            labels, by name where there are several.
        labels: key of the labels; None: one of the usual names.
    """

    inputs: tuple[str, ...] = ()
    labels: str | None = None

    def inputs_of(self, given: Mapping[str, Any], model: nn.Module | None, where: str) -> Any:
        """The inputs among the arrays of a file: a tuple, or a dict by the names of the arguments.

        Args:
            given: arrays by name.
            model: its forward arguments are what inputs are named by.
            where: how messages call the file.

        Raises:
            ConfigError: FXQ727, forward has no such argument; FXQ728, there is no such array, or
                --input names the argument of some arrays only.
        """
        arguments = {} if model is None else inspect.signature(model.forward).parameters
        if self.inputs:
            return self._chosen(given, arguments, where)
        # a data set's file holds what the network should answer, too
        left = {k: v for k, v in given.items() if k != self.labels and _may_be_input(k, arguments)}
        left = left or dict(given)
        if len(left) == 1 or all(_PLAIN.fullmatch(key) for key in left):
            inputs = tuple(left.values())
            return inputs if model is None else Inputs(model).of(inputs)
        _check_names(left, arguments, where)
        return left

    def inputs_in(self, batch: Any, model: nn.Module | None, where: str) -> Any:
        """The inputs in a batch that a function yields; what else comes with them is left out.

        Raises:
            ConfigError: FXQ727 and FXQ728 as above; FXQ728 also for a batch without keys.
        """
        if isinstance(batch, Mapping):
            left = {k: v for k, v in batch.items() if k != self.labels}
            known = {} if model is None or self.inputs else Inputs(model).of(left)
            return known or batch_of(self.inputs_of(batch, model, where))
        if self.inputs:
            what = f"--input {self.inputs[0]}: {where} is a {type(batch).__name__}, without keys"
            raise ConfigError("FXQ728", what, fix="yield dicts, or leave --input out")
        return batch if model is None else Inputs(model).of(batch)

    def label_key(self, given: Mapping[str, Any]) -> str | None:
        """The key of the labels; None where there are none."""
        found = self.labels or next((key for key in given if key in LABELS), None)
        return found if found in given else None

    def wanted(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """What of the arrays of a file is looked at.

        Raises:
            ConfigError: FXQ728, there is no such array.
        """
        if not self.inputs:
            return dict(given)
        self._require(given, where)
        keys = {self.label_key(given), *(key for _, key in self._pairs())}
        return {k: v for k, v in given.items() if k in keys}

    def _pairs(self) -> list[tuple[str, str]]:
        return [(argument, key) for argument, _, key in (t.rpartition("=") for t in self.inputs)]

    def _require(self, given: Mapping[str, Any], where: str) -> None:
        for _, key in self._pairs():
            if key not in given:
                fix = nearest(key, given) or f"it holds {', '.join(map(str, given))}"
                what = f"--input {key}: {where} has nothing called so"
                raise ConfigError("FXQ728", what, fix=fix)

    def _chosen(self, given: Mapping[str, Any], arguments: Mapping[str, Any], where: str) -> Any:
        self._require(given, where)
        pairs = self._pairs()
        named = [argument for argument, _ in pairs if argument]
        if named and len(named) < len(pairs):
            what = f"--input names the argument of some arrays: {', '.join(self.inputs)}"
            raise ConfigError("FXQ728", what, fix="write argument=key for all of them, or for none")
        if not named and not all(key in arguments for _, key in pairs):
            return tuple(given[key] for _, key in pairs)
        found = {argument or key: given[key] for argument, key in pairs}
        _check_names(found, arguments, where)
        return found


def batch_of(inputs: Any) -> Any:
    """Inputs as one batch: a single one needs no tuple."""
    return inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs


def rows(inputs: Any, start: int, stop: int) -> Any:
    """A part of the rows of all inputs."""
    if isinstance(inputs, Mapping):
        return {name: value[start:stop] for name, value in inputs.items()}
    return tuple(value[start:stop] for value in inputs)


def _may_be_input(key: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a key is no label: labels with a default are for computing a loss."""
    if key not in LABELS:
        return True
    return key in arguments and arguments[key].default is inspect.Parameter.empty


def _check_names(names: Mapping[str, Any], arguments: Mapping[str, Any], where: str) -> None:
    if not arguments or any(p.kind is p.VAR_KEYWORD for p in arguments.values()):
        return
    for name in names:
        if name not in arguments:
            near = nearest(name, arguments) or f"forward takes {', '.join(arguments)}"
            fix = f"{near}; --input argument=key says which array is which"
            raise ConfigError("FXQ727", f"forward has no argument {name!r}", at=where, fix=fix)
