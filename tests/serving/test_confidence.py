"""Probabilities over HTTP: those of the engine, in this process and in another; none from a run without a calibration."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import jsonschema
import pytest

from nextvec.client import AsyncClient, Client
from nextvec.inference import Engine, Expected, joint_probability
from nextvec.runs.run import CALIBRATION
from nextvec.wire.media import F32
from nextvec.wire.predictions import Prediction
from tests.made_once import made_once
from tests.serving.server import Running, make_run, rows_of, serving
from tests.waiting import PATIENCE

WITH, WITHOUT = "run0", "run1"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs; the second has no calibration, as one that was trained before there were any."""

    def make(folder: Path) -> None:
        make_run(folder, 0)
        (make_run(folder, 1) / CALIBRATION).unlink()

    return made_once(tmp_path_factory, "confidence", make)


@pytest.fixture(scope="module", params=[(), ("--isolate",)], ids=["here", "isolated"])
def server(request: pytest.FixtureRequest, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(runs / WITH, tmp_path_factory.mktemp("server") / "sessions", *request.param) as running:
        yield running


def check(found: Prediction, wanted: list[Expected]) -> None:
    assert [e.row for e in found.expected] == [e.row for e in wanted]
    assert [e.probability for e in found.expected] == pytest.approx([e.probability for e in wanted], abs=1e-6)
    assert found.probability == pytest.approx(joint_probability(wanted), abs=1e-6)


@pytest.mark.integration
def test_a_server_gives_the_probabilities_of_the_engine(server: Running, runs: Path) -> None:
    read = rows_of(12)
    here = Engine.open(runs / WITH).session()
    here.push_many(read)
    wanted = here.predict(4)
    assert wanted[0].probability is not None
    with Client(server.url) as client:
        session = client.session("confidence")
        session.append(read)
        check(session.predict(4), wanted)
        check(client.predict(read, 4), wanted)
        check(session.predict(4, because=1), wanted)

    async def awaited() -> Prediction:
        async with AsyncClient(server.url) as client:
            return await client.predict(read, 4)

    check(asyncio.run(awaited()), wanted)
    with httpx.Client(base_url=server.url, headers={"content-type": F32}, timeout=PATIENCE) as http:
        document = http.get("/openapi.json").json()
        answer = http.post("/v1/predict?k=4", content=read.tobytes()).raise_for_status().json()
        jsonschema.Draft202012Validator({"$ref": "#/components/schemas/PredictionAnswer", **document}).validate(answer)
        assert answer["probability"] == pytest.approx(sum(e["probability"] for e in answer["expected"]))


@pytest.mark.integration
def test_a_run_without_a_calibration_is_served_without_probabilities(runs: Path, tmp_path: Path) -> None:
    with serving(runs / WITHOUT, tmp_path / "sessions") as server, Client(server.url) as client:
        answer = client.predict(rows_of(12), 4)
        assert len(answer.expected) == 4
        assert answer.probability is None and all(e.probability is None for e in answer.expected)
