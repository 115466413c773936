"""What a report is given besides a simulation, as plain data: files, results, measurements."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fxquant.errors import ConfigError
from fxquant.io.reading import read_json, reason
from fxquant.io.writing import as_path
from fxquant.records.recipe_schema import Recipe


def evaluation_rows(given: Any) -> list[dict[str, Any]]:
    """Results of evaluations by name, such as {"float": 76.1, "simulation": 75.9}.

    Raises:
        ConfigError: FXQ794, they are no numbers by name.
    """
    if given is None:
        return []
    named = isinstance(given, Mapping) and all(isinstance(k, str) for k in given)
    if not named or not all(_is_number(v) for v in given.values()):
        what = f"evaluation is {given!r}, not numbers by name"
        raise ConfigError("FXQ794", what[:200], fix='pass {"float": 76.1, "simulation": 75.9}')
    return [{"name": k, "value": _finite(float(v))} for k, v in given.items()]


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, (str, bytes))


def plain_result(given: Any, what: str, key: str | None = None) -> dict[str, Any] | None:
    """A result of fxquant, its JSON or the path of a JSON file as plain data.

    Args:
        given: a result or its path, a recipe, or a mapping; None: there is none.
        what: what messages call it.
        key: what every result of this kind has.

    Raises:
        ConfigError: FXQ791, it is none of these, cannot be read or is of another kind; FXQ774 and
            FXQ775 for recipes.
    """
    if given is None:
        return None
    found = _finite(_content(given, what))
    if isinstance(found, dict) and (key is None or key in found):
        return found
    lacks = f"has no {key!r}" if isinstance(found, dict) else f"holds a {type(found).__name__}"
    fix = "give a result of fxquant, or its JSON"
    raise ConfigError("FXQ791", f"the {what} {lacks}: it is something else", fix=fix)


def _content(given: Any, what: str) -> Any:
    if hasattr(given, "to_json"):
        return json.loads(given.to_json())
    if isinstance(given, Mapping):
        return given
    if is_dataclass(given) and not isinstance(given, type):
        return asdict(given)
    if isinstance(given, BaseModel):  # a recipe, a configuration
        return given.model_dump(mode="json")
    path = as_path(given, what)
    if path.suffix in (".yaml", ".yml"):
        return Recipe.load(path).model_dump(mode="json")
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        said = f"the {what} {str(path)!r} cannot be read: {reason(error)}"
        fix = "give the path of a JSON file, or of a recipe"
        raise ConfigError("FXQ791", said, fix=fix) from error


def export_report(given: Any) -> dict[str, Any] | None:
    """The report of an export: as it was returned, its file, or the folder that holds it.

    Raises:
        ConfigError: FXQ791, it cannot be read; FXQ792, a folder holds none or several.
    """
    if isinstance(given, (str, Path)) and as_path(given, "export").is_dir():
        files = sorted(Path(given).glob("*.report.json"))
        if len(files) != 1:
            what = f"the folder {str(given)!r} holds {len(files)} files *.report.json"
            raise ConfigError("FXQ792", what, fix="give the path of one of them")
        given = files[0]
    return plain_result(given, "export report", "proven")


def require_same_network(
    given: dict[str, Any] | None, what: str, names: Iterable[str], known: Iterable[str]
) -> None:
    """Refuse a result whose names are mostly not those of the network.

    Args:
        given: the result; None: there is none.
        what: what messages call it.
        names: what it speaks of.
        known: names of the network; what begins with one and a dot belongs to it.

    Raises:
        ConfigError: FXQ795.
    """
    here, told = set(known), list(dict.fromkeys(names))
    if given is None or not told:
        return
    strange = [n for n in told if not here.intersection(_prefixes(n))]
    if 2 * len(strange) > len(told):
        missing = f"{len(strange)} of {len(told)} names in it are not here"
        said = f"the {what} is of another network: {missing}, such as {strange[0][:100]!r}"
        raise ConfigError("FXQ795", said, fix=f"give the {what} of this network")


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _finite(value: Any) -> Any:
    """Plain data that JSON can say: texts for keys, no infinities."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_finite(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
