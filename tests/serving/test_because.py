"""The rows of the context that an answer comes from, over HTTP: what the engine says, on request, and refusals."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import jsonschema
import msgspec
import numpy as np
import pytest

from nextvec.client import AsyncClient, Client, ServerError
from nextvec.inference import Engine, Expected
from nextvec.routing import ArmModels, RoutedModel, Snapshot
from nextvec.runs import TrainSettings
from nextvec.serving.isolated_engine import IsolatedEngine
from nextvec.serving.limits import Limits
from nextvec.serving.payload import from_rows
from nextvec.serving.service import Service
from nextvec.wire.limits import MOST_BECAUSE
from nextvec.wire.media import F32
from nextvec.wire.predictions import ExpectedVector
from tests.made_once import made_once
from tests.serving.server import DIM, Running, asking, make_run, rows_of, serving
from tests.waiting import PATIENCE

NAMES, NAMES_NONE = "run0", "run1"
PLAIN = TrainSettings.of("gru", context=20, batch=3, updates=2, evaluate_every=1, hidden=8, pool=30)
UNNAMED = "this model does not name the rows that an answer comes from"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a memory GRU, which names rows, and a GRU, which does not."""

    def make(folder: Path) -> None:
        make_run(folder, 0)
        make_run(folder, 1, settings=PLAIN)

    return made_once(tmp_path_factory, "because", make)


@pytest.fixture(scope="module", params=[(), ("--isolate",)], ids=["here", "isolated"])
def server(request: pytest.FixtureRequest, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(runs / NAMES, tmp_path_factory.mktemp("server") / "sessions", *request.param) as running:
        yield running


def check_reasons(found: list[ExpectedVector], wanted: list[Expected]) -> None:
    """Rows, scores and reasons of an answer are those of the engine."""
    assert [e.row for e in found] == [e.row for e in wanted]
    for got, want in zip(found, wanted, strict=True):
        assert got.because and want.because is not None
        assert [row.position for row in got.because.rows] == [row.position for row in want.because.rows]
        for name in ("others", "learned"):
            assert getattr(got.because, name) == pytest.approx(getattr(want.because, name), abs=1e-5)
        parts = [row.part for row in got.because.rows]
        np.testing.assert_allclose(parts, [row.part for row in want.because.rows], rtol=0, atol=1e-5)
        assert sum(parts) + got.because.others + got.because.learned == pytest.approx(got.score, abs=1e-5)


@pytest.mark.integration
def test_a_server_names_the_rows_that_the_engine_names(server: Running, runs: Path) -> None:
    engine, read = Engine.open(runs / NAMES), rows_of(12)
    here = engine.session()
    here.push_many(read)
    wanted = here.predict(4, because=3)
    with Client(server.url) as client:
        session = client.session("because")
        session.append(read[:5])
        session.append(read[5:])
        plain = session.predict(4)
        assert all(e.because is msgspec.UNSET for e in plain.expected)
        check_reasons(list(session.predict(4, because=3).expected), wanted)
        check_reasons(list(client.predict(read, 4, because=3).expected), wanted)
        restored = client.restore("again", session.snapshot())
        check_reasons(list(restored.predict(4, because=3).expected), wanted)
        assert [model.names_rows for model in client.models()] == [True]

    async def awaited() -> list[ExpectedVector]:
        async with AsyncClient(server.url) as client:
            await client.predict(read, 1, because=1)
            return list((await (await client.session("because")).predict(4, because=3)).expected)

    check_reasons(asyncio.run(awaited()), wanted)


@pytest.mark.integration
def test_every_operation_that_predicts_takes_it_and_answers_as_the_document_says(server: Running, runs: Path) -> None:
    engine, read = Engine.open(runs / NAMES), rows_of(6, 3)
    here = engine.session()
    with httpx.Client(base_url=server.url, headers={"content-type": F32}, timeout=PATIENCE) as http:
        document = http.get("/openapi.json").json()
        http.put("/v1/sessions/all")
        paths = {
            "/v1/sessions/all/append": "PredictionAnswer",
            "/v1/sessions/all/predict": "PredictionAnswer",
            "/v1/predict": "PredictionAnswer",
            "/v1/predict/batch": "BatchAnswer",
        }
        here.push_many(read)
        for path, schema in paths.items():
            listed = document["paths"][path.replace("/all/", "/{session}/")]["post"]["parameters"]
            declared = next(it for it in listed if it["name"] == "because")["schema"]
            assert (declared["minimum"], declared["maximum"], declared["default"]) == (0, MOST_BECAUSE, 0)
            lengths = "&lengths=6" if path.endswith("batch") else ""
            body = b"" if path.endswith("all/predict") else read.tobytes()
            answer = http.post(f"{path}?k=2&because={MOST_BECAUSE}{lengths}", content=body).raise_for_status().json()
            jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{schema}", **document}).validate(answer)
            found = msgspec.convert(answer["answers"][0] if lengths else answer, type=dict)["expected"]
            check_reasons(msgspec.convert(found, list[ExpectedVector]), here.predict(2, because=MOST_BECAUSE))
            assert [len(e["because"]["rows"]) for e in found] == [6, 6]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("value", "said"),
    [(str(MOST_BECAUSE + 1), f"<= {MOST_BECAUSE}"), ("-1", "whole number"), ("1.5", "whole number"), ("all", "whole number")],
)
def test_a_bad_number_is_refused_in_one_line(server: Running, value: str, said: str) -> None:
    answer = httpx.post(f"{server.url}/v1/predict?because={value}", content=rows_of(2).tobytes(), headers={"content-type": F32})
    assert answer.status_code == 400
    assert said in answer.json()["detail"] and "\n" not in answer.json()["detail"]


