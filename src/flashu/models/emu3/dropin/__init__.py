"""FlashU behind an instance of transformers' Emu3 class."""
