"""The Wan2.1 wrapper against diffusers' own class, on a tiny random autoencoder."""

import re
import sys

import pytest
import torch

from flashu.errors import CheckpointError, ImageError
from flashu.models.pictures import Autoencoder
from flashu.models.showo2.vae import WanAutoencoder

diffusers = pytest.importorskip("diffusers")
SIZES = {"base_dim": 8, "z_dim": 4, "latents_mean": [0.1, -0.2, 0.3, -0.4], "latents_std": [0.5, 1.5, 2.0, 3.0]}
ORIGINAL_NAMES = (  # diffusers' names to those of the original file, where no block number changes
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"^encoder\.down_blocks\.", "encoder.downsamples."),
    (r"(middle\.[02]|samples\.\d+)\.norm1\.", r"\1.residual.0."),
    (r"(middle\.[02]|samples\.\d+)\.conv1\.", r"\1.residual.2."),
    (r"(middle\.[02]|samples\.\d+)\.norm2\.", r"\1.residual.3."),
    (r"(middle\.[02]|samples\.\d+)\.conv2\.", r"\1.residual.6."),
)


@pytest.fixture(scope="module")
def plain():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return diffusers.AutoencoderKLWan(**SIZES).eval()


@pytest.fixture
def wan(plain):
    return WanAutoencoder(plain)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1


def original_name(name):
    """Undoes what the conversion does: the original numbers the decoder's blocks through, upsamplers included."""
    if up := re.match(r"decoder\.up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)\.", name):
        block, kind, i = int(up[1]), up[2], int(up[3])
        name = f"decoder.upsamples.{block * 4 + (i if kind == 'resnets' else 3)}.{name[up.end() :]}"
    for pattern, replacement in ORIGINAL_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def per_channel(values):
    return torch.tensor(values).view(1, -1, 1, 1)


def test_it_is_an_autoencoder(wan):
    assert isinstance(wan, Autoencoder)
    assert (wan.latent_channels, wan.factor) == (4, 8)


@torch.no_grad()
def test_encode_is_the_normalised_mean(wan, plain, images):
    mean = plain.encode(images[:, :, None]).latent_dist.mean[:, :, 0]
    expected = (mean - per_channel(SIZES["latents_mean"])) / per_channel(SIZES["latents_std"])
    latents = wan.encode(images)
    assert latents.shape == (2, 4, 4, 5)
    assert torch.equal(latents, expected)
    assert torch.equal(latents, wan.encode(images))


@torch.no_grad()
def test_sampling_adds_noise_that_is_not_divided_by_std(wan, plain, images):
    logvar = plain.encode(images[:, :, None]).latent_dist.logvar[:, :, 0]
    noise = torch.randn(2, 4, 1, 4, 5, generator=torch.Generator().manual_seed(7))[:, :, 0]
    sampled = wan.encode(images, sample=True, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(sampled, wan.encode(images) + (logvar / 2).exp() * noise)


@torch.no_grad()
def test_decode_undoes_the_normalisation(wan, plain):
    latents = torch.randn(2, 4, 4, 5, generator=torch.Generator().manual_seed(2))
    raw = latents * per_channel(SIZES["latents_std"]) + per_channel(SIZES["latents_mean"])
    expected = plain.decode(raw[:, :, None]).sample[:, :, 0]
    assert expected.shape == (2, 3, 32, 40)
    assert torch.equal(wan.decode(latents), expected)
    assert wan.decode(latents * 100).abs().max() <= 1


def test_tiles_and_slices(plain):
    wan = WanAutoencoder(diffusers.AutoencoderKLWan(**SIZES))
    wan.vae.load_state_dict(plain.state_dict())
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    whole = wan.decode(latents)
    wan.enable_slicing()
    torch.testing.assert_close(wan.decode(latents), whole)
    wan.enable_tiling(
        tile_sample_min_height=48,
        tile_sample_min_width=48,
        tile_sample_stride_height=32,
        tile_sample_stride_width=32,
    )
    tiled = wan.decode(latents)
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)  # the seams are blended
    assert wan.encode(tiled).shape == latents.shape


def test_half_precision_keeps_fp32_doors(plain, images):
    wan = WanAutoencoder(diffusers.AutoencoderKLWan(**SIZES))
    wan.vae.load_state_dict(plain.state_dict())
    exact = wan.encode(images)
    wan.to(torch.bfloat16)
    latents = wan.encode(images)
    assert latents.dtype == wan.decode(latents).dtype == torch.float32
    torch.testing.assert_close(latents, exact, atol=0.05, rtol=0.05)


def test_the_original_file(plain, images, tmp_path):
    state = {original_name(name): value for name, value in plain.state_dict().items()}
    assert not any("block" in name or "resnet" in name for name in state)
    torch.save(state, tmp_path / "Wan2.1_VAE.pth")
    wan = WanAutoencoder.load(tmp_path / "Wan2.1_VAE.pth", **SIZES)
    assert wan.vae.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(wan.encode(images), WanAutoencoder(plain).encode(images))


def test_the_original_file_of_other_sizes_is_refused(plain, tmp_path):
    torch.save({original_name(n): v for n, v in plain.state_dict().items()}, tmp_path / "Wan2.1_VAE.pth")
    with pytest.raises(CheckpointError, match="of the wrong shape"):
        WanAutoencoder.load(tmp_path / "Wan2.1_VAE.pth")


@pytest.mark.parametrize("inner", ["", "vae"])
def test_a_diffusers_folder(wan, images, tmp_path, inner):
    wan.save(tmp_path / inner)
    again = WanAutoencoder.load(tmp_path)
    assert again.vae.config.latents_mean == SIZES["latents_mean"]
    assert torch.equal(again.encode(images), wan.encode(images))
    assert WanAutoencoder.load(tmp_path, dtype=torch.bfloat16).vae.dtype == torch.bfloat16


def test_wrong_folders(wan, tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        WanAutoencoder.load(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(CheckpointError, match="AutoencoderKL, not"):
        WanAutoencoder.load(tmp_path)
    with pytest.raises(CheckpointError, match="states its own sizes"):
        WanAutoencoder.load(tmp_path, z_dim=4)


def test_without_diffusers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(CheckpointError, match=r"\.\[wan\]"):
        WanAutoencoder.load("anything/at-all")


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 30, 32)])
def test_wrong_pixels(wan, shape):
    with pytest.raises(ImageError, match="multiples of 8"):
        wan.encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(4, 4, 4), (1, 3, 4, 4)])
def test_wrong_latents(wan, shape):
    with pytest.raises(ImageError, match="latents must be"):
        wan.decode(torch.zeros(shape))
