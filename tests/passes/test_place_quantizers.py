"""Where quantizers go, as text, for the patterns that the rules speak of."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.analysis.inspect import inspect_model
from tests.helpers.modules import quantized


def placed(model: nn.Module, x: Any, **kw: Any) -> str:
    rows = inspect_model(model.eval(), x, **kw).rows
    return "\n".join(" ".join(f"{r.module}: {r.output} {r.weight}".split()) for r in rows)


def expect(model: nn.Module, x: Any, text: str, **kw: Any) -> None:
    assert placed(model, x, **kw) == dedent(text).strip()


class Branches(nn.Module):
    """conv - bn - relu beside conv, a sum, a relu after the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv1(x)))
        x = F.relu(self.conv2(x) + x)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_an_activation_lies_inside_its_producers_grid() -> None:
    expect(
        Branches(),
        torch.randn(2, 3, 8, 8),
        """
        x_stub: uint8
        conv1: float int8 x 4 channels
        relu: uint8
        conv2: uint8 int8 x 4 channels
        add: float
        relu_1: uint8
        mean: uint8
        fc: float int8 x 2 channels
        """,
    )


def test_outputs_get_a_grid_on_request() -> None:
    text = placed(Branches(), torch.randn(2, 3, 8, 8), config={"quantize_outputs": True})
    assert text.endswith("fc: uint8 int8 x 2 channels")


class Concat(nn.Module):
    def __init__(self, clip: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1)
        self.relu, self.pool = nn.ReLU() if clip else nn.Identity(), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.pool(self.a(x)), self.relu(self.b(x))[..., ::2, ::2]
        return self.c(torch.cat([a, b], 1))  # type: ignore[no-any-return]


def owners(sim: QuantizationSimModel, *paths: str) -> list[Any]:
    return [quantized(sim, p).output_quantizers[0] for p in paths]


def test_operands_of_a_concatenation_share_one_quantizer() -> None:
    x = torch.randn(2, 3, 8, 8)
    sim = QuantizationSimModel(Concat(clip=False).eval(), x)
    first, second, joined = owners(sim, "a", "b", "cat")
    assert first is second
    assert first is joined
    sim.compute_encodings([x])
    assert sum(q is joined for q in sim.quantizers()) == 1


def test_a_concatenation_rescales_where_a_shared_grid_would_cost_the_relus_kernel() -> None:
    sim = QuantizationSimModel(Concat(clip=True).eval(), torch.randn(2, 3, 8, 8))
    first, second, joined = owners(sim, "a", "relu", "cat")
    assert len({id(first), id(second), id(joined)}) == 3
    assert "relu must keep zero" in sim.explain("cat")


class Head(nn.Module):
    """Boxes in pixels beside scores, as heads of detectors return them, or read once more."""

    def __init__(self, *, read: bool) -> None:
        super().__init__()
        self.a, self.again = nn.Conv2d(3, 4, 1), nn.Conv2d(8, 4, 1) if read else None

    def forward(self, x: Tensor) -> Any:
        s = self.a(x).sigmoid()
        pixels = (s * 2) ** 2 * 500.0
        joined = torch.cat([pixels, s], 1).view(x.shape[0], 8, *x.shape[2:])
        return joined if self.again is None else self.again(joined)


def test_a_concatenation_of_floats_that_only_outputs_read_has_no_grid() -> None:
    """On the grid of the pixels, a score would be one integer or two, and so would the sigmoid."""
    x = torch.randn(2, 3, 8, 8)
    model = Head(read=False).eval()
    sim = QuantizationSimModel(model, x)
    assert "no integer consumer" in sim.explain("cat")
    assert not list(quantized(sim, "cat").output_quantizers.active())
    sim.compute_encodings([x])
    with torch.no_grad():
        real, found = model(x)[:, 4:], sim.model(x)[:, 4:]
    assert (real - found).abs().max() < 0.02  # of a range of one
    asked = QuantizationSimModel(model, x, config={"quantize_outputs": True})
    assert list(quantized(asked, "cat").output_quantizers.active())


