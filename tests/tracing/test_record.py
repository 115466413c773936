"""Every difficulty is recorded: the graph computes the same bits, the model stays whole."""

from __future__ import annotations

import copy
import functools
import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionMeta

from fxquant.graph.meta import TensorSpec, module_path, source, spec
from fxquant.models.difficult import NETWORKS, rows
from fxquant.models.difficult.values import Answer, Pair
from fxquant.tracing.record import Recording, record
from fxquant.tracing.replay import (
    check_constants,
    difference,
    other_batch,
    other_values,
    replay_equal,
)

pytestmark = pytest.mark.filterwarnings(
    # re-entrant checkpoints say so when nothing before them needs a gradient
    "ignore:None of the inputs have requires_grad:UserWarning"
)


def build(name: str, *, train: bool = False) -> nn.Module:
    return NETWORKS[name].network().train(train)


def recorded(model: nn.Module, *args: Any, **kwargs: Any) -> Recording:
    recording = record(model, args, kwargs)
    recording.graph_module.graph.lint()
    return recording


def text(recording: Recording) -> str:
    """The graph without the noise of users and empty keyword arguments."""
    lines = []
    for node in recording.graph_module.graph.nodes:
        kwargs = "".join(f", {k}={v}" for k, v in node.kwargs.items())
        target = node.target if isinstance(node.target, str) else node.target.__name__
        args = ", ".join(map(str, node.args))
        lines.append(f"{node.name} = {target}({args}{kwargs})")
    return "\n".join(lines)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_recorded_networks_compute_the_same_bits(name: str, train: bool) -> None:
    model = build(name, train=train)
    args, kwargs = NETWORKS[name].args, NETWORKS[name].kwargs
    before = copy.deepcopy(model.state_dict())
    recording = recorded(model, *args, **kwargs)
    assert {k: v.tolist() for k, v in model.state_dict().items()} == {
        k: v.tolist() for k, v in before.items()
    }
    for inputs in ((args, kwargs), other_values(args, kwargs), other_batch(args, kwargs)):
        assert inputs is not None
        found = replay_equal(recording, model, *inputs)
        assert found, found.why
    check_constants(recording, model, *other_values(args, kwargs))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_state_and_copies_stay_whole(name: str) -> None:
    model = build(name)
    args, kwargs = NETWORKS[name].args, NETWORKS[name].kwargs
    gm = recorded(model, *args, **kwargs).graph_module
    copied = copy.deepcopy(gm)
    for other in (gm, copied):
        assert list(other.state_dict()) == list(model.state_dict())
        for key, value in model.state_dict().items():
            assert torch.equal(other.state_dict()[key], value)
        assert [n for n, _ in other.named_parameters()] == [n for n, _ in model.named_parameters()]
        assert {n: type(m).__name__ for n, m in other.named_modules() if n} == {
            n: type(m).__name__ for n, m in model.named_modules() if n
        }
    mine, theirs = {id(p) for p in gm.parameters()}, {id(p) for p in copied.parameters()}
    assert not mine & theirs
    found = replay_equal(copied, model, args, kwargs)
    assert found, found.why


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_sizes_called_fixed_are_fixed(name: str) -> None:
    model = build(name)
    args, kwargs = NETWORKS[name].args, NETWORKS[name].kwargs
    inputs = other_batch(args, kwargs)
    assert inputs is not None
    first = recorded(model, *args, **kwargs).graph_module.graph
    second = recorded(model, *inputs[0], **inputs[1]).graph_module.graph
    for a, b in zip(first.nodes, second.nodes, strict=True):
        if isinstance(spec(a), TensorSpec) and "dynamic" in a.meta:
            fixed = [d for d in range(len(spec(a).shape)) if d not in a.meta["dynamic"]]
            for d in fixed:
                assert spec(a).shape[d] == spec(b).shape[d], f"{a.format_node()}, dimension {d}"


