"""Which rows of the context make a score: additive parts of it, one for each row.

A model computes weights from the context (gates, attention, lengths of vectors) and mixes the rows of the context by
them. An attribution holds these weights fixed at their values, as in conservative propagation (Ali et al. 2022, "XAI for
Transformers", arXiv 2202.07304). The score is then a function of the rows alone, as they are mixed: in the model's space,
centred. The part of a row is its integrated gradient (Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep
Networks", arXiv 1703.01365) on the straight line from zero vectors to the rows::

    part_r = x_r . integral from 0 to 1 of (gradient of the score by x_r, at the rows t x_1, t x_2, ...) dt

The parts of all rows add up to the score less its value at zero vectors, which comes from learned values alone. Where the
score is linear in the rows, a part is a weight times a product of the row and the candidate. Pooled lags are not linear
(:meth:`nextvec.models.pooling.LagPooling.parts`).
"""

# Axes: C candidates, H rows that the state holds.

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Attribution(NamedTuple):
    """The parts of the scores of C candidates. The rest of a score comes from rows that the state no longer holds.

    A state holds what the next step needs. The row that left the working memory with the last step took part in the
    weights of that step, and here it does not. So the parts are exact while the memory holds the whole context.

    Attributes:
        rows: [C, H], the parts of the last H rows of the context, the newest last.
        learned: [C], the part of no row: constants and learned vectors.
    """

    rows: Float[Tensor, "C H"]
    learned: Float[Tensor, " C"]
