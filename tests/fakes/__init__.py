"""Made-up model families: what a new family has to bring, and the proof that the core names none."""
