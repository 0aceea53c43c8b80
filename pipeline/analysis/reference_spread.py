"""How sure attributions are, as the references were drawn: from their spread over these (`attribution_sd`).

The mean over n references is the limit with infinitely many plus noise of variance sd^2 / n. Along a row, with S the
variance of the limit over the positions and N the mean of sd^2, the attributions have variance S + N / n, and their
expected correlation with the limit is sqrt(S / (S + N / n)).

Shape legend: B rows, L positions.
"""

import math
from dataclasses import dataclass

import numpy as np

ARRAYS_READ = ("attribution", "attribution_sd")
WANTED = 0.99  # correlation with infinitely many references
N_TOP = 20  # the strongest bases of a row; a tenth of the row where that is fewer


@dataclass(frozen=True)
class Certainty:
    """Of some rows; (B,) each, NaN where a value is not finite.

    Attributes:
        correlation: with the attributions that infinitely many references would give; 0 where there is nothing but
            noise.
        enough: references for a correlation of WANTED; infinite where there is nothing but noise.
        kept: the expected share of the strongest bases, N_TOP or fewer, that would be among the strongest with as many
            other references.
    """

    correlation: np.ndarray
    enough: np.ndarray
    kept: np.ndarray


def certainty(attribution_BL: np.ndarray, sd_BL: np.ndarray, n_references: int) -> Certainty:
    """What the spread of (B, L) attributions over n references says of them."""
    attribution, noise = attribution_BL.astype(np.float64), np.square(sd_BL, dtype=np.float64)
    finite = np.isfinite(attribution).all(axis=1) & np.isfinite(noise).all(axis=1)
    attribution, noise = np.where(finite[:, None], attribution, 0), np.where(finite[:, None], noise, 0)
    total, mean_noise = attribution.var(axis=1), noise.mean(axis=1)
    signal = np.maximum(total - mean_noise / n_references, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.sqrt(signal / (signal + mean_noise / n_references))
        enough = mean_noise / signal * WANTED**2 / (1 - WANTED**2)
    correlation = np.where(total > 0, correlation, np.nan)  # nothing to be sure of: 0 everywhere
    enough = np.where(total > 0, np.maximum(enough, 1), np.nan)
    kept = _kept(attribution, np.sqrt(noise / n_references), np.nan_to_num(correlation) ** 2)
    return Certainty(*(np.where(finite, each, np.nan) for each in (correlation, enough, kept)))


def _kept(attribution: np.ndarray, error: np.ndarray, signal_B: np.ndarray) -> np.ndarray:
    """(B,): how likely each of the strongest bases is to reach, with other references, what tells them from the rest.

    The strongest are partly so by chance. With b the share of a row's variance that is signal, the limit of an
    attribution is b times it, give or take sqrt(b) of its error; with other references it is off by an error again.
    """
    n_top = min(N_TOP, attribution.shape[1] // 10)
    if n_top < 1:
        return np.full(len(attribution), np.nan)
    order = np.argpartition(-np.abs(attribution), n_top, axis=1)
    size, off = (np.take_along_axis(each, order, axis=1) for each in (np.abs(attribution), error))
    bar = (size[:, :n_top].min(axis=1) + size[:, n_top]) / 2
    share = signal_B[:, None]
    distance = share * size[:, :n_top] - bar[:, None]
    scale = np.sqrt(2 * (1 + share)) * off[:, :n_top]  # sqrt(2) is erf's
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.where(scale > 0, distance / scale, np.inf)  # off by nothing
    return ((1 + np.vectorize(math.erf, otypes=[float])(reach)) / 2).mean(axis=1)


def advised(enough: np.ndarray) -> int | None:
    """The references that are enough for the median row; None where there is no telling."""
    known = enough[~np.isnan(enough)]
    median = float(np.median(known)) if len(known) else math.inf
    return math.ceil(median) if math.isfinite(median) else None
