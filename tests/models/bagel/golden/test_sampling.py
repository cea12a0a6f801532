"""Drawing, editing, answering and thinking against the original's (groups c, d, e, f, g, h)."""

from __future__ import annotations

import pytest
import torch

from flashu.inference.actions import AnswerRequest, DrawRequest
from flashu.plan.methods import TaylorSeer
from flashu.plan.recipe import Recipe
from tests.models.bagel.golden.engines import engine, latents, said, written
from tests.models.bagel.golden.recorded import about, close, config, tensors, tolerance

HPARAMS = about()["common"]["seeds_and_hparams"]
CASES = {
    "c.global": {},
    "c.text_channel": {"renorm": "text_channel"},
    "c.channel": {"renorm": "channel"},
    "c.norenorm": {"renorm_min": 1.0},
    "c.renorm_min": {"renorm": "channel", "renorm_min": 0.6},
    "c.textonly": {"image_guidance": 1.0},
    "c.nocfg": {"guidance": 1.0, "image_guidance": 1.0},
}


@pytest.mark.parametrize("case", CASES)
def test_drawing(case):
    states = []
    done = engine().generate(
        said("prompt"),
        seed=HPARAMS["noise_seed"],
        decode=False,
        on_step=lambda s, p, x: states.append(x[0]),
        **CASES[case],
    )
    golden = tensors()[f"{case}.final_latent"]
    close(done.latents, golden, tolerance("sampling_final_abs"))
    if case == "c.global":
        height, width = about()["common"]["t2i_hw_pixels"]
        recorded = [latents(x, height, width) for x in tensors()["c.global.x"][1:]]
        close(torch.stack(states), torch.stack(recorded), tolerance("sampling_final_abs"))
        times = [1 - step.step.time for step in done.trace]
        assert torch.equal(torch.tensor(times, dtype=torch.float32), tensors()["c.global.t"])
    # The original's passes, less those of the branch that equals the main one.
    original = about()["common"]["runs"][case]["passes_per_step"]
    assert [step.rows for step in done.trace] == [min(passes, 2) for passes in original]


@pytest.mark.parametrize("renorm", ["text_channel", "global"])
def test_editing(renorm):
    done = engine().edit(
        torch.zeros(3, 8, 8), said("edit_text"), seed=HPARAMS["edit_noise_seed"], renorm=renorm, decode=False
    )
    close(done.latents, tensors()[f"d.{renorm}.final_latent"], tolerance("edit_final_abs"))
    assert [step.rows for step in done.trace] == about()["common"]["runs"][f"d.{renorm}"]["passes_per_step"]


def test_understanding():
    g, asked = tensors(), AnswerRequest(said("question"), (torch.zeros(3, 8, 8),), HPARAMS["max_length_und"] - 1)
    own = engine(shown="a.vit.image")
    (run,) = own.runs_to_answer([asked])
    logits, executor = [], own.executor()
    with torch.inference_mode():
        while (request := run.prepare()) is not None:
            (output,) = executor.forward([request])
            logits.append(output.values[0])
            run.accept(output)
    tokens = g["e.tokens"][1:].tolist()
    assert run.text == tokens
    close(torch.stack(logits), g["e.logits"][: len(logits)], tolerance("logits_abs"))


def test_thinking_before_drawing():
    g, pieces = tensors(), []
    made = engine()
    done = made.generate(
        said("prompt"),
        seed=HPARAMS["think_noise_seed"],
        think=True,
        max_think_tokens=HPARAMS["max_length_think"] - 1,
        decode=False,
        on_text=lambda image, piece: pieces.append(piece),
    )
    thought = about()["common"]["runs"]["f"]["think_ids"]
    assert done.thoughts == [written(thought)] == ["".join(pieces)]
    close(done.latents, g["f.final_latent"], tolerance("sampling_final_abs"))
    # Once the prompt is in, a thought costs one pass a token, and the drawing begins with what is left to close it.
    drawing = [step for step in done.trace if step.step.task == "generation"]
    assert [step.rows for step in drawing] == about()["common"]["runs"]["f"]["passes_per_step"]
    assert sum(step.tokens for step in done.trace if step.step.kind == "token") == len(thought) - 1


class Given:
    """Noise that was recorded."""

    def __init__(self, tokens):
        self.tokens = tokens

    def normal(self, *shape):
        return self.tokens.view(shape)


def test_samples_of_a_batch():
    """Two prompts and two sizes together; text guidance only."""
    g, made, run = tensors(), engine(), about()["common"]["runs"]["h"]
    counts = [height * width // config().cell ** 2 for height, width in run["image_sizes"]]
    noise = g["h.in.packed_init_noises"].split(counts)
    scripts = []
    for name, (height, width), own in zip(("prompt", "prompt2"), run["image_sizes"], noise, strict=True):
        settings = {"image_guidance": 1.0, "renorm": "channel"}
        request = DrawRequest(said(name), steps=run["num_timesteps"] - 1, height=height, width=width, own=settings)
        scripts.append(made.layout.drawing([said(name)], request, Given(own)))
    runs = made._runs(scripts)
    made.complete(runs)
    for n, ((height, width), done) in enumerate(zip(run["image_sizes"], runs, strict=True)):
        close(done.drawn[0], latents(g[f"h.final_{n}"], height, width), tolerance("sampling_final_abs"))
    assert [step.rows for step in runs[0].trace] == run["passes_per_step"]


def test_taylorseer():
    """With one store, where the original has one in each layer of each branch."""
    made = engine().with_recipe(Recipe((TaylorSeer(),)))
    done = made.generate(said("prompt"), seed=HPARAMS["noise_seed"], decode=False)
    close(done.latents, tensors()["g.final_latent"], tolerance("taylorseer_final_abs"))
    kinds = dict(map(tuple, about()["common"]["runs"]["g"]["step_types_in_call_order"]))
    assert [step.rows > 0 for step in done.trace] == [kinds[n] == "full" for n in range(len(done.trace))]
