"""Files of small networks of many kinds on other values and batch sizes than the example's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.onnx import lower
from fxquant.onnx.parity.further_inputs import variations
from fxquant.onnx.runs.varying import Varying
from fxquant.sim import QuantizationSimModel
from tests.helpers.lowering import run
from tests.helpers.nets import prepared


class Net(nn.Module):
    """A forward over some layers."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.body = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Any) -> Any:
        """Whatever the forward gives."""
        return self.body(self, *inputs)


def conv(a: int, b: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(a, b, 3, stride, 1)


# --- segmentation and detection ------------------------------------------------------------------


def pyramid(m: Any, x: Tensor) -> Any:
    a = F.relu(m.a(x))
    b = F.relu(m.b(a))
    return m.out(m.side(a) + F.interpolate(m.top(b), size=a.shape[-2:])), m.top(b)


def unet(m: Any, x: Tensor) -> Any:
    a = F.relu(m.a(x))
    up = F.interpolate(F.relu(m.b(a)), size=a.shape[-2:], mode="bilinear", align_corners=False)
    return m.out(torch.cat([a, up], 1))


def transposed(m: Any, x: Tensor) -> Any:
    a = F.relu(m.a(x))
    return m.out(torch.cat([a, F.relu(m.up(F.relu(m.b(a))))], 1))


def deeplab(m: Any, x: Tensor) -> Any:
    a = F.relu(m.a(x))
    pooled = F.relu(m.b(F.adaptive_avg_pool2d(a, 1)))
    whole = F.interpolate(pooled, size=a.shape[-2:], mode="bilinear", align_corners=False)
    scores = m.out(torch.cat([a, whole], 1))
    return F.interpolate(scores, size=x.shape[-2:], mode="bilinear", align_corners=False)


def gated(m: Any, x: Tensor) -> Any:
    a = F.relu(m.a(x))
    gate = torch.sigmoid(m.b(F.adaptive_avg_pool2d(a, 1)))
    return m.out(a * F.interpolate(gate, size=a.shape[2:]))


def boxes(m: Any, x: Tensor) -> Any:
    a = F.relu(m.a(x))
    rows = m.box(a).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4)
    corners = torch.cat([rows[..., :2] - rows[..., 2:], rows[..., :2] + rows[..., 2:]], -1)
    return corners, m.score(a).flatten(2).transpose(1, 2)


def best_boxes(m: Any, x: Tensor) -> Any:
    a = F.relu(m.a(x))
    rows = m.box(a).flatten(2).transpose(1, 2)
    places = rows[..., 0].topk(3, dim=1).indices
    return rows.gather(1, places.unsqueeze(-1).expand(-1, -1, 4))


def sure_boxes(m: Any, x: Tensor) -> Any:
    rows = m.box(F.relu(m.a(x))).permute(0, 2, 3, 1).reshape(-1, 4)
    return rows[rows[:, 0] > 0]


# --- routing -------------------------------------------------------------------------------------


def experts(m: Any, x: Tensor) -> Any:
    best, out = m.gate(x).argmax(-1), torch.zeros_like(x)
    for k, expert in enumerate((m.a, m.b, m.c)):
        rows = (best == k).nonzero().squeeze(-1)
        out = out.index_add(0, rows, expert(x[rows]))
    return out


def two_experts(m: Any, x: Tensor) -> Any:
    """Each token goes to the two best of three experts, weighed."""
    weights, places = torch.softmax(m.gate(x), -1).topk(2, -1)
    out = torch.zeros_like(x)
    for k, expert in enumerate((m.a, m.b, m.c)):
        rows, which = torch.where(places == k)
        out = out.index_add(0, rows, expert(x[rows]) * weights[rows, which].unsqueeze(-1))
    return out


def masked_branch(m: Any, x: Tensor) -> Any:
    chosen = m.gate(x)[:, 0] > 0
    out = m.a(x)
    out[chosen] = m.b(x[chosen])
    return m.c(out)


def dense_experts(m: Any, x: Tensor) -> Any:
    weights = torch.softmax(m.gate(x), -1)
    return (torch.stack([m.a(x), m.b(x), m.c(x)], 1) * weights.unsqueeze(-1)).sum(1)


# --- graphs --------------------------------------------------------------------------------------


def messages(m: Any, x: Tensor, edges: Tensor) -> Any:
    source, target = edges
    return m.b(x) + torch.zeros_like(x).index_add(0, target, F.relu(m.a(x))[source])


def mean_of_neighbours(m: Any, x: Tensor, edges: Tensor) -> Any:
    h, target = m.a(x), edges[1]
    ones = torch.ones(edges.shape[1], 1)
    count = torch.zeros(x.shape[0], 1).index_add(0, target, ones).clamp(min=1)
    return m.b(torch.zeros_like(h).index_add(0, target, h[edges[0]]) / count)


def scattered(m: Any, x: Tensor, edges: Tensor) -> Any:
    h = F.relu(m.a(x))
    index = edges[1].unsqueeze(-1).expand(-1, h.shape[1])
    return m.b(torch.zeros_like(h).scatter_add(0, index, h[edges[0]]))


