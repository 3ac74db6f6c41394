"""Decoding of text files, checks of text, and the front matter of Markdown."""

import codecs
import re
import unicodedata
from pathlib import Path
from typing import Any

import yaml

from nextvec.errors import DataError
from nextvec.ingestion.document import Document

BYTE_ORDER_MARKS = (  # UTF-32 comes first, because its little-endian mark begins with the mark of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
SAMPLE = 4_096  # bytes in which NULs are counted
NUL_SHARE = 0.2  # share of the sample from which NULs are read as halves of UTF-16 characters
INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})  # controls, format characters (zero-width ones), separators
MARKDOWN = (".md", ".markdown")
FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
LONGEST_FRONT_MATTER = 100_000  # characters


def decode(data: bytes, where: str) -> str:
    """UTF-8 text without its byte order mark, line ends as ``\\n``.

    Args:
        where: names the source in an error.

    Raises:
        DataError: UTF-16, UTF-32, NULs, or other bytes that are not UTF-8 text.
    """
    for mark, name in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            raise DataError(f"{where} is {name}; convert it to UTF-8 first")
    data = data.removeprefix(codecs.BOM_UTF8)
    if (place := data.find(0)) >= 0:
        sample = data[:SAMPLE]
        if sample.count(0) >= NUL_SHARE * len(sample):
            raise DataError(
                f"{where} looks like UTF-16 without a byte order mark (NUL at byte {place}); convert it to UTF-8 first"
            )
        raise DataError(f"{where} holds a NUL at byte {place}; it is not text, or it is damaged")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 at byte {error.start}; convert it first") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def text_document(data: bytes, name: str, file: Path) -> Document:
    """The document that a text file holds. Its title is that of a Markdown file's front matter, or the file's name.

    Args:
        data: the bytes of the file.
        name: the document's id.

    Raises:
        DataError: not UTF-8 text, or empty.
    """
    text, title = decode(data, str(file)), file.stem.replace("_", " ")
    markdown = file.suffix.lower() in MARKDOWN
    if markdown:
        given, text = front_matter(text)
        title = given or title
    return Document(name, title, checked(text, str(file)), markdown)


def checked(text: Any, where: str) -> str:
    """``text`` without a byte order mark at its start.

    Raises:
        DataError: not a string, half a surrogate pair, a NUL, or only invisible characters.
    """
    if not isinstance(text, str):
        raise DataError(f"{where}: text is {type(text).__name__}, not a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half a surrogate pair at character {error.start}; it is not Unicode text") from None
    if (place := text.find("\0")) >= 0:
        raise DataError(f"{where} holds a NUL at character {place}; it is not text, or it is damaged")
    if blank(text):
        raise DataError(f"{where} is empty; leave it out or give it text")
    return text.removeprefix("\ufeff")


def blank(text: str) -> bool:
    """Whether ``text`` has only invisible characters: blanks, controls and zero-width characters."""
    return all(letter.isspace() or unicodedata.category(letter) in INVISIBLE for letter in text)


def front_matter(text: str) -> tuple[str | None, str]:
    """The title that a Markdown text's YAML front matter gives, or None, and the text after the front matter.

    Front matter is a YAML mapping between a first line ``---`` and a line ``---`` or ``...``. Anything else that
    begins with ``---`` is text.
    """
    found = FRONT_MATTER.match(text, 0, LONGEST_FRONT_MATTER)
    if found is None:
        return None, text
    try:
        # BaseLoader makes strings of all scalars and constructs no objects.
        values = yaml.load(found[1], yaml.BaseLoader)  # noqa: S506
    except yaml.YAMLError:
        return None, text
    if not isinstance(values, dict):
        return None, text
    title = values.get("title")
    return (title.strip() or None if isinstance(title, str) else None), text[found.end() :]
