"""Thresholds from good pictures alone: split conformal prediction, with what the pictures can promise.

n held-out good units (parts, or blocks of a run) have scores s_1 ... s_n; the next good part is exchangeable
with them. The k-th smallest score, k = ⌈(n + 1)(1 − α)⌉, is exceeded by it with probability at most α (Vovk,
Gammerman & Shafer 2005; Angelopoulos & Bates 2021, arXiv 2107.07511). That is the marginal rate, a mean over
all draws of held-out parts. For the one draw at hand the realised rate is Beta(n + 1 − k, k) distributed
(continuous scores), and its 95% quantile is what a careful engineer wants to know as well.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from edge_daemon.errors import EdgeError

Rate = float | Fraction
"""A rate as the decimal that somebody wrote, or exactly."""

ROUND_RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
CONFIDENCE = 0.95


class RateNotSupportedError(EdgeError):
    """The held-out units are too few for the false-reject rate that was asked for.

    missing: how many more are needed; smallest_rate: what the present ones allow, None when nothing does.
    """

    def __init__(self, message: str, missing: int, smallest_rate: float | None) -> None:
        super().__init__(message)
        self.missing = missing
        self.smallest_rate = smallest_rate


class UnusableScoresError(EdgeError):
    """Scores that no threshold can be made from: none, NaN, infinite or negative."""


@dataclass(frozen=True, slots=True)
class ConformalThreshold:
    """threshold: the rank-th smallest of n scores; alpha: the stated rate; marginal_rate: what the rank gives,
    (n + 1 − rank) / (n + 1) <= alpha; upper_rate: 95% upper confidence bound of the realised rate."""

    threshold: float
    n: int
    rank: int
    alpha: float
    marginal_rate: float
    upper_rate: float


@dataclass(frozen=True, slots=True)
class ConformalBand:
    """OK up to lower, NotOK above upper, NotDecidable between; the same threshold twice where there is no band."""

    lower: ConformalThreshold
    upper: ConformalThreshold


def conformal_rank(n: int, alpha: Rate) -> int:
    """⌈(n + 1)(1 − α)⌉, exactly, for the decimal number that α is written as.

    In floats (99 + 1)·(1 − 0.01) may come out as 99.00000000000001 and its ceiling as 100; so α is taken as
    the shortest decimal that names it. Raises RateNotSupportedError when the rank is beyond n.
    """
    if n < 0 or not 0 < alpha < 1:
        raise ValueError(f"a rank needs n >= 0 and 0 < alpha < 1, not {n} and {alpha}")
    exact = exact_rate(alpha)
    rank = math.ceil((n + 1) * (1 - exact))
    if rank <= n:
        return rank
    missing = math.ceil(1 / exact) - 1 - n
    present = smallest_supported_rate(n)
    allowed = f"the present {n} allow {present:g} at the least" if present else f"the present {n} allow no round rate"
    raise RateNotSupportedError(
        f"a false-reject rate of {float(alpha):g} needs {n + missing} good parts (or blocks) kept apart from the bank: "
        f"{missing} are missing; {allowed}. Record more good parts, keep more of them apart, or state a larger rate",
        missing,
        present,
    )


def exact_rate(rate: Rate) -> Fraction:
    """The rate as the decimal that names it: 0.1 is one tenth."""
    return rate if isinstance(rate, Fraction) else Fraction(repr(float(rate)))


def smallest_supported_rate(n: int) -> float | None:
    """The smallest round false-reject rate for which n held-out units suffice; None when none does (n < 9)."""
    return next((rate for rate in ROUND_RATES if (n + 1) * Fraction(repr(rate)) >= 1), None)


def conformal_threshold(scores: Sequence[float], alpha: Rate) -> ConformalThreshold:
    """Threshold that a good part exceeds with probability at most `alpha` (0 to 1).

    scores: one per held-out unit; the worst picture of a block speaks for the block. A score equal to the
    threshold passes. Raises RateNotSupportedError, and UnusableScoresError for NaN, infinite or negative scores.
    """
    values = _checked(scores)
    rank = conformal_rank(len(values), alpha)
    n = len(values)
    return ConformalThreshold(
        threshold=values[rank - 1],
        n=n,
        rank=rank,
        alpha=float(alpha),
        marginal_rate=(n + 1 - rank) / (n + 1),
        upper_rate=upper_rate(n, rank),
    )


def conformal_band(scores: Sequence[float], alpha: Rate, undecided_rate: Rate | None) -> ConformalBand:
    """Two thresholds: a good part exceeds the lower with probability at most `alpha`, the upper with at most
    `alpha − undecided_rate`.

    The line rejects whatever is not OK, so `alpha` is its false-reject rate; `undecided_rate`, the part of it that
    comes out NotDecidable instead of NotOK, lies between 0 and alpha; None for no band. scores: as for
    `conformal_threshold`. Raises RateNotSupportedError, UnusableScoresError and, for rates that are none, ValueError.
    """
    lower = conformal_threshold(scores, alpha)
    if undecided_rate is None:
        return ConformalBand(lower, lower)
    rest = exact_rate(alpha) - exact_rate(undecided_rate)
    if not 0 < rest < exact_rate(alpha):
        raise ValueError(f"the undecided rate must lie between 0 and {float(alpha):g}, not {float(undecided_rate):g}")
    try:
        return ConformalBand(lower, conformal_threshold(scores, rest))
    except RateNotSupportedError as exc:
        message = f"an undecided rate of {float(undecided_rate):g} leaves {float(rest):g} for parts called NotOK: {exc}"
        raise RateNotSupportedError(message, exc.missing, exc.smallest_rate) from exc


def upper_rate(n: int, rank: int, confidence: float = CONFIDENCE) -> float:
    """Upper confidence bound of the realised false-reject rate when the rank-th of n scores is the threshold.

    The `confidence` quantile of Beta(n + 1 − rank, rank); P(Beta(a, b) <= p) = P(Binomial(n, p) >= a).
    """
    if not 1 <= rank <= n:
        raise ValueError(f"rank {rank} is not one of {n} scores")
    above = n + 1 - rank
    return _solve(lambda p: binomial_cdf(above - 1, n, p), 1 - confidence)


def clopper_pearson(count: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Exact two-sided confidence bounds of a rate seen as `count` of `n` (Clopper & Pearson 1934)."""
    if n < 1 or not 0 <= count <= n:
        raise ValueError(f"{count} of {n} is no rate")
    tail = (1 - confidence) / 2
    lower = 0.0 if count == 0 else _solve(lambda p: binomial_cdf(count - 1, n, p), 1 - tail)
    upper = 1.0 if count == n else _solve(lambda p: binomial_cdf(count, n, p), tail)
    return lower, upper


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(Binomial(n, p) <= k), summed in logarithms: exact to rounding for any n a plant can record."""
    if k < 0:
        return 0.0
    if k >= n or p <= 0:
        return 1.0
    if p >= 1:
        return 0.0
    log_p, log_q, log_n = math.log(p), math.log1p(-p), math.lgamma(n + 1)
    terms = (
        math.exp(log_n - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * log_p + (n - i) * log_q)
        for i in range(k + 1)
    )
    return min(1.0, math.fsum(terms))


def block_scores(scores: Sequence[float], blocks: Sequence[str]) -> dict[str, float]:
    """Score of each block: the largest of its pictures. One picture is one `scores` and one `blocks` entry."""
    worst: dict[str, float] = {}
    for score, block in zip(scores, blocks, strict=True):
        # NaN must survive the maximum, so that it is refused afterwards: `max` drops it or not, by position.
        known = worst.get(block, score)
        worst[block] = math.nan if math.isnan(score) or math.isnan(known) else max(score, known)
    return worst


def split_blocks(blocks: Sequence[str], held_out_fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Random choice of the blocks kept apart: (bank blocks, held-out blocks), each in order of appearance.

    blocks: the block of every picture. At least one block stays on each side. Raises UnusableScoresError when
    there are fewer than two blocks.
    """
    names = list(dict.fromkeys(blocks))
    if len(names) < 2:
        raise UnusableScoresError("all pictures are one block (or copies of one picture): nothing can be kept apart")
    if not 0 < held_out_fraction < 1:
        raise ValueError(f"the held-out fraction must lie between 0 and 1, not {held_out_fraction}")
    count = min(max(1, round(len(names) * held_out_fraction)), len(names) - 1)
    chosen = set(np.random.default_rng(seed).permutation(len(names))[:count].tolist())
    held = [name for index, name in enumerate(names) if index in chosen]
    return [name for index, name in enumerate(names) if index not in chosen], held


