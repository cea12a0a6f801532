"""How alike images are, of the same and of others."""

from __future__ import annotations

import pytest
import torch

from flashu.evaluation.fidelity import fidelity, stacked


def test_fidelity_of_the_same_and_of_another_image() -> None:
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    same = fidelity(x, x, z, z)
    assert (same.psnr, same.latent) == (None, 0)
    assert same.ssim == pytest.approx(1)
    off = fidelity((x * 0.8 + 0.1), x, z * 1.1, z)
    assert off.psnr == pytest.approx(float(-10 * torch.log10((0.2 * x - 0.1).square().mean())), abs=1e-4)
    assert 0.5 < off.ssim < 1
    assert off.latent == pytest.approx(0.1, abs=1e-6)


def test_latents_are_stacked_only_if_all_were_kept() -> None:
    z = torch.ones(4, 2, 2)
    both = stacked([z, z])
    assert both is not None
    assert both.shape == (2, 4, 2, 2)
    assert stacked([z, None]) is stacked([]) is None
