from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import GOLDEN
from tests.models.showo2.dropin.original import Original, dense
from torch import Tensor

from flashu.inference.samplers.solvers import grid


@pytest.fixture
def original() -> Original:
    module = Original().eval()
    module.load_state_dict(load_file(str(GOLDEN / "showo2_tiny.safetensors")))
    return module


@pytest.fixture(scope="session")
def script(goldens: dict[str, Tensor]) -> Callable[..., Tensor]:
    """The part of the authors' text-to-image script that meets the model: rows, mask, and an Euler sampler."""

    def sample(
        model: Any,
        z: Tensor,
        points: int = 12,
        guidance: float = 5.0,
        shift: float = 3.0,
        stop: int | None = None,
        seen: list[Tensor] | None = None,
        **more: Any,
    ) -> Tensor:
        ids, where = goldens["a.text_tokens"], goldens["a.modality_positions"]
        if guidance > 0:
            ids = torch.cat((ids, goldens["a.text_tokens_null"]))
            where = torch.cat((where, goldens["a.modality_positions_null"]))
            z = torch.cat((z, z))
        mask = dense(ids, where).to(next(model.parameters()).dtype)
        given = {"text_tokens": ids, "attention_mask": mask, "modality_positions": where} | more
        times = grid(points - 1, shift)
        x = z.float()
        for t, dt in list(zip(times[:-1], times.diff(), strict=True))[:stop]:
            v = model.t2i_generate(
                x,
                torch.ones(len(x)) * t,
                output_hidden_states=True,
                max_seq_len=40,
                guidance_scale=guidance,
                **given,
            )
            if seen is not None:
                seen.append(v)
            x = x + dt * v.float()
        return x.chunk(2)[0] if guidance > 0 else x

    return sample
