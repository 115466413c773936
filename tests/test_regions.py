"""Quantized regions: what lies between stubs, what is wrong with them, and how they are chosen."""

from __future__ import annotations

from textwrap import dedent
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import FxQuantError, QuantizationSimModel, insert_stubs, prepare_model
from fxquant.analysis.inspector_regions import inspect_regions
from fxquant.errors import ConfigError, RegionError, SelectorError
from fxquant.graph.printer import dump
from fxquant.nn import DeQuantStub, QuantStub
from fxquant.onnx.session import Level, open_session
from fxquant.placement.regions import find_regions
from tests.helpers.grids import output_of

if TYPE_CHECKING:
    from pathlib import Path

_X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))


class Stubbed(nn.Module):
    """Three convolutions and one object of each stub, used as often as needed."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.d = QuantStub(), DeQuantStub()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))


def shown(model: nn.Module, *inputs: Any) -> str:
    """`region module operator precision` of every step."""
    plan = inspect_regions(model.eval(), inputs or (_X,))
    rows = [(r.region or "-", r.module, r.operator, r.precision) for r in plan.rows]
    return "\n".join(" ".join(map(str, row)) for row in rows)


def expect(model: nn.Module, text: str, *inputs: Any) -> None:
    assert shown(model, *inputs) == dedent(text).strip()


def refused(model: nn.Module, *inputs: Any) -> RegionError:
    with pytest.raises(RegionError) as caught:
        QuantizationSimModel(model.eval(), inputs or (_X,))
    assert "test_regions.py:" in str(caught.value), "the user's line is named"
    return caught.value


# --- what lies between stubs ---------------------------------------------------------------------


def test_two_regions_of_the_same_stub_objects() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> Tensor:
            y = self.d(self.a(self.q(x)))
            y = torch.sigmoid(self.b(y))
            return self.d(F.relu(self.c(self.q(y))))  # type: ignore[no-any-return]

    expect(
        M(),
        """
        1 q begin uint8
        1 a conv2d uint8
        1 d end float
        - b conv2d float
        - sigmoid sigmoid float
        2 q_1 begin uint8
        2 c conv2d float
        2 relu relu uint8
        2 d_1 end float
        """,
    )


def test_every_call_of_a_stub_has_an_encoding_of_its_own() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> Tensor:
            y = self.d(self.b(self.q(x)))
            return self.d(self.a(self.q(10 * y)))  # type: ignore[no-any-return]

    sim = QuantizationSimModel(M().eval(), _X)
    sim.compute_encodings([_X])
    first, second = (output_of(sim.model, n) for n in ("q", "q_1"))
    assert first is not second
    assert not torch.equal(first.get_scale(), second.get_scale())


def test_several_inputs_make_one_region() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.d(self.a(self.q(x)) + self.b(self.q(y)))  # type: ignore[no-any-return]

    expect(
        M(),
        """
        1 q begin uint8
        1 a conv2d uint8
        1 q_1 begin uint8
        1 b conv2d uint8
        1 add add uint8
        1 d end float
        """,
        _X,
        _X,
    )


@pytest.mark.parametrize("kind", [tuple, list])
def test_tuples_and_lists_pass_through_stubs(kind: Any) -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> Tensor:
            s, t, n = self.q(kind([x, x + 1, 3]))
            u, v = self.d(kind([self.a(s), self.b(t)]))
            return u * n + v  # type: ignore[no-any-return]

    expect(
        M(),
        """
        - add add float
        1 q begin uint8
        1 a conv2d uint8
        1 b conv2d uint8
        1 d end float
        - mul mul float
        - add_1 add float
        """,
    )
    sim = QuantizationSimModel(M().eval(), _X)
    sim.compute_encodings([_X])
    first, second = (output_of(sim.model, "q", i) for i in range(2))
    assert not torch.equal(first.get_max(), second.get_max())


def test_one_element_stays_one_element() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> Tensor:
            (y,) = self.q([x])
            return self.d([self.a(y)])[0]  # type: ignore[no-any-return]

    assert shown(M()).splitlines()[0] == "1 q begin uint8"


def test_a_skip_around_a_region_stays_float() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.a(self.q(x))) + x  # type: ignore[no-any-return]

    expect(
        M(),
        """
        1 q begin uint8
        1 a conv2d uint8
        1 d end float
        - add add float
        """,
    )


def test_a_float_branch_that_joins_is_quantized_at_the_border() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.a(self.q(x)) + self.b(x))  # type: ignore[no-any-return]

    expect(
        M(),
        """
        1 q begin uint8
        1 a conv2d uint8
        - b conv2d float
        - b_stub begin uint8
        1 add add uint8
        1 d end float
        """,
    )


def test_the_value_before_the_stub_may_join_as_well() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.a(self.q(x)) + x)  # type: ignore[no-any-return]

    lines = shown(M()).splitlines()
    assert {"1 q begin uint8", "- x_stub begin uint8", "1 add add uint8"} <= set(lines)


def test_sizes_and_indices_leak_nothing() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(self.q(x))
            best = y.argmax(1)
            return self.d(self.b(y)).reshape(y.shape[0], -1), best

    assert "1 b conv2d uint8" in shown(M())


def test_several_ends_of_one_region() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(self.q(x))
            return self.d(y), self.d(self.b(y))

    found = find_regions(prepare_model(M().eval(), _X))
    assert found is not None
    assert set(found.number.values()) == {1}
    assert len(found.ends) == 2


def test_a_shared_module_is_quantized_inside_only() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.d(self.a(self.q(x))))  # type: ignore[no-any-return]

    expect(
        M(),
        """
        1 q begin uint8
        1 a conv2d uint8
        1 d end float
        - a_1 conv2d float
        """,
    )


def test_without_stubs_everything_is_quantized() -> None:
    plan = inspect_regions(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), _X)
    assert plan.count == 0
    assert "no stubs" in str(plan)


# --- what is wrong with them ---------------------------------------------------------------------


def test_a_region_without_an_end() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.q(x))  # type: ignore[no-any-return]

    error = refused(M())
    assert error.code == "FXQ160"
    assert "DeQuantStub" in str(error)
    assert "q (q)" in str(error)


def test_a_branch_that_ends_nowhere_is_no_end() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(self.q(x))
            return self.d(self.b(y)), self.c(y)

    error = refused(M())
    assert error.code == "FXQ163"
    assert "a (a)" in error.what
    assert "c (c)" in str(error)


def test_an_end_without_a_beginning() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.a(x))  # type: ignore[no-any-return]

    error = refused(M())
    assert error.code == "FXQ161"
    assert "QuantStub" in str(error)


def test_nested_stubs() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> Tensor:
            y = self.b(self.q(self.a(self.q(x))))
            return self.d(self.c(self.d(y)))  # type: ignore[no-any-return]

    error = refused(M())
    assert error.code == "FXQ162"
    assert "begins at q (q)" in error.what
    assert "q_1" in str(error.at)


def test_a_leak_around_the_end() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> Tensor:
            y = self.a(self.q(x))
            return self.d(self.b(y)) + self.c(y)  # type: ignore[no-any-return]

    error = refused(M())
    assert error.code == "FXQ163"
    assert "leak" in str(error)
    assert "c (c)" in str(error.at)


def test_a_quantized_value_that_is_returned_leaks() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(self.q(x))
            return self.d(y), y

    with pytest.raises(RegionError, match="the graph returns it"):
        QuantizationSimModel(M().eval(), _X)


def test_a_skip_from_one_region_into_the_middle_of_the_next() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> Tensor:
            y = self.a(self.q(x))
            z = torch.tanh(self.d(y))
            return self.d(self.b(self.q(z)) + y)  # type: ignore[no-any-return]

    error = refused(M())
    assert error.code == "FXQ164"
    assert "a (a)" in error.what
    assert "add" in str(error.at)


def test_the_skip_may_pass_through_an_end() -> None:
    class M(Stubbed):
        def forward(self, x: Tensor) -> Tensor:
            y = self.d(self.a(self.q(x)))
            return self.d(self.b(self.q(torch.tanh(y))) + y)  # type: ignore[no-any-return]

    assert "- d_stub begin uint8" in shown(M())


# --- choosing ------------------------------------------------------------------------------------


class Plain(nn.Module):
    """Four convolutions, a split and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        p, q = torch.split(y, [2, 2], 1)
        z = torch.cat([self.b(y)[:, :2], q * p], 1)
        return self.d(self.c(z) + y)  # type: ignore[no-any-return]


