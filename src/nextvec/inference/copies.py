"""Which rows of a bank a context already holds, found without comparing everything with everything."""

# Axes: P vectors of a context, N rows, D width, S sketch, C copies.

import numpy as np
from jaxtyping import Float, Float32, Int64

SAME = 0.9999  # cosine from which a row is a copy of a vector of the context
SKETCH = 8
SAMPLE = 2_000  # rows that the directions are taken from
BLOCK = 65_536
ROUNDING = 1e-5  # of distances between sketches in float32


class Copies:
    """Finds copies by a sketch of each row: its place along a few orthonormal directions.

    Two unit vectors of cosine c lie sqrt(2 - 2c) apart, and their sketches at
    most as far, because a projection shortens. So no copy is missed; the few
    rows whose sketches lie as near by chance are compared in full. The
    directions are those in which the rows differ most (principal components of
    a sample), and sketches are sorted by the first, so that a vector is
    compared with its neighbours there alone.
    """

    def __init__(self, rows: Float[np.ndarray, "N D"]) -> None:
        self._rows = rows
        sample = _unit(rows[:: max(1, len(rows) // SAMPLE)])
        self._directions = np.linalg.svd(sample - sample.mean(0), full_matrices=False)[2][:SKETCH].T.copy()
        starts = range(0, len(rows), BLOCK)
        sketches = np.concatenate([_unit(rows[first : first + BLOCK]) @ self._directions for first in starts])
        self._order = np.argsort(sketches[:, 0], kind="stable")
        self._sketches = sketches[self._order]
        self._first = self._sketches[:, 0].copy()

    def of(self, vectors: Float32[np.ndarray, "P D"]) -> Int64[np.ndarray, " rows"]:
        """The rows, ascending, that are copies of any of the unit vectors."""
        return np.unique(self.pairs(vectors)[1])

    def pairs(self, vectors: Float32[np.ndarray, "P D"]) -> tuple[Int64[np.ndarray, " C"], Int64[np.ndarray, " C"]]:
        """Each vector's number beside each row that is a copy of it, in the order of the vectors."""
        near = (2 - 2 * SAME) ** 0.5 + ROUNDING
        sketches = vectors @ self._directions
        firsts = np.searchsorted(self._first, sketches[:, 0] - near)
        stops = np.searchsorted(self._first, sketches[:, 0] + near, side="right")
        which: list[int] = []
        found: list[np.ndarray] = []
        for n, (first, stop) in enumerate(zip(firsts.tolist(), stops.tolist(), strict=True)):
            apart = ((self._sketches[first:stop] - sketches[n]) ** 2).sum(1)
            rows = np.sort(self._order[first + np.flatnonzero(apart <= near**2)])
            copies = rows[_unit(self._rows[rows]) @ vectors[n] >= SAME]
            which += [n] * len(copies)
            found.append(copies)
        return np.array(which, np.int64), np.concatenate([np.empty(0, np.int64), *found])


def _unit(rows: Float[np.ndarray, "P D"]) -> Float32[np.ndarray, "P D"]:
    """Stored rows are of unit length but for the rounding of float16, which a cosine of 0.9999 would notice."""
    wide = rows.astype(np.float32)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)
