"""Encodes the texts of requests, a few chunks of each in turn, and refuses a text that cannot be ready at its deadline."""

# Axes: T chunks, D width.

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from nextvec.errors import NextvecError
from nextvec.serving.answering import Answering, EndedError
from nextvec.serving.refusal import RefusedError
from nextvec.serving.round_robin import RoundRobinThread, Steps

# Chunks of one step. It is constant because the bits of a vector depend on the batch that it is encoded in: a text that is
# sent again must give the same bits, or the repeated append is refused as a different one.
BATCH = 8
ALWAYS = 2_000  # characters that are always admitted, so that the pace is measured again after a slow minute
SMOOTH = 0.2  # weight of the newest step in the running mean of the pace
FRESH_SECONDS = 30.0  # an older pace is not used
WARM = "The first text also pays for loading the encoder."


@dataclass(eq=False)
class _Text:
    """A text that is being encoded.

    Attributes:
        characters: of the whole text.
        done: characters of the encoded chunks; written by the worker thread alone.
    """

    characters: int
    done: int = 0

    @property
    def left(self) -> int:
        return max(0, self.characters - self.done)


class TextEncoding:
    """Encodes texts on a worker thread: labels, answers and long contexts do not wait for it.

    Attributes:
        pace: seconds per character, running mean over full batches; None before the first. Written by the worker
            thread alone.

    Args:
        clock: in seconds, for the pace.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._thread = RoundRobinThread("texts")
        self.pace: float | None = None
        self._clock, self._measured = clock, -FRESH_SECONDS
        self._under_way: list[_Text] = []

    def warm(self, engine: Answering) -> None:
        """Load the encoder before the first text arrives."""
        self._thread.run(_warmed(engine))

    async def rows(self, engine: Answering, text: str, deadline: float) -> Float32[np.ndarray, "T D"]:
        """A text as the vectors of its chunks, cut and encoded as the bank's texts were.

        Args:
            deadline: in seconds of the loop's clock.

        Raises:
            RefusedError: 413 too long to be encoded before the deadline, with ``fits`` in characters; 422 the bank was not made
                from text; 503 too many texts wait, or the server is stopping; 504 the deadline has passed.
            EndedError: the engine's process has ended.
        """
        asked = _Text(len(text))
        self._admit(asked.characters, deadline - asyncio.get_running_loop().time())
        self._under_way.append(asked)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._thread.run(self._encoded(engine, text, asked))
        except TimeoutError:
            detail = f"the deadline passed when {asked.done} of the text's {asked.characters} characters were encoded"
            raise RefusedError(504, detail, fits=asked.done) from None
        except (EndedError, RefusedError):
            raise
        except NextvecError as error:
            raise RefusedError(422, str(error)) from None
        finally:
            self._under_way.remove(asked)

    def stuck(self, seconds: float) -> bool:
        """Whether the running step has taken longer than ``seconds``."""
        since = self._thread.since
        return since is not None and asyncio.get_running_loop().time() - since > seconds

    def close(self) -> None:
        """Refuse all texts; only the running step finishes."""
        self._thread.close(RefusedError(503, "this server is stopping", {"retry-after": "1"}))

    def _admit(self, characters: int, seconds: float) -> None:
        """Refuse a text that cannot be encoded in time at the recent pace."""
        pace = self.pace
        if pace is None or self._clock() - self._measured > FRESH_SECONDS:
            return
        fits = max(ALWAYS, int(seconds / pace))
        if characters > fits:
            raise RefusedError(
                413,
                f"the text has {characters} characters; about {fits} can be encoded before the deadline: "
                "send it in parts, or give a longer x-deadline-ms",
                fits=fits,
            )
        # Texts take turns: until this text is encoded, another one takes as many characters as this one, or all it has left.
        ahead = sum(min(max(characters, ALWAYS), other.left) for other in self._under_way)
        if ahead and (characters + ahead) * pace > seconds:
            detail = "other texts are being encoded, and this one would not be ready before its deadline"
            raise RefusedError(503, detail, {"retry-after": "1"})

    def _encoded(self, engine: Answering, text: str, asked: _Text) -> Steps[Float32[np.ndarray, "T D"]]:
        chunks = engine.cut(text)  # in one step with the first batch, so that a short text waits for one turn
        parts: list[np.ndarray] = []
        for first in range(0, len(chunks), BATCH):
            if parts:
                yield
            batch = chunks[first : first + BATCH]
            began = self._clock()
            parts.append(engine.encode_chunks(batch))
            if len(batch) == BATCH:  # smaller batches would measure the cost of a call
                self._paced(batch, self._clock() - began)
            asked.done += sum(map(len, batch))
        return np.concatenate(parts)

    def _paced(self, batch: Sequence[str], seconds: float) -> None:
        now = self._clock()
        newest = seconds / sum(map(len, batch))
        stale = self.pace is None or now - self._measured > FRESH_SECONDS
        self.pace = newest if self.pace is None or stale else self.pace + SMOOTH * (newest - self.pace)
        self._measured = now


def _warmed(engine: Answering) -> Steps[None]:
    with suppress(NextvecError):  # a request that sends text gets the error
        engine.encode_chunks(engine.cut(WARM))
    return
    yield
