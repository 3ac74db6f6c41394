"""What training minimises: InfoNCE over explicitly named negatives, cosine and squared distance, each by its weight."""

# Axes: N predictions, C candidates, D width.

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

FORBIDDEN = -1e9


def info_nce(
    predicted_ND: Float[Tensor, "N D"],
    candidates_CD: Float[Tensor, "C D"],
    truth_N: Int64[Tensor, " N"],
    forbidden_NC: Bool[Tensor, "N C"],
    temperature: Float[Tensor, ""],
    log_q_C: Float[Tensor, " C"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of the truth among the candidates (van den Oord et al. 2018), mean over predictions.

    Args:
        truth_N: column of each prediction's truth.
        forbidden_NC: candidates that are no negatives of a prediction: rows it
            has already read (as negatives they would push it away from its own
            context, which the exam excludes anyway) and copies of its truth.
        temperature: divides the cosines.
        log_q_C: how often each candidate is drawn, as a logarithm up to a
            constant. Subtracted from negatives, so that the sum over drawn ones
            estimates that over all (Bengio and Senecal 2008); not from the
            truth, which is there with certainty (arXiv 2507.09331).
    """
    if log_q_C is None:
        log_q_C = predicted_ND.new_zeros(len(candidates_CD))
    # In place where it can be: N x C is the largest thing there is in training.
    logits_NC = torch.addmm(-log_q_C, predicted_ND / temperature, candidates_CD.T)
    logits_NC[torch.arange(len(truth_N), device=truth_N.device), truth_N] += log_q_C[truth_N]
    return cross_entropy(logits_NC.masked_fill_(forbidden_NC, FORBIDDEN), truth_N)


def cosine_distance(predicted_ND: Float[Tensor, "N D"], truth_ND: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """1 - cosine, mean over predictions."""
    return 1 - cosine_similarity(predicted_ND, truth_ND, dim=-1).mean()


def squared_distance(predicted_ND: Float[Tensor, "N D"], truth_ND: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Squared distance, summed over the width, mean over predictions.

    On unit vectors it is 2 (1 - cosine) at any width. Averaged over the width,
    as usual, its weight would shrink with it: at 768 it is 1/384 of the cosine's.
    """
    return (predicted_ND - truth_ND).square().sum(-1).mean()


def negative_counts(forbidden_NC: Bool[Tensor, "N C"]) -> Int64[Tensor, " N"]:
    """How many negatives each prediction really has; the truth itself is neither forbidden nor a negative."""
    # By NumPy: torch would widen every element to eight bytes first.
    forbidden_N = np.count_nonzero(forbidden_NC.cpu().numpy(), axis=1)
    return torch.from_numpy(forbidden_NC.shape[1] - 1 - forbidden_N)


def gradient_norms(terms: Mapping[str, Float[Tensor, ""]], predicted_ND: Float[Tensor, "N D"]) -> dict[str, float]:
    """How hard each weighted term pulls at the predictions: the norm of its gradient there.

    Says what a weight is truly worth, which its value does not: a term can be large and flat.
    """
    pulls = {name: torch.autograd.grad(term, predicted_ND, retain_graph=True)[0] for name, term in terms.items()}
    return {name: float(pull.norm()) for name, pull in pulls.items()}
