"""Rows per second encoded, against SentenceTransformer.encode in float32 with the same weights on the same texts.

    pip install sentence-transformers
    python benchmarks/encoding.py [--chunks 512] [--encoder static:FOLDER ...]

The ratio compares rows per processor second, so it is a ratio per core. The cosines are those to the vectors in float32.
Without sentence-transformers only our own figures are shown.
"""

import argparse
import importlib.util
import os
from collections.abc import Callable

import numpy as np
import torch

from nextvec.encoders import Encoder, MiniLM, MiniLMInt8, load_encoder
from nextvec.encoders.minilm_weights import model_folder
from nextvec.ingestion import Chunking, documentation
from table import interleaved, show

ROUNDS = 3
SENTENCE_TRANSFORMER = "SentenceTransformer.encode"


def main(chunks: int, others: list[str]) -> None:
    cores = os.cpu_count() or 1
    spans = Chunking().splitter()
    texts = [d.text[a:b] for d in documentation(chunks * 400) for a, b in spans(d.text)][:chunks]
    ours: dict[str, Encoder] = {}
    for workers in sorted({1, cores}):
        ours[f"float32, {workers} workers"] = MiniLM(workers)
        ours[f"int8, {workers} workers"] = MiniLMInt8(workers)
    ours |= {name: load_encoder(name) for name in others}
    calls: dict[str, Callable[[], np.ndarray]] = {
        name: lambda encoder=encoder: encoder.encode(texts).rows for name, encoder in ours.items()
    }
    calls |= sentence_transformer(texts, cores)
    exact = ours["float32, 1 workers"].encode(texts).rows
    cosines = {name: cosine(exact, call()) for name, call in calls.items()}
    times = interleaved(calls, ROUNDS)
    base = next((timing.cpu for name, timing in times.items() if name.startswith(SENTENCE_TRANSFORMER)), None)
    table = [
        [
            *(name, f"{len(texts) / timing.median:.1f}", f"{len(texts) / timing.cpu:.1f}"),
            *("" if base is None else f"{base / timing.cpu:.2f}", cosines[name]),
        ]
        for name, timing in times.items()
    ]
    size = np.mean([len(text) for text in texts])
    note = (
        f"{len(texts)} chunks of {size:.0f} characters on average; {ROUNDS} interleaved rounds; ratio: rows/CPU-s, divided by "
    )
    note += f"those of {SENTENCE_TRANSFORMER} with 1 thread" + (" (not installed)" if base is None else "")
    show("Encoding", ["encoder", "rows/s", "rows/CPU-s", "ratio", "cosine, 1 %"], table, note)


def sentence_transformer(texts: list[str], cores: int) -> dict[str, Callable[[], np.ndarray]]:
    """Its calls with one thread and with all processors; none where it is not installed."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return {}
    os.environ["HF_HUB_OFFLINE"] = "1"
    from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]

    plain = SentenceTransformer(str(model_folder()), device="cpu")

    def with_threads(threads: int) -> np.ndarray:
        torch.set_num_threads(threads)
        return plain.encode(texts, show_progress_bar=False, normalize_embeddings=True)

    return {
        f"{SENTENCE_TRANSFORMER}, {threads} threads": lambda threads=threads: with_threads(threads)
        for threads in sorted({1, cores})
    }


def cosine(exact: np.ndarray, rows: np.ndarray) -> str:
    """The first percentile; blank for vectors of another width."""
    return "" if rows.shape != exact.shape else f"{np.percentile((exact * rows).sum(1), 1):.5f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=512)
    parser.add_argument("--encoder", action="append", default=[], help="another encoder by its name; may be repeated")
    parsed = parser.parse_args()
    main(parsed.chunks, parsed.encoder)