@pytest.mark.integration
def test_a_model_that_names_no_rows_refuses_before_anything_is_written(runs: Path, tmp_path: Path) -> None:
    with serving(runs / NAMES_NONE, tmp_path / "s") as server, Client(server.url) as client:
        session = client.session("none")
        session.append(rows_of(3))
        for ask in (lambda: session.predict(2, because=1), lambda: client.predict(rows_of(3), 2, because=1)):
            with pytest.raises(ServerError, match=UNNAMED) as refused:
                ask()
            assert refused.value.status == 400
        url = f"{server.url}/v1/sessions/none/append?because=2"
        answer = httpx.post(url, content=rows_of(1).tobytes(), headers={"content-type": F32})
        assert (answer.status_code, UNNAMED in answer.json()["detail"]) == (400, True)
        assert httpx.get(f"{server.url}/v1/sessions/none").json()["length"] == 3
        assert [e.because for e in session.predict(2).expected] == [msgspec.UNSET] * 2
        assert [model.names_rows for model in client.models()] == [False]
        assert [model["names_rows"] for model in httpx.get(f"{server.url}/v1/overview").json()["models"]] == [False]


def test_a_canary_that_names_no_rows_answers_without_them_and_has_not_failed(runs: Path, tmp_path: Path) -> None:
    async def main() -> None:
        given = {"stable": runs / NAMES, "new": runs / NAMES_NONE}
        service = Service(given, lambda run: Engine.open(run), tmp_path / "s", Limits(budget=PATIENCE, deadline=PATIENCE))
        try:
            arms = [ArmModels(RoutedModel(name), RoutedModel(name)) for name in given]
            until = asyncio.get_running_loop().time() + PATIENCE
            await service.sessions.open("one")
            for weight, model, named in ((0.0, "stable", [2, 2, 2]), (100.0, "new", [None] * 3)):
                service.routing.adopt(Snapshot(1, arms[0], arms[1], weight, f"r{weight}", time.monotonic() + 3600))
                answer = await service.sessions.append("one", from_rows(rows_of(2)), None, 3, asking("one"), until, because=2)
                assert (answer.model, answer.arm) == (model, "stable" if model == "stable" else "canary")
                assert [e.because and len(e.because.rows) for e in answer.expected] == named
        finally:
            await service.close()

    asyncio.run(main())


def test_an_isolated_engine_says_whether_its_model_names_rows(runs: Path) -> None:
    far = IsolatedEngine(runs / NAMES_NONE, Engine.open)
    try:
        assert not far.names_rows
        assert far.dim == DIM
    finally:
        far.close()
