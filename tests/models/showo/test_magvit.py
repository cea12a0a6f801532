"""MAGVIT-v2: its convolutions against diffusers' blocks, its codes against the rule they are read by."""

import pytest
import torch
from safetensors.torch import save_file

from flashu.errors import CheckpointError, ImageError
from flashu.models.showo.magvit import Bits, MagVit

WIDTHS = (32, 64, 64)
SIZES = {"width": 32, "bits": 5, "encoder": ((1, 2, 2), (2, 2, 2)), "decoder": ((1, 2, 2), (2, 2, 2))}


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def model(images):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MagVit(**SIZES).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 0.1, 0.3)
        model.requires_grad_(False)
        # Centred, so that both signs are met in every channel.
        model.encoder.quant_conv.bias -= model.encoder(images).mean((0, 2, 3))
        return model


def diffusers_name(name):
    """Of a tensor of the encoder or decoder in diffusers' blocks."""
    parts = name.split(".")
    if parts[0] == "down":
        parts[0] = "down_blocks"
    elif parts[0] == "up":
        parts[:2] = ["up_blocks", str(len(WIDTHS) - 1 - int(parts[1]))]
    elif parts[0] == "mid":
        parts[:2] = {"block_1": ["mid_block.resnets.0"], "block_2": ["mid_block.resnets.1"]}.get(
            parts[1], ["mid_block.attentions.0"]
        )
    renamed = {"block": "resnets", "downsample": "downsamplers.0", "upsample": "upsamplers.0"}
    renamed |= {"nin_shortcut": "conv_shortcut", "norm_out": "conv_norm_out", "norm": "group_norm"}
    renamed |= {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    return ".".join(renamed.get(part, part) for part in parts)


def filled(theirs, ours):
    state = {diffusers_name(n): v for n, v in ours.state_dict().items() if "quant_conv" not in n}
    wanted = theirs.state_dict()
    assert state.keys() == wanted.keys()
    theirs.load_state_dict({name: value.reshape(wanted[name].shape) for name, value in state.items()})
    return theirs.eval()


@torch.no_grad()
def test_encode_reads_the_signs_of_the_encoder(model, images):
    vae = pytest.importorskip("diffusers.models.autoencoders.vae")
    sizes = {"block_out_channels": WIDTHS, "layers_per_block": 2, "double_z": False, "out_channels": 5}
    theirs = filled(vae.Encoder(down_block_types=("DownEncoderBlock2D",) * 3, **sizes), model.encoder)
    z = model.encoder.quant_conv(theirs(images)).flatten(2).transpose(1, 2)
    expected = [[int("".join("01"[int(v > 0)] for v in place), 2) for place in image] for image in z]
    codes = model.encode(images)
    assert codes.tolist() == expected
    assert len(codes.unique()) > 8


@torch.no_grad()
def test_decode_gives_the_decoder_signs(model):
    vae = pytest.importorskip("diffusers.models.autoencoders.vae")
    sizes = {"block_out_channels": WIDTHS, "layers_per_block": 1, "in_channels": 5}
    theirs = filled(vae.Decoder(up_block_types=("UpDecoderBlock2D",) * 3, **sizes), model.decoder)
    codes = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(2))
    bits = [[[float(f"{code:05b}"[channel]) * 2 - 1 for code in row] for channel in range(5)] for row in codes.tolist()]
    expected = theirs(model.decoder.post_quant_conv(torch.tensor(bits).reshape(2, 5, 2, 3)))
    drawn = model.decode(codes, (2, 3))
    assert drawn.shape == (2, 3, 8, 12)
    torch.testing.assert_close(drawn, expected)


def test_a_square_is_assumed(model):
    codes = torch.arange(9)[None]
    assert torch.equal(model.decode(codes), model.decode(codes, (3, 3)))


def test_codes_survive_the_signs():
    bits = Bits(13)
    codes = torch.randint(0, 8192, (2, 12))
    vectors = bits.vectors(codes)
    assert torch.equal(bits.codes(vectors.transpose(1, 2).reshape(2, 13, 3, 4)), codes)
    assert bits.vectors(torch.tensor(4096)).tolist() == [1.0] + [-1.0] * 12
    assert bits.codes(torch.zeros(1, 13, 1, 1)).item() == 0


def test_the_official_keys():
    with torch.device("meta"):
        state = MagVit().state_dict()
    assert len(state) == 382
    assert sum(v.numel() for n, v in state.items() if not n.startswith("quantize.")) == 95_387_004
    shapes = {
        "encoder.quant_conv.weight": [13, 13, 1, 1],
        "encoder.down.3.block.0.nin_shortcut.weight": [512, 256, 1, 1],
        "encoder.down.4.block.3.conv2.weight": [512, 512, 3, 3],
        "encoder.down.3.downsample.conv.weight": [512, 512, 3, 3],
        "decoder.up.1.block.0.nin_shortcut.weight": [128, 256, 1, 1],
        "decoder.up.4.upsample.conv.weight": [512, 512, 3, 3],
        "decoder.post_quant_conv.bias": [13],
        "quantize.embedding": [8192, 13],
        "quantize.power_vals": [13],
    }
    assert {name: list(state[name].shape) for name in shapes} == shapes


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A folder of the official size."""
    folder = tmp_path_factory.mktemp("magvit")
    with torch.device("meta"):
        state = MagVit().state_dict()
    filled = {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in state.items()}
    torch.save(filled | Bits(13).state_dict(prefix="quantize."), folder / "pytorch_model.bin")
    return folder


def test_the_official_file(official):
    model = MagVit.load(official)
    assert model.factor == 16
    assert model.encode(torch.zeros(1, 3, 32, 32)).tolist() == [[0] * 4]


def test_other_files(official, tmp_path):
    state = torch.load(official / "pytorch_model.bin", mmap=True)
    for changed, message in (
        ({"quantize.embedding": -state["quantize.embedding"]}, "not the table of signs"),
        ({"quantize.power_vals": state["quantize.power_vals"].float()}, "of the wrong type"),
        ({"encoder.conv_in.bias": torch.zeros(64)}, "of the wrong shape"),
    ):
        save_file(state | changed, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            MagVit.load(tmp_path)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 30, 32)])
def test_wrong_pixels(model, shape):
    with pytest.raises(ImageError, match="multiples of 4"):
        model.encode(torch.zeros(shape))


@pytest.mark.parametrize("codes", [torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 4), torch.full((1, 4), 32)])
def test_wrong_codes(model, codes):
    with pytest.raises(ImageError, match="codes must"):
        model.decode(codes)
