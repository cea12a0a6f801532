"""One storage, two views; anything but a Show-o2 is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import GOLDEN, TINY
from tests.models.showo2.dropin.original import Original
from torch import nn

import flashu
from flashu.models.showo2.dropin.adopt import sizes


@pytest.fixture
def original() -> Original:
    module = Original().eval()
    module.load_state_dict(load_file(str(GOLDEN / "showo2_tiny.safetensors")))
    return module


def test_sizes_are_read_off_the_tensors(original: Original) -> None:
    assert sizes(original) == TINY


def test_every_weight_and_buffer_is_shared(original: Original) -> None:
    view = flashu.adopt(original)
    theirs = dict(original.named_parameters(remove_duplicate=False))
    for name, parameter in view.named_parameters(remove_duplicate=False):
        assert parameter.data_ptr() == theirs[name].data_ptr()
    buffers = dict(original.named_buffers(remove_duplicate=False))
    for name, buffer in view.named_buffers(remove_duplicate=False):
        assert buffer.data_ptr() == buffers[name].data_ptr()
    assert view.showo.lm_head.weight is view.showo.model.embed_tokens.weight
    assert view.state_dict().keys() == original.state_dict().keys()


def test_untied_embeddings_stay_untied(original: Original) -> None:
    original.showo.lm_head.weight = nn.Parameter(original.showo.lm_head.weight.detach().clone())
    view = flashu.adopt(original)
    assert not view.config.llm.tie_word_embeddings
    assert view.showo.lm_head.weight is not view.showo.model.embed_tokens.weight


def test_rounded_frequencies_are_taken_over_by_default(original: Original) -> None:
    right = original.showo.model.rotary_emb.inv_freq.clone()
    original.to(torch.bfloat16)
    rounded = flashu.adopt(original).showo.model.rotary_emb.inv_freq
    exact = flashu.adopt(original, exact_rope=True).showo.model.rotary_emb.inv_freq
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(exact, right)
    assert not torch.equal(exact, rounded.float())


def test_unknown_frequencies_are_not_replaced(original: Original) -> None:
    original.showo.config.rope_theta = 5e5
    with pytest.raises(flashu.CheckpointError, match="known frequencies"):
        flashu.adopt(original, exact_rope=True)


def test_other_modules_are_refused(original: Original) -> None:
    with pytest.raises(flashu.CheckpointError, match="not a Show-o2"):
        flashu.adopt(nn.Linear(2, 2))
    original.showo.model.norm.adapter = nn.Linear(2, 2)
    with pytest.raises(flashu.CheckpointError, match=r"norm\.adapter"):
        flashu.adopt(original)
