"""What cannot be recorded is refused with the line and a way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant.errors import TraceError
from fxquant.models.difficult import rows
from fxquant.tracing.record import record
from fxquant.tracing.replay import check_constants, difference, other_batch, replay_equal


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.linear(x).view(7)


class NoTensor(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return {"rows": x.shape[0]}


class Transformed(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return torch.func.grad(lambda y: (y * x).sum())(x)


class CapturingMap(nn.Module):
    def forward(self, x: Tensor) -> Any:
        y = x * 2
        return torch.vmap(lambda row: row + y[0])(x)


class Casting(nn.Module):
    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return x @ x.T


class Growing(nn.Module):
    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(0, 4))

    def forward(self, x: Tensor) -> Any:
        self.cache = torch.cat([self.cache, x])
        return self.cache.sum(0)


class QuantizedAlready(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        home = {"__module__": "torch.ao.nn.quantized"}
        self.part = type("Linear", (nn.Identity,), home)()


REFUSED: dict[str, tuple[Any, str]] = {
    "FXQ101": (nn.Bilinear(2, 2, 2), "does not take these inputs"),
    "FXQ102": (NoTensor(), "no tensor"),
    "FXQ103": (lambda x: x, "must be a torch.nn.Module"),
    "FXQ105": (nn.DataParallel(nn.Linear(2, 2)), "model.module"),
    "FXQ106": (QuantizedAlready(), "is quantized already"),
    "FXQ107": (Failing(), "raised RuntimeError: shape '[7]' is invalid"),
    "FXQ108": (Growing(), "replaces 'cache'"),
    "FXQ110": (CapturingMap(), "under torch.vmap uses a tensor"),
    "FXQ111": (Transformed(), "torch.func"),
    "FXQ112": (Casting(), "autocast"),
}


@pytest.mark.parametrize("code", REFUSED)
def test_refusals_have_code_place_and_fix(code: str) -> None:
    model, words = REFUSED[code]
    with pytest.raises(TraceError) as caught:
        record(model, (rows(2, 4),), {})
    assert caught.value.code == code
    assert words in str(caught.value)
    assert caught.value.fix


def test_a_failing_forward_names_line_and_last_call() -> None:
    with pytest.raises(TraceError) as caught:
        record(Failing(), (rows(2, 4),), {})
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "tests/tracing/test_record_errors.py:" in str(caught.value.at)
    assert "linear" in str(caught.value.at)
    assert "(2, 4) float32" in str(caught.value.fix)


def test_scripted_models_are_refused() -> None:
    # which of the two it is depends on the release of torch
    with pytest.warns((DeprecationWarning, FutureWarning), match="script"):
        scripted = torch.jit.script(nn.ReLU())
    with pytest.raises(TraceError, match="FXQ104"):
        record(scripted, (rows(2, 4),), {})


def test_constants_computed_from_the_input_are_refused() -> None:
    class Round(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.from_numpy(x.detach().numpy() * 2)

    model, x = Round(), rows(2, 4)
    recording = record(model, (x,), {})
    check_constants(recording, model, (x,), {})
    with pytest.raises(TraceError, match="FXQ109") as caught:
        check_constants(recording, model, (x + 1,), {})
    assert "tests/tracing/test_record_errors.py:" in str(caught.value.at)


def test_a_model_that_runs_without_gradients_only() -> None:
    class Numpy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            return x * float(self.linear(x).numpy().max() > 100)

    recording = record(Numpy(), (rows(2, 4),), {})
    assert [s.kind for s in recording.specialisations] == ["value"]


def test_replays_say_what_differs() -> None:
    gm = record(nn.Sequential(nn.Linear(4, 4)), (rows(2, 4),), {}).graph_module
    found = replay_equal(gm, nn.Sequential(nn.Linear(4, 4)), (rows(2, 4),), {})
    assert not found
    assert "differs: largest difference" in found.why
    found = replay_equal(gm, nn.Identity(), (rows(2, 5),), {})
    assert "the graph raised RuntimeError" in found.why


def test_differences_in_nested_results() -> None:
    nan = torch.tensor([float("nan"), 1.0])
    assert difference({"a": nan}, {"a": nan.clone()}) == ""
    assert "instead of torch.int64" in difference([torch.ones(1)], [torch.ones(1).long()])
    assert "is missing" in difference([], [torch.ones(1)])
    assert "has shape (2,) instead of (1,)" in difference(torch.ones(2), torch.ones(1))
    assert "is 1 instead of 2" in difference((1,), (2,))


def test_inputs_of_another_batch_keep_their_nature() -> None:
    ids, mask, flags = torch.tensor([[3, 9, 5]] * 2), torch.ones(2, 3), torch.eye(2, 3) > 0
    table, scale = rows(7, 3), torch.tensor(2.0)
    made = other_batch((rows(2, 3), ids, mask, flags, table, scale), {})
    assert made is not None
    x, new_ids, new_mask, new_flags, new_table, new_scale = made[0]
    assert [len(t) for t in (x, new_ids, new_mask, new_flags, new_table)] == [3, 3, 3, 3, 7]
    assert new_ids.tolist() == [[3, 9, 5]] * 3
    assert bool((new_mask == 1).all())
    assert torch.equal(new_flags[:2], flags)
    assert torch.equal(new_scale, scale)
    assert other_batch((scale,), {}) is None


@pytest.mark.parametrize("name", ["graph", "meta", "recompile"])
def test_a_child_with_the_name_of_a_graphs_own_attribute(name: str) -> None:
    model = nn.Module()
    model.add_module(name, nn.ReLU())
    with pytest.raises(TraceError, match=rf"(?s)FXQ113.*{name!r}.*wrap the model"):
        record(model, (rows(2, 4),), {})
    inner = nn.Sequential()
    inner.add_module(name, nn.ReLU())
    wrapped = nn.Sequential(inner)
    assert record(wrapped, (rows(2, 4),), {}).graph_module(rows(2, 4)).shape == (2, 4)
