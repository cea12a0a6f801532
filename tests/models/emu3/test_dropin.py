"""``generate`` of transformers' own class, patched: the same tokens, from the same calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import flashu
from flashu import Recipe
from flashu.plan.presets import fitting
from tests.models.emu3 import checkpoints
from tests.models.emu3.golden.recorded import VISION, about, config, goldens, unpadded, weights
from tests.recipes import GENERATION, UNDERSTANDING, subsets

transformers = pytest.importorskip("transformers")
G, GEN, IDS = goldens(), about()["common"]["gen"], config().ids
HEIGHT, WIDTH = GEN["height"], GEN["width"]


@pytest.fixture(scope="module")
def original() -> Any:
    data = checkpoints.transformers_config()
    data.pop("model_type")
    text = data["text_config"] | {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    made = transformers.Emu3ForConditionalGeneration(transformers.Emu3Config(**(data | {"text_config": text})))
    made.load_state_dict(weights())
    made.generation_config.pad_token_id = IDS.pad
    made.generation_config.eos_token_id = IDS.eos
    return made.eval()


@pytest.fixture
def patched(original: Any) -> Iterator[Any]:
    behind = flashu.apply_flashu_patch(original, "exact")
    yield behind
    flashu.remove_flashu_patch(original)


def allowed_in(words: Mapping[str, int], codes: int, height: int, width: int) -> Callable[[int, Tensor], Any]:
    """As the example of transformers' documentation writes it."""
    first = words["<|visual token 000000|>"]
    every = list(range(first, first + codes))
    ends = [(words[name],) for name in ("<|extra_201|>", "<|image end|>", "<|extra_204|>")]

    def allowed(batch: int, ids: Tensor) -> Any:
        position = torch.nonzero(ids == words["<|image token|>"], as_tuple=True)[0][0]
        offset = int(ids.shape[0] - position)
        past = offset - height * (width + 1)
        if offset % (width + 1) == 0:
            return (words["<|extra_200|>"],)
        if past > 3:
            return (words["<|endoftext|>"],)
        return ends[past - 1] if past > 0 else every

    return allowed


def allowed_of(height: int, width: int) -> Callable[[int, Tensor], Any]:
    return allowed_in(checkpoints.transformers_config()["vocabulary_map"], config().codes, height, width)


def drawing(**settings: Any) -> dict[str, Any]:
    call = {
        "input_ids": G["gen.input_ids"],
        "attention_mask": G["gen.attention_mask"],
        "prefix_allowed_tokens_fn": allowed_of(HEIGHT, WIDTH),
        "negative_prompt_ids": G["gen.negative_ids"].expand(2, -1),
        "guidance_scale": GEN["guidance"],
        "max_new_tokens": 500,
        "do_sample": False,
    }
    return call | settings


def new(call: dict[str, Any], sequences: Tensor) -> Tensor:
    return sequences[:, call["input_ids"].shape[1] :]


def test_drawing(original: Any, patched: Any) -> None:
    call = drawing()
    assert torch.equal(new(call, original.generate(**call)), G["gen.tokens"])
    assert len(patched.trace) == HEIGHT * WIDTH
    # As the documentation's example ends.
    answer = original.generate(**call, return_dict_in_generate=True)
    image = original.decode_image_tokens(image_tokens=new(call, answer.sequences), height=HEIGHT, width=WIDTH)
    assert float((image - G["gen.image"]).abs().max()) < 1e-3


def test_drawing_as_the_authors_script_calls_it(original: Any, patched: Any) -> None:
    """Positional arguments, a configuration, and logits processors that hold guidance and the allowed tokens."""
    module = transformers.generation
    prompt = unpadded(G["gen.input_ids"][0], G["gen.attention_mask"][0])[None]
    settings = module.GenerationConfig(
        use_cache=True, eos_token_id=IDS.eos, pad_token_id=IDS.pad, max_new_tokens=400, do_sample=False
    )
    from transformers.generation import logits_process

    processors = module.LogitsProcessorList(
        [
            logits_process.UnbatchedClassifierFreeGuidanceLogitsProcessor(
                GEN["guidance"], original, unconditional_ids=G["gen.negative_ids"][None]
            ),
            logits_process.PrefixConstrainedLogitsProcessor(allowed_of(HEIGHT, WIDTH), num_beams=1),
        ]
    )
    given = original.generate(prompt, settings, logits_processor=processors)
    assert torch.equal(given[:, prompt.shape[1] :], G["gen.tokens"][:1])
    assert patched.trace


@pytest.mark.parametrize("top_k", [GEN["top_k"], None])
def test_sampling_draws_the_same_from_the_same_seed(original: Any, patched: Any, top_k: int | None) -> None:
    """Known tokens take their noise, too, and the generator is left as the original leaves it."""
    call = drawing(do_sample=True, max_new_tokens=20, **({} if top_k is None else {"top_k": top_k}))
    torch.manual_seed(5)
    ours, after = new(call, original.generate(**call)), torch.rand(1)
    assert patched.trace
    flashu.remove_flashu_patch(original)
    torch.manual_seed(5)
    assert torch.equal(ours, new(call, original.generate(**call)))
    assert torch.equal(after, torch.rand(1))
    flashu.apply_flashu_patch(original, "exact")


