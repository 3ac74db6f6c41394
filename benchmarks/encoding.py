"""Rows per second encoded, against SentenceTransformer.encode with the same weights on the same texts.

    pip install sentence-transformers
    python benchmarks/encoding.py [--chunks 512]

Aim: at least equal. Without sentence-transformers only our own figures are shown.
"""

import argparse
import importlib.util
import os

import numpy as np
import torch

from nextvec.encoders import MiniLM
from nextvec.encoders.minilm_weights import model_folder
from nextvec.ingestion import Chunking, documentation
from table import interleaved, show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=512)
    count = parser.parse_args().chunks
    cores = os.cpu_count() or 1
    spans = Chunking().splitter()
    texts = [d.text[a:b] for d in documentation(count * 400) for a, b in spans(d.text)][:count]
    single, several = MiniLM(workers=1), MiniLM(workers=cores)
    calls = {"nextvec, 1 worker": lambda: single.encode(texts), f"nextvec, {cores} workers": lambda: several.encode(texts)}
    note = (
        f"{len(texts)} chunks of {np.mean([len(t) for t in texts]):.0f} characters on average; medians of 3 interleaved rounds"
    )
    if importlib.util.find_spec("sentence_transformers"):
        os.environ["HF_HUB_OFFLINE"] = "1"
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]

        plain = SentenceTransformer(str(model_folder()), device="cpu")

        def with_threads(threads: int) -> np.ndarray:
            torch.set_num_threads(threads)
            return plain.encode(texts, show_progress_bar=False, normalize_embeddings=True)

        calls["SentenceTransformer.encode, 1 thread"] = lambda: with_threads(1)
        calls[f"SentenceTransformer.encode, {cores} threads"] = lambda: with_threads(cores)
        difference = float(np.abs(with_threads(cores) - single.encode(texts).rows).max())
        note += f"; largest difference of any number {difference:.1e}"
    else:
        note += "; sentence-transformers is not installed, so nothing is compared"
    times = interleaved(calls, rounds=3)
    table = [[name, f"{len(texts) / t.median:.1f}", f"{len(texts) / t.cpu:.1f}"] for name, t in times.items()]
    show("Encoding", ["what", "rows/s", "rows/CPU-s"], table, note)


if __name__ == "__main__":
    main()
