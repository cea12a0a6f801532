"""The forward of training against the original's (group k): mask, losses, gradients."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F

from flashu.models.bagel.training import Rows, ScenesBagel, sorted_by_expert
from flashu.models.bagel.vision import patches
from flashu.models.training import IGNORED, Part
from flashu.scenes.world import SCENES
from tests.models.bagel.golden.recorded import MARKERS, about, close, model, special, tensors, tolerance


def test_a_forward_of_training():
    g, made = tensors(), about()["common"]["k"]
    network = ScenesBagel(deepcopy(model()).requires_grad_(True), SCENES)
    module = network.module
    viewed, text, latent = made["splits"]
    ids = g["k.in.packed_text_ids"].tolist()
    labels = dict(zip(g["k.in.ce_loss_indexes"].tolist(), g["k.in.packed_label_ids"].tolist(), strict=True))
    words, position = ids[2 : 2 + text], g["k.in.packed_position_ids"].tolist()
    targets = [labels.get(viewed + n, IGNORED) for n in range(text)]
    row = [
        ("seen", Part([0] * (viewed - 2) + list(MARKERS), position[:viewed], block=True)),
        ("text", Part(words, position[viewed : viewed + text], targets=targets)),
        ("drawn", Part([0] * (latent - 2) + list(MARKERS), position[viewed + text :], block=True, group=1)),
    ]
    assert (ids[:2], words[0]) == (list(MARKERS), special("bos_token_id"))
    # The pictures of this row have unlike numbers of tokens: only the drawn one is moved to the end.
    length = viewed + text + latent
    tokens, spans, places = sorted_by_expert([row], latent - 2)
    assert spans == (("und", 0, viewed + text + 2), ("gen", viewed + text + 2, length))
    # Ours to the original's order: there, a marker stands before its picture.
    ours = [viewed - 2, *range(viewed - 2), viewed - 1, *range(viewed, viewed + text), viewed + text]
    ours += [*range(viewed + text + 2, length), viewed + text + 1]
    assert torch.equal(tokens.mask[0, 0][ours][:, ours], g["k.mask_allowed"].bool())
    assert torch.equal(tokens.position[0][ours], g["k.in.packed_position_ids"])

    clean, noise = g[made["latent"]], g["k.noise"]
    time = torch.sigmoid(torch.tensor([made["raw_timestep"]]))
    p = module.config.latent_patch_size
    lines, columns = (side // p for side in clean.shape[-2:])
    x = patches(clean, p) * (1 - time) + noise[None] * time
    noised = x.unflatten(2, (p, p, -1)).unflatten(1, (lines, columns)).permute(0, 5, 1, 3, 2, 4).reshape(clean.shape)
    places = places._replace(seen=slice(0, viewed - 2))
    rows = Rows(tokens, spans, places, g[made["vit_image"]][None])
    hidden, _ = network.forward(rows, module.embed_pixels(rows.pixels), module.embed_latents(noised, time))
    mse = (module.llm2vae(hidden[0, places.drawn]) - (noise - patches(clean, p)[0])).square()
    close(mse, g["k.mse"], tolerance("train_mse_abs"))
    wanted = tokens.targets != IGNORED
    ce = F.cross_entropy(module.logits(hidden[wanted]), tokens.targets[wanted], reduction="none")
    close(ce, g["k.ce"], tolerance("train_ce_abs"))
    loss = mse.mean() + ce.mean()
    close(loss, g["k.loss"], tolerance("train_mse_abs"))
    loss.backward()
    parameters = dict(module.named_parameters())
    for name, golden in zip(about()["common"]["k_param_names"], g["k.grad_norms"].tolist(), strict=True):
        gradient = parameters[name].grad
        if golden >= 0 and not name.endswith("pos_embed"):  # the tables are fixed there
            assert gradient is not None, name
            assert abs(float(gradient.norm()) - golden) <= 1e-3 * golden + 1e-6, name
