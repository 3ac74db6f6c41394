"""A document of text: its id, its title and its text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text in reading order.

    Attributes:
        id: unique within a bank; decides the split.
        title: shown in results.
        text: the whole text; chunks are spans into it.
        markdown: whether the text is Markdown; its fenced code blocks are not cut where they fit into a chunk.
    """

    id: str
    title: str
    text: str
    markdown: bool = False
