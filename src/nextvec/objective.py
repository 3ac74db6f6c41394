"""The terms of the training loss: InfoNCE over named negatives, the cosine distance and the squared distance."""

# Axes: N predictions, C candidates, D width.

import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

FORBIDDEN = -1e9
STEEPNESS = 1.5  # of the step from hit to miss, over the logarithm of the place


def info_nce(
    scores_NC: Float[Tensor, "N C"],
    truth_N: Int64[Tensor, " N"],
    forbidden_NC: Bool[Tensor, "N C"],
    temperature: Float[Tensor, ""],
    log_q_C: Float[Tensor, " C"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of the truth among the candidates (van den Oord et al. 2018), mean over predictions.

    Args:
        scores_NC: of the candidates for each prediction.
        truth_N: column of each prediction's truth.
        forbidden_NC: candidates that are not negatives of a prediction: copies of its truth, and rows that it has read. As
            negatives, rows that it has read would move it away from its own context, which the exam excludes anyway.
        temperature: divides the scores.
        log_q_C: logarithm of how often each candidate is drawn, up to a constant. It is subtracted from the negatives, so
            that the sum over drawn candidates estimates the sum over all (Bengio and Senecal 2008). It is not subtracted
            from the truth, which is always present (arXiv 2507.09331).
    """
    if log_q_C is None:
        log_q_C = scores_NC.new_zeros(scores_NC.shape[1])
    logits_NC = scores_NC / temperature
    # In place where possible: an N x C matrix is the largest tensor in training.
    logits_NC -= log_q_C
    logits_NC[torch.arange(len(truth_N), device=truth_N.device), truth_N] += log_q_C[truth_N]
    return cross_entropy(logits_NC.masked_fill_(forbidden_NC, FORBIDDEN), truth_N)


def smooth_misses(
    scores_NC: Float[Tensor, "N C"],
    truth_N: Int64[Tensor, " N"],
    forbidden_NC: Bool[Tensor, "N C"],
    temperature: Float[Tensor, ""],
    k: int = 5,
    pool: int = 1000,
) -> Float[Tensor, ""]:
    """A smooth form of 1 - Hit@k among ``pool`` candidates, mean over predictions.

    Rows whose truth is far below place k, or far above it, have almost no
    gradient; InfoNCE is dominated by the former. The number of candidates above
    the truth is a sum of sigmoids (Qin, Liu and Li 2010), scaled to the pool.

    Args:
        temperature: difference of scores at which a candidate counts as clearly above or below the truth.
    """
    own_N1 = scores_NC.gather(1, truth_N[:, None])
    excluded_NC = forbidden_NC.scatter(1, truth_N[:, None], True)
    above_N = torch.sigmoid((scores_NC - own_N1) / temperature).masked_fill(excluded_NC, 0.0).sum(1)
    above_N = above_N * ((pool - 1) / (~excluded_NC).sum(1).clamp(min=1))
    return torch.sigmoid(STEEPNESS * (torch.log(above_N + 0.5) - math.log(k))).mean()


def cosine_distance(predicted_ND: Float[Tensor, "N D"], truth_ND: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """1 - cosine, mean over predictions."""
    return 1 - cosine_similarity(predicted_ND, truth_ND, dim=-1).mean()


def squared_distance(predicted_ND: Float[Tensor, "N D"], truth_ND: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Squared distance, summed over the width, mean over predictions.

    On unit vectors it is 2 (1 - cosine) at any width. The usual mean over the width would make its weight depend on the
    width: at 768 it would be 1/384 of that of 1 - cosine.
    """
    return (predicted_ND - truth_ND).square().sum(-1).mean()


def negative_counts(forbidden_NC: Bool[Tensor, "N C"]) -> Int64[Tensor, " N"]:
    """The number of negatives of each prediction; the truth is neither forbidden nor a negative."""
    # NumPy counts here because torch would first convert every element to eight bytes.
    forbidden_N = np.count_nonzero(forbidden_NC.cpu().numpy(), axis=1)
    return torch.from_numpy(forbidden_NC.shape[1] - 1 - forbidden_N)


def gradient_norms(terms: Mapping[str, Float[Tensor, ""]], predicted_ND: Float[Tensor, "N D"]) -> dict[str, float]:
    """The norm of each weighted term's gradient at the predictions.

    It shows the effect of a term's weight. The value of the term does not: a term can be large and have no gradient.
    """
    gradients = {name: torch.autograd.grad(term, predicted_ND, retain_graph=True)[0] for name, term in terms.items()}
    return {name: float(gradient.norm()) for name, gradient in gradients.items()}
