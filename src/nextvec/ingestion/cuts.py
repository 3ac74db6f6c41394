"""Cuts at sentences, words and graphemes in linear time, and the code blocks of Markdown."""

import re
from collections import deque
from collections.abc import Iterable, Iterator

from semantic_text_splitter import TextSplitter

Span = tuple[int, int]

WINDOW = 8  # margins
SPARE = 512  # characters of a margin beside those of two chunks: whitespace, and what decides where a sentence ends
FENCE = re.compile(r"^[ \t]*(`{3,}(?=[^`\n]*$)|~{3,})(.*)$", re.MULTILINE)


def cut(splitter: TextSplitter, text: str, reach: int, start: int = 0, stop: int | None = None) -> Iterator[Span]:
    """Character spans of the chunks of ``text[start:stop]``, in order, the same as ``splitter`` gives for the whole.

    For each chunk the splitter measures the sentence, the line and the paragraph that begin there, to their ends. So
    its time for one long line is quadratic in the length. A section longer than a chunk can be cut off without changing
    the chunks. Therefore the splitter reads one window at a time. A chunk that ends near the end of a window
    is not taken; the next window begins where that chunk begins.

    Args:
        reach: characters that a chunk usually holds at most. A longer chunk makes its window grow.
    """
    stop = len(text) if stop is None else stop
    margin = 2 * reach + SPARE
    size, last = WINDOW * margin, start
    while start < stop:
        end = min(start + size, stop)
        found = [(start + a, start + a + len(chunk)) for a, chunk in splitter.chunk_indices(text[start:end])]
        found = [span for span in found if span[1] > last]  # with an overlap, the first may hold nothing new
        safe = end if end == stop else end - margin
        taken = [span for span in found if span[1] <= safe]
        yield from taken
        if end == stop:
            return
        if taken:
            size, last = WINDOW * margin, taken[-1][1]
            start = found[len(taken)][0] if len(taken) < len(found) else last
        else:
            size *= 2


def around(splitter: TextSplitter, text: str, reach: int, whole: Iterable[Span]) -> Iterator[Span]:
    """:func:`cut`, but no chunk ends inside one of the spans ``whole``, each of which fits into a chunk."""
    kept = deque(whole)
    start = 0
    while start < len(text):
        for a, b in cut(splitter, text, reach, start):
            while kept and kept[0][1] <= b:
                kept.popleft()
            if kept and kept[0][0] < b:
                first, start = kept.popleft()
                yield from cut(splitter, text, reach, a, first)
                yield first, start
                break
            yield a, b
        else:
            return


def code_blocks(text: str) -> Iterator[Span]:
    """Fenced code blocks of a Markdown text, from the opening fence to the end of the closing one (CommonMark 4.5).

    A fence that is never closed begins no block. Fences may be indented, because those of list items are.
    """
    opened: re.Match[str] | None = None
    for fence in FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence[1].startswith(opened[1]) and not fence[2].strip():
            yield opened.start(1), fence.end(1)
            opened = None
