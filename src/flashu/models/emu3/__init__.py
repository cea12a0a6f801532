"""Emu3: text and the codes of images through one causal decoder."""
