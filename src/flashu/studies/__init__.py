"""Experiments on a model: the lab (the paper's tables and figures) and the tuner."""
