"""Opening a run and keeping the log: neither holds up the other, nor a stop."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from nextvec.errors import ServingError
from nextvec.inference import Engine
from nextvec.serving.daemon_thread import in_daemon_thread
from nextvec.serving.limits import Limits
from nextvec.serving.overview import unready
from nextvec.serving.payload import from_rows
from nextvec.serving.refusal import RefusedError
from nextvec.serving.service import Service
from tests.serving.server import asking, rows_of
from tests.waiting import PATIENCE


@pytest.fixture(scope="module")
def run(made: Path) -> Path:
    return made / "run0"


class Opens:
    """Opens a run; from the second time on only once ``free`` is set."""

    def __init__(self) -> None:
        self.free, self.begun = threading.Event(), 0

    def __call__(self, run: Path) -> Engine:
        self.begun += 1
        if self.begun > 1:
            self.free.wait()
        return Engine.open(run)


def served(run: Path, folder: Path, talk: Callable[[Service, Opens], Awaitable[None]]) -> None:
    opens = Opens()

    async def main() -> None:
        service = Service({"m": run}, opens, folder / "s", Limits())
        try:
            await asyncio.wait_for(talk(service, opens), PATIENCE)
        finally:
            await asyncio.wait_for(service.close(), PATIENCE)

    try:
        asyncio.run(main())
    finally:
        opens.free.set()


async def until(what: Callable[[], bool]) -> None:
    while not what():
        await asyncio.sleep(0.005)


async def write(service: Service) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE
    await service.sessions.append("a", from_rows(rows_of(1, 1)), None, 0, asking("a"), deadline)


def test_what_is_written_is_synced_and_a_server_stops_while_a_run_hangs_in_opening(run: Path, tmp_path: Path) -> None:
    async def talk(service: Service, opens: Opens) -> None:
        synced: list[int] = []
        sync = service.contexts.log.sync

        def watched(segments: tuple[object, ...]) -> None:
            sync(segments)  # type: ignore[arg-type]
            synced.append(len(segments))

        service.contexts.log.sync = watched  # type: ignore[method-assign]
        reloading = asyncio.create_task(service.models.reload("m"))
        await until(lambda: opens.begun == 2)
        await service.sessions.open("a")
        await write(service)
        await until(lambda: bool(synced))
        assert not reloading.done()
        reloading.cancel()  # as the server's stop does; the run is still being opened when the service closes

    served(run, tmp_path, talk)


def test_a_log_that_cannot_be_compacted_is_told_and_refuses_appends(run: Path, tmp_path: Path) -> None:
    async def talk(service: Service, _: Opens) -> None:
        lines: list[tuple[str, object]] = []
        service.listeners.log = lambda event, **fields: lines.append((event, fields["trouble"]))
        await service.sessions.open("a")

        def damaged() -> list[str]:
            raise ServingError("0.log is damaged at byte 7")

        service.contexts.oldest = damaged  # type: ignore[method-assign]
        service.contexts.wasteful = lambda: True  # type: ignore[method-assign]
        await until(lambda: service.contexts.log.failure is not None)
        assert lines == [("contexts", "ServingError: 0.log is damaged at byte 7")]
        assert "0.log is damaged" in str(unready(service))
        with pytest.raises(RefusedError) as refused:
            await write(service)
        assert (refused.value.status, service.compaction.task.done()) == (507, False)

    served(run, tmp_path, talk)


@pytest.mark.parametrize("when", ["cancelled", "closed"])
def test_a_result_that_comes_too_late_is_dropped_once(when: str) -> None:
    free, gone, dropped = threading.Event(), threading.Event(), list[int]()

    def drop(result: int) -> None:
        dropped.append(result)
        gone.set()

    async def main() -> None:
        task = asyncio.create_task(in_daemon_thread(lambda: free.wait(PATIENCE) and 7, "test", drop))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if when == "cancelled":
            free.set()
            await until(gone.is_set)

    asyncio.run(main())
    free.set()
    assert gone.wait(PATIENCE)
    assert dropped == [7]
