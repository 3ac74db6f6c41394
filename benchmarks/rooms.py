"""The size of every room of the package: modules, lines, the longest module and function, import cycles.

    python benchmarks/rooms.py [CHECKOUT ...]

Several checkouts stand side by side. `tests/test_architecture.py` holds the
limits. Nothing is imported: the sources are read.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

PACKAGE = "nextvec"


@dataclass(frozen=True)
class Module:
    """One source file.

    Attributes:
        functions: lines of each function and method, by its name.
        imports: modules of the package that it imports anywhere: at the top, inside a function, for types alone.
    """

    name: str
    lines: int
    functions: Mapping[str, int]
    imports: frozenset[str]

    @property
    def room(self) -> str:
        """The first name below the package; the package itself for its own module."""
        return self.name.split(".")[1] if "." in self.name else self.name


def modules_of(checkout: Path) -> list[Module]:
    """The modules of a checkout, by name."""
    source = checkout / "src"
    paths = {_name(path.relative_to(source)): path for path in sorted((source / PACKAGE).rglob("*.py"))}
    return [_read(name, path, paths.keys()) for name, path in paths.items()]


def cycles_of(modules: Iterable[Module]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others (Tarjan 1972)."""
    imports = {module.name: module.imports for module in modules}
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in sorted(imports[name]):
            if other not in order:
                visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1 or name in imports[name]:
                found.append(sorted(group))

    for name in imports:
        if name not in order:
            visit(name)
    return found


def functions_of(modules: Iterable[Module]) -> Iterator[tuple[int, str]]:
    """Lines and full name of every function."""
    return ((lines, f"{module.name}.{name}") for module in modules for name, lines in module.functions.items())


def _name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _read(name: str, path: Path, known: Iterable[str]) -> Module:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imported = {module for node in ast.walk(tree) for module in _imported(node, package, set(known))}
    functions = {
        f"{node.name}:{node.lineno}": (node.end_lineno or node.lineno) - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return Module(name, len(text.splitlines()), functions, frozenset(imported))


def _imported(node: ast.AST, package: str, known: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")
        base = ".".join(parents[: len(parents) + 1 - node.level]) if node.level else ""
        source = ".".join(part for part in (base, node.module) if part)
        for alias in node.names:
            inner = f"{source}.{alias.name}"
            if inner in known or source in known:
                yield inner if inner in known else source


def _cells(modules: Sequence[Module]) -> list[str]:
    if not modules:
        return [""] * 6
    lines = [module.lines for module in modules]
    longest = max(modules, key=lambda module: module.lines)
    function = max(functions_of(modules), default=(0, ""))
    cycles = cycles_of([Module(m.name, m.lines, m.functions, m.imports & {o.name for o in modules}) for m in modules])
    return [
        f"{len(modules):,}",
        f"{sum(lines):,}",
        f"{median(lines):g}",
        f"{longest.lines} {longest.name.rpartition('.')[2]}",
        f"{function[0]} {function[1].rpartition('.')[2].partition(':')[0]}",
        str(len(cycles)),
    ]


def main(checkouts: Sequence[Path]) -> None:
    found = [modules_of(checkout) for checkout in checkouts]
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("room")
    for _ in checkouts:
        for column in ("modules", "lines", "median", "longest module", "longest function", "cycles"):
            table.add_column(column, justify="right", no_wrap=True)
    rooms: list[defaultdict[str, list[Module]]] = []
    for modules in found:
        rooms.append(defaultdict(list))
        for module in modules:
            rooms[-1][module.room].append(module)
    for room in sorted({room for held in rooms for room in held}):
        table.add_row(room, *(cell for held in rooms for cell in _cells(held[room])))
    table.add_row("all", *(cell for modules in found for cell in _cells(modules)), style="bold")
    console = Console(width=None if sys.stdout.isatty() else 60 + 75 * len(checkouts))
    console.print(table)
    for checkout, modules in zip(checkouts, found, strict=True):
        for cycle in cycles_of(modules):
            console.print(f"{checkout}: cycle: {', '.join(cycle)}", highlight=False)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]] or [Path(__file__).resolve().parents[1]])