def attention_over_edges(m: Any, x: Tensor, edges: Tensor) -> Any:
    h = m.a(x)
    weight = torch.sigmoid((h[edges[0]] * m.b(x)[edges[1]]).sum(-1, keepdim=True))
    return torch.zeros_like(h).index_add(0, edges[1], weight * h[edges[0]])


def edges_first(m: Any, edges: Tensor, x: Tensor) -> Any:
    return messages(m, x, edges)


# --- sequences -----------------------------------------------------------------------------------


def last_state(m: Any, x: Tensor) -> Any:
    return m.fc(m.rnn(x)[0][:, -1])


def both_ways(m: Any, x: Tensor) -> Any:
    return m.fc(m.rnn(x)[0].mean(1))


def stateful(m: Any, x: Tensor, h: Tensor) -> Any:
    return m.rnn(x, h)


def spectrum(m: Any, x: Tensor) -> Any:
    return m.fc(torch.fft.rfft(m.a(x), dim=-1).abs())


def mixing(m: Any, x: Tensor) -> Any:
    return m.fc(torch.fft.fft2(m.a(x)).real)


def padded_attention(m: Any, x: Tensor, keep: Tensor) -> Any:
    q, k, v = m.a(x), m.b(x), m.c(x)
    scores = q @ k.transpose(1, 2) * 0.35
    scores = scores.masked_fill(~keep[:, None, :], -1e4)
    return torch.softmax(scores, -1) @ v


def masked_words(m: Any, ids: Tensor) -> Any:
    h, known = m.words(ids), (ids != 0).float().unsqueeze(-1)
    return m.fc((h * known).sum(1) / known.sum(1).clamp(min=1))


def kept_rows(m: Any, x: Tensor, keep: Tensor) -> Any:
    """Tokens that an input mask keeps."""
    return m.a(x[keep]).reshape(x.shape[0], -1, 8)


def places(m: Any, x: Tensor) -> Any:
    return m.a(x) + m.words(torch.arange(x.shape[1])).unsqueeze(0)


def last_known(m: Any, x: Tensor, lengths: Tensor) -> Any:
    h = m.rnn(x)[0]
    return m.fc(h[torch.arange(x.shape[0]), lengths - 1])


def linear() -> dict[str, nn.Module]:
    return {name: nn.Linear(8, 8) for name in "abc"}


def seg(**more: nn.Module) -> dict[str, nn.Module]:
    return {"a": conv(3, 8), "b": conv(8, 8, 2)} | more


IMAGE, ROWS, TOKENS = (3, 3, 8, 8), (12, 8), (4, 6, 8)
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 3], [1, 2, 3, 4, 5, 6, 0, 3, 0]])
HALF = torch.arange(6).repeat(4, 1) % 2 == 0
KEEP = torch.arange(6) < torch.tensor([[6], [4], [3], [5]])
IDS = torch.tensor([[3, 7, 2, 0, 0], [5, 1, 0, 0, 0], [9, 8, 7, 6, 5], [4, 0, 0, 0, 0]])
NETS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, nn.Module]], tuple[Any, ...]]] = {
    "feature pyramid": (pyramid, lambda: seg(top=conv(8, 8), side=conv(8, 8), out=conv(8, 4)),
                        (IMAGE,)),
    "u-net": (unet, lambda: seg(out=conv(16, 4)), (IMAGE,)),
    "u-net, transposed": (
        transposed, lambda: seg(up=nn.ConvTranspose2d(8, 8, 2, 2), out=conv(16, 4)), (IMAGE,)),
    "deeplab": (deeplab, lambda: seg(b=nn.Conv2d(8, 8, 1), out=conv(16, 4)), (IMAGE,)),
    "lr-aspp": (gated, lambda: seg(b=nn.Conv2d(8, 8, 1), out=conv(8, 4)), (IMAGE,)),
    "boxes": (boxes, lambda: seg(box=conv(8, 4), score=conv(8, 3)), (IMAGE,)),
    "best boxes": (best_boxes, lambda: seg(box=conv(8, 4)), (IMAGE,)),
    "boxes above a score": (sure_boxes, lambda: seg(box=conv(8, 4)), (IMAGE,)),
    "experts": (experts, lambda: linear() | {"gate": nn.Linear(8, 3)}, (ROWS,)),
    "two experts of three": (two_experts, lambda: linear() | {"gate": nn.Linear(8, 3)}, (ROWS,)),
    "a masked branch": (masked_branch, lambda: linear() | {"gate": nn.Linear(8, 1)}, (ROWS,)),
    "experts without a choice": (dense_experts, lambda: linear() | {"gate": nn.Linear(8, 3)},
                                 (ROWS,)),
    "messages": (messages, linear, ((7, 8), EDGES)),
    "edges first": (edges_first, linear, (EDGES, (7, 8))),
    "mean of neighbours": (mean_of_neighbours, linear, ((7, 8), EDGES)),
    "scatter": (scattered, linear, ((7, 8), EDGES)),
    "attention over edges": (attention_over_edges, linear, ((7, 8), EDGES)),
    "as many edges as nodes": (messages, linear, ((9, 8), EDGES)),
    "lstm": (last_state, lambda: {"rnn": nn.LSTM(8, 6, batch_first=True), "fc": nn.Linear(6, 4)},
             (TOKENS,)),
    "gru, both ways": (
        both_ways,
        lambda: {"rnn": nn.GRU(8, 6, batch_first=True, bidirectional=True), "fc": nn.Linear(12, 4)},
        (TOKENS,)),
    "a state that comes in": (stateful, lambda: {"rnn": nn.GRU(8, 6)}, ((5, 4, 8), (1, 4, 6))),
    "spectrum": (spectrum, lambda: {"a": nn.Linear(8, 8), "fc": nn.Linear(5, 4)}, (TOKENS,)),
    "mixing by fourier": (mixing, lambda: {"a": nn.Linear(8, 8), "fc": nn.Linear(8, 4)}, (TOKENS,)),
    "a mask of padding": (padded_attention, linear, (TOKENS, KEEP)),
    "words": (masked_words, lambda: {"words": nn.Embedding(10, 8), "fc": nn.Linear(8, 4)}, (IDS,)),
    "kept tokens": (kept_rows, linear, (TOKENS, HALF)),
    "places": (places, lambda: {"a": nn.Linear(8, 8), "words": nn.Embedding(6, 8)}, (TOKENS,)),
    "last known state": (
        last_known, lambda: {"rnn": nn.GRU(8, 6, batch_first=True), "fc": nn.Linear(6, 4)},
        (TOKENS, torch.tensor([6, 4, 3, 5]))),
}  # fmt: skip
# a Resize to sizes between quantized layers loads without the axes that came with opset 18
OPSETS = dict.fromkeys(("feature pyramid", "u-net", "deeplab", "lr-aspp"), 17)
STEPS = 2


