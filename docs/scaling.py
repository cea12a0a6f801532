"""Tables of docs/scaling.md: how much traffic some GPUs carry, and what an image costs. Run: python docs/scaling.py

Arrivals are taken as Poisson and times as exponential (M/M/c, Erlang C): a drawing's time is nearly constant, which
waits less, so waits are upper bounds in that respect.
"""

from __future__ import annotations

import argparse
from math import log


def waiting_chance(servers: int, load: float) -> float:
    """Erlang C: the chance that a request waits, with ``load`` = arrivals x time (below ``servers``)."""
    blocked = 1.0  # Erlang B, by its recursion over the number of servers
    for n in range(1, servers + 1):
        blocked = load * blocked / (n + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


def wait(servers: int, rate: float, seconds: float, quantile: float = 0.95) -> float:
    """Seconds that at most ``quantile`` of the requests wait before their first forward."""
    chance = waiting_chance(servers, rate * seconds)
    left = 1 - quantile
    return max(0.0, log(chance / left) * seconds / (servers - rate * seconds)) if chance > left else 0.0


def capacity(servers: int, seconds: float, most: float) -> float:
    """Requests a second that ``servers`` carry with p95 of the wait at most ``most`` seconds; by bisection."""
    low, high = 0.0, servers / seconds * (1 - 1e-9)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if wait(servers, middle, seconds) <= most else (low, middle)
    return low


def table(seconds: float, speedup: float, price: float, slack: float) -> str:
    """``seconds`` of GPU time per image without flashu, ``price`` of a GPU hour, p95 of the wait <= ``slack``."""
    lines = [
        "| GPUs | images/s without | with | utilisation with | images/day with | cost of 1,000 without | with |",
        "|---|---|---|---|---|---|---|",
    ]
    for servers in (1, 2, 8, 100, 1000):
        slow, fast = capacity(servers, seconds, slack), capacity(servers, seconds / speedup, slack)
        costs = [f"${1000 * servers * price / 3600 / rate:.2f}" for rate in (slow, fast)]
        used = fast * seconds / speedup / servers
        lines.append(
            f"| {servers} | {slow:.3g} | {fast:.3g} | {used:.0%} | {86_400 * fast:,.0f} | {costs[0]} | {costs[1]} |"
        )
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=2.0, help="GPU seconds per image without flashu (assumed)")
    options.add_argument("--speedup", type=float, default=1.8, help="of flashu (assumed; measure with flashu bench)")
    options.add_argument("--price", type=float, default=2.5, help="dollars of a GPU hour (assumed)")
    options.add_argument("--wait", type=float, default=1.0, help="seconds that 95 of 100 requests may wait at most")
    given = options.parse_args()
    if given.seconds <= 0 or given.speedup <= 0 or given.wait < 0 or given.price < 0:
        options.error("seconds and speedup must be above 0, wait and price at least 0")
    print(table(given.seconds, given.speedup, given.price, given.wait))


if __name__ == "__main__":
    main()
