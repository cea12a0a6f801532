"""The original authors' model, used as before by their scripts, computed by this package.

`adopt` takes over weights, `masks` reads a dense mask back, `drawing` follows their sampler, `talking` their token
loops, `face` is what an instance gets bound to it.
"""
