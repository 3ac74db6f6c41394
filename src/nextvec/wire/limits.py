"""Sizes that the server accepts at most."""

MOST_K = 1_000  # vectors of one prediction
MOST_VECTORS = 10_000  # of one request
MOST_ROWS = 100  # bank rows that a prediction lists for one vector
MOST_BECAUSE = 20  # context rows that a prediction names for one vector
MOST_JSON = 1 << 20  # bytes of a JSON body
MOST_BODY = 64 << 20  # bytes of any body but a snapshot, for every width
MOST_LENGTH = 100_000  # vectors of one session
MOST_SNAPSHOT = 256 << 20  # bytes
MOST_LISTED = 1_000  # sessions on one page
MOST_REASON = 500  # characters
MOST_DEADLINE_MS = 60_000


def most_body(dim: int) -> int:
    """Bytes of a body at most: ``MOST_VECTORS`` rows of float32, or a JSON body, but never more than ``MOST_BODY``."""
    return min(MOST_BODY, max(MOST_JSON, MOST_VECTORS * dim * 4))


def most_rows(dim: int, itemsize: int = 4) -> int:
    """Rows of a binary body at most, each ``dim`` values of ``itemsize`` bytes."""
    return min(MOST_VECTORS, most_body(dim) // (dim * itemsize))
