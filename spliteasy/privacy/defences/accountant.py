"""The Rényi accountant of the Gaussian mechanism on Poisson samples says how much privacy a training spends.

One step draws each sample with probability q, sums what they give at sensitivity 1, and adds normal noise of
standard deviation σ. Its Rényi divergence of order α is log(A) / (α − 1), A the mean over z ~ N(0, σ²) of
((1 − q) + q · exp((2z − 1) / 2σ²))^α (Mironov, Talwar and Zhang, arXiv 1908.10530). The mean is integrated by
the trapezoid rule, which is exact to many digits for a smooth function that vanishes at both ends. Steps
add up; the ε of a δ is the least over the orders by Canonne, Kamath and Steinke's conversion
(arXiv 2004.00010). Data sets are neighbours where one has one sample more.

`dp-accounting` and Opacus compute the same: tests hold these figures against theirs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

ORDERS: tuple[float, ...] = (
    *(1 + x / 10 for x in range(1, 100)),
    *(float(x) for x in range(11, 64)),
    128.0,
    256.0,
    512.0,
    1024.0,
)

LEAST_NOISE, MOST_NOISE = 0.1, 1e6
"""Noise multipliers that are looked at: below, ε is so large that it says nothing."""


def epsilon(*, noise_multiplier: float, rate: float, steps: int, delta: float) -> float:
    """Return the ε that so many steps spend at δ, against anybody who sees all noisy sums; 0 before the
    first."""
    if steps == 0:
        return 0.0
    return _converted(_divergences(noise_multiplier, rate), steps, delta)


def noise_for(*, epsilon_limit: float, rate: float, steps: int, delta: float) -> float:
    """The least noise multiplier, to four digits, at which so many steps spend `epsilon_limit` at most.

    Raises ValueError where none does.
    """

    def spent(noise: float) -> float:
        return epsilon(noise_multiplier=noise, rate=rate, steps=steps, delta=delta)

    low = high = LEAST_NOISE
    while spent(high) > epsilon_limit:
        low, high = high, 2 * high
        if high > MOST_NOISE:
            raise ValueError(f"no noise keeps {steps} steps to ε = {epsilon_limit:g} at δ = {delta:g}")
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle) <= epsilon_limit else (middle, high)
    return high


def _divergences(noise: float, rate: float) -> Doubles:
    """Return the divergence of one step, by order."""
    if rate == 1:
        return np.array([order / (2 * noise**2) for order in ORDERS])
    return np.array([_log_mean(order, noise, rate) / (order - 1) for order in ORDERS])


def _log_mean(order: float, noise: float, rate: float) -> float:
    """log A of one order."""
    points = np.arange(-40 * noise - 1, order + 40 * noise + 1, min(noise, noise**2) / 12)
    with np.errstate(under="ignore"):
        ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * points - 1) / (2 * noise**2))
        logs = order * ratio - points**2 / (2 * noise**2)
        highest = float(logs.max())
        total = float(np.exp(logs - highest).sum()) * float(points[1] - points[0])
    return highest + math.log(total) - math.log(noise * math.sqrt(2 * math.pi))


def _converted(divergences: Doubles, steps: int, delta: float) -> float:
    orders = np.array(ORDERS)
    found = steps * divergences + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    return max(0.0, float(found.min()))
