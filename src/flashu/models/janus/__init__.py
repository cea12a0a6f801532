"""Janus-Pro: pictures are seen through a SigLIP tower and drawn code after code, by one causal decoder."""
