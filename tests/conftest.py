"""What every test shares: one thread, fixed seeds, facts that are checked, and ``--accept``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import torch

from fxquant.graph.pass_infra import Pass
from tests.helpers import facts, golden

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# several workers share the cores, and float sums must not depend on how a loop was split
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# torch begins with another seed in every process: also what is drawn on import must be the same
torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--accept", action="store_true", help="rewrite golden texts with what the code does now"
    )


def pytest_configure(config: pytest.Config) -> None:
    golden.ACCEPTING.on = bool(config.getoption("--accept"))


def pytest_sessionfinish() -> None:
    golden.write_accepted()


@pytest.fixture(scope="session", autouse=True)
def _facts_hold() -> Iterator[None]:
    """What a graph states is looked for in it after every pass of every test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pass, "call", facts.checked(Pass.call))
        yield


@pytest.fixture
def accept(request: pytest.FixtureRequest) -> bool:
    """True if golden texts are to be rewritten."""
    return bool(request.config.getoption("--accept"))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The same random numbers for a test, whatever ran before it."""
    torch.manual_seed(0)
    with torch.random.fork_rng():
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that keeps trained weights for one session; see ``fxquant.models.training``."""
    return tmp_path_factory.mktemp("trained")
