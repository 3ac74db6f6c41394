"""Cost of an ingest and of its census: seconds, processor seconds and peak memory at two sizes of each source.

    python benchmarks/ingest.py [--only NAME ...] [--scale 1.0]

Each measurement runs in a process of its own, so that the peak memory is its own; the source
is made in another one. The last column divides the ratio of the processor seconds by the ratio of the sizes: 1.0 is
linear. Aim: at most 1.2.

Texts are encoded by :class:`Hashing`, which cuts and counts tokens as the default encoder does but computes no network,
because the network would take nearly all of the time.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nextvec.encoders import Encoded, Kind, MiniLM
from nextvec.encoders.minilm_weights import MAX_TOKENS
from nextvec.ingestion import ingest
from nextvec.vectors import unit_rows
from table import show

DIM = 32


@dataclass(frozen=True)
class Case:
    """One kind of source.

    Attributes:
        unit: what ``sizes`` counts.
        sizes: the smaller and the larger source.
        make: writes a source of a size into a folder and returns its path.
        run: ingests the source into a bank in the folder.
    """

    unit: str
    sizes: tuple[int, int]
    make: Callable[[Path, int], Path]
    run: Callable[[Path, Path], object]


class Hashing:
    """An encoder whose vectors are hashes of the texts: [N, DIM], different texts give unrelated vectors."""

    name, fingerprint, dim, max_tokens = "hashing", "hashing", DIM, MAX_TOKENS

    def __init__(self) -> None:
        self._counter = MiniLM(workers=1)
        self.count_tokens = self._counter.count_tokens

    def encode(self, texts: Sequence[str], kind: Kind = "passage") -> Encoded:
        """Encode ``texts``; ``kind`` changes nothing."""
        del kind
        digests = b"".join(hashlib.blake2b(text.encode(), digest_size=DIM).digest() for text in texts)
        rows = np.frombuffer(digests, np.uint8).reshape(-1, DIM).astype(np.float32) - 127.5
        return Encoded(unit_rows(rows), self.count_tokens(texts))


def words(count: int) -> list[str]:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(2_000)]
    return rng.choices(vocabulary, k=count)


def one_line(folder: Path, size: int) -> Path:
    """A text file of one line without a sentence's end, ``size`` characters."""
    path = folder / "line.txt"
    path.write_text(" ".join(words(size // 4))[:size], encoding="utf-8")
    return path


def one_word(folder: Path, size: int) -> Path:
    """A text file of one line without a blank, ``size`` characters."""
    path = folder / "word.txt"
    path.write_text("".join(words(size // 4))[:size], encoding="utf-8")
    return path


def short_lines(folder: Path, size: int) -> Path:
    """A text file of ``size`` lines of five words; a blank line ends it."""
    path, found = folder / "lines.txt", words(5 * size)
    lines = (" ".join(found[start : start + 5]) for start in range(0, len(found), 5))
    path.write_text("\n".join(lines) + "\n\n\nThe end.", encoding="utf-8")
    return path


def ready_vectors(folder: Path, size: int) -> Path:
    """A Parquet file of ``size`` vectors of 384 float32 numbers, in documents of 100 rows, in order."""
    return _parquet(folder, np.repeat(np.arange(size // 100), 100), np.arange(size) % 100, _normal(size), np.arange(size))


def shuffled_vectors(folder: Path, size: int) -> Path:
    """The same with its rows in random order."""
    order = np.random.default_rng(1).permutation(size)
    return _parquet(folder, order // 100, order % 100, _normal(size), np.arange(size))


def sessions(folder: Path, size: int) -> Path:
    """A Parquet file of ``size`` users with 100 items each, drawn from 3,400 by a power law; a vector for each item."""
    rng = np.random.default_rng(2)
    share = 1 / np.arange(1, 3_401)
    items = rng.choice(3_400, size * 100, p=share / share.sum())
    return _parquet(folder, np.repeat(np.arange(size), 100), np.tile(np.arange(100), size), _normal(3_400, 64), items)


def _normal(rows: int, dim: int = 384) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)


def _parquet(folder: Path, document: np.ndarray, index: np.ndarray, vectors: np.ndarray, chosen: np.ndarray) -> Path:
    path, dim = folder / "vectors.parquet", vectors.shape[1]
    schema = pa.schema({"document": pa.int64(), "index": pa.int64(), "vector": pa.list_(pa.float32(), dim)})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(document), 50_000):
            block = slice(start, start + 50_000)
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[chosen[block]].reshape(-1)), dim)
            writer.write_table(pa.table([pa.array(document[block]), pa.array(index[block]), column], schema=schema))
    return path


def ingest_vectors(source: Path, folder: Path) -> object:
    return ingest(source, folder / "bank")


def ingest_text(source: Path, folder: Path) -> object:
    return ingest(source, folder / "bank", Hashing())


CASES: dict[str, Case] = {
    "one line, with blanks": Case("characters", (1_250_000, 5_000_000), one_line, ingest_text),
    "one line, without blanks": Case("characters", (1_250_000, 5_000_000), one_word, ingest_text),
    "short lines": Case("lines", (250_000, 1_000_000), short_lines, ingest_text),
    "Parquet, 384 wide": Case("rows", (50_000, 200_000), ready_vectors, ingest_vectors),
    "Parquet, rows out of order": Case("rows", (50_000, 200_000), shuffled_vectors, ingest_vectors),
    "Parquet, 100 of 3,400 items each": Case("users", (1_250, 5_000), sessions, ingest_vectors),
}


def measure(name: str, size: int) -> dict[str, float]:
    """In a process of its own: wall seconds, processor seconds and peak memory of one ingest."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, __file__, "--make", name, "--size", str(size), "--folder", place]
        subprocess.run(command, check=True, env=_environment())
        source = Path((Path(place) / "source").read_text(encoding="utf-8"))
        began, cpu = time.perf_counter(), time.process_time()
        case.run(source, Path(place))
        seconds, used = time.perf_counter() - began, time.process_time() - cpu
        size_on_disk = source.stat().st_size if source.is_file() else sum(f.stat().st_size for f in source.rglob("*"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "cpu": used, "peak_mb": peak / 1024, "source_mb": size_on_disk / 1e6}


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def _measured(name: str, size: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", name, "--size", str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=_environment())
    return json.loads(done.stdout.splitlines()[-1])


def _table(names: Sequence[str], scale: float) -> list[list[str]]:
    rows: list[list[str]] = []
    for name in names:
        case, costs = CASES[name], []
        sizes = [max(1, round(size * scale)) for size in case.sizes]
        for size in sizes:
            found = _measured(name, size)
            costs.append(found["cpu"])
            ratio = f"{(costs[1] / costs[0]) / (sizes[1] / sizes[0]):.2f}" if len(costs) == 2 else ""
            rows.append(
                [
                    name,
                    f"{size:,} {case.unit}",
                    f"{found['source_mb']:.1f}",
                    f"{found['seconds']:.2f}",
                    f"{found['cpu']:.2f}",
                    f"{found['peak_mb']:,.0f}",
                    ratio,
                ]
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES), help="cases to measure")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every size")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        made = CASES[arguments.make].make(arguments.folder, arguments.size)
        (arguments.folder / "source").write_text(str(made), encoding="utf-8")
    elif arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.size)))
    else:
        columns = ["source", "size", "MB", "seconds", "CPU s", "peak MB", "cost ratio / size ratio"]
        note = "one run each; texts are cut and counted but encoded by a hash; all with the census of duplicates"
        show("Ingest", columns, _table(arguments.only, arguments.scale), note)


if __name__ == "__main__":
    main()
