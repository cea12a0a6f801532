"""Few-step training: a student's adapters over a frozen teacher (Hyper-Bagel, arXiv 2509.18824)."""
