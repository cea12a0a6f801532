"""The exact runtime against transformers' own class with made-up weights: codes, pixels, answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

import flashu
from flashu import CheckpointError, Engine
from flashu.inference.run import Run, complete
from flashu.models.defaults import GenerationDefaults
from flashu.models.janus.config import Ids, official_config
from flashu.models.janus.layout import drawing
from flashu.models.janus.load import load_model, load_processor
from flashu.models.janus.model import Janus
from flashu.models.janus.processor import Processor
from flashu.models.janus.text import Template, Text
from flashu.models.janus.vq import VQ
from flashu.plan.recipe import exact

transformers = pytest.importorskip("transformers")
IDS = Ids(bos=90, eos=91, pad=92, boi=93, eoi=94, image=95)
SIDE, VOCABULARY, CODES = 4, 96, 32
ROWS = [[90, 5, 6, 7, 93], [90, 11, 93]]


@pytest.fixture(scope="module")
def original() -> Any:
    text = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=90,
        eos_token_id=91,
        pad_token_id=92,
    )
    vision = transformers.JanusVisionConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=32,
        patch_size=8,
        projection_dim=32,
        num_image_tokens=SIDE**2,
    )
    vq = transformers.JanusVQVAEConfig(
        embed_dim=6,
        num_embeddings=CODES,
        latent_channels=8,
        base_channels=32,
        channel_multiplier=[1, 1, 2, 2],
        num_res_blocks=1,
        projection_dim=32,
        image_token_embed_dim=32,
    )
    config = transformers.JanusConfig(text_config=text, vision_config=vision, vq_config=vq, image_token_id=95)
    torch.manual_seed(0)
    made = transformers.JanusForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)  # so that logits differ
    given = made.generation_config
    given.bos_token_id, given.eos_token_id, given.pad_token_id = 90, 91, 92
    given.generation_kwargs = {"boi_token_id": 93}
    return made


@pytest.fixture(scope="module")
def engine(original: Any) -> Engine:
    config = official_config(original.config.to_dict(), IDS)
    model, vq = Janus(config).eval(), VQ(config.vq)
    theirs = original.state_dict()
    ours = {name: value for name, value in theirs.items() if not name.startswith("model.vqmodel.")}
    model.load_state_dict(ours)
    prefix = "model.vqmodel."
    parts = {name.removeprefix(prefix): value for name, value in theirs.items() if name.startswith(prefix)}
    vq.load_state_dict({name: parts[name] for name in vq.state_dict()})
    tokenizer = Tokenizer(models.WordLevel({f"w{n}": n for n in range(90)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    text = Text(tokenizer, IDS, Template("", "", ""), max_text=40)
    defaults = GenerationDefaults(SIDE**2, 5.0, 1.0, 32, 32, max_new_tokens=6)
    return Engine(model, Processor(text, vq, defaults, side=32, top_k=1))


def padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[IDS.pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("guidance", [5.0, 2.0])  # the original fails without guidance
def test_greedy_codes_and_pixels(original: Any, engine: Engine, guidance: float) -> None:
    call = padded(ROWS)
    codes = original.generate(
        **call, generation_mode="image", do_sample=False, guidance_scale=guidance, max_length=64, use_cache=True
    )
    drawn = engine.generate(["w5 w6 w7", "w11"], guidance=guidance)
    assert torch.equal(drawn.latents.flatten(1), codes)
    assert len(codes.unique()) > 4
    pixels = original.decode_image_tokens(codes).permute(0, 3, 1, 2).clamp(-1, 1)
    torch.testing.assert_close(engine.layout.pixels(drawn.latents), pixels, atol=2e-5, rtol=1e-4)


class Shared:
    """Noise as `torch.multinomial` draws it for a batch of one, from torch's own generator."""

    def exponential(self, *shape: int) -> torch.Tensor:
        return torch.empty(1, *shape).exponential_()[0]


def test_sampled_codes(original: Any, engine: Engine) -> None:
    call = padded(ROWS[:1])
    torch.manual_seed(7)
    codes = original.generate(
        **call, generation_mode="image", do_sample=True, guidance_scale=5.0, top_k=0, max_length=64
    )
    torch.manual_seed(7)
    negative = engine.processor.text.negative(ROWS[0])
    script = drawing(engine.model, ROWS[0], negative, {"uncond": 5.0}, Shared(), 0)  # type: ignore[arg-type]
    run = Run(script, exact(), engine.model.spec)
    with torch.inference_mode():
        complete(engine.executor(), [run])
    assert torch.equal(run.drawn[0].flatten(), codes[0])


def test_answers(original: Any, engine: Engine) -> None:
    generator = torch.Generator().manual_seed(3)
    pictures = [(torch.rand(3, 32, 32, generator=generator) * 255).to(torch.uint8) for _ in range(2)]
    pixels = torch.cat([engine.processor.pixels(picture) for picture in pictures])
    questions = ["w3 w4 w8", "w9"]
    block = [IDS.boi, *[IDS.image] * SIDE**2, IDS.eoi]
    rows = [[IDS.bos, *block, 3, 4, 8], [IDS.bos, *block, 9]]
    call = padded(rows)
    given = original.generate(**call, pixel_values=pixels, generation_mode="text", do_sample=False, max_new_tokens=6)
    answers = engine.answer(pictures, questions)
    for answer, ids in zip(answers, given[:, call["input_ids"].shape[1] :].tolist(), strict=True):
        expected = ids[: ids.index(IDS.eos)] if IDS.eos in ids else ids
        assert answer.tokens == expected
    features = original.model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(engine.model.embed_pixels(pixels), features, atol=1e-5, rtol=1e-4)  # type: ignore[attr-defined]


def test_logits_over_the_codes_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """e, and both branches in one forward."""
    seen: list[Any] = []
    plain = engine.model.logits

    def noted(hidden: torch.Tensor, codes: Any = None) -> torch.Tensor:
        seen.append((tuple(hidden.shape[:2]), codes))
        return plain(hidden, codes)

    monkeypatch.setattr(engine.model, "logits", noted)
    engine.generate("w5 w6")
    assert seen == [((2, 1), (VOCABULARY, VOCABULARY + CODES))] * SIDE**2


def test_a_folder_of_transformers_layout(original: Any, engine: Engine, tmp_path: Path) -> None:
    original.save_pretrained(tmp_path)
    tokenizer = Tokenizer(models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="<begin_of_image>"):
        load_processor(tmp_path)
    names = {93: "<begin_of_image>", 94: "<end_of_image>"}
    vocabulary = {names.get(n, f"w{n}"): n for n in range(VOCABULARY)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="w0")).save(str(tmp_path / "tokenizer.json"))
    model: Janus = load_model(tmp_path)
    processor = load_processor(tmp_path)
    assert processor.text.ids == IDS
    ids = torch.tensor([[5, 6, VOCABULARY, VOCABULARY + CODES - 1]])
    torch.testing.assert_close(model.embed_tokens(ids), engine.model.embed_tokens(ids))
    codes = torch.arange(SIDE**2).view(1, SIDE, SIDE)
    assert processor.vae is not None
    torch.testing.assert_close(processor.vae.decode(codes), engine.processor.vae.decode(codes))
    opened = flashu.load(tmp_path, device="cpu")
    drawn = opened.generate("w5 w6", decode=False).latents
    assert drawn.shape == (1, SIDE, SIDE)
