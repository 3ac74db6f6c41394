"""Calls that may take minutes or hang run in daemon threads: neither the loop nor the end of the process waits for them."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(call: Callable[[], T], name: str, drop: Callable[[T], object] = lambda _: None) -> T:
    """The result of ``call``, from a new daemon thread.

    Executors do not fit: the interpreter waits for the threads of all executors before it ends.

    Args:
        name: of the thread.
        drop: gets the result, in a thread, if the caller was cancelled or the loop was closed in the meantime.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[T] = loop.create_future()

    def dropped(result: T) -> None:
        threading.Thread(target=drop, args=(result,), name=f"{name}: drop", daemon=True).start()

    def hand(result: T) -> None:
        if found.done():
            dropped(result)
        else:
            found.set_result(result)

    def fail(error: Exception) -> None:
        if not found.done():
            found.set_exception(error)

    def run() -> None:
        try:
            result = call()
        except Exception as error:
            if not loop.is_closed():
                loop.call_soon_threadsafe(fail, error)
            return
        try:
            loop.call_soon_threadsafe(hand, result)
        except RuntimeError:  # the loop is closed
            drop(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        return await found
    except asyncio.CancelledError:
        if not found.cancelled() and found.exception() is None:  # the result came in the same turn of the loop
            dropped(found.result())
        raise