def name_blocks(names: Sequence[str], block: str | None) -> list[str]:
    """The block of every picture, by name and in order: None, each its own; `10`, every ten consecutive ones;
    else a regular expression whose first group (or whole match) names the block.

    Raises UnusableScoresError when the expression is wrong or fits no part of a name.
    """
    if block is None:
        return list(names)
    if block.isdecimal():
        if int(block) < 1:
            raise UnusableScoresError("a block must hold at least one picture")
        return [f"block-{index // int(block)}" for index in range(len(names))]
    try:
        pattern = re.compile(block)
    except re.error as exc:
        raise UnusableScoresError(f"the block expression {block!r} is not a regular expression: {exc}") from exc
    group = 1 if pattern.groups else 0
    matches = [pattern.search(name) for name in names]
    blocks = [match.group(group) if match else None for match in matches]
    strangers = [name for name, found in zip(names, blocks, strict=True) if found is None]
    if strangers:
        raise UnusableScoresError(
            f"the block expression {block!r} does not fit {len(strangers)} of {len(names)} pictures "
            f"(first: {strangers[0]}); give one that fits them all"
        )
    return [str(found) for found in blocks]


def _checked(scores: Sequence[float]) -> list[float]:
    values = sorted(float(score) for score in scores)
    if not values:
        raise UnusableScoresError("no held-out scores: no good part was kept apart from the bank")
    bad = [value for value in values if not math.isfinite(value) or value < 0]
    if bad:
        raise UnusableScoresError(f"{len(bad)} of {len(values)} held-out scores are not finite numbers >= 0: {bad[0]}")
    return values


def _solve(falling: Callable[[float], float], target: float) -> float:
    """p in (0, 1) at which a falling function meets the target, by bisection to the last bit."""
    low, high = 0.0, 1.0
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if falling(middle) > target:
            low = middle
        else:
            high = middle
