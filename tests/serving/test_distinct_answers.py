"""A server delivers distinct vectors, says how many rows hold each, and takes any of these rows for the truth."""

import asyncio
from pathlib import Path

import httpx
import jsonschema
import numpy as np
import pytest
from msgspec import UNSET

from nextvec.bank import Bank
from nextvec.client import Client
from nextvec.inference import Engine
from nextvec.serving import openapi
from nextvec.serving.limits import Limits
from nextvec.serving.observations import LabelledPrediction
from nextvec.serving.payload import from_rows
from nextvec.serving.service import Service
from nextvec.wire.limits import MOST_ROWS
from nextvec.wire.media import F32
from tests.conftest import walk_bank
from tests.serving.server import DIM, asking, make_run, serving
from tests.waiting import PATIENCE

EVERY = 3  # of all rows is one and the same


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    walk = walk_bank(dim=DIM)
    rows = walk.rows.astype(np.float32)
    rows[::EVERY] = rows[0]
    return make_run(tmp_path_factory.mktemp("repeats"), bank=Bank.from_numpy(rows, walk.lengths))


@pytest.mark.integration
@pytest.mark.parametrize("options", [(), ("--isolate",)], ids=["here", "isolated"])
def test_an_answer_holds_each_vector_once_and_counts_its_rows(run: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    bank = Engine.open(run).bank
    first = [row.tobytes() for row in bank.rows].index
    context = bank.rows[7:8].astype(np.float32)
    with serving(run, tmp_path / "s", *options) as server, Client(server.url) as client:
        answer = client.predict(context, k=1000, rows=True)
        assert len(answer.expected) == len({row.tobytes() for row in bank.rows}) - 1, "all but what was read"
        assert [e.row for e in answer.expected] == [first(bank.rows[e.row].tobytes()) for e in answer.expected]
        (often,) = [e for e in answer.expected if e.count > 1]
        holders = np.arange(0, len(bank), EVERY)
        assert (often.row, often.count, often.rows) == (0, len(holders), tuple(holders[:MOST_ROWS].tolist()))
        assert len(holders) > MOST_ROWS, "the case that is bounded"
        session = client.session("one")
        session.append(context)
        assert [e.row for e in session.predict(10).expected] == [e.row for e in answer.expected[:10]]
        assert session.predict(10).expected[0].rows is UNSET
        plain = httpx.post(f"{server.url}/v1/predict?k=5&rows=1", content=context.tobytes(), headers={"content-type": F32})
        whole = {"$ref": "#/components/schemas/PredictionAnswer", **openapi.document(DIM)}
        jsonschema.Draft202012Validator(whole).validate(plain.json())


def test_every_row_that_holds_a_predicted_vector_is_its_label(run: Path, tmp_path: Path) -> None:
    engine = Engine.open(run)
    rows = engine.bank.rows.astype(np.float32)
    session = engine.session()
    session.push(rows[7])
    place = [e.row for e in session.predict(1000)].index(0)
    last = (len(rows) - 1) // EVERY * EVERY

    async def main() -> None:
        service, settled = Service({"stable": run}, lambda name: engine, tmp_path / "s", Limits()), list[LabelledPrediction]()
        service.listeners.record = settled.append

        async def append(name: str, row: int, named: bool, k: int) -> None:
            vectors = from_rows(rows[row : row + 1], [row] if named else None)
            until = asyncio.get_running_loop().time() + PATIENCE
            await service.sessions.append(name, vectors, None, k, asking(name), until)

        for name, named, k in (("a", True, place + 1), ("b", False, place + 1), ("c", True, place), ("d", False, place)):
            service.contexts.open(name)
            await append(name, 7, True, k)
            await append(name, last, named, 0)
        assert [event.hit for event in settled] == [True, True, False, False]
        await service.close()

    assert place > 0
    asyncio.run(main())
