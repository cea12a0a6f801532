"""The original authors' model, used as before by their scripts, computed by this package.

`adopt` takes over weights, `masks` reads a dense mask back, `drawing` follows their sampler, `talking` their token
loops, `tuning` calibrates on what they bring, `handle` holds all of it, `bound` is what an instance is bound to.
"""
