"""Shapes and types of every annotated function are checked while tests run."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxtyping import config, install_import_hook

# The hook must be in place before the package is first imported.
install_import_hook("nextvec", "beartype.beartype").__enter__()

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from nextvec.bank import Bank  # noqa: E402
from nextvec.kernels import build, library, scan_library  # noqa: E402

# Drawn examples of each property: a few in `make test`, "more" in `make test-integration`, "full" in `make test-all`.
# No verdict depends on how fast a machine draws and computes them.
FAST, MORE, FULL = 5, 12, 25
for profile, count in (("fast", FAST), ("more", MORE), ("full", FULL)):
    settings.register_profile(
        profile, deadline=None, max_examples=count, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
    )
settings.load_profile("fast")
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shared", default=None, help="folder with the benchmark data (banks/ and text/ under data/)")


@pytest.fixture
def shared(request: pytest.FixtureRequest) -> Path:
    given = request.config.getoption("--shared")
    if given is None or not (Path(given) / "data").is_dir():
        pytest.skip("needs benchmark data: pass --shared PATH")
    return Path(given) / "data"


def examples(full: int) -> int:
    """Examples of a test in this profile, where the full profile draws ``full`` and not as many as of others."""
    return max(1, full * settings().max_examples // FULL)


@contextmanager
def unchecked() -> Iterator[None]:
    """No shapes and types are checked inside; for the many repetitions of a call whose first ones are checked."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)


def walk_bank(documents: int = 12, length: int = 60, dim: int = 16, seed: int = 0, topics: int = 6) -> Bank:
    """Documents that wander: each row is near the last one, and topics return. Not noise: there is something to learn."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((topics, dim))
    rows, lengths = [], []
    for _ in range(documents):
        n = int(rng.integers(length // 2, length + 1))
        topic = rng.integers(topics)
        drift = np.zeros(dim)
        for _ in range(n):
            if rng.random() < 0.15:
                topic = rng.integers(topics)
            drift = 0.7 * drift + 0.5 * rng.standard_normal(dim)
            rows.append(centres[topic] + drift + 0.2 * rng.standard_normal(dim))
        lengths.append(n)
    return Bank.from_numpy(np.array(rows, dtype=np.float32), lengths)


@pytest.fixture
def bank() -> Bank:
    return walk_bank()


@pytest.fixture(params=[*build.levels(), "torch"])
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Searches with every library that this processor runs, and with torch."""
    wanted, levels, here = request.param, [*build.levels()], library.level()
    if wanted != "torch":
        if here == "torch" or levels.index(wanted) > levels.index(here):
            pytest.skip(f"kernels for {wanted} were not compiled, or do not run here")
        loaded = ctypes.CDLL(str(build.library(wanted)))
        monkeypatch.setattr(scan_library, "library", lambda: loaded)
    else:
        monkeypatch.setattr(scan_library, "library", lambda: None)
    scan_library.loaded.cache_clear()
    yield wanted
    monkeypatch.undo()
    scan_library.loaded.cache_clear()


@pytest.fixture
def command() -> list[str]:
    """The real command line, as a process of its own, without the test's import hook."""
    return [sys.executable, "-m", "nextvec.cli.main"]


@pytest.fixture
def quiet_environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
