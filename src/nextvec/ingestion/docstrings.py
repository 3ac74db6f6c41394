"""The documentation inside Python: real text that every installation has.

Docstrings of the standard library and of the packages nextvec depends on, read
with ``ast`` (nothing is imported or run), in file order. A document is a
package or subpackage; large ones are long enough for a 500-vector context.
"""

import ast
import hashlib
import importlib.util
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from nextvec.ingestion.document import Document
from nextvec.progress import Progress, silent

STANDARD_LIBRARY = "python"
PACKAGES = (STANDARD_LIBRARY, "torch", "numpy", "sympy", "networkx", "mpmath", "huggingface_hub", "fsspec", "rich", "jinja2")
SKIPPED = frozenset({"test", "tests", "testing", "_testing", "site-packages", "__pycache__", "idlelib", "_vendor", "lib2to3"})
LONG = 165_000  # characters at which a document is cut; about 700 chunks
SHORT = range(8_000, 40_000)  # characters of a short document; about 35 to 170 chunks


def documentation(budget: int, progress: Progress = silent) -> list[Document]:
    """About ``budget`` characters of documentation: three fifths in long documents, the rest in short ones.

    A hash of their names selects the documents, so that two machines with the same
    versions installed read the same text.
    """
    folders = {name: files for package in PACKAGES for name, files in _folders(package).items()}
    long: list[Document] = []
    short: list[Document] = []
    for name in sorted(folders, key=lambda name: hashlib.sha256(name.encode()).digest()):
        document = Document(id=name, title=name.replace("/", "."), text=_text_of(folders[name]))
        if len(document.text) >= LONG and _size(long) < budget * 3 // 5:
            long.append(document)
        elif len(document.text) in SHORT and _size(short) < budget * 2 // 5:
            short.append(document)
        progress("reading documentation", min(_size(long) + _size(short), budget), budget)
        if _size(long) + _size(short) >= budget:
            break
    return sorted(long + short, key=lambda document: document.id)


def _size(documents: list[Document]) -> int:
    return sum(len(document.text) for document in documents)


def _root(package: str) -> Path | None:
    if package == STANDARD_LIBRARY:
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def _folders(package: str) -> dict[str, list[Path]]:
    """Files by ``package/subpackage``; top-level files of a package form a document of their own."""
    folders: dict[str, list[Path]] = {}
    root = _root(package)
    if root is None:
        return folders
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if SKIPPED.isdisjoint(parts):
            name = f"{package}/{parts[0]}" if len(parts) > 1 else package
            folders.setdefault(name, []).append(path)
    return folders


def _text_of(files: list[Path]) -> str:
    """Docstrings in file order, each once, up to the size of a long document."""
    said: dict[str, None] = {}  # a dict keeps the order, a set would not
    length = 0
    for path in files:
        for docstring in _docstrings(path):
            if length >= LONG:
                return "\n\n".join(said)
            length += 0 if docstring in said else len(docstring) + 2
            said[docstring] = None
    return "\n\n".join(said)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # some packages contain templates and Python 2 files
    yield from _in_file_order(tree)


def _in_file_order(node: ast.AST) -> Iterator[str]:
    documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    if documented and (docstring := ast.get_docstring(node)):
        yield docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield from _in_file_order(child)
