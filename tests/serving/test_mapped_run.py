"""A run whose model maps candidates and asks with several queries: every verb and server answers as its engine does."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from nextvec.bank import Bank
from nextvec.cli.main import main
from nextvec.client import Client
from nextvec.errors import DataError
from nextvec.index import open_index
from nextvec.inference import Engine
from nextvec.models import Pooled
from nextvec.models.space import InSpace
from nextvec.runs import TrainSettings
from nextvec.serving.isolated_engine import IsolatedEngine
from tests.serving.server import DIM, make_run, rows_of, serving
from tests.test_cli import printed

SETTINGS = TrainSettings.of(
    "pooled", space="fitted", power=0.5, folds=1, pooled=4, working=8, context=20, batch=3, updates=4, evaluate_every=2, pool=30
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("mapped"), settings=SETTINGS)


@pytest.fixture(scope="module")
def engine(run: Path) -> Engine:
    opened = Engine.open(run)
    assert isinstance(opened.model, InSpace) and isinstance(opened.model.model, Pooled)
    assert (opened.model.num_queries, opened.model.output_width) == (4, 4 * (DIM + 1))
    return opened


@pytest.mark.integration
@pytest.mark.parametrize("options", [(), ("--isolate",)], ids=["here", "isolated"])
def test_a_server_answers_like_the_engine(run: Path, engine: Engine, tmp_path: Path, options: tuple[str, ...]) -> None:
    with serving(run, tmp_path / "s", *options) as server, Client(server.url) as client:
        read, session, here = rows_of(7), client.session("one"), engine.session()
        session.append(read)
        here.push_many(read)
        for turn in range(3):
            answer, wanted = session.predict(6), here.predict(6)
            assert [e.row for e in answer.expected] == [e.row for e in wanted]
            np.testing.assert_allclose([e.score for e in answer.expected], [e.score for e in wanted], atol=1e-5)
            assert not {e.row for e in answer.expected} & set(here.rows_seen().tolist())
            row = engine.bank.rows[10 * turn : 10 * turn + 1].astype(np.float32)
            session.append(row)
            here.push_many(row)
        once = client.predict(read, k=6)
        alone = engine.session()
        alone.push_many(read)
        assert [e.row for e in once.expected] == [e.row for e in alone.predict(6)]


def test_an_isolated_engine_says_what_the_engine_says(run: Path, engine: Engine) -> None:
    far = IsolatedEngine(run, Engine.open)
    try:
        assert (far.digest, far.dim) == (engine.digest, engine.dim)
        session, here = far.session(), engine.session()
        for each in (session, here):
            each.catch_up(rows_of(9))
        assert session.snapshot() == here.snapshot()
        assert far.restore(here.snapshot()).length == 9
        assert far.nearest(rows_of(4, 7)).tolist() == engine.nearest(rows_of(4, 7)).tolist()
    finally:
        far.close()


def test_the_verb_predict_writes_what_sessions_say(run: Path, engine: Engine, tmp_path: Path) -> None:
    bank = run.parent / "bank"
    arguments = ["predict", str(run), "--input", str(bank), "--output", str(tmp_path / "out.parquet"), "-k", "5", "--vectors"]
    assert main(arguments) == 0
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert len(table) == len(engine.bank)
    for m, name in enumerate(engine.bank.ids[:3]):
        session = engine.session()
        lines = [line for line in table if line["document"] == name]
        for row, line in zip(engine.bank.document(m), lines, strict=True):
            output = session.push(row)
            found = session.predict(5)
            np.testing.assert_allclose(line["score"], [e.score for e in found], atol=1e-4)
            assert line["expected"][0] == found[0].row or found[0].score - found[1].score < 1e-4
            mean = engine.model.queries(torch.from_numpy(output[None])).mean()[0]
            np.testing.assert_allclose(line["vector"], mean.numpy(), atol=1e-4)
            assert np.linalg.norm(line["vector"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("form", [None, "float16"])
def test_the_verb_index_makes_the_index_of_a_run(
    run: Path, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str | None
) -> None:
    flags = [] if form is None else ["--format", form]
    facts = printed(capsys, "index", str(run.parent / "bank"), str(tmp_path / "index"), "--run", str(run), *flags)
    bank, mapping = engine.bank, engine.candidate_map
    assert mapping is not None
    assert (facts["map"], facts["format"]) == (mapping.digest, form or "float32")
    assert json.loads((tmp_path / "index" / "index.json").read_text())["mapping"] == mapping.digest
    other = Engine.open(run, bank, open_index(tmp_path / "index", bank, mapping=mapping))
    for each in (session := other.session(), here := engine.session()):
        each.push_many(rows_of(9))
    assert session.predict(8) == here.predict(8), "formats decide alike"
    with pytest.raises(DataError, match="build one with nextvec index BANK OUT"):
        open_index(tmp_path / "index", Bank.open(run.parent / "bank"))


def test_the_verb_latency_measures_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = make_run(tmp_path)
    found = printed(
        capsys, "latency", str(run), "--contexts", "5", "--budget", "60000", "--ratio", "60000", "--against", str(plain),
        "--bank", str(tmp_path / "bank"),
    )  # fmt: skip
    assert found["passed"]
    assert found["index"]["format"] == "int8"
    assert found["contexts"][0]["both"]["n"] > 0
