"""Folding by module and by repetition, and the rows of what is folded."""

from __future__ import annotations

from dataclasses import replace
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant.inspection.folding import Child, FoldNode, Group, Leaf, fold, outline
from fxquant.inspection.layering import LONGEST, layered
from fxquant.inspection.nested_rows import Box, boxes


def chain(*paths: str, shape: tuple[int, ...] = (4,)) -> list[FoldNode]:
    """Operators one after the other; what they compute is the last part of their paths."""
    paths = ("input", *paths)
    names = [f"n{i}" for i in range(len(paths))]
    return [
        FoldNode(name, path, _kind(path), shape, (before,) if before else ())
        for name, path, before in zip(names, paths, [None, *names], strict=False)
    ]  # fmt: skip


def _kind(path: str) -> str:
    return path.rpartition(".")[2].rstrip("0123456789_")


def folded(nodes: list[FoldNode]) -> str:
    return outline(fold(nodes), nodes)


def text(block: str) -> str:
    return dedent(block).strip()


def test_blocks_of_one_structure_are_one_stack() -> None:
    block = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    nodes = chain("stem", *(f"blocks.{i}.{part}" for i in range(12) for part in block), "head")
    assert folded(nodes) == text(
        """
        input: input
        stem: stem
        blocks x 12
          blocks.0
            norm1: norm
            blocks.0.attn
              qkv: qkv
              proj: proj
            norm2: norm
            blocks.0.mlp
              fc1: fc
              fc2: fc
        head: head
        """
    )


def test_a_block_that_differs_stays_outside_of_the_stack() -> None:
    block = ("a", "b", "c", "d", "e")
    first = ("down", *block)
    nodes = chain(*(f"stage.{i}.{p}" for i in range(4) for p in (block if i else first)))
    assert [c.label for c in fold(nodes).children[1].children] == ["0", "1 … 3"]  # type: ignore[union-attr]


def test_blocks_that_alternate_repeat_in_pairs() -> None:
    parts = {0: ("a", "b", "c"), 1: ("a", "roll", "b", "c")}
    nodes = chain(*(f"layers.{i}.{p}" for i in range(6) for p in parts[i % 2]))
    assert folded(nodes).splitlines()[1:4] == ["layers x 3", "  0 … 1", "    layers.0"]


def test_repetition_without_modules_is_found() -> None:
    nodes = chain(*(f"{kind}_{i}" for i in range(50) for kind in ("conv", "relu", "conv", "add")))
    root = fold(nodes)
    assert [type(c).__name__ for c in root.children] == ["Leaf", "Group"]
    assert len(root.children[1].children) == 50  # type: ignore[union-attr]


def test_other_shapes_and_other_wiring_are_other_structures() -> None:
    alike = chain(*(f"blocks.{i}.{p}" for i in range(2) for p in ("a", "b", "c", "d", "e")))
    assert folded(alike).splitlines()[1] == "blocks x 2"
    last = alike[5]
    for changed in (replace(last, shape=(8,)), replace(last, inputs=("n2",))):
        nodes = [*alike[:5], changed, *alike[6:]]
        assert folded(nodes).splitlines()[1] == "blocks"


def test_inserted_quantizers_make_no_structure_another_one() -> None:
    block = ("a", "b", "c", "d", "e")
    nodes = chain(*(f"blocks.{i}.{p}" for i in range(3) for p in block))
    stub = FoldNode("s", "blocks.0.stub", "quantize", (4,), ("n5",), inserted=True)
    nodes[6:7] = [stub, replace(nodes[6], inputs=("s",))]
    assert folded(nodes).splitlines()[1] == "blocks x 3"


def test_a_module_that_is_called_again_is_a_group_of_its_own() -> None:
    nodes = chain("enc.a", "enc.b", "mid", "enc.a", "enc.b")
    assert [c.label for c in fold(nodes).children] == ["input", "enc", "mid", "enc"]


def test_long_lists_come_in_sections() -> None:
    root = fold(chain(*("abcdefghij"[i * i % 10] + "x" * (i % 7) for i in range(200))))
    assert len(root.children) <= 48
    assert all(isinstance(c, Group) and c.kind == "section" for c in root.children)


# --- properties ----------------------------------------------------------------------------------

_PATHS = st.lists(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join), min_size=1, max_size=60
)


@settings(max_examples=60, deadline=None)
@given(_PATHS, st.randoms(use_true_random=False))
def test_every_operator_is_somewhere_once_and_in_order(paths: list[str], random: object) -> None:
    nodes = [
        FoldNode(
            f"n{i}", path, path[-1], (1,),
            tuple(sorted({f"n{random.randrange(i)}" for _ in range(min(i, 2))})),  # type: ignore[attr-defined]
        )
        for i, path in enumerate(paths)
    ]  # fmt: skip
    root = fold(nodes)
    assert list(_places(root)) == list(range(len(nodes)))
    _check_rows(boxes(root, nodes))


def _places(child: Child) -> list[int]:
    if isinstance(child, Leaf):
        return [child.first]
    return [place for c in child.children for place in _places(c)]


def _check_rows(box: Box) -> None:
    """Every child stands in one row, and edges go down row by row."""
    for inner in box.boxes:
        _check_rows(inner)
    if isinstance(box.child, Leaf) or box.child.kind == "stack":
        return
    level = {n: i for i, row in enumerate(box.rows.rows) for n in row}
    assert sum(map(len, box.rows.rows)) == len(level)
    assert set(range(len(box.boxes))) <= level.keys()
    for producer, consumer, bends in box.rows.edges:
        way = [level[producer], *(level[b] for b in bends), level[consumer]]
        assert way == list(range(way[0], way[-1] + 1))


def test_an_edge_over_many_rows_is_not_led_through_the_picture() -> None:
    count = LONGEST + 3
    steps = [(i, i + 1) for i in range(count - 1)]
    rows = layered(count, [*steps, (0, count - 1), (0, 2)])
    assert rows.far == ((0, count - 1),)
    assert next(e for e in rows.edges if e[:2] == (0, 2))[2] != ()


@pytest.mark.parametrize("count", [0, 1])
def test_small_graphs(count: int) -> None:
    assert len(layered(count, []).rows) == count


def test_neighbours_stand_below_each_other() -> None:
    rows = layered(6, [(0, 2), (1, 3), (2, 5), (3, 4)]).rows
    assert list(rows) == [(0, 1), (2, 3), (5, 4)]
