"""The checks of an audit for text that is missing from the vectors: truncated chunks, and unknown scripts."""

# Axes: N rows, S sampled rows.

import numpy as np

from nextvec.bank import Bank
from nextvec.bank.tokens import READS, tokens_counted, tokens_read, truncated_share
from nextvec.encoders import KnowsLetters, load_encoder
from nextvec.errors import DataError
from nextvec.evaluation.finding import Finding

SAMPLE = 4_096  # rows whose text is read
LOST = 0.5  # share of a chunk's characters from which it counts as unreadable
UNREADABLE = 0.01  # of the chunks may be unreadable


def truncated(bank: Bank) -> Finding:
    """No chunk may have more tokens than its encoder reads: its vector does not depend on the others."""
    share, tokens, limit = truncated_share(bank), tokens_counted(bank), tokens_read(bank.manifest)
    if not bank.manifest.reads_text:
        return Finding(True, "not applicable: the vectors were not made of text here", {})
    if share is None or tokens is None or limit is None:
        return Finding(True, "not known: the encoder does not say how many tokens it counts and reads", {})
    figures: dict[str, float | int | str] = {"truncated_share": share, "longest": int(tokens.max()), "encoder_reads": limit}
    if limit != "any" and share:
        # The share of tokens that are cut off: a few long chunks may hold most of a text.
        wide = tokens.astype(np.int64)
        figures["tokens_never_read"] = float(np.maximum(wide - limit, 0).sum() / wide.sum())
    return Finding(share == 0, "no chunk is longer than what its encoder reads", figures)


def unreadable(bank: Bank) -> Finding:
    """A sample of the texts must be in the encoder's vocabulary; vectors do not depend on unknown letters."""
    manifest = bank.manifest
    if not manifest.reads_text:
        return Finding(True, "not applicable: the vectors were not made of text here", {})
    if READS.search(manifest.encoder_fingerprint) is None:
        # The name alone could be that of another model on a hub.
        return Finding(True, f"not known: {manifest.encoder!r} is not an encoder that can be loaded by its name", {})
    try:
        encoder = load_encoder(manifest.encoder)
    except DataError as error:
        return Finding(True, f"not known: {error}", {})
    if encoder.fingerprint != manifest.encoder_fingerprint:
        return Finding(
            True, f"not known: the bank was made with {manifest.encoder_fingerprint}; installed is {encoder.fingerprint}", {}
        )
    rows = np.sort(np.random.default_rng(0).permutation(len(bank.table))[:SAMPLE])
    texts = [bank.table.text(int(row)) or "" for row in rows]
    shares = encoder.unknown_share(texts) if isinstance(encoder, KnowsLetters) else None
    if shares is None:
        return Finding(True, "not applicable: the encoder's vocabulary has no unknown token", {})
    lost = float((shares > LOST).mean())
    worst = int(rows[shares.argmax()])
    return Finding(
        lost <= UNREADABLE,
        f"at most {UNREADABLE:.0%} of the chunks are mostly of letters that the encoder does not know",
        {"unreadable_share": lost, "unknown_characters": float(shares.mean()), "worst_row": worst, "chunks": len(rows)},
    )
