"""Pictures in, pictures out: what a user may give as one, and the pixels a model sees of it."""

from __future__ import annotations

import math
import os
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from flashu.errors import ImageError

Picture: TypeAlias = "Image.Image | str | os.PathLike[str] | Tensor | np.ndarray"
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr", "LAB", "HSV")
MAX_ASPECT = 64
OTHER_FORMATS = {
    ".heic": "HEIC: convert it to PNG or JPEG, or register pillow-heif",
    ".heif": "HEIF: convert it to PNG or JPEG, or register pillow-heif",
    ".svg": "SVG is drawn, not stored, in pixels: export it as PNG",
    ".pdf": "PDF: export the page as PNG",
}
"""What to do with files that pillow does not read."""


@runtime_checkable
class Autoencoder(Protocol):
    """Pixels to normalised latents and back."""

    @property
    def latent_channels(self) -> int: ...

    @property
    def factor(self) -> int:
        """Pixels per latent cell, each way."""

    def encode(self, pixels: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """pixels [B, 3, H, W] in [-1, 1] -> latents [B, c, H/factor, W/factor]; the mean, or a sample around it."""

    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, c, h, w] -> pixels [B, 3, h*factor, w*factor] in [-1, 1]."""


def pixels(image: Picture, height: int, width: int, whole: bool = False) -> Tensor:
    """One picture -> [1, 3, height, width] in [-1, 1]: RGB, resized to cover (bicubic), centre-cropped; ``whole``:
    resized to fit, with black around it, as the original shows frames of a video.

    A tensor is [3, H, W] or [1, 3, H, W], uint8 or floating in [-1, 1]; an array is uint8 [H, W, 3].
    Floating pixels that already have the size pass through unchanged. Anything unusable raises ``ImageError``.
    """
    if height < 1 or width < 1:
        raise ImageError(f"the size must be positive, not {height}x{width}")
    if isinstance(image, Tensor):
        tensor = _one_image(image)
        if tensor.is_floating_point() and tensor.shape[-2:] == (height, width):
            return tensor[None].float()
    return normalised((_fit if whole else _cover)(opened(image), height, width))


def opened(image: Picture, white: bool = False) -> Image.Image:
    """One picture in RGB, in its own size; ``white``: what is transparent shows white. Anything unusable raises
    ``ImageError``."""
    if isinstance(image, Tensor):
        tensor = _one_image(image)
        image = to_pil(tensor[None])[0] if tensor.is_floating_point() else _from_array(tensor.permute(1, 2, 0).numpy())
    elif isinstance(image, np.ndarray):
        image = _from_array(image)
    elif isinstance(image, (str, os.PathLike)):
        image = _opened(image)
    elif not isinstance(image, Image.Image):
        raise ImageError(f"an image must be a PIL image, a path, a tensor or an array, not {type(image).__name__}")
    if white and image.has_transparency_data:
        whole = image.convert("RGBA")
        image = Image.new("RGB", whole.size, (255, 255, 255))
        image.paste(whole, mask=whole.getchannel("A"))
    return _rgb(image)


def normalised(image: Image.Image) -> Tensor:
    """RGB levels -> [1, 3, H, W] in [-1, 1]."""
    levels = np.array(image)
    return torch.from_numpy(levels).permute(2, 0, 1)[None].float().div(255).sub(0.5).div(0.5)


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in [-1, 1] -> pictures; levels are truncated, as in the original."""
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
        raise ImageError(f"pixels must be floating [B, 3, H, W], not {pixels.dtype} {list(pixels.shape)}")
    if not pixels.isfinite().all():
        raise ImageError("the pixels contain NaN or infinity: the run diverged (try dtype float32)")
    levels = ((pixels.detach().float() + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8)
    return [Image.fromarray(frame) for frame in levels.permute(0, 2, 3, 1).cpu().numpy()]


def _one_image(tensor: Tensor) -> Tensor:
    shape = list(tensor.shape)
    if tensor.ndim == 4 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] != 3 or tensor.numel() == 0:
        raise ImageError(f"an image tensor must be [3, H, W] or [1, 3, H, W], not {shape}")
    if tensor.is_meta or tensor.layout is not torch.strided:
        raise ImageError("an image tensor must hold plain values, not be sparse or on the meta device")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        if not tensor.isfinite().all():
            raise ImageError("the image tensor contains NaN or infinity")
        if tensor.abs().max() > 1:
            raise ImageError("a floating image tensor must lie in [-1, 1]; use uint8 for levels 0 to 255")
    elif tensor.dtype != torch.uint8:
        raise ImageError(f"an image tensor must be uint8 or floating, not {tensor.dtype}")
    return tensor


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(f"an image array must be uint8 [H, W, 3], not {array.dtype} {list(array.shape)}")
    return Image.fromarray(np.ascontiguousarray(array))


def _opened(path: str | os.PathLike[str]) -> Image.Image:
    name = os.fspath(path)
    if isinstance(name, str) and name.startswith(("http://", "https://", "data:")):
        raise ImageError(f"{name[:80]}: addresses are not opened: save the picture to a file first")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ImageError(f"{path}: is not a regular file")
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError as e:
        raise ImageError(f"{path}: there is no such file") from e
    except (UnidentifiedImageError, Image.DecompressionBombError) as e:
        remedy = OTHER_FORMATS.get(os.path.splitext(name)[1].lower(), str(e))
        raise ImageError(f"{path}: not an image that can be read ({remedy})") from e
    except Exception as e:  # of a damaged file, pillow's readers raise errors of every kind
        raise ImageError(f"{path}: cannot be read, it may be damaged ({e})") from e


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode not in EIGHT_BIT_MODES:
        raise ImageError(f"an image of mode {image.mode!r} has no 8-bit colours: convert it to RGB first")
    if 0 in image.size:
        raise ImageError("the image is empty")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ImageError(f"an image of {image.width}x{image.height} is too narrow: crop it first")
    try:
        return ImageOps.exif_transpose(image).convert("RGB")  # upright, as cameras mean it
    except Exception as e:  # pillow reads a file when its pixels are first asked for
        raise ImageError(f"the image cannot be read, its file may be damaged or closed ({e})") from e


def _cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resizes so that the image just covers the size (PIL's antialiased bicubic), then crops its centre."""
    if image.width * height <= image.height * width:
        size = (width, max(height, int(width * image.height / image.width)))
    else:
        size = (max(width, int(height * image.width / image.height)), height)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resizes so that the image just fits the size, and centres it on black."""
    across, down = width / image.width, height / image.height
    if across < down:
        size = (width, min(math.ceil(image.height * across), height))
    else:
        size = (min(math.ceil(image.width * down), width), height)
    whole = Image.new("RGB", (width, height))
    whole.paste(image.resize(size, Image.Resampling.BICUBIC), ((width - size[0]) // 2, (height - size[1]) // 2))
    return whole
