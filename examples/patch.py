"""Turn FlashU on and off for a model that is used as before. Usage: python examples/patch.py [steps]"""

import sys

import flashu

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 8

model = flashu.ShowO2.from_pretrained("scenes")
before = model.t2i_generate("a yellow square", seed=3, steps=steps)[0]

flashu.apply_flashu_patch(model, flashu.FlashUConfig(r_p=0.20, r_LS=0.20, T_LS=10, T_cache=5, tau=0.3))
during = model.t2i_generate("a yellow square", seed=3, steps=steps)[0]
print("patched:", model.mmu_generate(during, "what colour is the square?"))

flashu.remove_flashu_patch(model)
after = model.t2i_generate("a yellow square", seed=3, steps=steps)[0]
assert after.tobytes() == before.tobytes(), "nothing of the patch is left"
print("removed: the same picture as before, to the bit")
