"""Other ways to hold an engine: the papers' patch, and diffusers- and transformers-compatible APIs."""
