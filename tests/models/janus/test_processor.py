"""Rows and pictures against transformers' processor, with the chat template that the released checkpoints carry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from flashu.models.janus.config import Ids
from flashu.models.janus.processor import Processor
from flashu.models.janus.text import Text

transformers = pytest.importorskip("transformers")
SPECIAL = ("<bos>", "<eos>", "<pad>", "<begin_of_image>", "<end_of_image>", "<image_placeholder>")
SIDE, PATCHES = 32, 16
# What the released template renders of one turn of the user, as far as it is used here.
TEMPLATE = (
    "{% for message in messages %}<|User|>: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{% if not loop.first %}{{ '\\n' }}{% endif %}<image_placeholder>"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}{% else %}{% set text = part['text'] %}"
    "{% if loop.first %}{% set text = text.lstrip() %}{% endif %}"
    "{% if loop.last %}{% set text = text.rstrip() %}{% endif %}{{ text }}{% endif %}{% endfor %}{{ '\\n\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    made.train_from_iterator(
        ["a red circle above the blue square", "what is left of it? <|User|>: <|Assistant|>:"], trainer
    )
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return made


@pytest.fixture(scope="module")
def theirs(tokenizer: Tokenizer) -> Any:
    marks = dict(zip(("image_token", "boi_token", "eoi_token"), (SPECIAL[5], SPECIAL[3], SPECIAL[4]), strict=True))
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=marks,
    )
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    half = [0.5, 0.5, 0.5]
    pictures = JanusImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=half, image_std=half)
    return transformers.JanusProcessor(
        pictures, wrapped, chat_template=TEMPLATE, use_default_system_prompt=True, num_image_tokens=PATCHES
    )


@pytest.fixture(scope="module")
def ours(tokenizer: Tokenizer) -> Processor:
    return Processor(Text(tokenizer, Ids(*range(6))), None, side=SIDE)


def rendered(theirs: Any, content: list[dict[str, str]]) -> str:
    return theirs.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )


def picture(width: int, height: int) -> Image.Image:
    generator = torch.Generator().manual_seed(width)
    values = (torch.rand(height, width, 3, generator=generator) * 255).to(torch.uint8)
    return Image.fromarray(values.numpy())


@pytest.mark.parametrize("text", ["a red circle", "  blanks, and\nlines ", "Unseen Words: 12 é"])
def test_rows_that_draw(theirs: Any, ours: Processor, text: str) -> None:
    written = rendered(theirs, [{"type": "text", "text": text}])
    expected = theirs(text=written, generation_mode="image").input_ids
    assert expected.tolist() == [ours.text.prompt(text)]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("question", ["what is left of it?", "the blue square "])
def test_rows_that_ask(theirs: Any, ours: Processor, count: int, question: str) -> None:
    content = [{"type": "image"}] * count + [{"type": "text", "text": question}]
    pictures = [picture(40 + n, 24) for n in range(count)]
    expected = theirs(text=rendered(theirs, content), images=pictures or None).input_ids[0].tolist()
    row = [token for token in ours.row(question, count) for _ in range(PATCHES if token == ours.placeholder else 1)]
    assert row == expected


@pytest.mark.parametrize("size", [(32, 32), (50, 20), (21, 47), (64, 8)])
def test_pictures(theirs: Any, ours: Processor, size: tuple[int, int]) -> None:
    shown = picture(*size)
    expected = theirs.image_processor(shown, return_tensors="pt").pixel_values
    torch.testing.assert_close(ours.pixels(shown), torch.as_tensor(expected), atol=1e-5, rtol=0)