def test_a_concatenation_does_not_stretch_the_grid_of_a_gate_that_others_read() -> None:
    x = torch.randn(2, 3, 8, 8)
    sim = QuantizationSimModel(Head(read=True).eval(), x)
    gate, joined = owners(sim, "sigmoid_stub", "cat")
    assert gate is not joined
    assert "others read sigmoid" in sim.explain("cat")
    sim.compute_encodings([x])
    assert gate.get_max() == 1.0


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (f(x).view(x.size(0), -1, 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.fused:
            y: Tensor = F.scaled_dot_product_attention(q, k, v, mask)
            return y
        scores = q @ k.transpose(-1, -2) / 2 + mask
        return torch.matmul(scores.softmax(-1), v)


@pytest.mark.parametrize("fused", [False, True])
def test_second_operands_of_products_are_symmetric_and_scores_stay_float(fused: bool) -> None:
    x, mask = torch.randn(2, 5, 8), torch.zeros(5, 5)
    rows = {r.module: r.output for r in inspect_model(Attention(fused).eval(), (x, mask)).rows}
    assert [rows[n] for n in ("q", "k", "v")] == ["uint8", "int8", "int8"]
    assert rows["softmax"] == "uint8"
    kept = [n for n in rows if n.startswith(("matmul", "scores", "div", "scale", "add", "mask"))]
    assert {rows[n] for n in kept if n != "matmul_1"} == {"float"}
    assert "mask_stub" not in rows


class Islands(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))  # type: ignore[no-any-return]


def test_float_islands_have_a_grid_only_where_integers_read_them() -> None:
    expect(
        Islands(),
        torch.randn(2, 5, 8),
        """
        norm: uint8
        fc1: float int8 x 16 channels
        gelu: uint8
        fc2: float int8 x 8 channels
        add: float
        """,
    )


class Residual(nn.Module):
    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), last

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.last(self.b(x) + x)  # type: ignore[no-any-return]


def test_a_sum_of_integers_is_an_integer_where_an_integer_operator_reads_it() -> None:
    x = torch.randn(1, 4, 4, 4)
    assert "add: uint8" in placed(Residual(nn.Conv2d(4, 2, 1)), x)
    assert "add: float" in placed(Residual(nn.Sigmoid()), x)
    on_request = placed(Residual(nn.Identity()), x, config={"quantize_outputs": True})
    assert "add: uint8" in on_request
    assert "add: float" in placed(Residual(nn.Identity()), x)


class PostNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.fc = nn.LayerNorm(8), nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.norm(self.fc(x) + x)  # type: ignore[no-any-return]


def test_a_shortcut_reads_the_norm_before_its_grid() -> None:
    expect(
        PostNorm(),
        torch.randn(2, 5, 8),
        """
        first: float
        first_stub: uint8
        fc: float int8 x 8 channels
        add: float
        norm: float
        """,
    )
    # asked for by name, the grid is that of all consumers
    config = {"layers": {"first": {"output": {"quantized": True}}}}
    assert "first: uint8" in placed(PostNorm(), torch.randn(2, 5, 8), config=config)


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(10, 8), nn.Embedding(5, 8)
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.size(1)))
        return self.fc(self.norm(x))  # type: ignore[no-any-return]


def test_tables_are_stored_in_integers_and_their_sum_stays_float() -> None:
    expect(
        Table(),
        torch.zeros(2, 5, dtype=torch.long),
        """
        words: float int8 x 10 channels
        places: float int8 x 5 channels
        add: float
        norm: uint8
        fc: float int8 x 3 channels
        """,
    )


def test_a_row_of_a_table_has_a_step_of_its_own() -> None:
    """On one step for the table, a row of small numbers would be a row of zeros."""
    ids = torch.arange(10).reshape(2, 5)
    model = Table().eval()
    with torch.no_grad():
        model.words.weight.mul_(torch.logspace(-3, 1, 10)[:, None])
    sim = QuantizationSimModel(model, ids)
    sim.compute_encodings([ids])
    rows = model.words.weight
    with torch.no_grad():
        error = (sim.model.get_submodule("words")(ids.reshape(-1)) - rows).abs()
    step = rows.abs().amax(1, keepdim=True) / 127
    assert bool((error <= 0.51 * step).all())
    shapes = [
        quantized(QuantizationSimModel(model, ids, target=target), "words")
        .param_quantizers["weight"].shape
        for target in ("onnxruntime_x86", "onnxruntime_arm", "qualcomm_htp")
    ]  # fmt: skip
    assert shapes == [(10, 1), (10, 1), ()]


