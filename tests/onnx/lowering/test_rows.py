"""Every row of the operator table: its samples, lowered, run in onnxruntime, equal PyTorch."""

from __future__ import annotations

import pytest

from fxquant import ops
from fxquant.onnx.lowering.emitters import emitter_of_row
from tests.helpers.lowering import check, row_graph

_SAMPLES = [
    pytest.param(row, sample, id=f"{row.name}-{i}")
    for row in ops.TABLE.rows.values()
    for i, sample in enumerate(row.samples)
]
# what has no form in these opsets goes to torch's exporter, which writes 18 and later only
_LATER = {13: {"grid_sample", "scatter_add", "index_add", "fold", "bitwise_and", "bitwise_or",
               "bitwise_xor"},
          17: {"fold", "bitwise_and", "bitwise_or", "bitwise_xor"}}  # fmt: skip


def test_every_row_has_an_emitter() -> None:
    missing = [name for name in ops.TABLE.rows if emitter_of_row(name) is None]
    assert not missing


@pytest.mark.parametrize(("row", "sample"), _SAMPLES)
def test_a_sample_equals_pytorch(row: ops.Op, sample: ops.Sample) -> None:
    if row.name == "bfloat16":
        pytest.skip("numpy has no bfloat16 to compare with")
    gm, inputs = row_graph(row, sample)
    check(gm, inputs)


@pytest.mark.full
@pytest.mark.parametrize("opset", [13, 17, 18, 20, 23])
@pytest.mark.parametrize(("row", "sample"), _SAMPLES)
def test_a_sample_in_other_opsets(row: ops.Op, sample: ops.Sample, opset: int) -> None:
    if row.name == "bfloat16" or row.name in _LATER.get(opset, ()):
        pytest.skip("came with a later opset")
    gm, inputs = row_graph(row, sample)
    check(gm, inputs, opset=opset)
