"""Calls of the authors' inferencer on an instance of their class, patched and not."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

import flashu
from flashu.models.bagel.dropin.handle import DropIn
from flashu.models.registry import family
from flashu.plan.methods import FewerSteps, FFNPrune, HeadCache
from flashu.plan.recipe import Recipe
from tests.models.bagel.dropin.original import AuthorsBagel, NaiveCache
from tests.models.bagel.golden.recorded import MARKERS, config, model, tensors, text

EOS = 251


@pytest.fixture(scope="module")
def authors():
    module = AuthorsBagel(config())
    module.load_state_dict(model().state_dict())
    return module.eval().requires_grad_(False)


def drawing(module, edit=False):
    """As the inferencer calls it: three caches, one of them deep-copied."""
    main, image = NaiveCache(4), NaiveCache(4)
    position, plain, length = 0, NaiveCache(4), 0
    if edit:
        position = module.picture(main, 0, tensors()["a.edit.vae_latent"][0], tensors()["a.edit.vit_image"], MARKERS)
        plain, length = deepcopy(main), 28
    text_position, words = position, text("prompt")
    position = module.text(main, position, words)
    image_position = module.text(image, 0, words)
    size = (3, 5)
    noise = torch.randn(15, 16, generator=torch.Generator().manual_seed(5))
    given = module.prepare_vae_latent(length + len(words), position, size, MARKERS, noise)
    for prefix, cache, held, at in (
        ("cfg_text_", plain, length, text_position),
        ("cfg_img_", image, len(words), image_position),
    ):
        given[f"{prefix}past_key_values"] = cache
        given[f"{prefix}key_values_lens"] = torch.tensor([held], dtype=torch.int32)
        given[f"{prefix}packed_position_ids"] = torch.full((17,), at)
    settings = {"num_timesteps": 10, "timestep_shift": 3.0, "cfg_interval": (0.4, 1.0), "cfg_text_scale": 4.0}
    settings |= {"cfg_img_scale": 1.5, "cfg_renorm_type": "global"}
    return module.generate_image(past_key_values=main, **given, **settings)[0]


def writing(module):
    cache = NaiveCache(4)
    position = module.text(cache, 0, text("question"))
    return module.generate_text(
        past_key_values=cache,
        key_values_lens=torch.tensor([position], dtype=torch.int32),
        packed_start_tokens=torch.tensor([250]),
        packed_query_position_ids=torch.tensor([position]),
        max_length=8,
        end_token_id=EOS,
    )


def test_the_authors_class_is_recognized(authors):
    assert family("bagel").recognizes(authors)
    assert not family("bagel").recognizes(model())


@pytest.mark.parametrize("edit", [False, True])
def test_exact_gives_the_same_latents(authors, edit):
    want = drawing(authors, edit)
    handle = DropIn(authors, "exact")
    handle.bind(authors)
    try:
        authors.calls.clear()
        got = drawing(authors, edit)
        assert not authors.calls
    finally:
        handle.unbind(authors)
    assert (got - want).abs().max() < 5e-5
    # Without pictures, two of the three caches came out equal and are one row.
    assert {step.rows for step in handle.trace} == ({3, 1} if edit else {2, 1})
    drawing(authors)
    assert authors.calls == ["generate_image"]


def test_exact_gives_the_same_tokens(authors):
    want = writing(authors)
    handle = DropIn(authors, "exact")
    handle.bind(authors)
    try:
        assert torch.equal(writing(authors), want)
    finally:
        handle.unbind(authors)


@pytest.mark.parametrize("assign", [False, True])  # into its parameters, or others instead of them
def test_the_instance_may_change_in_between(assign):
    module = AuthorsBagel(config())
    module.load_state_dict(model().state_dict())
    handle = DropIn(module.eval().requires_grad_(False), "exact")
    handle.bind(module)
    before = drawing(module)
    module.load_state_dict({name: value * 1.1 for name, value in module.state_dict().items()}, assign=assign)
    got = drawing(module)
    handle.unbind(module)
    assert (got - drawing(module)).abs().max() < 5e-5
    assert (got - before).abs().max() > 1e-2


def test_recipes_act_on_the_authors_class(authors):
    recipe = Recipe((FFNPrune("generation", ratio=0.3, tau=0), HeadCache(interval=2, tau=0), FewerSteps(steps=3)))
    handle = DropIn(authors, recipe)
    handle.bind(authors)
    try:
        drawing(authors)
    finally:
        handle.unbind(authors)
    assert [step.rows > 0 for step in handle.trace] == [True, False, True]
    assert handle.calibration is not None


def test_what_cannot_be_computed_is_left_to_the_original(authors, caplog):
    handle = DropIn(authors, "exact")
    assert handle.latents(authors, {"packed_seqlens": [3, 4]}) is None
    assert "left to the original program" in caplog.text


def test_the_patch_by_its_public_name(authors):
    want = drawing(authors)
    flashu.apply_flashu_patch(authors, "exact")
    try:
        assert (drawing(authors) - want).abs().max() < 5e-5
    finally:
        flashu.remove_flashu_patch(authors)
