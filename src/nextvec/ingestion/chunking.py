"""Cuts text into chunks that the encoder reads whole. Chunks are spans of the text; cuts fall on sentences where they can."""

# Axes: T chunks of one text.

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from jaxtyping import Int64
from semantic_text_splitter import TextSplitter

from nextvec.encoders import CountsTokens, Encoder
from nextvec.errors import DataError, SettingsError
from nextvec.ingestion.cuts import Span, around, code_blocks, cut
from nextvec.ingestion.text import blank

LARGEST = 1_000_000
COUNTED = 1_024  # chunks whose tokens are counted at once
LETTERS = 8  # characters of a token at most, in nearly all text
WORDS = re.compile(r"(\d+) (characters|tokens), overlap (\d+)")

Report = Callable[[int], None]
"""Called with the number of characters that have been cut."""


@dataclass(frozen=True)
class Chunking:
    """How text is cut.

    Attributes:
        size: the most one chunk may hold, in ``unit``; cuts fall on the largest
            boundary that fits: paragraph, sentence, word.
        unit: characters, or tokens of the encoder without those that it adds to every text.
        overlap: how much of the previous chunk is repeated, in ``unit``.
    """

    size: int = 300
    unit: Literal["characters", "tokens"] = "characters"
    overlap: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.size <= LARGEST or not 0 <= self.overlap < self.size:
            raise SettingsError(
                f"chunks of {self.size} {self.unit} with overlap {self.overlap}: "
                f"size must be from 1 to {LARGEST:,} and above overlap"
            )

    @staticmethod
    def read(words: str) -> "Chunking":
        """Read what :meth:`__str__` wrote into a bank's manifest.

        Raises:
            DataError: any other text, because nextvec did not cut the bank's text.
        """
        found = WORDS.fullmatch(words)
        if found is None:
            raise DataError(f"the bank's manifest gives its chunking as {words!r}; nextvec cannot cut more text in this way")
        return Chunking(int(found[1]), "tokens" if found[2] == "tokens" else "characters", int(found[3]))

    def __str__(self) -> str:
        return f"{self.size} {self.unit}, overlap {self.overlap}"

    def splitter(self, encoder: Encoder | None = None) -> "Splitter":
        """A function from a text to its chunks, none longer than what ``encoder`` reads.

        Raises:
            SettingsError: more tokens than the encoder reads, or a unit of tokens and an encoder that does not count them.
        """
        return Splitter(self, encoder)


class Splitter:
    """Cuts texts as a :class:`Chunking` says, and further where a chunk has more tokens than its encoder reads.

    An encoder that does not count tokens (:class:`~nextvec.encoders.CountsTokens`) leaves the chunks as they are.
    """

    def __init__(self, chunking: Chunking, encoder: Encoder | None = None) -> None:
        self._chunking = chunking
        self._tokens = _Tokens(encoder) if isinstance(encoder, CountsTokens) else None
        self._name = "the encoder" if encoder is None else encoder.name
        size, overlap = chunking.size, chunking.overlap
        if chunking.unit == "characters":
            self._splitter, self._reach = TextSplitter(size, overlap=overlap), size
        elif self._tokens is None:
            raise SettingsError(f"{self._name} does not count tokens; give the size of chunks in characters")
        elif self._tokens.most is not None and size > self._tokens.most:
            raise SettingsError(
                f"chunks of {size} tokens: {self._name} reads {self._tokens.most} beside the {self._tokens.own} "
                f"that it adds to every text; the largest size is {self._tokens.most} tokens"
            )
        else:
            self._splitter, self._reach = self._tokens.splitter(size, overlap), LETTERS * size

    def __call__(self, text: str, markdown: bool = False, report: Report = lambda _: None) -> Int64[np.ndarray, "T 2"]:
        """Character spans of the chunks of ``text``, in order, blank ones left out.

        Args:
            markdown: a fenced code block that fits into a chunk is not cut.
            report: called repeatedly with the number of characters that have been cut.

        Raises:
            DataError: one character has more tokens than the encoder reads.
        """
        blocks = [block for block in code_blocks(text) if self._fits(text, block)] if markdown else []
        parts: list[Int64[np.ndarray, "P 2"]] = []
        for spans in _batches(around(self._splitter, text, self._reach, blocks)):
            parts.append(np.array(self._readable(text, spans), np.int64).reshape(-1, 2))
            report(spans[-1][1])
        return np.concatenate(parts) if parts else np.empty((0, 2), np.int64)

    def _fits(self, text: str, span: Span) -> bool:
        if self._chunking.unit == "characters" or self._tokens is None:
            return span[1] - span[0] <= self._chunking.size
        return self._tokens.measured(text[span[0] : span[1]], self._chunking.size) <= self._chunking.size

    def _readable(self, text: str, spans: list[Span]) -> list[Span]:
        """The spans that are not blank; spans that the encoder would truncate are cut into pieces."""
        spans = [(a, b) for a, b in spans if not blank(text[a:b])]
        tokens = self._tokens
        if tokens is None or tokens.most is None or not spans:
            return spans
        found: list[Span] = []
        for (a, b), count in zip(spans, tokens.count([text[a:b] for a, b in spans]), strict=True):
            found += [(a, b)] if count <= tokens.most else self._pieces(text, a, b, tokens.most)
        return found

    def _pieces(self, text: str, start: int, stop: int, most: int) -> list[Span]:
        assert self._tokens is not None
        splitter = self._tokens.splitter(most)
        pieces = [(a, b) for a, b in cut(splitter, text, LETTERS * most, start, stop) if not blank(text[a:b])]
        for (a, b), count in zip(pieces, self._tokens.count([text[a:b] for a, b in pieces]), strict=True):
            if count > most:
                raise DataError(
                    f"{text[a:b]!r} at character {a} has {count} tokens and {self._name} reads {most}; "
                    "take it out, or choose another encoder"
                )
        return pieces


class _Tokens:
    """The token counts of an encoder, without the tokens that it adds to every text.

    Attributes:
        own: tokens that the encoder adds to every text: the special ones and its prompt.
        most: the most tokens of a text that the encoder reads beside its own; None where there is no limit.
    """

    def __init__(self, encoder: CountsTokens) -> None:
        self._encoder = encoder
        self.own = int(encoder.count_tokens([""])[0])
        self.most = None if encoder.max_tokens is None else encoder.max_tokens - self.own
        if self.most is not None and self.most < 1:
            raise SettingsError(
                f"{encoder.name} reads {encoder.max_tokens} tokens and adds {self.own} to every text; none is left for the text"
            )

    def count(self, texts: Sequence[str]) -> list[int]:
        return [max(0, tokens - self.own) for tokens in self._encoder.count_tokens(texts).tolist()]

    def measured(self, text: str, size: int) -> int:
        """Tokens of ``text`` where they are at most ``size``, otherwise any larger number.

        Of a long text, the first characters are measured first. If they have too many tokens, the rest is not measured. So
        the cost of a chunk does not grow with the length of the line that begins there.
        """
        head = text[: LETTERS * size]
        tokens = self.count([head])[0]
        return tokens if len(head) == len(text) or tokens > 2 * size else self.count([text])[0]

    def splitter(self, size: int, overlap: int = 0) -> TextSplitter:
        return TextSplitter.from_callback(lambda text: self.measured(text, size), size, overlap)


def _batches(spans: Iterable[Span]) -> Iterator[list[Span]]:
    remaining = iter(spans)
    while batch := list(islice(remaining, COUNTED)):
        yield batch
