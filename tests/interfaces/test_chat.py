"""The transformers-compatible API for questions against the engine behind it."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import flashu


@pytest.fixture(scope="module")
def model() -> flashu.ChatModel:
    return flashu.ChatModel.from_pretrained("scenes")


@pytest.fixture(scope="module")
def processor() -> flashu.ChatProcessor:
    return flashu.ChatProcessor.from_pretrained("scenes")


@pytest.fixture(scope="module")
def images(model: flashu.ChatModel) -> list[Image.Image]:
    return model.engine.generate(["a red circle", "two blue squares"], steps=4).images


def said(
    model: flashu.ChatModel,
    processor: flashu.ChatProcessor,
    inputs: flashu.interfaces.chat.ChatInputs,
    **settings: object,
) -> list[str]:
    ids = model.generate(**inputs, max_new_tokens=6, **settings)  # type: ignore[arg-type]
    assert torch.equal(ids[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])


def test_it_says_what_the_engine_says(
    model: flashu.ChatModel, processor: flashu.ChatProcessor, images: list[Image.Image]
) -> None:
    asked = ["how many circles are there?", "what color is the square?"]
    inputs = processor(images=images, text=asked, return_tensors="pt")
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape
    plain = model.engine.answer(images, asked, max_new_tokens=6)
    assert said(model, processor, inputs.to("cpu")) == [answer.text for answer in plain]
    alone = processor(images=images[0], text=asked[0])
    assert said(model, processor, alone) == [plain[0].text]


def test_rows_of_unequal_length_are_padded_on_the_left(
    model: flashu.ChatModel, processor: flashu.ChatProcessor, images: list[Image.Image]
) -> None:
    asked = ["how many circles are there?", "what color is the square above the circle?"]
    inputs = processor(images=images, text=asked)
    assert inputs["attention_mask"][0, 0] == 0
    assert inputs["attention_mask"][:, -1].tolist() == [1, 1]
    assert said(model, processor, inputs) == [
        answer.text for answer in model.engine.answer(images, asked, max_new_tokens=6)
    ]


def test_several_images_and_none(
    model: flashu.ChatModel, processor: flashu.ChatProcessor, images: list[Image.Image]
) -> None:
    both = processor(images=images, text="how many circles are there?")
    assert both["pixel_values"].shape == (2, 3, 64, 64)
    plain = model.engine.answer([images], ["how many circles are there?"], max_new_tokens=6)
    assert said(model, processor, both) == [plain[0].text]
    message = processor(text="how many circles are there?")
    assert "pixel_values" not in message
    assert said(model, processor, message) == [model.engine.chat("how many circles are there?", max_new_tokens=6).text]


def test_messages_and_questions_go_together(
    model: flashu.ChatModel, processor: flashu.ChatProcessor, images: list[Image.Image]
) -> None:
    text = "how many circles are there?"
    asked, message = processor(images=images[0], text=text), processor(text=text)
    longest = asked["input_ids"].shape[1]
    missing = longest - message["input_ids"].shape[1]
    pads = torch.full((1, missing), processor.processor.pad)
    ids = torch.cat((asked["input_ids"], torch.cat((pads, message["input_ids"]), dim=1)))
    mask = torch.cat((asked["attention_mask"], (torch.arange(longest) >= missing).long()[None]))
    both = model.generate(ids, mask, asked["pixel_values"], max_new_tokens=6)[:, longest:]
    plain = [model.engine.answer(images[0], text, max_new_tokens=6), model.engine.chat(text, max_new_tokens=6)]
    assert processor.batch_decode(both) == [answer.text for answer in plain]


def test_videos(model: flashu.ChatModel, processor: flashu.ChatProcessor, images: list[Image.Image]) -> None:
    text, video = "how many circles are there?", flashu.Video([images[0], images[1], images[0]])
    inputs = processor(images=[[video, images[1]], images[0]], text=[text, text])
    assert inputs["frames"].tolist() == [3, 0, 0]
    assert inputs["pixel_values"].shape[0] == 5
    plain = model.engine.answer([[video, images[1]], images[0]], [text, text], max_new_tokens=6)
    assert said(model, processor, inputs) == [answer.text for answer in plain]


def test_sampling_draws_its_seed_from_the_generator(
    model: flashu.ChatModel, processor: flashu.ChatProcessor, images: list[Image.Image]
) -> None:
    inputs = processor(images=images[0], text="how many circles are there?")

    def sampled(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return model.generate(
            **inputs, do_sample=True, temperature=20.0, top_p=0.99, max_new_tokens=4, generator=generator
        )[0].tolist()

    assert sampled(1) == sampled(1)
    assert len({tuple(sampled(seed)) for seed in range(4)}) > 1
    greedy = model.generate(**inputs, max_new_tokens=4, temperature=20.0)
    assert torch.equal(greedy, model.generate(**inputs, max_new_tokens=4))


def test_what_does_not_fit_is_said(
    model: flashu.ChatModel, processor: flashu.ChatProcessor, images: list[Image.Image]
) -> None:
    inputs = processor(images=images, text=["what?", "where?"])
    with pytest.raises(flashu.ImageError, match="places for 2 images"):
        model.generate(inputs["input_ids"], inputs["attention_mask"])
    with pytest.raises(flashu.ImageError, match="list"):
        processor(images=images[0], text=["what?", "where?"])
    with pytest.raises(flashu.ImageError, match="no image"):
        processor(images=[[], images[0]], text=["what?", "where?"])
    with pytest.raises(flashu.FlashUError, match="return_tensors"):
        processor(text="what?", return_tensors="np")
    with pytest.raises(flashu.PromptError, match="nothing"):
        processor(images=images)
    with pytest.raises(flashu.PromptError, match="all of them the model's"):
        model.generate(torch.tensor([[10**6]]))
    with pytest.raises(flashu.PromptError, match="at least one row"):
        model.generate(torch.zeros(0, 3, dtype=torch.long))
    with pytest.raises(flashu.FlashUError, match="max_new_tokens"):
        model.generate(**inputs, max_new_tokens=0)


def test_conversations_in_transformers_form(
    model: flashu.ChatModel, processor: flashu.ChatProcessor, images: list[Image.Image]
) -> None:
    text = "how many circles are there?"
    plain = processor(images=images[0], text=text)
    content = [{"type": "image", "image": images[0]}, {"type": "text", "text": text}]
    made = processor.apply_chat_template([{"role": "user", "content": content}])
    assert made.keys() == plain.keys()
    assert all(torch.equal(made[name], plain[name]) for name in plain)
    ids = model.generate(**made, max_new_tokens=4)
    row = ids[0, made["input_ids"].shape[1] :]
    assert processor.decode(row) == processor.batch_decode(row[None])[0]
    for strange in ([], [{"role": "assistant", "content": text}], [{"role": "user", "content": [{"type": "audio"}]}]):
        with pytest.raises(flashu.FlashUError):
            processor.apply_chat_template(strange)
