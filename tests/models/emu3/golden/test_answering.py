"""Answers: the exact path against what transformers' class answered."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from flashu.inference.actions import AnswerRequest, Append, Decode
from flashu.inference.engine import Engine
from flashu.inference.run import Run, complete
from flashu.models.emu3.layout import words
from flashu.models.emu3.model import Emu3
from flashu.plan import MAIN
from flashu.plan.recipe import exact
from flashu.runtime.executor import Executor
from flashu.runtime.runner import Runner
from tests.models.emu3.emu3_tiny import processor
from tests.models.emu3.golden.recorded import close, config, goldens, model, unpadded, vq

G, IDS = goldens(), config().ids
LIMIT = len(G["und.step_logits"])


@pytest.fixture(scope="module")
def made() -> Emu3:
    return model()


def answered(made: Emu3, rows: Sequence[int]) -> list[Run]:
    batch = []
    for n in rows:
        row = unpadded(G["und.full_ids"][n], G["und.attention_mask"][n]).tolist()
        script = [Append((MAIN,), (words(row),)), Decode(MAIN, frozenset((IDS.eos,)), LIMIT)]
        batch.append(Run(script, exact(), made.spec))
    with torch.inference_mode():
        complete(Executor(Runner(made)), batch)
    return batch


def until_eos(tokens: Sequence[int]) -> list[int]:
    return list(tokens[: tokens.index(IDS.eos)]) if IDS.eos in tokens else list(tokens)


@pytest.mark.parametrize("rows", [(0, 1), (0,), (1,)])
def test_tokens(made: Emu3, rows: tuple[int, ...]) -> None:
    """Rows of unlike length share a batch: padding on the left, where the original has it, counts no positions."""
    for n, run in zip(rows, answered(made, rows), strict=True):
        assert run.text == until_eos(G["und.tokens"][n].tolist())


def test_logits_of_every_token(made: Emu3, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    plain = made.logits
    monkeypatch.setattr(made, "logits", lambda hidden, codes=None: (seen.append(plain(hidden, codes)), seen[-1])[1])
    answered(made, (0, 1))
    for ours, golden in zip(seen, G["und.step_logits"], strict=False):
        assert ours.shape[1] == 1  # of the last token alone
        close(ours[:, 0], golden)


def test_from_pixels(made: Emu3) -> None:
    """A row with a place for its picture, which is encoded in its own size."""
    row = unpadded(G["und.input_ids"][0], G["und.attention_mask"][0]).tolist()
    start, stop = row.index(IDS.boi), row.index(IDS.eoi)
    height, width = G["vq.image_sizes"][0].tolist()
    picture = G["vq.pixel_values"][0, :, :height, :width]
    ids = [*row[:start], IDS.image, *row[stop + 1 :]]
    surround = processor(vq())
    engine = Engine(made, surround)
    (answer,) = engine.respond([AnswerRequest("", (picture,), LIMIT, ids=ids)])
    assert answer.tokens == until_eos(G["und.tokens"][0].tolist())
    block = surround.text.image(G["vq.codes0"])
    assert [*row[:start], *block, *row[stop + 1 :]] == unpadded(
        G["und.full_ids"][0], G["und.attention_mask"][0]
    ).tolist()


def test_pictures_of_unlike_sizes_are_encoded_apart(made: Emu3) -> None:
    sizes = G["vq.image_sizes"].tolist()
    pictures = [G["vq.pixel_values"][n, :, :h, :w] for n, (h, w) in enumerate(sizes)]
    layout = Engine(made, processor(vq())).layout
    blocks = layout.shown([AnswerRequest("w1", (picture,)) for picture in pictures])  # type: ignore[attr-defined]
    text = processor(None).text
    assert blocks[id(pictures[0])] == text.image(G["vq.codes0"])
    assert blocks[id(pictures[1])] == text.image(G["vq.codes1_alone"])


def test_losses_and_gradients(made: Emu3) -> None:
    """The batch of drawing and answering rows that the original was trained on, codes and answers supervised."""
    from flashu.models.layers import AttentionContext
    from tests.models.emu3.golden.recorded import LOSS, about

    ids, labels, mask = G["train.input_ids"], G["train.labels"], G["train.attention_mask"].bool()
    trained = model().train()
    count = ids.shape[1]
    allowed = torch.ones(count, count, dtype=torch.bool).tril() & mask[:, None]
    allowed = (allowed | torch.eye(count, dtype=torch.bool))[:, None]
    x = trained.embed_tokens(ids)
    context = AttentionContext(trained.rope(torch.arange(count)[None].expand(len(ids), -1)), allowed)
    for layer in trained.layers:
        x, _ = layer(x, context)
    following = torch.cat((labels[:, 1:], torch.full_like(labels[:, :1], -100)), dim=1)
    wanted = following != -100
    logits = trained.logits(trained.norm(x)[wanted])
    close(logits.detach(), G["train.logits_supervised"])
    drawing = torch.zeros_like(wanted)
    drawing[: about()["common"]["train"]["rows_t2i"]] = True
    each = torch.nn.functional.cross_entropy(logits, following[wanted], reduction="none")
    losses = [each[drawing[wanted]].mean(), each[~drawing[wanted]].mean()]
    total = losses[0] + losses[1]
    close(torch.stack([*losses, total, each.mean()]).detach(), G["train.losses"], LOSS)
    total.backward()
    parameters = dict(trained.named_parameters())
    for name, golden in zip(about()["train_param_names"], G["train.grad_norms"].tolist(), strict=True):
        gradient = parameters[name].grad
        assert gradient is not None
        assert float(gradient.norm()) == pytest.approx(golden, rel=1e-2)
    assert not trained.decoder.embed_tokens.weight.grad[IDS.pad].any()  # type: ignore[index]
