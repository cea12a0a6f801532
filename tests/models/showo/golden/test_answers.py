"""Groups d and f: answers about codes and about features, by the reference and the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flashu.inference.actions import AnswerRequest, Append, Decode
from flashu.inference.run import Run
from flashu.models.showo import naive
from flashu.models.showo.layout import ShowOLayout
from flashu.models.showo.layout import words as text_segment
from flashu.models.showo.reference import answer, embedded
from flashu.plan import MAIN
from flashu.plan.recipe import exact
from flashu.runtime.executor import Executor
from flashu.runtime.layout import Segment
from flashu.runtime.runner import Runner
from tests.models.showo.golden.recorded import ABOUT, IDS, SIZES, close, goldens, processor, tiny_model

VIT = ABOUT["vit_variant"]


def question(name: str) -> tuple[Segment, ...]:
    """Two segments of a recorded row."""
    ids, count = goldens()[f"{name}.input_ids"][0], SIZES["num_vq_tokens"]
    layout = ShowOLayout(tiny_model(), processor())
    shown = layout.by_codes(ids[2 : 2 + count] - SIZES["image_token_offset"])
    assert ids[: count + 3].tolist() == list(shown.content)
    return shown, text_segment(ids[count + 3 :].tolist())


def features() -> tuple[Segment, ...]:
    """The row of group f, whose features are made of a seed."""
    system = " ".join(f"w{n}" for n in VIT["system_ids"])
    around = processor()
    around.text = replace(around.text, chat=replace(around.text.chat, system=system))
    layout = ShowOLayout(tiny_model(), around)
    generator = torch.Generator().manual_seed(ABOUT["seeds_and_hparams"]["vit"]["feature_seed"])
    start, stop = VIT["all_rows_may_attend_columns"]
    x = torch.randn(1, stop - start, SIZES["phi_config"]["hidden_size"], generator=generator)
    return layout.by_features(x[0]), text_segment(VIT["question_ids"])


ROWS = {"d0": lambda: question("d0"), "d1": lambda: question("d1"), "f": features}


@pytest.mark.parametrize("name", ROWS)
def test_every_token_of_the_exact_runtime(name: str) -> None:
    golden, model = goldens(), tiny_model()
    tokens: Tensor = golden[f"{name}.tokens"]
    script = [Append((MAIN,), ROWS[name]()), Decode(MAIN, frozenset(), len(tokens))]
    run, executor = Run(script, exact(), model.spec), Executor(Runner(model))
    for index, expected in enumerate(golden[f"{name}.logits"]):
        request = run.prepare()
        assert request is not None
        (output,) = executor.forward([request])
        assert output.tokens == (1 if index else sum(s.length for s in script[0].segments))  # type: ignore[union-attr]
        close(output.values[0], expected)  # type: ignore[index]
        run.accept(output)
    assert run.text == tokens.tolist()


@pytest.mark.parametrize("name", ROWS)
def test_tokens_of_the_reference(name: str) -> None:
    golden, model = goldens(), tiny_model()
    x, mask = embedded(model, ROWS[name]())
    if name != "f":
        assert torch.equal(mask, golden[f"{name}.mask_allowed"].bool())
    else:
        start, stop = VIT["all_rows_may_attend_columns"]
        assert torch.equal(mask, naive.features_mask(len(x), start, stop - start))
    tokens = golden[f"{name}.tokens"]
    assert torch.cat(list(answer(model, x[None], mask, len(tokens)))).tolist() == tokens.tolist()


def test_a_question_is_written_as_the_original_writes_it() -> None:
    """[mmu, soi, image, eoi, sot, question]; the end of text ends the answer."""
    ids = goldens()["d0.input_ids"][0]
    count = SIZES["num_vq_tokens"]
    layout = ShowOLayout(tiny_model(), processor())
    asked = " ".join(f"w{n}" for n in ABOUT["mmu"][0]["question_ids"])
    codes = ids[2 : 2 + count] - SIZES["image_token_offset"]
    picture = layout.pixels(codes[None])[0]
    (append, decode), *_ = layout.answer([AnswerRequest(asked, (picture,))])
    row: list[Any] = [token for segment in append.segments for token in segment.content.tolist()]  # type: ignore[union-attr]
    assert row == ids.tolist()
    assert decode.stop == {IDS["eot"]}  # type: ignore[union-attr]
