"""Syncs the log of contexts, and compacts it by rewriting the contexts in its oldest segment."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from nextvec.serving.context_log import FullError
from nextvec.serving.context_view import rewritten
from nextvec.serving.contexts import Contexts
from nextvec.serving.listeners import Listeners

SYNC_SECONDS = 0.05


class Compaction:
    """A task in the running loop, until it is closed. The disk is read and synced in a thread."""

    def __init__(self, contexts: Contexts, listeners: Listeners) -> None:
        self._contexts, self._listeners = contexts, listeners
        self._disk = ThreadPoolExecutor(1, "disk")
        self.task = asyncio.get_running_loop().create_task(self._run(), name="compaction")

    async def close(self) -> None:
        """Stop, and wait for the thread."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self._disk.shutdown()

    async def _run(self) -> None:
        loop, log = asyncio.get_running_loop(), self._contexts.log
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            try:
                written = log.unsynced()
                if written:
                    await loop.run_in_executor(self._disk, log.sync, written)
                if self._contexts.wasteful() and log.failure is None:
                    await self._compact()
            except Exception as error:  # a damaged record, or a disk that cannot be read: appends are refused from now on
                log.failure = f"{type(error).__name__}: {error}"
                self._listeners.log("contexts", trouble=log.failure)

    async def _compact(self) -> None:
        for session in self._contexts.oldest():
            if session in self._contexts:
                view = self._contexts.view(session)
                whole = await asyncio.get_running_loop().run_in_executor(self._disk, rewritten, session, view)
                try:
                    self._contexts.rewrite(whole, view)
                except FullError:
                    return  # appends report it; compaction cannot help now
        self._contexts.remove_oldest()
