"""The index of all error codes, read from the code: what each says, and how to fix it.

A message is shown as it stands in the source, with `…` where it names something.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CODE = re.compile(r"FXQ\d{3}")
HUNDREDS = {
    "1": "Recording, preparing, validating, regions",
    "2": "Configuration and selectors",
    "3": "Passes and placement",
    "4": "Quantizers and calibration",
    "5": "Lowering, verification and parity",
    "6": "Checkpoints and encodings files",
    "7": "Command line and files",
    "8": "Training in simulation",
    "9": "Front doors of other tools",
}
HEAD = """\
# Error codes

Every error of fxquant is an `FxQuantError` with a stable code, a sentence that says what is wrong,
the place (the node and the line of your code) and a fix. `error.code`, `error.what`, `error.at` and
`error.fix` hold them, and `--json` prints them. Findings of `validate_model` and `fxquant verify`
have the same codes, and warnings begin with one.

This page is made from the code (`pytest tests/test_errors.py --accept`); `…` stands for what a
message names.
"""


@dataclass(frozen=True)
class Entry:
    """One place where a code is used.

    Attributes:
        code: "FXQ112".
        kind: class of the error, or what the finding is.
        what: the sentences that it may say.
        fix: what it may advise.
        file: where it stands, below the repository.
    """

    code: str
    kind: str
    what: tuple[str, ...]
    fix: tuple[str, ...]
    file: str


def entries() -> list[Entry]:
    """All uses of codes in the library, ordered by code."""
    found = [entry for file in _files() for entry in file.entries()]
    return sorted(found, key=lambda e: (e.code, e.file))


@functools.cache
def _files() -> tuple[_File, ...]:
    return tuple(
        _File(ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix())
        for folder in ("fxquant", "passes")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.is_relative_to(ROOT / "fxquant" / "passes")
    )


class _File:
    def __init__(self, tree: ast.Module, name: str) -> None:
        self.name = name
        self.tree = tree
        self.functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]

    def entries(self) -> list[Entry]:
        """Calls whose first argument is a code, or the name of one."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and node.args and _is_code(node.args[0]):
                found.append(self._call(node))
            elif isinstance(node, ast.Tuple) and [_is_code(e) for e in node.elts] == [True, False]:
                code, text = node.elts
                texts = tuple(self._texts(text, node.lineno))
                found.append(
                    Entry(str(_code(code)), "finding", texts, self._fixes_of_pairs(), self.name)
                )
        return found

    def _fixes_of_pairs(self) -> tuple[str, ...]:
        """What errors advise whose code, which stands in a pair elsewhere, is a variable."""
        return tuple(
            text
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Call) and node.args and ast.unparse(node.args[0]) == "code"
            for keyword in node.keywords
            if keyword.arg == "fix"
            for text in self._texts(keyword.value, node.lineno)
        )

    def _call(self, call: ast.Call) -> Entry:
        code, *others = call.args
        named = {k.arg: k.value for k in call.keywords}
        texts = [self._texts(a, call.lineno) for a in others]
        kind = ast.unparse(call.func)
        severity = next((t[0] for t in texts if t in (["error"], ["warning"], ["note"])), None)
        if kind in ("Finding", "_finding"):
            # (code, severity, node, what, fix), or (code, severity, what, node, module, line, fix)
            what, fix = [*(texts[1::4] if len(texts) > 4 else texts[2:]), []][:2]
            kind = severity or "finding"
        elif severity is not None:
            kind = severity
            told = [t for t in texts if t and any(" " in one for one in t)]
            what, fix = [*told, [], []][:2]
        else:
            what = texts[0] if texts else []
            fix = self._texts(named["fix"], call.lineno) if "fix" in named else []
        return Entry(str(_code(code)), kind, tuple(what), tuple(fix), self.name)

    def _texts(self, node: ast.expr, line: int) -> list[str]:
        """What an expression may say; a name says what was assigned to it in its function."""
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) and node.value else []
        if isinstance(node, ast.JoinedStr):
            return ["".join(_piece(p) for p in node.values)]
        if isinstance(node, ast.IfExp):
            return self._texts(node.body, line) + self._texts(node.orelse, line)
        if isinstance(node, ast.BoolOp):
            return [t for value in node.values for t in self._texts(value, line)]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left, right = self._texts(node.left, line), self._texts(node.right, line)
            return [a + b for a in left or ["…"] for b in right or ["…"]]
        if isinstance(node, ast.Name):
            return self._assigned(node.id, line) or self._imported(node.id)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            return [_COMPUTED[name]] if name in _COMPUTED else self._returned(name)
        if isinstance(node, ast.Attribute) and node.attr == "fix":
            return [t for name in self._sources(node.value) for t in _fixes_made_by(name)]
        return []

    def _imported(self, name: str) -> list[str]:
        """What a constant of another file says."""
        if not name.isupper():
            return []
        others = (file for file in _files() if file.name != self.name)
        return next((found for f in others if (found := f._assigned(name, 0))), [])

    def _sources(self, node: ast.expr) -> set[str]:
        """The functions that an object may come from."""
        return {
            n.value.func.id
            for n in ast.walk(self.tree)
            if isinstance(n, ast.Assign)
            and isinstance(n.value, ast.Call)
            and isinstance(n.value.func, ast.Name)
            and any(ast.unparse(t) == ast.unparse(node) for t in n.targets)
        }

    def _returned(self, name: str) -> list[str]:
        """What a function of the file, or else of another, may return."""
        local = [f for f in self.functions if f.name == name]
        if not local:
            homes = (f for f in _files() if any(g.name == name for g in f.functions))
            return next((found for home in homes if (found := home._returned(name))), [])
        returns = [
            node
            for function in local
            for node in ast.walk(function)
            if isinstance(node, ast.Return) and not isinstance(node.value, ast.Call)
        ]
        return [t for r in returns if r.value is not None for t in self._texts(r.value, r.lineno)]

    def _assigned(self, name: str, line: int) -> list[str]:
        around = [f for f in self.functions if f.lineno <= line <= (f.end_lineno or f.lineno)]
        for scope in (*reversed(around), self.tree):
            values = [
                (n.lineno, n.value)
                for n in ast.walk(scope)
                if isinstance(n, ast.Assign)
                and any(isinstance(t, ast.Name) and t.id == name for t in n.targets)
            ]
            before = [v for at, v in values if at <= line] if scope is not self.tree else []
            chosen = before[-1:] or [v for _, v in values]
            if chosen:
                return [t for v in chosen for t in self._texts(v, v.lineno)]
        return []


