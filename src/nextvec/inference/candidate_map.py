"""The map of candidates of a model, as an index takes it."""

# Axes: N rows, D width, E width of mapped rows.

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from nextvec.bank import Bank
from nextvec.index import ExactIndex
from nextvec.kernels.scan_rows import RowFormat
from nextvec.models import Recurrent
from nextvec.progress import Progress, silent


class CandidateMap:
    """``model.candidates`` on arrays: a :class:`~nextvec.index.RowMap`.

    Attributes:
        digest: sha256 of the tensors that the map reads. Packing for inference changes none of them, so a trained model and
            its packed forms have one digest.
    """

    def __init__(self, model: Recurrent[Any]) -> None:
        self._model = model
        digest = hashlib.sha256()
        update(digest, model.map_tensors())
        self.digest = digest.hexdigest()

    @staticmethod
    def of(model: Recurrent[Any]) -> "CandidateMap | None":
        """The map of a model; None where its candidates are the rows themselves."""
        return CandidateMap(model) if model.maps_candidates else None

    @torch.inference_mode()
    def __call__(self, rows: Float32[np.ndarray, "N D"]) -> Float32[np.ndarray, "N E"]:
        return self._model.candidates(torch.from_numpy(np.ascontiguousarray(rows))).numpy()


def index_of(
    bank: Bank, candidate_map: CandidateMap | None, form: RowFormat | None = None, progress: Progress = silent
) -> ExactIndex:
    """The exact index of a bank for a model.

    Args:
        candidate_map: of the model; None where its candidates are the rows themselves.
        form: format in which rows are read. None takes that of the bank; of mapped rows, which are a copy in any case, it takes
            int8, which is read fastest.
    """
    chosen: RowFormat | None = "int8" if form is None and candidate_map is not None else form
    return ExactIndex.build(bank, chosen, progress=progress, mapping=candidate_map)


def update(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Add the names, types, shapes and bytes of tensors to a digest of :mod:`hashlib`, in the order of their names."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