def test_graph_of_a_small_network() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
            self.weight = nn.Parameter(rows(5, 4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            b, c, h, w = x.shape
            x = x.reshape(b, c, h * w).mean(-1)
            x += 1
            return F.softmax(F.linear(x, self.weight), dim=-1)

    recording = recorded(Net(), rows(2, 3, 4, 4))
    assert text(recording) == "\n".join(
        [
            "x = x()",
            "body_0 = body.0(x)",
            "body_1 = body.1(body_0)",
            "size = size(body_1, 0)",
            "size_1 = size(body_1, 2)",
            "size_2 = size(body_1, 3)",
            "mul = mul(size_1, size_2)",
            "reshape = reshape(body_1, size, 4, mul)",
            "mean = mean(reshape, -1)",
            "add_ = add_(mean, 1)",
            "weight = weight()",
            "linear = linear(add_, weight)",
            "softmax = softmax(linear, dim=-1)",
            "output = output(softmax)",
        ]
    )
    assert recording.specialisations == ()


def test_nodes_know_line_module_and_value() -> None:
    gm = recorded(build("Shared"), *NETWORKS["Shared"].args).graph_module
    nodes = {n.name: n for n in gm.graph.nodes}
    where = source(nodes["conv2d"])
    assert where is not None
    assert str(where) == f"models/difficult/layers.py:{where.line}"
    assert where.text.startswith("return F.conv2d(x, (self.weight - mean)")
    assert where.function == "forward"
    assert module_path(nodes["conv2d"]) == "conv"
    assert module_path(nodes["act"]) == ""
    assert spec(nodes["act"]) == TensorSpec((2, 5, 2, 2), torch.float32)
    stack = nodes["conv2d"].meta["nn_module_stack"]
    assert list(stack) == ["", "conv"]
    assert stack["conv"][0] == "conv"
    assert [n.target for n in gm.graph.nodes if n.op == "call_module"] == [
        "act", "a", "act", "b", "act", "a"
    ]  # fmt: skip


def test_attention_is_recorded_through() -> None:
    gm = recorded(build("Encoder"), *NETWORKS["Encoder"].args).graph_module
    targets = [n.target for n in gm.graph.nodes if n.op == "call_function"]
    assert targets.count(F.scaled_dot_product_attention) == 2
    assert F.multi_head_attention_forward not in targets


def test_outputs_keep_their_types() -> None:
    gm = recorded(build("NestedOutputs"), *NETWORKS["NestedOutputs"].args).graph_module
    found = gm(rows(3, 4))
    assert type(found["answer"]) is Answer
    assert type(found["pair"]) is Pair
    assert list(found["ordered"]) == ["z"]
    assert (found["size"], found["nothing"], found["shape"]) == (3, None, (3, 4))


def test_only_given_arguments_become_placeholders() -> None:
    case = NETWORKS["NestedInputs"]
    gm = recorded(build("NestedInputs"), *case.args, **case.kwargs).graph_module
    names = [n.target for n in gm.graph.nodes if n.op == "placeholder"]
    assert names == ["given", "answer", "flag", "nothing", "number"]
    gm = recorded(build("ManyArguments"), *NETWORKS["ManyArguments"].args).graph_module
    names = [n.target for n in gm.graph.nodes if n.op == "placeholder"]
    assert names == ["x", "others_0", "others_1"]


def test_one_tensor_given_twice_is_two_inputs() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + 2 * y

    x, y = rows(2, 3), rows(3, 2).T
    gm = recorded(Sum(), x, x).graph_module
    assert torch.equal(gm(x, y), x + 2 * y)


def test_inputs_are_not_written_to() -> None:
    case = NETWORKS["InPlace"]
    x, y = (t.clone() for t in case.args)
    recorded(build("InPlace"), x, y)
    assert torch.equal(x, case.args[0])
    assert torch.equal(y, case.args[1])


def test_user_leaves_stay_whole() -> None:
    model = build("Shared")
    x = NETWORKS["Shared"].args[0]
    gm = record(model, (x,), {}, leaves=lambda path, module: path == "conv").graph_module
    assert next(n.target for n in gm.graph.nodes if n.op == "call_module") == "conv"
    assert replay_equal(gm, model, (x,), {})


def test_gradients_are_those_of_the_model() -> None:
    for name in ("AutogradFunction", "Buffers", "NormedWeights", "Shared", "Checkpointed"):
        model, args = build(name), NETWORKS[name].args
        gm = recorded(model, *args).graph_module
        grads = []
        for run in (model, gm):
            inputs = [a.clone().requires_grad_() for a in args]
            run(*inputs).square().sum().backward()
            grads.append([i.grad for i in inputs] + [p.grad for p in run.parameters()])
        for theirs, ours in zip(*grads, strict=True):
            assert (theirs is None) == (ours is None), name
            if theirs is not None:
                # checkpoints add gradients up in another order
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_no_grad_of_the_model_holds() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Any:
            with torch.no_grad():
                x = self.body(x) * self.scale
                self.scale.mul_(1)
            return self.head(x)

    gm = recorded(Frozen(), rows(2, 4)).graph_module
    gm(rows(2, 4)).sum().backward()
    assert gm.get_parameter("body.weight").grad is None
    assert gm.get_parameter("scale").grad is None
    assert gm.get_parameter("head.weight").grad is not None


class _Kept(torch.autograd.Function):
    """Computes with numpy; hands its input back as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Any:
        ctx.factor = factor
        return x, torch.from_numpy(np.tanh(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> Any:
        return ctx.factor * first + second, None


class _Prepared(torch.autograd.Function):
    """As functions are written that know `torch.func`; sets its context up with torch."""

    @staticmethod
    def forward(x: Tensor, rows: int) -> Tensor:
        return torch.from_numpy(np.cos(x.detach().numpy() * rows))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0] * inputs[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * ctx.saved_tensors[0], None


_kept: Any = _Kept.apply
_prepared: Any = _Prepared.apply


class Applied(nn.Module):
    """Functions under names that were taken before anybody recorded, as models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        same, bent = _kept(x, 3.0)
        with torch.no_grad():
            still = _prepared(x, 2)
        return self.last(same + bent) + _prepared(bent, x.shape[0]) * still


def test_autograd_functions_are_one_call_however_they_are_called() -> None:
    model = Applied()
    recording = recorded(model, rows(2, 4))
    assert recording.constants == ()
    called = [n.name for n in recording.graph_module.graph.nodes if n.op == "call_function"]
    assert [n for n in called if n.startswith("_")] == ["_kept", "_prepared", "_prepared_1"]
    assert "__getattribute__" not in vars(FunctionMeta)
    found = replay_equal(recording, model, (rows(3, 4),), {})
    assert found, found.why
    gradients = []
    for net in (model, recording.graph_module):
        net(rows(3, 4)).square().sum().backward()
        gradients.append({n: p.grad for n, p in net.named_parameters()})
    assert difference(*gradients) == ""


def test_scripted_parts_stay_whole() -> None:
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):  # by the release of torch
            warnings.simplefilter("ignore", kind)
        scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
        function = torch.jit.script(_swish)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = scripted

        def forward(self, x: Tensor) -> Any:
            return self.part(function(x)) * 2

    model = Net()
    recording = recorded(model, rows(2, 4))
    assert recording.constants == ()
    found = replay_equal(recording, model, (rows(3, 4),), {})
    assert found, found.why


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def test_a_cache_that_was_warm_does_not_hide_a_parameter() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(rows(4))
            self.cache: dict[str, Tensor] = {}

        def train(self, mode: bool = True) -> Cached:
            super().train(mode)
            if mode:
                self.cache = {}
            return self

        def forward(self, x: Tensor) -> Tensor:
            if "bias" not in self.cache:
                self.cache["bias"] = self.bias * 2
            return x + self.cache["bias"]

    model = Cached().eval()
    with torch.no_grad():
        model(rows(2, 4))
    recording = recorded(model, rows(2, 4))
    assert recording.constants == ()
    assert not recording.graph_module.training
    assert "bias" in model.cache


@functools.lru_cache(maxsize=1)
def positions(length: int) -> Tensor:
    return torch.arange(length)[:, None] * 2.0


def test_what_a_function_remembers_is_recorded_afresh() -> None:
    class Remembering(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + positions(x.shape[0])

    model = Remembering()
    model(rows(2, 4))
    recording = recorded(model, rows(2, 4))
    assert recording.constants == ()
    found = replay_equal(recording, model, (rows(5, 4),), {})
    assert found, found.why


@pytest.mark.parametrize("made", [torch.as_tensor, torch.asarray])
def test_the_size_of_a_tensor_made_from_a_tensor_is_its_size(made: Any) -> None:
    class Positions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.arange(start=0, end=made(x).size()[0])[:, None]

    model = Positions()
    recording = recorded(model, rows(2, 4))
    found = replay_equal(recording, model, (rows(5, 4),), {})
    assert found, found.why


def test_constants_say_where_they_come_from() -> None:
    made = {c.attribute for c in recorded(build("FromNumpy"), rows(2, 8)).constants}
    kept = [c.attribute for c in recorded(build("Buffers"), rows(4, 4)).constants]
    assert made == {None}
    assert kept == ["plain"]


def test_constants_written_to_start_afresh_in_every_run() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = torch.Tensor([1.0, 2.0])
            total += x.sum(0)
            return total

    gm = recorded(Net(), rows(3, 2)).graph_module
    assert torch.equal(gm(rows(3, 2)), gm(rows(3, 2)))


def test_other_threads_run_as_ever() -> None:
    done: list[Tensor] = []

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            worker = threading.Thread(target=lambda: done.append(nn.Linear(2, 2)(rows(1, 2))))
            worker.start()
            worker.join()
            return x + 1

    recording = recorded(Net(), rows(2, 2))
    assert len(done) == 1
    assert len(recording.graph_module.graph.nodes) == 3


def test_torch_is_as_before_afterwards() -> None:
    call, length, loop = nn.Module.__call__, len, range
    recorded(build("Shared"), *NETWORKS["Shared"].args)
    with pytest.raises(Exception, match="FXQ107"):
        recorded(build("Shared"), rows(2, 2))
    assert nn.Module.__call__ is call
    assert (len, range) == (length, loop)


def test_recording_a_recorded_module_again() -> None:
    model, args = build("Detector"), NETWORKS["Detector"].args
    gm = recorded(model, *args).graph_module
    again = recorded(gm, *args)
    found = replay_equal(again, model, (rows(3, 3, 8, 8),), {})
    assert found, found.why


def test_created_tensors_follow_the_model_to_another_device() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            return x + torch.arange(4, device=x.device) + torch.zeros(1).to(x.device)

    gm = recorded(Net(), rows(2, 4)).graph_module.to("meta")
    assert gm(rows(2, 4).to("meta")).device.type == "meta"


@pytest.mark.parametrize("ambient", [torch.no_grad, torch.inference_mode])
def test_recording_where_gradients_are_off(ambient: Any) -> None:
    model, args = build("Shared"), NETWORKS["Shared"].args
    with ambient():
        recording = recorded(model, *args)
        found = replay_equal(recording, model, args, {})
    assert found, found.why


class Moving(nn.Module):
    """Sends a buffer to where the input is, as networks do that are not sent as one."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", rows(4))

    def forward(self, x: Tensor) -> Tensor:
        self.table = self.table.to(x.device, x.dtype)
        return x + self.table


def test_state_that_is_replaced_by_itself_is_not_written() -> None:
    recording = recorded(Moving(), rows(2, 4))
    assert "copy_" not in text(recording)