def test_rows_of_unlike_sizes(original: Any, patched: Any) -> None:
    sizes = [(2, 3), (3, 2)]
    each = [allowed_of(*size) for size in sizes]
    call = drawing(prefix_allowed_tokens_fn=lambda row, ids: each[row](row, ids), max_new_tokens=16)
    ours = original.generate(**call)
    assert patched.trace
    flashu.remove_flashu_patch(original)
    assert torch.equal(ours, original.generate(**call))
    flashu.apply_flashu_patch(original, "exact")


def answering(**settings: Any) -> dict[str, Any]:
    call = {
        "input_ids": G["und.input_ids"],
        "attention_mask": G["und.attention_mask"],
        "pixel_values": G["vq.pixel_values"],
        "image_sizes": G["vq.image_sizes"],
        "max_new_tokens": len(G["und.step_logits"]),
    }
    return call | settings


def test_answers(original: Any, patched: Any) -> None:
    """Pictures are padded to one size in a batch and encoded so, as the original does."""
    call = answering()
    assert torch.equal(new(call, original.generate(**call)), G["und.tokens"])
    assert [step.tokens for step in patched.trace][1:] == [1] * (len(patched.trace) - 1)


def test_sampled_answers(original: Any, patched: Any) -> None:
    call = answering(do_sample=True, temperature=0.7, top_k=20, max_new_tokens=8)
    torch.manual_seed(3)
    ours = original.generate(**call)
    assert patched.trace
    flashu.remove_flashu_patch(original)
    torch.manual_seed(3)
    assert torch.equal(ours, original.generate(**call))
    flashu.apply_flashu_patch(original, "exact")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"top_p": 0.5, "do_sample": True}, "top_p"),
        ({"repetition_penalty": 1.3}, "rep"),
    ],
)
def test_other_calls_are_left_to_the_original(
    original: Any, patched: Any, settings: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    call = answering(max_new_tokens=3, **settings)
    torch.manual_seed(0)
    ours = original.generate(**call)
    assert not patched.trace
    assert why in caplog.text
    flashu.remove_flashu_patch(original)
    torch.manual_seed(0)
    assert torch.equal(ours, original.generate(**call))
    flashu.apply_flashu_patch(original, "exact")


def test_unpatched_it_is_as_before(original: Any) -> None:
    flashu.apply_flashu_patch(original, "exact")
    assert "generate" in vars(original)
    copied = copy.deepcopy(original)
    flashu.remove_flashu_patch(original)
    assert "generate" not in vars(original)
    assert "generate" not in vars(copied)
    for name, value in original.state_dict().items():
        assert torch.equal(value, weights()[name])
    assert original.lm_head.weight.data_ptr() != copied.lm_head.weight.data_ptr()
    assert all(name.startswith(VISION) or p.requires_grad for name, p in original.named_parameters())


@pytest.mark.parametrize("task", ["generation", "understanding"])
def test_every_recipe(original: Any, task: str) -> None:
    recipes = subsets(GENERATION if task == "generation" else UNDERSTANDING)
    call = drawing(max_new_tokens=12) if task == "generation" else answering(max_new_tokens=4)
    calibration, spec, ran = None, None, 0
    for recipe in recipes.values():
        if spec is None:
            spec = flashu.apply_flashu_patch(original, "exact").model.spec
            flashu.remove_flashu_patch(original)
        fits = fitting(recipe, spec)
        if not fits.methods:
            with pytest.raises(flashu.RecipeError):
                flashu.apply_flashu_patch(original, recipe)
            continue
        behind = flashu.apply_flashu_patch(original, fits, calibration=calibration)
        assert original.generate(**call).shape[1] > call["input_ids"].shape[1]
        assert behind.trace
        calibration = behind.calibration or calibration
        flashu.remove_flashu_patch(original)
        ran += 1
    assert ran > 2
    assert isinstance(recipe, Recipe)


@pytest.mark.parametrize("assign", [False, True])  # into its parameters, or others instead of them
def test_the_instance_may_change_in_between(original: Any, assign: bool) -> None:
    module = copy.deepcopy(original)
    flashu.apply_flashu_patch(module, "exact")
    module.generate(**drawing())
    other = {name: value.flip(0) if name == "lm_head.weight" else value for name, value in module.state_dict().items()}
    module.load_state_dict(other, assign=assign)
    got = new(drawing(), module.generate(**drawing()))
    flashu.remove_flashu_patch(module)
    assert torch.equal(got, new(drawing(), module.generate(**drawing())))
    assert not torch.equal(got, G["gen.tokens"])


def test_another_class_is_refused() -> None:
    with pytest.raises(flashu.FlashUError, match="Emu3"):
        flashu.apply_flashu_patch(torch.nn.Linear(2, 2))


def test_timed_against_the_original(original: Any) -> None:
    from flashu.bench.dropin import time_drop_in

    settings = {"t2i": {"height": 2, "width": 3}, "mmu": {"new_tokens": 4, "height": 3, "width": 4}}
    for task, own in settings.items():
        _, exact = time_drop_in(original, task, {"exact": "exact"}, repeats=1, **own)
        assert exact.difference == 0
    assert "generate" not in vars(original)
