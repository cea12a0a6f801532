"""Drafts trained on a model's own answers."""
