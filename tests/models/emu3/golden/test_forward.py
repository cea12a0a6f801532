"""The plain forward and the image tokenizer against what transformers' class computed of the same weights."""

from __future__ import annotations

import pytest
import torch

from flashu.models.emu3.vq import VQ
from tests.models.emu3.golden.recorded import PIXELS, close, goldens, hidden_states, model, unpadded, vq, vq_config

G = goldens()


@pytest.fixture(scope="module")
def tokenizer() -> VQ:
    return vq()


def test_hidden_states_of_every_layer() -> None:
    made, mask = model(), G["und.attention_mask"]
    with torch.inference_mode():
        for n, row in enumerate(G["und.full_ids"]):
            states = hidden_states(made, unpadded(row, mask[n]))
            for ours, golden in zip(states, G["und.hidden"][:, n], strict=True):
                close(ours, unpadded(golden, mask[n]))
            close(made.logits(states[-1][-1]), G["und.logits"][n])


def test_logits_over_codes_are_those_of_the_vocabulary() -> None:
    made, hidden = model(), torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    codes = made.spec.codes
    assert codes is not None
    close(made.logits(hidden, codes), made.logits(hidden)[:, slice(*codes)], 1e-6)


def test_padding_is_never_learnt() -> None:
    made = model()
    made.embed_tokens(torch.tensor([[made.config.ids.pad, 3]])).sum().backward()
    gradient = made.decoder.embed_tokens.weight.grad
    assert gradient is not None
    assert not gradient[made.config.ids.pad].any()
    assert gradient[3].any()


def test_inner_values_of_the_tokenizer(tokenizer: VQ) -> None:
    with torch.inference_mode():
        frames = tokenizer.encoder.spatial(G["vq.pixel_values"])
        repeated = frames[:, :, None].expand(-1, -1, tokenizer.config.temporal_downsample_factor, -1, -1)
        encoded, latents = tokenizer.latents(repeated)
    close(encoded.transpose(1, 2), G["vq.encoder_output"])
    close(latents.transpose(1, 2), G["vq.latents"])


def test_codes_of_pictures(tokenizer: VQ) -> None:
    """Padding a batch changes the codes of the smaller picture: each is encoded in its own size."""
    (h0, w0), (h1, w1) = (G["vq.image_sizes"] // tokenizer.factor).tolist()
    padded = tokenizer.encode(G["vq.pixel_values"])
    assert torch.equal(padded[0, :h0, :w0], G["vq.codes0"])
    assert torch.equal(padded[1, :h1, :w1], G["vq.codes1"])
    alone = tokenizer.encode(G["vq.pixel_values"][1:, :, : h1 * tokenizer.factor, : w1 * tokenizer.factor])[0]
    assert torch.equal(alone, G["vq.codes1_alone"])
    assert not torch.equal(alone, G["vq.codes1"])


def test_pixels_of_codes(tokenizer: VQ) -> None:
    close(tokenizer.decode(G["vq.codes0"][None]), G["vq.decoded0"], PIXELS)


def test_videos(tokenizer: VQ) -> None:
    codes = tokenizer.encode_video(G["vq.video_frames_u8"].float() / 127.5 - 1)
    assert torch.equal(codes, G["vq.video_codes"])
    frames = tokenizer.decode_video(codes)
    close(frames.mean((3, 4)), G["vq.video_decoded_mean"], PIXELS)
    close(frames[:, -1], G["vq.video_decoded_last"], PIXELS)


def test_a_picture_is_the_first_frame_of_what_its_codes_stand_for(tokenizer: VQ) -> None:
    codes = G["vq.codes0"][None]
    close(tokenizer.decode(codes), tokenizer.decode_video(codes[:, None])[:, 0], PIXELS)


def test_training_leaves_the_tokenizer_as_it_is(tokenizer: VQ) -> None:
    """Batch statistics would change its codes."""
    pixels = G["vq.pixel_values"]
    before, statistics = tokenizer.encode(pixels), tokenizer.encoder.time_res_stack[0].norm1.running_mean.clone()
    torch.nn.ModuleList([tokenizer]).train()
    assert not any(module.training for module in tokenizer.modules())
    assert torch.equal(tokenizer.encode(pixels), before)
    assert torch.equal(tokenizer.encoder.time_res_stack[0].norm1.running_mean, statistics)


def test_equal_distances_give_the_first_code() -> None:
    small = VQ(vq_config())
    with torch.no_grad():
        small.quantize.embedding.weight.copy_(torch.tensor([0.0, 1.0]).repeat(64)[:, None].expand(-1, 4))
    assert small.quantize.nearest(torch.tensor([[1.0] * 4, [0.0] * 4])).tolist() == [1, 0]
