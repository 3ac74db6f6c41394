"""Text to chunks: sentence-aware, spans kept, nothing copied."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from semantic_text_splitter import TextSplitter

from nextvec.encoders.minilm import model_folder
from nextvec.errors import SettingsError

Span = tuple[int, int]
LARGEST = 1_000_000


@dataclass(frozen=True)
class Chunking:
    """How text is cut.

    Attributes:
        size: the most one chunk may hold, in ``unit``; cuts fall on the largest
            boundary that fits: paragraph, sentence, word.
        unit: characters, or tokens of the default encoder.
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

    def splitter(self) -> Callable[[str], list[Span]]:
        """A function from text to the character spans of its chunks, in order, blank ones left out."""
        if self.unit == "tokens":
            splitter = TextSplitter.from_huggingface_tokenizer_file(
                str(model_folder() / "tokenizer.json"), self.size, overlap=self.overlap
            )
        else:
            splitter = TextSplitter(self.size, overlap=self.overlap)

        def spans(text: str) -> list[Span]:
            return [(start, start + len(chunk)) for start, chunk in splitter.chunk_indices(text) if chunk.strip()]

        return spans
