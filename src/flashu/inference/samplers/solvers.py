"""Flow matching: the time grid, guidance and the solvers. t = 0 is noise, t = 1 is data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


def grid(forwards: int, shift: float) -> Tensor:
    """forwards + 1 time points from 0 to 1 (fp32), denser near the noise end for shift > 1."""
    if forwards < 1:
        raise ValueError(f"a generation needs at least one forward, got {forwards}")
    u = torch.linspace(0, 1, forwards + 1)
    return u / (u + shift - shift * u)


def euler(z: Tensor, velocity: Tensor, dt: float) -> Tensor:
    """One Euler step, integrated in the latents' own dtype (fp32)."""
    return z + dt * velocity.to(z.dtype)


class Solver(Protocol):
    """Advances latents by the velocity evaluated at them over the time to the next evaluation; one per request."""

    def advance(self, z: Tensor, velocity: Tensor, dt: float) -> Tensor: ...


class Euler:
    """First order; one evaluation per step."""

    def advance(self, z: Tensor, velocity: Tensor, dt: float) -> Tensor:
        return euler(z, velocity, dt)


class Adams:
    """Second order from the velocity before (Adams-Bashforth with unequal steps); one evaluation per step."""

    def __init__(self) -> None:
        self.before: tuple[Tensor, float] | None = None

    def advance(self, z: Tensor, velocity: Tensor, dt: float) -> Tensor:
        v = velocity.to(z.dtype)
        ahead = v if self.before is None else v + dt / (2 * self.before[1]) * (v - self.before[0])
        self.before = (v, dt)
        return euler(z, ahead, dt)


class Heun:
    """Second order from a trial step; two evaluations per step, the second over no time (see `times`)."""

    def __init__(self) -> None:
        self.trial: tuple[Tensor, Tensor, float] | None = None

    def advance(self, z: Tensor, velocity: Tensor, dt: float) -> Tensor:
        v = velocity.to(z.dtype)
        if dt:
            self.trial = (z, v, dt)
            return euler(z, v, dt)
        assert self.trial is not None
        start, first, whole = self.trial
        return euler(start, (first + v) / 2, whole)


class UniPC:
    """UniPC of second order with B(h) = e^h - 1 (Zhao et al. 2023), on the predicted data; one evaluation per step.

    Each evaluation first corrects the step that led to it, then predicts the next; the last step is Euler's.
    """

    def __init__(self, start: float = 0.0) -> None:
        self.time = start
        self.past: list[tuple[float, Tensor]] = []
        """(half log signal-to-noise ratio, predicted data) of the last two evaluations."""
        self.came: tuple[Tensor, float] | None = None
        """What the last step started from, and its time."""

    def advance(self, z: Tensor, velocity: Tensor, dt: float) -> Tensor:
        now, then = self.time, self.time + dt
        data = z + (1 - now) * velocity.to(z.dtype)
        if self.came is not None:
            z = self._step(*self.came, now, self._slope(now, data))
        self.past = [*self.past[-1:], (snr(now), data)]
        self.came, self.time = (z, now), then
        return self._step(z, now, then, self._slope(then))

    def _step(self, z: Tensor, start: float, end: float, slope: Tensor | float) -> Tensor:
        """From ``start`` to ``end``: exact for data that stay as predicted, plus what their slope adds."""
        kept = (1 - end) / (1 - start) * z
        shrink = end - start * (1 - end) / (1 - start)
        return kept + shrink * (self.past[-1][1] + slope)

    def _slope(self, end: float, data: Tensor | None = None) -> Tensor | float:
        """The mean change of the predicted data on the way to ``end`` from past predictions and, to correct, the one
        at ``end``."""
        last, latest = self.past[-1]
        h = snr(end) - last
        ahead = None if data is None else data - latest
        if len(self.past) < 2 or (data is None and end > 1 - EDGE):
            return 0.0 if ahead is None else ahead / 2
        r = (self.past[-2][0] - last) / h
        behind = (self.past[-2][1] - latest) / r
        if ahead is None:
            return behind / 2
        # Weights that make the step exact for predictions of second degree in the ratio.
        first = -math.expm1(-h) / h - 1
        both = first / math.expm1(-h)
        second = 2 * (-first / h - 0.5) / math.expm1(-h)
        weight = (both - second) / (1 - r)
        return weight * behind + (both - weight) * ahead


EDGE = 1e-6
"""Nearest to noise or data that a ratio of the two is taken."""


def snr(t: float) -> float:
    """log(t / (1 - t)), finite at both ends."""
    t = min(max(t, EDGE), 1 - EDGE)
    return math.log(t / (1 - t))


SOLVERS: dict[str, Callable[[], Solver]] = {"euler": Euler, "adams": Adams, "heun": Heun, "unipc": UniPC}


def times(forwards: int, shift: float, solver: str = "euler") -> Tensor:
    """When a solver evaluates the velocity, and the end: forwards + 1 time points.

    Heun's steps end where the next begins, so those times come twice. Data (t = 1) is no place to evaluate a velocity:
    the last step, or two for an even number of forwards, are Euler's.
    """
    if solver != "heun":
        return grid(forwards, shift)
    paired = (forwards - 1) // 2
    first, *rest = grid(forwards - paired, shift).tolist()
    return torch.tensor([first, *(t for t in rest[:paired] for _ in range(2)), *rest[paired:]])