# functions whose text only a run tells
_COMPUTED = {"nearest": "did you mean …?", "first_line": "onnxruntime's error: …"}


def _fixes_made_by(function: str) -> list[str]:
    """What a function of the library assigns to its variable `fix`."""
    for file in _files():
        for node in file.functions:
            if node.name == function and node.end_lineno is not None:
                return file._assigned("fix", node.end_lineno)
    return []


@functools.cache
def _named_codes() -> dict[str, str]:
    """Constants of the library that hold a code: `UNLOADED = "FXQ514"`."""
    found = {}
    for path in sorted((ROOT / "fxquant").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign):
                target, value = node.targets[0], node.value
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                values = value.elts if isinstance(value, ast.Tuple) else [value]
                for name, one in zip(names, values, strict=False):
                    if isinstance(name, ast.Name) and _is_code(one):
                        found[name.id] = str(_code(one))
    return found


def _is_code(node: ast.expr) -> bool:
    return _code(node) is not None


def _code(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name) and node.id.isupper():
        return _named_codes().get(node.id)
    text = node.value if isinstance(node, ast.Constant) else None
    return text if isinstance(text, str) and CODE.fullmatch(text) else None


def _piece(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else "…"


def documented() -> dict[str, str]:
    """What docstrings say of codes under `Raises:`, "FXQ602 missing, FXQ603 damaged"."""
    found: dict[str, str] = {}
    for folder in ("fxquant", "passes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    text = " ".join((ast.get_docstring(node) or "").partition("Raises:")[2].split())
                    for part in re.finditer(r"(FXQ\d{3}),? ((?:(?!FXQ\d)[^.;])+)", text):
                        found.setdefault(part[1], part[2].strip(" ,").removesuffix(" and"))
    return found


def page() -> str:
    """The index as Markdown."""
    by_code: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries():
        by_code[entry.code].append(entry)
    told = documented()
    lines = [HEAD]
    for hundred, title in HUNDREDS.items():
        codes = [c for c in by_code if c[3] == hundred]
        lines += [f"\n## {hundred}xx: {title}\n", "| code | | what is wrong | what to do |"]
        lines += [
            "| --- | --- | --- | --- |",
            *(_row(c, by_code[c], told.get(c, "")) for c in codes),
        ]
    return "\n".join(lines) + "\n"


def _row(code: str, found: list[Entry], told: str) -> str:
    kinds = dict.fromkeys(e.kind for e in found if e.kind)
    what = dict.fromkeys(_clean(t) for e in found for t in e.what)
    fix = dict.fromkeys(_clean(t) for e in found for t in e.fix)
    what = {t: None for t in what if len(re.findall(r"\w", t)) > 5} or {_clean(told): None}
    cells = (code, ", ".join(kinds), "<br>".join(what), "<br>".join(fix))
    return "| " + " | ".join(cells) + " |"


def _clean(text: str) -> str:
    text = re.sub(r"(… ?)+…", "…", " ".join(text.split()))
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
