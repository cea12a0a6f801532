"""Quality: scorers, statistics, ledger, and the official benchmarks."""
