"""The official client against a server in a process of its own."""

from __future__ import annotations

import base64
import io

import numpy as np
import openai
import pytest
from PIL import Image

import flashu
from tests.server.served import Served, data_url, picture, png

PROMPT = "a red circle above a blue square"
STEPS = {"num_inference_steps": 4}


@pytest.fixture(scope="session")
def client(server: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def near(a: Image.Image, b: Image.Image) -> bool:
    """Equal up to the rounding of another batch."""
    difference = np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int))
    return bool(difference.max() <= 2)


def test_images(client: openai.OpenAI, scenes: flashu.Engine) -> None:
    for preset in ("exact", "paper"):
        made = client.images.generate(
            model="scenes", prompt=PROMPT, n=2, size="64x64", extra_body={**STEPS, "seed": 7, "preset": preset}
        )
        own = scenes.with_recipe(preset).generate(PROMPT, images_per_prompt=2, seed=7, steps=4)
        assert made.data is not None
        for n, item in enumerate(made.data):
            assert item.b64_json is not None
            assert near(picture(item.b64_json), own.images[n])
            assert item.model_extra["flashu"]["seed"] == 7 + n  # type: ignore[index]
            assert item.model_extra["flashu"]["forwards"] == len(own.traces[n])  # type: ignore[index]
        about = made.model_extra["flashu"]  # type: ignore[index]
        assert about["preset"] == preset
        assert (about["num_inference_steps"], about["guidance_scale"], about["seed"]) == (4, 2.0, 7)
        assert len(about["model_hash"]) == 16


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_files_and_addresses(kind: str, client: openai.OpenAI, server: Served) -> None:
    made = client.images.generate(
        prompt=PROMPT,
        response_format="url",
        output_format=kind,
        extra_body=STEPS,  # type: ignore[arg-type]
    )
    url = made.data[0].url  # type: ignore[index]
    assert url is not None
    assert url.startswith(server.url)
    answer = server.call("GET", url.removeprefix(server.url))
    assert answer.status == 200
    assert answer.headers["content-type"] == f"image/{kind}"
    assert Image.open(io.BytesIO(answer.data)).format == kind.upper()


def test_streamed_images(client: openai.OpenAI) -> None:
    stream = client.images.generate(prompt=PROMPT, stream=True, partial_images=2, extra_body={**STEPS, "seed": 7})
    kinds = [event for event in stream if event.type.startswith("image")]
    assert [event.type for event in kinds] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in kinds[:2]] == [0, 1]  # type: ignore[union-attr]
    plain = client.images.generate(prompt=PROMPT, extra_body={**STEPS, "seed": 7})
    assert near(picture(kinds[-1].b64_json), picture(plain.data[0].b64_json))  # type: ignore[index, arg-type]


def test_edits(editing: Served) -> None:
    client = openai.OpenAI(base_url=f"{editing.url}/v1", api_key="none", max_retries=0)
    image = ("in.png", png((90, 90, 90), (4, 4)), "image/png")
    made = client.images.edit(image=image, prompt="w1 w2", n=2, size="4x4", extra_body={"seed": 3})
    assert editing.service is not None
    own = editing.service.engine.edit([Image.new("RGB", (4, 4), (90, 90, 90))] * 2, ["w1 w2"] * 2, seed=3)
    assert made.data is not None
    for n, item in enumerate(made.data):
        assert near(picture(item.b64_json), own.images[n])  # type: ignore[arg-type]
    several = client.images.edit(image=[image, image], prompt="w1 w2")
    assert len(several.data) == 1  # type: ignore[arg-type]
    stream = client.images.edit(image=image, prompt="w1", stream=True, partial_images=1)
    assert [event.type for event in stream] == ["flashu.step"] * 16 + ["image_edit.completed"]


def test_chat_about_a_picture(client: openai.OpenAI, scenes: flashu.Engine) -> None:
    shown = scenes.generate(PROMPT, seed=1, steps=8).images[0]
    file = io.BytesIO()
    shown.save(file, "PNG")
    question = "how many circles are there?"
    content = [
        {"type": "text", "text": question},
        {"type": "image_url", "image_url": {"url": data_url(file.getvalue())}},
    ]
    own = scenes.answer(shown, question)
    messages = [{"role": "user", "content": content}]
    whole = client.chat.completions.create(model="scenes", messages=messages)  # type: ignore[call-overload]
    assert whole.choices[0].message.content == own.text
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens == len(own.tokens)
    assert whole.usage.prompt_tokens == own.trace[0].tokens
    chunks = list(
        client.chat.completions.create(  # type: ignore[call-overload]
            model="scenes", messages=messages, stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == own.text
    assert sum(map(bool, pieces)) > 1
    assert chunks[-1].usage.completion_tokens == len(own.tokens)
    short = client.chat.completions.create(model="scenes", messages=messages, max_tokens=1)  # type: ignore[call-overload]
    assert short.choices[0].finish_reason == "length"


def test_settings_of_chat(client: openai.OpenAI, scenes: flashu.Engine) -> None:
    message = "how many circles are there?"
    messages = [{"role": "user", "content": message}]
    own = scenes.chat([message] * 2, temperature=1.5, top_p=0.9, seed=5, max_new_tokens=9)
    made = client.chat.completions.create(
        model="scenes",
        messages=messages,
        n=2,
        temperature=1.5,
        top_p=0.9,
        seed=5,
        max_tokens=9,  # type: ignore[arg-type]
    )
    assert [choice.message.content for choice in made.choices] == [answer.text for answer in own]
    text = own[0].text
    word = text.split()[1]
    cut = client.chat.completions.create(
        model="scenes",
        messages=messages,
        temperature=1.5,
        top_p=0.9,
        seed=5,
        max_tokens=9,
        stop=[word],  # type: ignore[arg-type]
    )
    assert cut.choices[0].message.content == text[: text.index(word)]
    assert cut.choices[0].finish_reason == "stop"


def test_drawing_by_chat(client: openai.OpenAI) -> None:
    plain = client.images.generate(prompt=PROMPT, extra_body={**STEPS, "seed": 9})
    for extra in ({**STEPS, "seed": 9}, {"extra_body": {**STEPS, "seed": 9}}):
        made = client.chat.completions.create(
            model="scenes",
            messages=[{"role": "user", "content": PROMPT}],
            modalities=["image"],
            extra_body=extra,  # type: ignore[arg-type, list-item]
        )
        content = made.choices[0].message.content
        url = content[0]["image_url"]["url"]  # type: ignore[index]
        assert near(picture(url.partition(",")[2]), picture(plain.data[0].b64_json))  # type: ignore[index, arg-type]


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "scenes"
    assert model.model_extra["flashu"]["presets"] == ["exact", "paper"]  # type: ignore[index]
    assert client.models.retrieve("scenes").id == "scenes"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-1")


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt=PROMPT, extra_body={"colour": "red"})
    assert caught.value.param == "colour"
    with pytest.raises(openai.BadRequestError, match="does not edit") as caught:
        client.images.edit(image=("a.png", png()), prompt="make the circle blue")


def test_a_picture_survives_the_way(client: openai.OpenAI) -> None:
    """What was drawn, sent back as base64, is read as the same picture."""
    made = client.images.generate(prompt=PROMPT, extra_body=STEPS)
    data = base64.b64decode(made.data[0].b64_json)  # type: ignore[index, arg-type]
    assert Image.open(io.BytesIO(data)).size == (64, 64)
