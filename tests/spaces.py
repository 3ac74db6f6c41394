"""A model that maps candidates and asks with several queries, every part of which speaks."""

from typing import Any

import numpy as np
import torch

from nextvec.models import Pooled, Recurrent
from nextvec.models.space import InSpace, Space


def a_space(dim: int, seed: int = 0) -> Space:
    """A space of some rows whose directions have very different variances, and whose mean is not zero."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((200, dim)) @ (rng.standard_normal((dim, dim)) * np.geomspace(1, 0.05, dim)) + 0.3
    return Space.fitted(rows.mean(0), np.cov(rows.T), 0.5, len(rows))


def pooled_in_space(dim: int, queries: int = 4, seed: int = 0, sharpness: float = 8.0) -> Recurrent[Any]:
    """In evaluation mode; its queries differ, and its gates move."""
    torch.manual_seed(seed)
    model = Pooled(dim, 0.5, pooled=queries, working=10)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.abs().sum():
                parameter.normal_(0, 0.1)
        if model.pooling is not None:
            model.pooling.amplitude.fill_(0.6)
            model.pooling.log_sharpness.fill_(float(np.log(sharpness)))
    return InSpace(a_space(dim, seed), model).eval()
