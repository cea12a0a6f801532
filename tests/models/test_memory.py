"""What a model holds, by the storages behind its tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flashu.models.memory import held_bytes, parameter_bytes
from flashu.models.packing import pack


class Views(nn.Module):
    """Two parameters of 64 floats each that are views of one storage of 256."""

    def __init__(self) -> None:
        super().__init__()
        joint = torch.zeros(256)
        self.first = nn.Parameter(joint[:64])
        self.second = nn.Parameter(joint[64:128])


def test_views_hold_the_storage_they_are_cut_from() -> None:
    module = Views()
    assert parameter_bytes(module) == 2 * 64 * 4
    assert held_bytes(module) == 256 * 4


def test_a_shared_storage_counts_once_and_an_attribute_counts() -> None:
    module = nn.Sequential(Views(), nn.Linear(4, 8, bias=False))
    module.add_module("tied", module[1])
    module.register_buffer("table", torch.zeros(10, dtype=torch.int64))
    assert held_bytes(module) == 256 * 4 + 32 * 4 + 10 * 8
    module.cache = [(torch.zeros(3), {"old": torch.zeros(5)})]  # type: ignore[assignment]
    assert held_bytes(module) == 256 * 4 + 32 * 4 + 10 * 8 + 8 * 4


def test_a_replaced_parameter_frees_a_storage_only_with_its_last_view() -> None:
    module = Views()
    module.first = nn.Parameter(torch.zeros(64))
    assert held_bytes(module) == 256 * 4 + 64 * 4
    module.second = nn.Parameter(torch.zeros(64))
    assert held_bytes(module) == 2 * 64 * 4


def test_nothing_is_held_on_the_meta_device() -> None:
    assert held_bytes(nn.Linear(1000, 1000, device="meta")) == 0


def test_quantized_weights_count_at_their_true_size() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    module = nn.Sequential(nn.Linear(64, 32, bias=False))
    assert held_bytes(module) == parameter_bytes(module) == 64 * 32 * 4
    quantization.quantize_(module, quantization.Int8WeightOnlyConfig(set_inductor_config=False))
    scales = held_bytes(module) - 64 * 32  # a scale for each row, and at most a zero point
    assert 32 * 4 <= scales <= 32 * 8
    assert parameter_bytes(module) == held_bytes(module)


def test_a_packed_weight_counts_once() -> None:
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        pytest.skip("no bf16 products by oneDNN here")
    module = nn.Sequential(nn.Linear(64, 32, bias=False, dtype=torch.bfloat16))
    pack(module)
    assert held_bytes(module) == 64 * 32 * 2
