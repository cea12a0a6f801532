"""FLUX's autoencoder against diffusers' own class, on tiny random weights."""

import json

import pytest
import torch
from safetensors.torch import save_file

from flashu.errors import CheckpointError, ImageError
from flashu.models.bagel.autoencoder import AutoencoderSizes, FluxAutoencoder
from flashu.models.pictures import Autoencoder

diffusers = pytest.importorskip("diffusers")
CONFIG = {
    "block_out_channels": [32, 64, 128],
    "layers_per_block": 2,
    "latent_channels": 6,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 0.4,
    "shift_factor": 0.2,
}
SIZES = AutoencoderSizes(32, (1, 2, 4), 2, 6, 0.4, 0.2)


@pytest.fixture(scope="module")
def plain():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = diffusers.AutoencoderKL(**CONFIG).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases at rest would hide a mistake
                torch.nn.init.normal_(parameter, 0.5, 0.3)
        return model


@pytest.fixture(scope="module")
def folder(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flux")
    plain.save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def ours(folder):
    return FluxAutoencoder.load(folder)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_it_is_an_autoencoder(ours):
    assert isinstance(ours, Autoencoder)
    assert (ours.latent_channels, ours.factor, ours.sizes) == (6, 4, SIZES)


@torch.no_grad()
def test_encode_is_the_scaled_mean(ours, plain, images):
    expected = (plain.encode(images).latent_dist.mean - 0.2) * 0.4
    torch.testing.assert_close(ours.encode(images), expected)


@torch.no_grad()
def test_a_sample_is_the_mean_and_noise_of_the_images_own_generator(ours, plain, images):
    posterior = plain.encode(images).latent_dist
    noise = torch.stack([torch.randn(posterior.mean.shape[1:], generator=g) for g in generators(3, 4)])
    expected = (posterior.mean + posterior.std * noise - 0.2) * 0.4
    sampled = ours.encode(images, sample=True, generator=generators(3, 4))
    torch.testing.assert_close(sampled, expected)
    torch.testing.assert_close(ours.encode(images, noise=noise), expected)
    (alone,) = ours.encode(images[1:], sample=True, generator=generators(4)[0])
    torch.testing.assert_close(alone, expected[1])
    with pytest.raises(ImageError, match="3 generators for 2 images"):
        ours.encode(images, sample=True, generator=generators(1, 2, 3))


@torch.no_grad()
def test_decode_undoes_the_scale(ours, plain):
    latents = torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(ours.decode(latents), plain.decode(latents / 0.4 + 0.2).sample)


def test_saved_and_opened_again(ours, images, tmp_path):
    ours.save(tmp_path)
    for source in (tmp_path, tmp_path / "ae.safetensors"):
        again = FluxAutoencoder.load(source)
        assert again.sizes == SIZES
        assert torch.equal(again.encode(images), ours.encode(images))


def test_bf16_keeps_fp32_doors(ours, folder, images):
    half = FluxAutoencoder.load(folder, torch.bfloat16)
    latents = half.encode(images)
    assert latents.dtype == half.decode(latents).dtype == torch.float32
    torch.testing.assert_close(latents, ours.encode(images), atol=0.1, rtol=0.1)


def test_the_original_sizes_have_the_originals_keys():
    with torch.device("meta"):
        state = FluxAutoencoder().state_dict()
    assert len(state) == 244
    assert sum(value.numel() for value in state.values()) == 83_819_683
    shapes = {
        "encoder.down.2.downsample.conv.weight": [512, 512, 3, 3],
        "encoder.down.2.block.0.nin_shortcut.weight": [512, 256, 1, 1],
        "encoder.mid.attn_1.proj_out.weight": [512, 512, 1, 1],
        "encoder.conv_out.weight": [32, 512, 3, 3],
        "decoder.conv_in.weight": [512, 16, 3, 3],
        "decoder.up.0.block.0.conv1.weight": [128, 256, 3, 3],
        "decoder.up.3.upsample.conv.weight": [512, 512, 3, 3],
    }
    assert {name: list(state[name].shape) for name in shapes} == shapes


def test_the_original_file_states_no_sizes(ours, tmp_path):
    save_file(ours.state_dict(), tmp_path / "ae.safetensors")
    with pytest.raises(CheckpointError, match="of the wrong shape"):
        FluxAutoencoder.load(tmp_path)
    (tmp_path / "ae.json").write_text('{"depth": 2}')
    with pytest.raises(CheckpointError, match="depth is unknown"):
        FluxAutoencoder.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "AutoencoderKLWan"}, "holds a AutoencoderKLWan"),
        ({"use_quant_conv": True}, "use_quant_conv"),
        ({"shift_factor": None}, "not built like FLUX's"),
        ({"latent_channels": 4}, "of the wrong shape"),
        ({"layers_per_block": 3}, "missing"),
    ],
)
def test_other_autoencoders(folder, tmp_path, change, message):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | change))
    (tmp_path / "diffusion_pytorch_model.safetensors").hardlink_to(
        folder / "vae" / "diffusion_pytorch_model.safetensors"
    )
    with pytest.raises(CheckpointError, match=message):
        FluxAutoencoder.load(tmp_path)


def test_an_empty_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"no ae\.safetensors"):
        FluxAutoencoder.load(tmp_path)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 30, 32)])
def test_wrong_pixels(ours, shape):
    with pytest.raises(ImageError, match="multiples of 4"):
        ours.encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(6, 4, 4), (1, 5, 4, 4)])
def test_wrong_latents(ours, shape):
    with pytest.raises(ImageError, match="latents must be"):
        ours.decode(torch.zeros(shape))