def chosen(**how: Any) -> str:
    part = insert_stubs(prepare_model(Plain().eval(), _X), **how)
    sim = QuantizationSimModel(part, _X)
    sim.compute_encodings([_X])
    assert torch.isfinite(sim.model(_X)).all()
    return dump(part)


def test_neighbours_have_no_border_between_them() -> None:
    text = chosen(regions=["a", "relu", "b", "c"])
    assert (
        text
        == dedent(
            """
        %x = input
        %quant_x = QuantStub[quant_x](%x)
        %a = conv2d[a](%quant_x)
        %relu = relu[relu](%a)
        %dequant_relu = DeQuantStub[dequant_relu](%relu)
        %split = split[split](%dequant_relu, [2, 2], 1)
        %getitem_1 = getitem(%split, 1)
        %getitem_2 = getitem(%split, 0)
        %b = conv2d[b](%relu)
        %dequant_b = DeQuantStub[dequant_b](%b)
        %getitem = getitem[getitem](%dequant_b, (:, :2))
        %mul = mul[mul](%getitem_1, %getitem_2)
        %cat = cat[cat]([%getitem, %mul], 1)
        %quant_cat = QuantStub[quant_cat](%cat)
        %c = conv2d[c](%quant_cat)
        %dequant_c = DeQuantStub[dequant_c](%c)
        %add = add[add](%dequant_c, %dequant_relu)
        %d = conv2d[d](%add)
        return %d
        """
        ).strip()
    )


