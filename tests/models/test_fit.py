"""What does not fit in memory says so before anything is read, with the options that would fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import flashu
from flashu.models import fit, registry
from flashu.models.fit import Holding, check_fits, weight_counts
from flashu.models.memory import held_bytes, parameter_bytes
from flashu.models.offload import offload
from flashu.models.registry import family, open_model, resolve
from flashu.plan.spec import WeightCounts
from tests.conftest import tiny_model

MAIN, CARD = torch.device("cpu"), torch.device("cuda", 0)
NAME = "showlab/show-o2-7B"
BF16 = torch.bfloat16


@pytest.fixture
def free(monkeypatch):
    """Set with free(device=GB, ...)."""

    def setting(**gigabytes):
        monkeypatch.setattr(fit, "free_bytes", lambda device: int(gigabytes[device.type] * 1e9))

    return setting


@pytest.fixture(scope="module")
def large():
    checkpoint = resolve(NAME)
    return family("showo2").sizes(checkpoint)


def refusal(sizes, holding, recipe=None):
    with pytest.raises(flashu.FlashUError) as caught:
        check_fits(sizes, holding, recipe)
    return str(caught.value)


def test_the_counts_are_those_of_the_weights() -> None:
    model = tiny_model()
    counts = weight_counts(model)
    assert 4 * counts.total == parameter_bytes(model)
    offload(model, "cpu")
    kept = held_bytes(model)
    largest = max(sum(p.numel() for p in ffn.parameters()) for ffn in tiny_model().ffns().values())
    words = model.get_input_embeddings().weight.numel()
    assert counts.staying <= kept // 4 - words + max(largest, words)


def test_what_is_narrowed_is_counted() -> None:
    pytest.importorskip("torchao")
    model = open_model("scenes")
    counts = weight_counts(model)
    done = model.quantize("int8-weight")
    narrow = 4 * (counts.total - counts.projections) + counts.projections
    assert narrow == pytest.approx(done.after, rel=0.03)  # scales and tables besides


def test_the_7b_by_number(large) -> None:
    counts = large.weights(None)
    assert round(2 * counts.total / 1e9, 2) == 17.86  # docs/memory.md
    assert round((2 * (counts.total - counts.projections) + counts.projections) / 1e9, 1) == 10.5
    assert 2 * fit.bank_values(large, flashu.PRESETS["paper"]()) == pytest.approx(10.25e9, rel=0.01)


def test_enough_is_enough(large, free) -> None:
    free(cuda=18, cpu=1)
    check_fits(large, Holding(CARD, BF16))


def test_all_that_would_fit_is_named(large, free) -> None:
    free(cuda=16, cpu=64)
    said = refusal(large, Holding(CARD, BF16))
    assert f"{NAME} needs 17.9 GB on cuda:0" in said
    assert "16.0 GB are available on cuda:0" in said
    assert "quantize='int8-weight' (10.5 GB on cuda:0)" in said
    assert "offload=True (" in said
    assert "and 17.9 GB of main memory)" in said
    assert "in_place" not in said


def test_a_copied_bank_counts(large, free) -> None:
    free(cuda=24, cpu=8)
    paper = flashu.PRESETS["paper"]()
    said = refusal(large, Holding(CARD, BF16), paper)
    assert "needs 28.1 GB on cuda:0 for its weights, a copied FFN bank of 'paper' included" in said
    assert "in_place=True (17.9 GB on cuda:0)" in said
    assert "quantize='int8-weight' (15.6 GB on cuda:0)" in said
    assert "offload" not in said  # main memory is too small for it
    check_fits(large, Holding(CARD, BF16, in_place=True), paper)
    check_fits(large, Holding(CARD, BF16, quantize="int8"), paper)


def test_two_changes_where_one_is_not_enough(large, free) -> None:
    free(cuda=12, cpu=8)
    said = refusal(large, Holding(CARD, torch.float32))
    assert "dtype=torch.bfloat16 and quantize='int8-weight' (10.5 GB on cuda:0)" in said
    free(cuda=8, cpu=8)
    assert "neither quantize=, offload= nor in_place= would make it fit" in refusal(large, Holding(CARD, BF16))


def test_main_memory_is_checked_too(large, free) -> None:
    free(cpu=16)
    said = refusal(large, Holding(MAIN, BF16))
    assert "needs 17.9 GB of main memory" in said
    assert "offload" not in said


def test_a_part_of_the_model(large, free) -> None:
    free(cuda=16, cpu=1)
    counts = {None: WeightCounts(14_000_000_000, 0, 10**10), "understanding": WeightCounts(7_000_000_000, 0, 10**10)}
    half = replace(large, parts=("understanding",), weights=counts.__getitem__)
    said = refusal(half, Holding(CARD, BF16))
    assert "parts='understanding' (14.0 GB on cuda:0)" in said
    check_fits(half, Holding(CARD, BF16, part="understanding"))


def test_nothing_is_read(monkeypatch, free) -> None:
    free(cpu=0.001)
    known = family("showo2")
    monkeypatch.setattr(registry, "family_of", lambda _: replace(known, load=pytest.fail))
    with pytest.raises(flashu.FlashUError, match=r"scenes needs .* of main memory .* Nothing was loaded\."):
        flashu.load("scenes")


def test_an_official_name_needs_no_connection(free) -> None:
    free(cpu=10)
    with pytest.raises(flashu.FlashUError, match=r"show-o2-7B needs 17\.9 GB"):
        flashu.load(NAME, "paper", in_place=True)


def test_what_linux_says(tmp_path, monkeypatch) -> None:
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal:  9000 kB\nMemAvailable:  2000 kB\n")
    monkeypatch.setattr(fit, "MEMINFO", memory)
    monkeypatch.setattr(fit, "CGROUP", tmp_path)
    assert fit.free_bytes(MAIN) == 2000 * 1024
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 1\nactive_file 30000\ninactive_file 50000\n")
    assert fit.free_bytes(MAIN) == 180_000
    (tmp_path / "memory.max").write_text("max\n")
    assert fit.free_bytes(MAIN) == 2000 * 1024
    memory.unlink()
    assert fit.free_bytes(MAIN) is None
    assert fit.free_bytes(torch.device("meta")) is None


def test_quantized_while_it_is_read(tmp_path) -> None:
    """The same weights, fingerprint and answers as quantized afterwards; not one projection is held wide."""
    pytest.importorskip("torchao")
    after = open_model("scenes", dtype=BF16)
    done = after.quantize("int8-weight")
    asread = open_model("scenes", dtype=BF16, quantize="int8-weight")
    assert asread.quantization == "int8-weight"
    assert asread.fingerprint == after.fingerprint
    assert held_bytes(asread) == done.after
    for a, b in zip(after.parameters(), asread.parameters(), strict=True):
        assert torch.equal(getattr(a, "dequantize", a.clone)(), getattr(b, "dequantize", b.clone)())
    with pytest.raises(flashu.FlashUError, match="no quantization 'int3'"):
        open_model("scenes", quantize="int3")
