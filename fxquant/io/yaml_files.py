"""YAML files: plain data with the line of every value, within limits, and nothing that runs code.

The loader is PyYAML's safe one, and less is read than it would take: no anchors, whose few lines
may stand for a tree without end, no tags and no keys that are given twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fxquant.io.reading import TEXT_SHOWN, Budget, Refused, require_file

YAML_BYTES = 1 << 20
YAML_DEPTH = 16

Place = tuple["str | int", ...]


class NotYamlError(Refused):
    """A text that is not read as YAML.

    Attributes:
        line: where, counted from 1; None where it is no matter of a line.
    """

    def __init__(self, what: str, line: int | None = None) -> None:
        super().__init__(what)
        self.line = line


@dataclass(frozen=True)
class YamlText:
    """What a file holds.

    Attributes:
        content: dicts, lists, texts, numbers, booleans and None.
        lines: the line of every value, by the keys and indices that lead to it.
    """

    content: Any
    lines: dict[Place, int]

    def line(self, place: Place) -> int:
        """The line of a value, or of what it would stand in."""
        while place not in self.lines and place:
            place = place[:-1]
        return self.lines.get(place, 1)


def read_yaml(path: Path) -> YamlText:
    """What a YAML file holds.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no YAML, or breaks a limit: a `NotYamlError` where a line is known.
    """
    size = require_file(path, YAML_BYTES)
    return parse_yaml(path.read_bytes().decode("utf-8-sig"), Budget(size))


def parse_yaml(text: str, budget: Budget | None = None) -> YamlText:
    """What a YAML text says.

    Raises:
        NotYamlError: it is none, or breaks a limit.
    """
    import yaml

    try:
        _require_plain(text, budget or Budget(len(text)))
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            _refuse("it is empty", 1)
        lines: dict[Place, int] = {}
        return YamlText(_value(loader, root, (), lines), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = (error.problem or error.context or "it is no YAML")[:TEXT_SHOWN]
        raise NotYamlError(what, None if mark is None else mark.line + 1) from error
    except yaml.YAMLError as error:  # a character that no YAML text holds
        where = getattr(error, "position", 0)
        line = text.count("\n", 0, where) + 1 if isinstance(where, int) else None
        what = "it holds a character that is no text"
        raise NotYamlError(what, line) from error


def yaml_text(content: Any) -> str:
    """Plain data as YAML, keys in the order that they have."""
    import yaml

    found: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    return found


def _refuse(what: str, line: int) -> NoReturn:
    raise NotYamlError(what, line)


def _require_plain(text: str, budget: Budget) -> None:
    """Refuse what is nested too deep, anchors, tags and several documents, before it is built."""
    import yaml

    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        budget.check()
        line = event.start_mark.line + 1
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        documents += isinstance(event, yaml.DocumentStartEvent)
        if depth > YAML_DEPTH:
            _refuse(f"it is nested too deep; {YAML_DEPTH} levels are read", line)
        if documents > 1:
            _refuse("it holds more than one document", line)
        if getattr(event, "anchor", None) is not None:
            _refuse("anchors and aliases are not read", line)
        if getattr(event, "tag", None) is not None:
            _refuse(f"the tag {event.tag[:TEXT_SHOWN]} is not read", line)


def _value(loader: Any, node: Any, place: Place, lines: dict[Place, int]) -> Any:
    import yaml

    line = lines[place] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, one, (*place, i), lines) for i, one in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = _scalar(loader, key_node, line)
            if not isinstance(key, str):
                _refuse(f"the key {str(key)[:TEXT_SHOWN]} is no text", line)
            if key in found:
                _refuse(f"the key {key[:TEXT_SHOWN]!r} is given twice", line)
            found[key] = _value(loader, value_node, (*place, key), lines)
            lines[(*place, key)] = line
        return found
    return _scalar(loader, node, line)


def _scalar(loader: Any, node: Any, line: int) -> Any:
    import yaml

    if not isinstance(node, yaml.ScalarNode):
        _refuse("a key is a list or a mapping", line)
    try:
        return loader.construct_object(node)
    except (ValueError, OverflowError, AttributeError) as error:  # a date of month 13, say
        what = f"{node.value[:TEXT_SHOWN]!r} cannot be read"
        raise NotYamlError(what, line) from error
