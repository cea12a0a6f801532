"""Training rows and losses: what is trained is what the exact runtime computes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import flashu
from flashu.models.emu3 import naive
from flashu.models.emu3.reference import Rows
from flashu.models.emu3.training import ScenesEmu3
from flashu.models.registry import ASSETS
from flashu.models.small_vq import CODES, SmallVQ
from flashu.models.training import Asking, Drawing
from flashu.scenes.world import SCENES


@pytest.fixture(scope="module")
def network() -> ScenesEmu3:
    made = ScenesEmu3.create(SCENES, 0)
    with torch.no_grad():  # residual branches start at zero: make every part count
        for parameter in made.module.parameters():
            if parameter.ndim == 2:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    made.module.requires_grad_(False).eval()
    return made


@pytest.fixture(scope="module")
def pool() -> SimpleNamespace:
    return SimpleNamespace(pictures=torch.randint(0, CODES, (6, 4, 4), generator=torch.Generator().manual_seed(2)))


def test_drawing(network: ScenesEmu3, pool: SimpleNamespace) -> None:
    text = network.text
    prompts = [text.encode("a red circle above a blue square"), []]
    rows = network.rows([Drawing(words, n) for n, words in enumerate(prompts)], pool)  # type: ignore[arg-type]
    outcome = network.losses(rows)
    losses = []
    for n, words in enumerate(prompts):
        codes = pool.pictures[n]
        whole = [text.ids.bos, *words, *text.image(codes)]
        row = Rows(network.module, [whole], naive.unnamed)
        logits = naive.forward(network.module, row.new, row.cache)[0, :, slice(*network.module.spec.codes)]
        at = [i for i, token in enumerate(whole) if token >= text.ids.first]
        losses.append(torch.nn.functional.cross_entropy(logits[[i - 1 for i in at]], codes.flatten()))
        # The row that is drawn begins with exactly what precedes the codes.
        assert text.prompt("a red circle above a blue square")[1:] == prompts[0]
        fed = whole[:-4]  # all but the last code and what follows it
        assert rows.packed.ids[n, -len(fed) :].tolist() == fed
    assert float(outcome.losses["codes"]) == pytest.approx(float(torch.stack(losses).mean()), abs=1e-4)
    assert outcome.drawn is not None
    assert outcome.drawn.shape == (2, 16, network.width)


def test_questions_see_the_picture_and_themselves(network: ScenesEmu3, pool: SimpleNamespace) -> None:
    text = network.text
    asks = [("is there a red circle ?", "yes"), ("how many circles ?", "two")]
    ids = [(text.encode(question), text.encode(answer)) for question, answer in asks]
    together = network.losses(network.rows([Asking(3, ids)], pool)).losses["answer"]  # type: ignore[arg-type]
    apart = []
    for question, answer in ids:
        whole = [*text.before(), *text.image(pool.pictures[3]), *question, *text.encode(text.template.assistant)]
        wanted = [*answer, text.ids.eos]
        row = Rows(network.module, [[*whole, *wanted]], naive.unnamed)
        logits = naive.forward(network.module, row.new, row.cache)[0, len(whole) - 1 : -1]
        apart.append(torch.nn.functional.cross_entropy(logits, torch.tensor(wanted), reduction="none"))
    assert float(together) == pytest.approx(float(torch.cat(apart).mean()), abs=1e-4)


def test_beginning_with_another_models_weights() -> None:
    network = ScenesEmu3.create(SCENES, 0, start=ASSETS / "scenes")
    from flashu.models.weights import read_weights, weight_files

    theirs = read_weights(weight_files(ASSETS / "scenes"))
    ours = dict(network.module.decoder.named_parameters())
    for part in ("layers.7.self_attn.q_proj.weight", "layers.2.mlp.down_proj.weight"):
        held = [value for name, value in theirs.items() if name.endswith(part)]
        assert any(torch.equal(ours[part], value.float()) for value in held if value.shape == ours[part].shape)


def test_saved_and_opened(network: ScenesEmu3, tmp_path: Path) -> None:
    network.save(tmp_path, SmallVQ())
    engine = flashu.load(tmp_path)
    assert engine.model.config == network.module.config
    drawn = engine.generate("a red circle", seed=1)
    assert drawn.images[0].size == (64, 64)
    assert drawn.latents.shape == (1, 4, 4)
    assert engine.answer(drawn.images[0], "is there a red circle?", max_new_tokens=3).tokens is not None