def test_the_table_of_the_documentation() -> None:
    """What `docs/regions_and_targets.md` says of two blocks is what the placement does."""
    text = Path("docs/regions_and_targets.md").read_text(encoding="utf-8")
    written = [
        tuple(cell.strip().strip("`") for cell in line.split("|")[1:-1])
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    found = []
    for model, x in (
        (TransformerBlock(), torch.randn(2, 5, 8)),
        (CnnBlock(), torch.randn(1, 3, 8, 8)),
    ):
        for row in inspect_model(model.eval(), x).rows:
            found.append((row.module, row.output, row.weight or "-"))
    assert [row[:3] for row in written if len(row) == 4] == found


class TransformerBlock(nn.Module):
    """Attention and a network of two layers, each behind a norm and beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.q, self.k, self.v, self.proj = (nn.Linear(8, 8) for _ in range(4))
        self.fc1, self.act, self.fc2 = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        scores = self.q(y) @ self.k(y).transpose(1, 2)
        x = x + self.proj(scores.softmax(-1) @ self.v(y))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]


class CnnBlock(nn.Module):
    """Two convolutions beside a shortcut, a pool and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu1 = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
        self.conv1, self.bn1, self.relu2 = (
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
        )
        self.conv2, self.relu3 = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.stem(x))
        x = self.relu3(self.conv2(self.relu2(self.bn1(self.conv1(x)))) + x)
        return self.head(self.pool(x).flatten(1))  # type: ignore[no-any-return]


def test_no_quantizer_on_an_integer_tensor() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            best = y.argmax(-1)
            mask = (best + best > 2).unsqueeze(-1)
            return torch.where(mask, y, torch.zeros_like(y))

    sim = QuantizationSimModel(Model().eval(), torch.randn(3, 4))
    for node in sim.model.graph.nodes:
        spec = node.meta.get("spec")
        if node.op == "call_module" and hasattr(spec, "dtype") and not spec.dtype.is_floating_point:
            module = sim.model.get_submodule(str(node.target))
            assert not any(q is not None for q in getattr(module, "output_quantizers", ()))


def test_tied_weights_share_their_quantizer() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.fc(x)))  # type: ignore[no-any-return]

    sim = QuantizationSimModel(Tied().eval(), torch.randn(3, 4))
    first = quantized(sim, "fc").param_quantizers["weight"]
    second = quantized(sim, "fc_1").param_quantizers["weight"]
    assert first is second


def test_a_second_output_of_a_module_gets_its_own_grid() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            out, _ = self.lstm(x)
            return self.fc(out[:, -1])  # type: ignore[no-any-return]

    expect(
        Net(),
        torch.randn(2, 5, 4),
        """
        lstm: uint8
        getitem: uint8
        fc: float int8 x 2 channels
        """,
    )


def test_ranges_are_chosen_by_token_where_only_linear_layers_read_floats() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
            self.q, self.k, self.act = nn.Linear(8, 8), nn.Linear(8, 8), nn.GELU()
            self.up, self.down, self.mix = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x).flatten(2).transpose(1, 2)
            y = self.norm(x)
            x = x + self.q(y) @ self.k(y).transpose(1, 2) @ y
            x = x + self.down(self.act(self.up(self.norm(x))))
            return self.mix(F.silu(x).transpose(1, 2))  # type: ignore[no-any-return]

    sim = QuantizationSimModel(Block().eval(), torch.randn(2, 3, 8, 8))
    found = {
        name.removesuffix(".output_quantizers.0"): q.encoding_analyzer.relative
        for name, q in sim.model.named_modules()
        if "output_quantizers." in name
    }
    assert found == {
        "x_stub": False,  # of images
        "embed": False,  # written by an integer kernel
        "norm": False,  # a product reads it, too
        "q": False,
        "k": False,
        "matmul": False,
        "norm_1": True,
        "act": True,
        "silu": False,  # its rows are not what the layer reads
    }
