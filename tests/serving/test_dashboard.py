"""The dashboard, in a real browser against a real server; and what it is told, against the definitions."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import log, sin
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from nextvec.bank import Bank
from nextvec.client import Client
from nextvec.encoders import MiniLM
from nextvec.evaluation.results import evaluation_results, held_out_exam
from nextvec.inference import Engine
from nextvec.ingestion import Chunking, ingest
from nextvec.lanes import by_clusters
from nextvec.rollout.controller import Controller
from nextvec.rollout.evalues import ALPHA_OK
from nextvec.rollout.evidence import Evidence
from nextvec.rollout.follower import Follower
from nextvec.rollout.guardrails import STREAMS
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.lifecycle import create, intervene
from nextvec.rollout.opening import open_ledger
from nextvec.rollout.plan import STEP_WEIGHTS, CanaryStep, Plan
from nextvec.rollout.promotions import identity
from nextvec.rollout.status import status
from nextvec.rollout.transition import Command
from nextvec.rollout.units import bands
from nextvec.runs import Run, TrainSettings
from nextvec.serving.keys import Key
from nextvec.serving.lanes import ENOUGH
from nextvec.serving.load import within
from nextvec.serving.recent import BINS, MOST_SESSIONS, SECONDS, Recent, percentiles
from nextvec.serving.rollout_state import rollout_state
from nextvec.training import begin, train
from tests.rollout.drive import NEW, OLD, alike
from tests.serving.server import Running, make_run, serving
from tests.serving.test_lanes import spoil
from tests.waiting import PATIENCE, until

MILLISECONDS = 1e3 * PATIENCE  # of whatever the page is waited for
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
no_browser = pytest.mark.skipif(CHROMIUM is None or find_spec("playwright") is None, reason="needs playwright and chromium")
DOCS = Path(__file__).parents[2] / "docs"
SHOWN = ("desktop", "dark", "phone")
FOR_DOCS = os.environ.get("NEXTVEC_SCREENSHOTS") == "docs"
TOPICS = sorted(name for name, text in topics.items() if 1_200 < len(text) < 8_000)
SMALL = TrainSettings.of(context=24, batch=4, updates=30, evaluate_every=15, hidden=16, slots=64, working=24, pool=100)
STEPS = tuple(CanaryStep(weight, 0.0, 5_000) for weight in STEP_WEIGHTS)
PLAN = Plan(3.0, 0.01, STEPS, CanaryStep(0.0, 0.0, 1_000), lease=60.0)
PARAGRAPH = (
    "When something goes wrong a program can say so: it raises an exception, and whoever called it may catch that and go on."
)


def needs_browser(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.integration(no_browser(test))


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 5_000.25

    def __call__(self) -> float:
        return self.now


# What it is told


def test_what_was_counted_is_there_by_second_and_gone_after_a_quarter_of_an_hour() -> None:
    clock = Clock()
    recent = Recent(clock)
    for second in range(5):
        for _ in range(second + 1):
            recent.saw("append", 200, 0.002, "s")
        clock.now += 1
    recent.saw("predict", 503, 0.1)
    recent.saw("once", 500, 0.1)
    recent.saw("metrics", 200, 0.1)  # who looks does not count
    recent.saw("append", 404, 0.1)
    recent.refuse()
    clock.now += 1
    points = recent.points(6, 1)
    assert [point.answers for point in points] == [1, 2, 3, 4, 5, 0]
    assert (points[-1].refused, points[-1].failed, points[-1].p50) == (2, 1, None)
    assert recent.points(6, 3)[1].answers == 9
    assert recent.histogram(6).sum() == 15
    clock.now += SECONDS
    assert sum(point.answers + point.refused for point in recent.points(SECONDS, 5)) == 0
    clock.now += 10 * SECONDS
    recent.saw("append", 200, 0.002)
    clock.now += 1
    assert sum(point.answers for point in recent.points(SECONDS, 1)) == 1


def test_a_ring_that_has_gone_round_holds_the_last_quarter_of_an_hour() -> None:
    clock = Clock()
    recent = Recent(clock)
    for _ in range(2 * SECONDS + 17):
        recent.saw("append", 200, 0.002)
        clock.now += 1
    assert [point.answers for point in recent.points(SECONDS, 1)] == [1] * SECONDS


def test_percentiles_are_those_of_the_answers_to_a_bin() -> None:
    seconds = np.exp(np.random.default_rng(0).normal(np.log(0.004), 0.8, 5_000))
    clock = Clock()
    recent = Recent(clock)
    for value in seconds:
        recent.saw("predict", 200, float(value))
    clock.now += 1
    found = recent.points(1, 1)[0]
    want = np.quantile(seconds, [0.5, 0.95, 0.99])
    np.testing.assert_allclose(np.array([found.p50, found.p95, found.p99], float), want, rtol=0.07)
    assert percentiles(np.zeros(BINS, np.int64), (0.5,)) == [None]
    for extreme in (0.0, 1e-9, 1e3):
        recent.saw("predict", 200, extreme)
    clock.now += 1
    assert recent.points(1, 1)[0].answers == 3
    assert within(recent.histogram(1), 0.1) == pytest.approx(2 / 3)


def test_sessions_are_remembered_up_to_a_bound_the_latest_first() -> None:
    clock = Clock()
    recent = Recent(clock)
    for n in range(3 * MOST_SESSIONS):
        recent.saw("append", 200, 0.001, f"s{n}")
        clock.now += 1
    recent.saw("append", 404, 0.001, "unknown")
    assert [name for name, _ in recent.sessions()] == [f"s{n}" for n in reversed(range(2 * MOST_SESSIONS, 3 * MOST_SESSIONS))]
    assert recent.sessions()[0][1] == 1.0


def test_a_rollout_is_told_as_the_ledger_and_the_judge_have_it(tmp_path: Path) -> None:
    with rollout_at(tmp_path / "rollouts.db", 2, "old", "new") as ledger:
        full = status(ledger, "r")
        told = rollout_state(full)
    assert full["state"] == "CANARY(2)"
    assert [stop.weight for stop in told.ladder] == [0.0, *STEP_WEIGHTS, 100.0]
    assert (told.at, told.weight, told.down, told.paused) == (3, 25.0, False, False)
    evidence = Evidence.from_json(full["evidence"])
    for stream in told.streams:
        name = stream.stream
        assert (stream.worse.log_e, stream.ok.log_e) == pytest.approx(evidence.log_e(name))
        assert stream.ok.bound == pytest.approx(-log(ALPHA_OK))
        assert stream.verdict == evidence.verdict().streams[name]
        assert stream.arms["stable"].units == evidence.count(name, "stable")
    assert {stream.stream for stream in told.streams} == set(STREAMS)
    assert told.seen == sum(
        event.count for event in alike(25.0, 4_000) if event.stream == "assign"
    )  # of this weight, not of those before


def test_where_a_rollout_fell_from_is_told(tmp_path: Path) -> None:
    with rollout_at(tmp_path / "rollouts.db", 1, "old", "new") as ledger:
        intervene(ledger, "r", Command("pause", "ann"))
        paused = rollout_state(status(ledger, "r"))
        assert (paused.at, paused.paused, paused.weight) == (2, True, 10.0)
        intervene(ledger, "r", Command("abort", "ann", "enough"))
        fallen = rollout_state(status(ledger, "r"))
        assert (fallen.at, fallen.down, fallen.weight) == (2, True, 0.0)


# The server


@pytest.fixture(scope="session")
def text_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs on a bank of texts; the first one has sat an exam."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "texts").mkdir()
    for name in TOPICS:
        (folder / "texts" / f"{name}.txt").write_text(topics[name], encoding="utf-8")
    bank = ingest(folder / "texts", folder / "bank", MiniLM(), Chunking(size=300))
    runs = []
    for name, seed in (("guide", 0), ("guide-next", 1)):
        run = begin(folder / name, "default", SMALL.replaced(seed=seed), bank)
        for _ in train(run, bank):
            pass
        runs.append(run.path)
    run = Run.open(runs[0])
    exam = held_out_exam(run, Bank.open(folder / "bank"), "test", 100)
    evaluation_results(run, [exam, exam.among(50)])
    return runs


@pytest.fixture(scope="module")
def server(text_runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(text_runs, tmp_path_factory.mktemp("server") / "sessions") as running:
        yield running


@pytest.mark.integration
def test_the_files_of_the_page_say_what_they_may_do_and_need_no_key(text_runs: list[Path], tmp_path: Path) -> None:
    key, secret = Key.new("reader", ["operate"])
    other, weak = Key.new("weak", ["session"])
    keys = tmp_path / "keys.json"
    keys.write_text(json_of([key, other]))
    with serving(text_runs[0], tmp_path / "s", "--keys", str(keys)) as server, httpx.Client(base_url=server.url) as http:
        for path, kind in (("/", "text/html"), ("/dashboard.css", "text/css"), ("/dashboard.js", "text/javascript")):
            answer = http.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(kind)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["cache-control"] == "no-cache"
            again = http.get(path, headers={"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert http.post("/").status_code == 405
        assert http.get("/v1/overview").status_code == 401
        assert http.get("/v1/overview", headers={"authorization": f"Bearer {weak}"}).status_code == 403
        told = http.get("/v1/overview?documents=1", headers={"authorization": f"Bearer {secret}"}).json()
    assert [document["title"] for document in told["documents"]] == sorted(TOPICS)
    assert sum(document["rows"] for document in told["documents"]) == told["bank"]["rows"]
    assert str(tmp_path) not in str(told)


@pytest.mark.integration
def test_a_run_has_the_exams_that_its_folder_holds_and_none_else(server: Running, text_runs: list[Path]) -> None:
    first, second = httpx.get(f"{server.url}/v1/overview").json()["runs"]
    run = Run.open(text_runs[0])
    exam = held_out_exam(run, Engine.open(run).bank, "test", 100)
    kept = evaluation_results(run, [exam, exam.among(50)])
    assert [exam["exam"] for exam in first["exams"]] == [result.exam for result in kept]
    assert first["exams"][0]["hit@5"] == kept[0].ranks.hit(5).to_json()
    assert (first["context"], first["updates"]) == (24, 30)
    assert first["valid"]["value"] == run.best_hit5
    assert (second["name"], second["exams"]) == ("guide-next", [])


# The page


@dataclass
class Reader:
    """A browser window, and everything that went wrong in it or left for elsewhere."""

    page: Any
    origin: str
    faults: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)  # parts of faults that a test brings about

    def listen(self) -> None:
        self.page.on("console", self._said)
        self.page.on("pageerror", self._failed)
        self.page.on("request", self._asked)

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def _failed(self, error: Any) -> None:
        self.faults.append(str(error))

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((f"{self.origin}/", "data:")):
            self.faults.append(f"asked {request.url}")

    def check(self) -> None:
        assert [fault for fault in self.faults if not any(part in fault for part in self.expected)] == []

    def picture(self, folder: Path, name: str, whole: bool = True) -> None:
        """For people to look at."""
        self.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        self.page.wait_for_timeout(100)
        self.page.screenshot(path=(DOCS if FOR_DOCS and name in SHOWN else folder) / f"dashboard-{name}.png", full_page=whole)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Reader]]:
    """Open the dashboard of a server; afterwards, nothing may have gone wrong that the test did not bring about.

    The page is closed before the server ends, which it would notice; one that ``outlives`` the server is not.
    """
    readers: list[Reader] = []
    with ExitStack() as at_end:

        def visit(
            server: Running, width: int = 1280, height: int = 860, ready: bool = True, outlives: bool = False, **how: Any
        ) -> Reader:
            context = browser.new_context(viewport={"width": width, "height": height}, **how)
            pages = at_end if outlives else server.before_end
            pages.callback(context.close)
            at_end.callback(pages.close)  # of a server that goes on
            context.set_default_timeout(MILLISECONDS)
            reader = Reader(context.new_page(), server.url)
            reader.listen()
            readers.append(reader)
            reader.page.goto(server.url)
            if ready:
                reader.page.wait_for_selector("#state.good")
            return reader

        yield visit
    for reader in readers:
        reader.check()


@contextmanager
def traffic(server: Running, rate: float = 60.0) -> Generator[None]:
    """Sessions that go on for as long as this lasts, now more of them and now fewer."""
    stop, rows = threading.Event(), httpx.get(f"{server.url}/v1/overview").json()["bank"]["rows"]
    faults: list[Exception] = []

    def drive() -> None:
        try:
            with Client(server.url) as client:
                sessions = [client.session(f"{who}-{n:02d}") for n, who in enumerate(("reader", "editor", "search", "mobile"))]
                n = 0
                while not stop.wait(1 / (rate * (1 + 0.6 * sin(time.monotonic() / 5)))):
                    sessions[n % 4 if n % 7 else 0].append_rows([n * 7 % rows], k=5)
                    n += 1
        except Exception as error:
            faults.append(error)

    thread = threading.Thread(target=drive)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert faults == []


def json_of(keys: list[Key]) -> str:
    return json.dumps([key.to_json() for key in keys])


@contextmanager
def rollout_at(where: Path, step: int, stable: str, canary: str, name: str = "r") -> Generator[Ledger]:
    """A real rollout that stands at a canary step, carried there by a person, with what equal arms show on the way."""
    ledger = open_ledger(where)
    create(ledger, name, "default", PLAN, stable=stable, canary=canary, actor="ann", evidence=Evidence((*bands(), "all")))
    intervene(ledger, name, Command("start", "ann", "200 replays, P95 1.4 ms"))
    controller, router = Controller(ledger, name, "controller"), Follower(ledger, name, "router", OLD, NEW)
    for n in range(step + 2):
        if n:
            intervene(ledger, name, Command("promote", "ann"))
        for event in alike(router.poll().weight, 4_000 if n else 900):
            router.observe(event)
        router.poll()
        controller.tick()
    controller.release()
    router.leave()
    yield ledger
    ledger.close()


@contextmanager
def in_rollout(runs: list[Path], folder: Path) -> Generator[Running]:
    """A server of both runs that drives a rollout of the second over the first; an earlier one was rejected."""
    stable, canary = (identity(run.name, Engine.open(run).digest) for run in runs)
    ledger = open_ledger(folder / "rollouts.db")
    create(ledger, "guide-next-early", "default", PLAN, stable=stable, canary=canary, actor="ben")
    intervene(
        ledger, "guide-next-early", Command("start", "ben", failures=("a P95 of 131.2 ms is above the budget of 100 ms",))
    )
    ledger.close()
    with (
        rollout_at(folder / "rollouts.db", 2, stable, canary, "guide-next-1123"),
        serving(runs, folder / "s", "--ledger", str(folder / "rollouts.db"), "--turn", "0.2") as server,
    ):
        yield server


@needs_browser
def test_the_page_says_what_is_served_and_how_fast(server: Running, visit: Callable[..., Reader], tmp_path: Path) -> None:
    reader = visit(server)
    with traffic(server):
        page = reader.page
        page.wait_for_selector("#latency path.line.p50")
        page.wait_for_selector("#histogram rect.fill")
        page.get_by_role("cell", name="reader-00").wait_for()
        text = page.inner_text("#now")
    assert "guide" in text
    assert "budget" in page.inner_text("#latency")
    told = httpx.get(f"{server.url}/v1/overview").json()
    assert told["load"]["minute"]["answers"] > 0
    assert page.inner_text("#state") == "ready"
    assert page.get_by_role("row", name="guide stable memory_gru").is_visible()
    assert page.locator("#runs-body").get_by_text("not evaluated").count() == 1
    assert "This server takes part in no rollouts." in page.inner_text("#rollout")
    assert "nextvec rollout start" in page.inner_text("#rollout")
    reader.picture(tmp_path, "quiet")


@needs_browser
@pytest.mark.parametrize("width", [360, 1080])
def test_a_lanes_expert_is_shown_and_that_it_is_down(
    text_runs: list[Path], visit: Callable[..., Reader], tmp_path: Path, width: int
) -> None:
    for run in text_runs:
        shutil.copytree(run, tmp_path / run.name)
    runs, bank = [tmp_path / run.name for run in text_runs], Bank.open(text_runs[0].parent / "bank")
    found = by_clusters(bank, 3)
    found.save(tmp_path / "lanes")
    lane, row = found.names[1], found.anchors.vectors[1]
    with serving(runs, tmp_path / "s", "--lanes", str(tmp_path / "lanes"), "--expert", f"{lane}={runs[1].name}") as server:
        page = visit(server, width=width).page
        with Client(server.url) as client:
            session = client.session("reader")
            assert session.append(row[None], k=3).model == runs[1].name
            for m in range(6):
                others = client.session(f"other{m}")
                for at in range(int(bank.offsets[m]), int(bank.offsets[m]) + 8):
                    others.append_rows([at], k=5)
            page.get_by_role("row", name=f"{lane} {runs[1].name}").wait_for()
            spoil(runs[1], np.asarray(bank.rows[0], np.float32), row)
            httpx.post(f"{server.url}/v1/models/{runs[1].name}/reload", timeout=PATIENCE).raise_for_status()
            for _ in range(ENOUGH):
                assert client.session("reader").append(row[None], k=3).model == runs[0].name
        page.get_by_role("row", name=f"{lane} {runs[1].name} down").wait_for()
        for_docs = FOR_DOCS and width == 1080
        page.locator("#lanes-card").screenshot(path=(DOCS if for_docs else tmp_path) / "dashboard-lanes.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT) == []
        assert [it for it in page.evaluate(CONTRAST) if it["ratio"] < 4.5] == []


@needs_browser
@pytest.mark.parametrize("way", ["desktop", "dark", "phone"])
def test_a_rollout_is_shown_with_its_evidence(
    way: str, text_runs: list[Path], visit: Callable[..., Reader], tmp_path: Path
) -> None:
    how: dict[str, dict[str, Any]] = {
        "desktop": {},
        "dark": {"color_scheme": "dark"},
        "phone": {"width": 390, "height": 844, "device_scale_factor": 2, "has_touch": True, "is_mobile": True},
    }
    with in_rollout(text_runs, tmp_path) as server:
        reader = visit(server, **how[way])
        page = reader.page
        with traffic(server):
            page.get_by_text("This server drives it.").wait_for()
            page.wait_for_selector("#latency path.line.p50")
            if FOR_DOCS:
                page.wait_for_timeout(50_000)
            page.get_by_label("Next paragraph").fill(PARAGRAPH)
            page.get_by_role("button", name="Append").click()
            page.wait_for_selector(".expected li:nth-child(5)", timeout=MILLISECONDS)
            reader.picture(tmp_path, way, whole=way != "phone")
        assert "answering 25 % of sessions" in page.inner_text("#rollout-lead")
        assert page.locator(".ladder [aria-current=step] > :not(.dot)").all_inner_texts() == ["25 %", "here"]
        assert page.locator(".ladder li").count() == 7
        bars = page.locator(".streams svg[role=img]")
        assert [bars.nth(n).get_attribute("aria-label").split(":")[0] for n in range(5)] == [
            "Failures", "Slowness", "Misses", "Unlabelled", "Assignment",
        ]  # fmt: skip
        assert "×" in page.get_by_role("table", name="Smallest detectable effect by weight").inner_text()
        assert "promote, by ann" in page.inner_text(".history")
        assert "rejected" in page.get_by_role("table", name="Past rollouts").inner_text()
        with closing(open_ledger(tmp_path / "rollouts.db")) as ledger:
            intervene(ledger, "guide-next-1123", Command("abort", "ann", "seen enough"))
        page.get_by_text("No rollout in progress.").wait_for()
        assert page.locator("#hand").is_hidden()
        assert "rolled back" in page.get_by_role("table", name="Past rollouts").inner_text()


@needs_browser
@pytest.mark.parametrize("width", [360, 1080])
def test_a_person_holds_a_rollout_and_takes_it_back_by_keyboard(
    text_runs: list[Path], visit: Callable[..., Reader], tmp_path: Path, width: int
) -> None:
    with in_rollout(text_runs, tmp_path) as server, closing(open_ledger(tmp_path / "rollouts.db")) as ledger:
        reader = visit(server, width=width)
        page = reader.page
        rollout = "guide-next-1123"
        page.get_by_label("Reason for a change by hand").fill("lunch")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.get_by_text("Done: the rollout is paused at 25 %.").wait_for()
        last = ledger.rows(rollout)[-1]
        assert last.after == "PAUSED(CANARY(2))"
        assert "lunch" in last.cause
        page.get_by_role("button", name="Resume").wait_for()
        assert page.evaluate("document.activeElement.id") == "hold"
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Pause").wait_for()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # once is not enough
        page.get_by_role("button", name="Abort now").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT) == []
        assert [it for it in page.evaluate(CONTRAST) if it["ratio"] < 4.5] == []
        page.locator("#hand").screenshot(path=tmp_path / "hand.png")
        assert ledger.record(rollout).state == "CANARY(2)"
        page.get_by_role("button", name="Abort", exact=True).wait_for()
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        until(lambda: ledger.record(rollout).state in ("ROLLING_BACK", "ROLLED_BACK"))
        page.get_by_text("No rollout in progress.").wait_for()
        assert page.locator("#hand").is_hidden()


@needs_browser
def test_what_is_refused_by_hand_says_why(text_runs: list[Path], visit: Callable[..., Reader], tmp_path: Path) -> None:
    with in_rollout(text_runs, tmp_path) as server, closing(open_ledger(tmp_path / "rollouts.db")) as ledger:
        reader = visit(server)
        reader.expected = ["409"]
        page = reader.page
        page.get_by_role("button", name="Pause").wait_for()
        page.evaluate("clearTimeout(page.timer); refresh = async () => {}")  # the page shows the old state
        intervene(ledger, "guide-next-1123", Command("pause", "ann", "first"))
        page.get_by_role("button", name="Pause").click()
        page.get_by_text("No change:").wait_for()


@needs_browser
def test_what_is_typed_is_read_and_the_expected_chunks_appear(server: Running, visit: Callable[..., Reader]) -> None:
    page = visit(server).page
    field = page.get_by_label("Next paragraph")
    field.press("Enter")
    assert page.inner_text("#try-error") == "Enter some text first."
    assert field.get_attribute("aria-invalid") == "true"
    field.fill(PARAGRAPH)
    field.press("Enter")
    page.wait_for_selector(".expected li:nth-child(5)", timeout=MILLISECONDS)
    assert page.inner_text("#try-error") == ""
    name = page.evaluate("trying.session")
    first = page.locator(".expected li").all_inner_texts()
    with Client(server.url) as client:
        session = client.session(name)
        want = session.predict(5, text=True).expected
        for e, shown in zip(want, first, strict=True):
            assert e.document in shown and f"{100 * e.probability:.1f} %" in shown
        # An empty line ends a paragraph: it is read at once, and the next one stays in the field.
        field.fill("The try statement specifies handlers.\n\nThe raise")
        until(lambda: page.evaluate("trying.seq === 2 && !document.querySelector('#expected').ariaBusy"))
        assert field.input_value() == "The raise"
        assert page.locator("#read-so-far li").count() == 2
        assert client.session(name).seq == 2
    page.get_by_role("button", name="Start over").click()
    page.get_by_text("Nothing appended yet.").wait_for()
    until(lambda: httpx.get(f"{server.url}/v1/sessions/{name}").status_code == 404)


@needs_browser
def test_an_answer_names_the_paragraphs_that_it_comes_from(server: Running, visit: Callable[..., Reader]) -> None:
    page = visit(server, width=360).page
    paragraphs = [PARAGRAPH, "The try statement specifies handlers.", "The raise statement raises an exception. " * 12]
    for n, paragraph in enumerate(paragraphs, 1):
        page.get_by_label("Next paragraph").fill(paragraph)
        page.keyboard.press("Enter")
        until(lambda n=n: page.evaluate(f"trying.seq === {n} && !document.querySelector('#expected').ariaBusy"))
    with Client(server.url) as client:
        session, stops = client.session("paragraphs"), []
        for paragraph in paragraphs:
            stops.append(session.append_text(paragraph).length)
        assert stops[2] - stops[1] > 1, "the last paragraph has several chunks"
        wanted = session.predict(5, because=3).expected
    page.locator(".because summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".because dl").first.is_visible()
    assert page.locator(".because dl").nth(1).is_hidden()
    page.evaluate("for (const it of document.querySelectorAll('.because')) it.open = true")
    for expected, item in zip(wanted, page.locator(".expected li").all(), strict=True):
        assert expected.because
        named = [paragraphs[int(np.searchsorted(stops, row.position, "right"))] for row in expected.because.rows]
        rest = {"all other rows of the context": expected.because.others, "learned values": expected.because.learned}
        rest = {name: part for name, part in rest.items() if abs(part) >= 0.0005}
        assert item.locator(".because summary").inner_text().startswith(f"Because of: {named[0][:20]}")
        assert [name.strip() for name in item.locator("dt").all_inner_texts()] == [name.strip() for name in (*named, *rest)]
        parts = [*(row.part for row in expected.because.rows), *rest.values()]
        assert item.locator("dd").all_inner_texts() == [f"{part:+.3f}".replace("-", "−") for part in parts]
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert [it for it in page.evaluate(CONTRAST) if it["ratio"] < 4.5] == []


@needs_browser
def test_a_model_that_names_no_rows_is_shown_without_reasons(tmp_path: Path, visit: Callable[..., Reader]) -> None:
    plain = TrainSettings.of("gru", context=20, batch=3, updates=2, evaluate_every=1, hidden=8, pool=30)
    with serving(make_run(tmp_path, settings=plain), tmp_path / "s") as server:
        page = visit(server).page
        page.get_by_text("This bank holds vectors only").wait_for()
        page.get_by_role("button", name="Append").click()
        page.wait_for_selector(".expected li:nth-child(5)")
        assert page.locator(".because").count() == 0


@needs_browser
def test_a_fault_of_the_server_stands_beside_the_field_in_words(server: Running, visit: Callable[..., Reader]) -> None:
    reader = visit(server)
    reader.expected = ["404"]
    field = reader.page.get_by_label("Next paragraph")
    field.fill(PARAGRAPH)
    field.press("Enter")
    reader.page.wait_for_selector(".expected li", timeout=MILLISECONDS)
    httpx.delete(f"{server.url}/v1/sessions/{reader.page.evaluate('trying.session')}")
    field.fill("What was written is not lost.")
    field.press("Enter")
    reader.page.get_by_text("There is no such session; PUT it first. Start over.").wait_for()
    assert field.input_value() == "What was written is not lost."
    assert field.get_attribute("aria-invalid") == "true"


@needs_browser
def test_a_bank_of_vectors_lets_one_walk_through_its_documents(tmp_path: Path, visit: Callable[..., Reader]) -> None:
    with serving(make_run(tmp_path), tmp_path / "s") as server:
        page = visit(server).page
        page.get_by_text("This bank holds vectors only").wait_for()
        assert page.get_by_label("Your own text").is_disabled()
        page.get_by_label("Document", exact=True).select_option(index=2)
        page.get_by_label("Rows per step").fill("0")
        page.get_by_role("button", name="Append").click()
        assert "from 1 to 1,000" in page.inner_text("#try-error")
        page.get_by_label("Rows per step").fill("7")
        page.get_by_role("button", name="Append").click()
        page.wait_for_selector(".expected li:nth-child(5)")
        assert "rows 1 to 7 of" in page.inner_text("#read-so-far")
        page.get_by_role("button", name="Append").click()
        page.get_by_text("rows 8 to 14 of").wait_for()
        bank = Engine.open(tmp_path / "run0").bank
        start = int(bank.offsets[2])
        session = Engine.open(tmp_path / "run0").session()
        session.push_many(np.asarray(bank.rows[start : start + 14], np.float32))
        answer = session.predict(5, because=1)
        named = [e.because.rows[0].position for e in answer if e.because]
        said = [f"Because of: title 2: row {position + 1}" for position in named]
        assert page.locator(".because summary").all_inner_texts() == said
        rows = [e.row for e in answer]
        place = rows.index(start + 14) + 1 if start + 14 in rows else None
        said = f"The true next row is number {place}." if place else "The true next row is not among them."
        assert said in page.inner_text("#expected")


@needs_browser
def test_everything_can_be_done_with_the_keyboard(server: Running, visit: Callable[..., Reader]) -> None:
    page = visit(server).page
    met: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        found = page.evaluate(FOCUSED)
        if found is None:
            break
        assert found["visible"], found
        met.append(found["name"])
    wanted = ["Skip to the figures", "Now", "Rollout", "Runs", "Try it", "theme", "latency", "mode", "text", "read", "again"]
    places = [met.index(name) for name in wanted]
    assert places == sorted(places)
    page.focus("#latency")
    page.keyboard.press("ArrowLeft")
    until(lambda: page.inner_text("#latency-readout") != "")
    page.focus("input[name=theme]:checked")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.focus("#text")
    page.keyboard.type("Names refer to objects.")
    page.keyboard.press("Enter")
    page.wait_for_selector(".expected li:nth-child(5)", timeout=MILLISECONDS)
    assert page.evaluate("document.activeElement.id") == "text"


FOCUSED = """() => {
  const it = document.activeElement;
  if (it === document.body) return null;
  const shown = it.matches('.switch input') ? it.nextElementSibling : it;
  const style = getComputedStyle(shown), box = shown.getBoundingClientRect();
  const visible = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2 && box.width > 0 && box.bottom > 0;
  return { name: it.id || it.name || it.textContent, visible };
}"""


@needs_browser
def test_a_server_that_is_gone_is_said_and_the_last_figures_stay(
    text_runs: list[Path], visit: Callable[..., Reader], tmp_path: Path
) -> None:
    with serving(text_runs[0], tmp_path / "s") as server:
        reader = visit(server, outlives=True)
        page, reader.expected = reader.page, ["ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE"]
        with traffic(server):
            page.get_by_role("cell", name="reader-00").wait_for()
        server.kill()
        page.get_by_text("No answer from the server since").wait_for()
        assert page.inner_text("#state") == "unreachable"
        assert page.locator("#notice").get_attribute("role") == "alert"
        assert page.get_by_role("cell", name="reader-00").is_visible()
        assert page.locator("#figures li").count() == 6
        reader.picture(tmp_path, "gone")
        page.get_by_label("Next paragraph").fill("Is anybody there?")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Append").click()
        page.get_by_text("The server does not answer.").wait_for()
        assert page.get_by_label("Next paragraph").input_value() == "Is anybody there?"
    with serving(text_runs[0], tmp_path / "s", "--port", str(urlsplit(server.url).port)):
        page.wait_for_selector("#state.good")
        assert page.inner_text("#notice") == ""


@needs_browser
def test_a_server_with_keys_asks_for_one_and_keeps_it_in_the_tab(
    text_runs: list[Path], visit: Callable[..., Reader], tmp_path: Path
) -> None:
    key, secret = Key.new("reader", ["operate", "session"])
    weak, session_only = Key.new("weak", ["session"])
    keys = tmp_path / "keys.json"
    keys.write_text(json_of([key, weak]))
    with serving(text_runs[0], tmp_path / "s", "--keys", str(keys)) as server:
        reader = visit(server, ready=False)
        page, reader.expected = reader.page, ["401", "403"]
        page.get_by_role("heading", name="This server needs a key").wait_for()
        assert page.evaluate("document.activeElement.id") == "secret"
        reader.picture(tmp_path, "key", whole=False)
        page.fill("#secret", "wrong")
        page.keyboard.press("Enter")
        page.get_by_text("The server does not know this key.").wait_for()
        page.fill("#secret", session_only)
        page.keyboard.press("Enter")
        page.get_by_text("key weak lacks the right operate").wait_for()
        page.get_by_role("button", name="Forget key").click()
        page.fill("#secret", secret)
        page.keyboard.press("Enter")
        page.wait_for_selector("#state.good")
        assert page.evaluate("[sessionStorage.length, Object.values(localStorage).join()]") == [1, ""]
        assert secret not in page.url + page.content()
        page.reload()
        page.wait_for_selector("#state.good")
        page.get_by_role("button", name="Forget key").click()
        page.get_by_role("heading", name="This server needs a key").wait_for()
        assert page.evaluate("sessionStorage.length") == 0


@needs_browser
def test_nothing_inline_is_run_and_nothing_made_of_text(server: Running, visit: Callable[..., Reader]) -> None:
    reader = visit(server)
    page, reader.expected = reader.page, ["Content Security Policy", "TrustedHTML", "TrustedScript", "requires"]
    ran = """(code) => {
      const script = document.createElement('script');
      try { script.textContent = code; document.body.append(script); } catch { return 'refused'; }
      return document.body.dataset.ran ?? 'not run';
    }"""
    assert page.evaluate(ran, "document.body.dataset.ran = 'ran'") in ("refused", "not run")
    made = "() => { try { document.createElement('p').innerHTML = '<b>b</b>'; return 'made'; } catch { return 'refused'; } }"
    assert page.evaluate(made) == "refused"
    styled = (
        "() => { document.body.setAttribute('style', 'margin-top: 77px'); return getComputedStyle(document.body).marginTop; }"
    )
    assert page.evaluate(styled) == "0px"
    assert page.evaluate("fetch('https://example.org').then(() => 'left', () => 'refused')") == "refused"
    reader.expected.append("asked https://example.org")


@needs_browser
@pytest.mark.parametrize("width", [360, 760, 1080, 1920])
def test_nothing_is_cut_at_any_width(server: Running, visit: Callable[..., Reader], width: int) -> None:
    page = visit(server, width=width).page
    with traffic(server):
        page.wait_for_selector("#latency path.line.p50")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT) == []


CUT = """() => [...document.querySelectorAll('h1, h2, h3, th, td, .figures *, .pill, nav a, label, button, .tag')]
  .filter((it) => it.offsetParent && !it.closest('.unseen, thead') && getComputedStyle(it).display !== 'inline')
  .filter((it) => it.scrollWidth > it.clientWidth + 1)
  .map((it) => it.className + ' ' + it.textContent)"""


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_can_be_read(scheme: str, text_runs: list[Path], visit: Callable[..., Reader], tmp_path: Path) -> None:
    """WCAG 2.2 AA: 4.5 to 1, whatever the word lies on."""
    with in_rollout(text_runs, tmp_path) as server:
        page = visit(server, color_scheme=scheme).page
        page.get_by_text("This server drives it.").wait_for()
        page.get_by_role("button", name="Append").click()
        found = page.evaluate(CONTRAST)
    assert len(found) > 100
    assert [it for it in found if it["ratio"] < 4.5] == []


CONTRAST = """() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const under = (it) => {
    const on = parts(getComputedStyle(it).backgroundColor);
    return (on[3] ?? 1) > 0 ? on : under(it.parentElement);
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const it = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || !it.getClientRects().length || it.closest('noscript, dialog:not([open])')) continue;
    const style = getComputedStyle(it), ink = parts(it instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(under(it))];
    found.push({ text, ratio: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) });
  }
  return found;
}"""