def example_of(shapes: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(s) if isinstance(s, tuple) else s for s in shapes)


@pytest.mark.parametrize("name", NETS)
def test_the_file_is_right_on_other_values_and_sizes(name: str) -> None:
    """At the default level, on every variation, within a step of the widest grid or two.

    One flipped tie early may change what follows by a step: no element is further off, and nearly
    all are equal.
    """
    torch.manual_seed(7)
    forward, layers, shapes = NETS[name]
    x = example_of(shapes)
    sim = QuantizationSimModel(Net(forward, **layers()).eval(), x)
    sim.compute_encodings([x])
    lowered = lower(sim.model, (x, {}), opset=OPSETS.get(name, 21))
    assert lowered.batch_note == ""
    found = variations(sim.model, (x, {}), lowered.varying)
    assert len(found) == 3, [v.what for v in found]
    for variation in found:
        got = run(lowered, list(variation.example[0]), optimized=True)
        assert len(got) == len(variation.outputs)
        for ours, theirs in zip(variation.outputs, got, strict=True):
            assert_close(ours.detach().numpy(), theirs)


def assert_close(ours: Any, theirs: Any) -> None:
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    if not ours.size:
        return
    peak = float(np.abs(ours).max())
    apart = np.abs(ours - theirs)
    # 8 bits: a step is at most the range, twice the peak, over 255
    assert apart.max(initial=0.0) <= STEPS * 2 * peak / 255
    assert (apart <= 1e-4 * peak).mean() >= 0.9


def test_variations_are_deterministic_and_leave_randomness_alone() -> None:
    gm = prepared(Net(lambda m, x: m.a(x), a=nn.Linear(8, 8)), torch.randn(4, 8))
    example: Any = ((torch.randn(4, 8),), {})
    varying = lower(gm, example).varying
    state = torch.get_rng_state()
    first, second = (variations(gm, example, varying) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert [v.what for v in first] == ["other values", "a batch of 3", "a batch of 2"]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.example[0][0], b.example[0][0])
        assert torch.equal(a.outputs[0], b.outputs[0])
        assert not torch.equal(a.example[0][0], example[0][0][: len(a.example[0][0])])


def test_a_batch_that_is_fixed_has_variations_of_values_only() -> None:
    gm = prepared(Net(lambda m, x: m.a(x).reshape(4, 8), a=nn.Linear(8, 8)), torch.randn(4, 8))
    (found,) = variations(gm, ((torch.randn(4, 8),), {}), Varying(4))
    assert found.what == "other values"
    assert found.outputs[0].shape == (4, 8)


def test_what_the_model_refuses_is_left_out() -> None:
    """Rows of a table of four: of a batch of one nothing could be taken by the places 2 and 3."""
    gm = prepared(Net(lambda m, x, at: m.a(x)[at], a=nn.Linear(8, 8)),
                  torch.randn(4, 8), torch.tensor([2, 0, 3, 1]))  # fmt: skip
    example: Any = ((torch.randn(4, 8), torch.tensor([2, 0, 3, 1])), {})
    cut = Varying(4, frozenset({0}), (2, 3))
    found = variations(gm, example, cut)
    assert [v.what for v in found] == ["other values"]
    grown = variations(gm, example, Varying(4, frozenset({0, 1}), (4, 5)))
    assert [v.what for v in grown] == ["other values", "a batch of 5", "a batch of 8"]
