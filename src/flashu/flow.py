"""Flow matching: the time grid, guidance and the solvers. t = 0 is noise, t = 1 is data."""

from __future__ import annotations

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


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal latents of one image, fp32, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: v_u + s (v_c - v_u)."""
    return unconditional + scale * (conditional - unconditional)


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


SOLVERS: dict[str, Callable[[], Solver]] = {"euler": Euler, "adams": Adams, "heun": Heun}


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
