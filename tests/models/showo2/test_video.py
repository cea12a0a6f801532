"""Videos: frames from folders, animated images and tensors; questions about them; pruning over all their frames."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import flashu
from flashu.models.showo2 import naive, reference
from flashu.models.video import is_video, spaced
from flashu.plan.methods import TokenPrune
from flashu.plan.recipe import Recipe
from tests.conftest import tiny_model

COLORS = ("red", "green", "blue", "white", "black")


def frames(count: int = 5) -> list[Image.Image]:
    return [Image.new("RGB", (64, 64), COLORS[n % len(COLORS)]) for n in range(count)]


def color(frame: object) -> tuple[int, int, int]:
    image = Image.open(frame) if isinstance(frame, Path) else frame
    assert isinstance(image, Image.Image)
    return image.convert("RGB").getpixel((0, 0))  # type: ignore[return-value]


def pruning(ratio: float) -> Recipe:
    return Recipe((TokenPrune(ratio=ratio),), "pruned")


@pytest.fixture(scope="module")
def pruned(tiny_engine: flashu.Engine) -> flashu.Engine:
    """An engine that knows its value norms."""
    engine = tiny_engine.with_recipe(pruning(0.5))
    engine.prepare("understanding")
    return engine


# -- where frames come from ------------------------------------------------------------------------------------------
def test_a_folder_is_read_by_number(tmp_path: Path) -> None:
    for n, name in enumerate(("f1.png", "f2.png", "f10.png", "f11.png")):
        Image.new("RGB", (4, 4), COLORS[n]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no frame")
    assert [path.name for path in flashu.Video.open(tmp_path, 4).frames] == ["f1.png", "f2.png", "f10.png", "f11.png"]
    assert [path.name for path in flashu.Video.open(tmp_path, 2).frames] == ["f1.png", "f11.png"]
    assert len(flashu.Video.open(tmp_path)) == 32
    assert is_video(tmp_path)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animated_image_is_a_video(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    first, *rest = frames()
    settings = {"lossless": True} if suffix == "webp" else {}
    first.save(path, save_all=True, append_images=rest, **settings)
    opened = flashu.Video.open(path, 3)
    assert [color(frame) for frame in opened.frames] == [(255, 0, 0), (0, 0, 255), (0, 0, 0)]
    assert len({id(frame) for frame in flashu.Video.open(path, 12).frames}) == 5  # repeated, not read again
    assert is_video(path)
    first.save(tmp_path / "still.png")
    assert not is_video(tmp_path / "still.png")
    assert not is_video(tmp_path / "nowhere.gif")


@given(total=st.integers(1, 400), count=st.integers(1, 64))
def test_frames_are_evenly_spaced(total: int, count: int) -> None:
    """From the first frame to the last, never back, by steps that differ by one at most."""
    at = spaced(total, count)
    assert len(at) == count
    assert at[0] == 0
    assert count == 1 or at[-1] == total - 1
    steps = [b - a for a, b in itertools.pairwise(at)]
    assert all(step >= 0 for step in steps)
    assert not steps or max(steps) - min(steps) <= 1


def test_what_is_no_video_is_said(tmp_path: Path, tiny_engine: flashu.Engine) -> None:
    with pytest.raises(flashu.ImageError, match="at least one"):
        flashu.Video([])
    with pytest.raises(flashu.ImageError, match=r"Video\.open\('a\.gif'\)"):
        flashu.Video("a.gif")
    with pytest.raises(flashu.ImageError, match="no image in this folder"):
        flashu.Video.open(tmp_path)
    with pytest.raises(flashu.ImageError, match="no such file"):
        flashu.Video.open(tmp_path / "a.gif")
    (tmp_path / "film.mp4").write_bytes(b"not read")
    with pytest.raises(flashu.ImageError, match="ffmpeg"):
        flashu.Video.open(tmp_path / "film.mp4")
    with pytest.raises(flashu.ImageError, match="at least one frame"):
        flashu.Video.open(tmp_path, 0)
    with pytest.raises(flashu.ImageError, match="must be a PIL image"):
        tiny_engine.answer(flashu.Video([object()]), "w1")  # type: ignore[list-item]
    with pytest.raises(flashu.ImageError, match="NaN"):
        tiny_engine.answer(flashu.Video(torch.full((2, 3, 64, 64), float("nan"))), "w1")


# -- answers -----------------------------------------------------------------------------------------------------------
@torch.inference_mode()
def naive_answer(model: flashu.ShowO2, shown: list[Tensor], question: str, count: int) -> list[int]:
    """Greedy tokens of the original's loop over a row laid out here: each entry of ``shown`` is a video's latents."""
    assert model.processor is not None
    before, *between, after = model.processor.text.question_parts(question, len(shown))
    _, time = model.embed_time(torch.ones(1))
    x, where = [model.embed_tokens(torch.tensor(before))], []
    for number, latents in enumerate(shown):
        tokens = model.embed_latent(latents)
        small = torch.stack(
            [frame.mT.reshape(-1, 4, 4).unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2)) for frame in tokens]
        )
        where.append([sum(map(len, x)) + 1, 17])
        x += [time, small.flatten(2).mT.flatten(0, 1)]
        x.append(model.embed_tokens(torch.tensor([*between, after][number])))
    row = torch.cat(x)[None]
    mask = naive.omni_mask(row.shape[1], torch.tensor([where]))
    return [int(token) for token in reference.answer(model, row, mask, count)]


def test_an_answer_is_the_naive_one() -> None:
    """Frames as pictures, as a tensor and as an array; two videos in one question."""
    model = tiny_model()
    engine = flashu.Engine(model, model.processor)
    colors = torch.stack([torch.full((3, 64, 64), n / 4 - 0.5) for n in range(6)])
    colors[2:4, 0] = 0.9
    assert model.processor is not None
    vae = model.processor.vae
    assert vae is not None
    latents = vae.encode(colors)
    expected = naive_answer(model, [latents], "w1 w2", 6)
    assert engine.answer(flashu.Video(colors), "w1 w2", max_new_tokens=6).tokens == expected
    assert engine.answer(flashu.Video(list(colors)), "w1 w2", max_new_tokens=6).tokens == expected
    videos = [flashu.Video(colors[:5]), flashu.Video(colors[1:])]
    both = engine.answer([videos], ["w3"], max_new_tokens=6)
    assert both[0].tokens == naive_answer(model, [latents[:5], latents[1:]], "w3", 6)
    levels = ((colors + 1) * 127.5).round().to(torch.uint8)
    as_array, as_tensor = flashu.Video(levels.permute(0, 2, 3, 1).numpy()), flashu.Video(levels)
    told = [engine.answer(video, "w1 w2", max_new_tokens=6).tokens for video in (as_array, as_tensor)]
    assert told[0] == told[1]


def test_videos_and_images_in_one_batch(tiny_engine: flashu.Engine, pruned: flashu.Engine) -> None:
    """Rows of unlike length and number of visual tokens answer as they do alone, pruned or not."""
    pictures = tiny_engine.generate([f"w{n}" for n in range(6)], steps=2).images
    shown = [flashu.Video(pictures), pictures[0], [pictures[1], flashu.Video(pictures[:3])]]
    asked = ["w1 w2", "w3", "w4 w5 w6"]
    for engine in (tiny_engine, pruned):
        together = engine.answer(shown, asked, max_new_tokens=5)
        alone = [engine.answer([s], [q], max_new_tokens=5)[0] for s, q in zip(shown, asked, strict=True)]
        assert [a.tokens for a in together] == [a.tokens for a in alone]


@settings(max_examples=8, deadline=None)
@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=3), ratio=st.sampled_from([0.1, 0.25, 0.5, 0.8]))
def test_pruning_is_a_share_of_all_frames(pruned: flashu.Engine, counts: list[int], ratio: float) -> None:
    """Of a row with videos of so many frames, four tokens each, the share goes from all of them together."""
    kept: list[int] = []
    engine = pruned.with_recipe(pruning(ratio))
    engine.prepare("understanding")
    handle = engine.model.layers[3].register_forward_hook(lambda _m, args, _o: kept.append(args[0].shape[1]))
    whole = engine.answer([[flashu.Video(frames(n)) for n in counts]], ["w1"], max_new_tokens=1)[0].trace[0].tokens
    handle.remove()
    visual = 4 * sum(counts)
    assert kept == [whole - int(visual * ratio)]


def test_a_row_that_loses_more_tokens_is_filled_up(pruned: flashu.Engine) -> None:
    """Two rows of a batch, each with its own share: what fills up the shorter one is seen by nobody."""
    answers = pruned.answer([flashu.Video(frames(6)), flashu.Video(frames(2))], ["w1", "w1"], max_new_tokens=4)
    assert answers[1].tokens == pruned.answer(flashu.Video(frames(2)), "w1", max_new_tokens=4).tokens


def test_the_processor_of_the_other_face(tiny_engine: flashu.Engine) -> None:
    processor, model = flashu.ChatProcessor(tiny_engine.processor), flashu.ChatModel(tiny_engine)
    video, picture = flashu.Video(frames(3)), frames(1)[0]
    inputs = processor(images=[[picture, video], video], text=["w1 w2", "w3"])
    assert inputs["frames"].tolist() == [0, 3, 3]
    assert len(inputs["pixel_values"]) == 7
    ids = model.generate(**inputs, max_new_tokens=3)[:, inputs["input_ids"].shape[1] :]
    plain = tiny_engine.answer([[picture, video], video], ["w1 w2", "w3"], max_new_tokens=3)
    assert ids.tolist() == [answer.tokens for answer in plain]
    with pytest.raises(flashu.ImageError, match="frames"):
        model.generate(**{name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")})
