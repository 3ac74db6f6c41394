"""Because: which rows of the context an answer comes from."""

# Axes: C candidates, N named rows.

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from nextvec.errors import SettingsError
from nextvec.index import Index
from nextvec.inference.expected import Because, Expected, RowPart
from nextvec.inference.session import Session
from nextvec.models import Recurrent

BLOCK = 1_000  # candidates at once, which bounds memory


def check_because(count: int, names_rows: bool) -> None:
    """
    Args:
        count: rows to name.
        names_rows: whether the model names rows.

    Raises:
        SettingsError: a count below 0, or a model that does not name rows.
    """
    if count < 0:
        raise SettingsError(f"because={count}: the number of rows to name must be at least 0")
    if count and not names_rows:
        raise SettingsError(UNNAMED)


UNNAMED = "because: this model does not name the rows that an answer comes from; pooled and memory_gru with a working memory do"


@torch.inference_mode()
def explained(model: Recurrent[Any], index: Index, session: Session, answer: Sequence[Expected], count: int) -> list[Expected]:
    """The answer of a session, each candidate with the ``count`` rows of the context that it most comes from.

    Fewer rows are named where the state holds fewer.

    Raises:
        SettingsError: as :func:`check_because`.
    """
    check_because(count, model.names_rows)
    if not count:
        return list(answer)
    found: list[Expected] = []
    for first in range(0, len(answer), BLOCK):
        block = answer[first : first + BLOCK]
        vectors_CE = index.vectors(np.array([expected.row for expected in block], np.int64))
        rows_CH, learned_C = model.attribution(session.state, torch.from_numpy(vectors_CE))
        parts_CN, places_CN = (of[:, :count].tolist() for of in rows_CH.sort(dim=1, descending=True, stable=True))
        oldest = session.length - rows_CH.shape[1]
        for expected, parts, places, learned in zip(block, parts_CN, places_CN, learned_C.tolist(), strict=True):
            named = tuple(RowPart(oldest + place, part) for place, part in zip(places, parts, strict=True))
            why = Because(named, expected.score - learned - sum(parts), learned)
            found.append(replace(expected, because=why))
    return found