@pytest.mark.parametrize("how", [("a", "c"), slice("a", "c"), "a..c"])
def test_a_range_is_all_that_lies_between(how: Any) -> None:
    text = chosen(regions=[how])
    assert text.count("QuantStub[quant_") == 1
    assert "%mul = mul[mul](%getitem_1, %getitem_2)" in text
    assert "%add = add[add](%dequant_c, %dequant_relu)" in text


@pytest.mark.parametrize(
    ("how", "begins"),
    [
        (["c"], 1),
        (["[ad]"], 2),
        ([nn.Conv2d], 4),
        ([lambda path, module: path == "d"], 1),
        (["d", nn.ReLU], 2),
    ],
)
def test_every_kind_of_selector(how: list[Any], begins: int) -> None:
    assert chosen(regions=how).count("= QuantStub[") == begins


def test_what_is_kept_float_is_the_complement() -> None:
    text = chosen(keep_float=["b"])
    assert "%b = conv2d[b](%dequant_relu)" in text
    assert "%quant_b = QuantStub[quant_b](%b)" in text
    assert "%add = add[add](%c, %relu)" in text


def test_elements_of_tuples_belong_to_their_makers() -> None:
    text = chosen(regions=["split", "mul"])
    assert "%mul = mul[mul](%getitem_1, %getitem_2)" in text
    assert "%getitem_1 = getitem(%split, 1)" in text


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (["a", "d*x"], "d*x"),
        ([nn.LSTM], "LSTM"),
        ([("d", "a")], "no path 'd' to 'a'"),
        ([("a", "zz")], "'zz' matches no module"),
        (["cc"], "'c'"),
    ],
)
def test_a_selector_that_matches_nothing_is_an_error(how: list[Any], says: str) -> None:
    with pytest.raises(SelectorError) as caught:
        insert_stubs(prepare_model(Plain().eval(), _X), regions=how)
    assert says in str(caught.value)


def test_insert_stubs_refuses_what_it_cannot_do() -> None:
    prepared = prepare_model(Plain().eval(), _X)
    part = insert_stubs(prepared, regions=["a"])
    with pytest.raises(ConfigError, match="stubs already"):
        insert_stubs(part, regions=["b"])
    with pytest.raises(ConfigError, match="either"):
        insert_stubs(prepared)
    with pytest.raises(ConfigError, match="prepared"):
        insert_stubs(Plain(), regions=["a"])  # type: ignore[arg-type]


def test_the_prepared_graph_is_not_changed() -> None:
    prepared = prepare_model(Plain().eval(), _X)
    before = dump(prepared)
    insert_stubs(prepared, regions=["a"])
    assert dump(prepared) == before


def test_a_configuration_keeps_modules_in_floating_point() -> None:
    sim = QuantizationSimModel(Plain().eval(), _X, config={"keep_float": ["b", "d"]})
    params = {n for n, m in sim.named_qmodules() for _ in m.param_quantizers.active()}
    assert params == {"a", "c"}
    assert "kept in floating point" in sim.explain("b")
    with pytest.raises(FxQuantError, match="zz"):
        QuantizationSimModel(Plain().eval(), _X, config={"keep_float": ["zz"]})


# --- one file, proven ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        {"regions": ["a", "c"]},
        {"regions": [("a", "c")]},
        {"keep_float": ["b"]},
        {"regions": ["b", "d"]},
    ],
)
def test_one_file_whatever_the_regions(how: dict[str, Any], tmp_path: Path) -> None:
    sim = QuantizationSimModel(insert_stubs(prepare_model(Plain().eval(), _X), **how), _X)
    sim.compute_encodings([_X])
    report = sim.export(tmp_path, "part", _X)
    assert report.max_steps <= 1
    assert [p.name for p in tmp_path.glob("*.onnx")] == ["part.onnx"]
    off, on = (
        open_session(tmp_path / "part.onnx", level).handle.run(None, {"x": _X.numpy()})[0]
        for level in (Level.OFF, Level.ALL)
    )
    assert np.allclose(off, on, atol=1e-5)
