"""Stretches of layers that take one token per row: compiled, they say what eager ones say, whatever is done to them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image
from tests.conftest import tiny_model
from tests.recipes import UNDERSTANDING
from torch import Tensor, nn

import flashu
from flashu.runtime import programs, runner
from flashu.runtime.cache import MULTIPLE
from flashu.runtime.rooms import Rooms

RECIPES = {"exact": (), **{name: (method,) for name, method in UNDERSTANDING.items()}}
RECIPES["all"] = tuple(UNDERSTANDING.values())
QUESTIONS = ["w1 w2", "w3", "w4 w5 w6 w7"]


def picture() -> Image.Image:
    return Image.radial_gradient("L").resize((64, 64)).convert("RGB")


def both(model: flashu.ShowO2, recipe: flashu.Recipe | None = None) -> tuple[flashu.Engine, flashu.Engine]:
    """An eager engine, and a compiled one (by a back end that only traces)."""
    torch._dynamo.reset()
    eager = flashu.Engine(model, model.processor, recipe or flashu.Recipe())
    if recipe is not None and recipe.methods:
        eager.calibrate("understanding", pairs=[(picture(), "w3 w4")])
    compiled = eager.with_recipe(eager.recipe)
    compiled.fitted.rooms = Rooms(compiled=True, backend="eager")
    return eager, compiled


def kinds(engine: flashu.Engine) -> int:
    programs = engine.fitted.rooms.stretches.programs
    assert programs is not None
    return len(programs)


@pytest.fixture
def loaded() -> flashu.ShowO2:
    """A model as it is loaded: joined."""
    model = tiny_model()
    model.join()
    return model


@pytest.mark.parametrize("methods", RECIPES.values(), ids=RECIPES)
def test_they_say_what_eager_layers_say(methods: tuple[flashu.plan.methods.Method, ...]) -> None:
    eager, compiled = both(tiny_model(), flashu.Recipe(methods))
    shown = picture()
    for length in (1, 2, 9, 40):
        settings = {"max_new_tokens": length}
        said = eager.answer(shown, QUESTIONS, **settings)
        assert [a.tokens for a in compiled.answer(shown, QUESTIONS, **settings)] == [a.tokens for a in said]
        one = eager.answer(shown, QUESTIONS[0], **settings)
        assert compiled.answer(shown, QUESTIONS[0], **settings).tokens == one.tokens
    assert kinds(compiled) > 0


def test_answers_of_about_the_same_length_share_them() -> None:
    eager, compiled = both(tiny_model())
    shown = picture()
    compiled.answer(shown, "w1", max_new_tokens=9)
    before = kinds(compiled)
    for question, length in (("w1 w2", 10), ("w3", 8), ("w4 w5 w6", 3)):
        said = eager.answer(shown, question, max_new_tokens=length).tokens
        assert compiled.answer(shown, question, max_new_tokens=length).tokens == said
    assert kinds(compiled) == before == 2  # of four layers and of one
    compiled.answer(shown, "w1", max_new_tokens=9 + MULTIPLE)
    assert kinds(compiled) == 2 * before


def test_too_many_kinds_stay_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "MOST", 1)
    eager, compiled = both(tiny_model())
    for questions in (QUESTIONS[:1], QUESTIONS[:2], QUESTIONS):
        said = [a.tokens for a in eager.answer(picture(), questions)]
        assert [a.tokens for a in compiled.answer(picture(), questions)] == said
    assert kinds(compiled) == 1


class Adapter(nn.Module):
    """A low-rank adapter around a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.scale = base, 1.0
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * self.up(self.down(x))


def adapt(model: flashu.ShowO2) -> None:
    torch.manual_seed(0)
    for layer in model.layers:
        layer.self_attn.v_proj = Adapter(layer.self_attn.v_proj)


def rescale(model: flashu.ShowO2) -> None:
    for layer in model.layers:
        layer.self_attn.v_proj.scale = -3.0


@torch.no_grad()
def write(model: flashu.ShowO2) -> None:
    for layer in model.layers:
        layer.self_attn.v_proj.weight.mul_(-2)


@torch.no_grad()
def put_data(model: flashu.ShowO2) -> None:
    for layer in model.layers:
        layer.self_attn.q_proj.weight.data = layer.self_attn.q_proj.weight.data * -3
        layer.self_attn.v_proj.weight.data = layer.self_attn.v_proj.weight.data * 3


def put_parameters(model: flashu.ShowO2) -> None:
    for layer in model.layers:
        layer.mlp.down_proj.weight = nn.Parameter(layer.mlp.down_proj.weight * -2, requires_grad=False)
        layer.mlp.up_proj.weight = nn.Parameter(layer.mlp.up_proj.weight * 2, requires_grad=False)


def hook(model: flashu.ShowO2) -> None:
    for layer in model.layers:
        layer.mlp.register_forward_hook(lambda module, inputs, output: -output)


def set_eps(model: flashu.ShowO2) -> None:
    for layer in model.layers:
        layer.input_layernorm.eps = 10.0


def widen(model: flashu.ShowO2) -> None:
    model.double()


CHANGES = [adapt, rescale, write, put_data, put_parameters, hook, set_eps, widen]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_is_put_in_place_counts(loaded: flashu.ShowO2, change: Callable[[flashu.ShowO2], None]) -> None:
    """After a first answer has compiled them."""
    if change is rescale:
        adapt(loaded)
    eager, compiled = both(loaded)
    shown = picture()
    first = [a.tokens for a in compiled.answer(shown, QUESTIONS, max_new_tokens=30)]
    assert first == [a.tokens for a in eager.answer(shown, QUESTIONS, max_new_tokens=30)]
    change(loaded)
    then = [a.tokens for a in eager.answer(shown, QUESTIONS, max_new_tokens=30)]
    assert [a.tokens for a in compiled.answer(shown, QUESTIONS, max_new_tokens=30)] == then
    assert then != first or change is widen


@pytest.mark.parametrize(
    "change", [adapt, rescale, write, put_data, put_parameters, hook, set_eps], ids=lambda f: f.__name__
)
def test_it_counts_in_drawing_too(loaded: flashu.ShowO2, change: Callable[[flashu.ShowO2], None]) -> None:
    if change is rescale:
        adapt(loaded)
    eager, compiled = both(loaded)
    first = eager.generate("w1 w2", steps=2).latents
    torch.testing.assert_close(compiled.generate("w1 w2", steps=2).latents, first)
    assert len(compiled.fitted.rooms._layers) == (0 if change is rescale else 1)  # an adapted layer stays eager
    change(loaded)
    then = eager.generate("w1 w2", steps=2).latents
    torch.testing.assert_close(compiled.generate("w1 w2", steps=2).latents, then)
    assert change is widen or not torch.allclose(then, first)


def test_quantized_layers_stay_eager() -> None:
    pytest.importorskip("torchao")
    model = tiny_model()
    eager, compiled = both(model)
    assert compiled.answer(picture(), "w1").tokens
    before = kinds(compiled)
    model.quantize("int8-weight")
    shown = picture()
    assert compiled.answer(shown, "w2 w3").tokens == eager.answer(shown, "w2 w3").tokens
    assert kinds(compiled) == before


def test_models_of_other_settings_are_told_apart() -> None:
    """What is fitted to one may serve another, of the same shapes."""
    model, other = tiny_model(), tiny_model()
    set_eps(other)
    eager, compiled = both(model)
    shown = picture()
    assert compiled.answer(shown, "w1").tokens == eager.answer(shown, "w1").tokens
    theirs = flashu.Engine.of(other, other.processor, compiled.fitted)
    expected = flashu.Engine(other, other.processor).answer(shown, QUESTIONS)
    assert [a.tokens for a in theirs.answer(shown, QUESTIONS)] == [a.tokens for a in expected]


def test_really_compiled(loaded: flashu.ShowO2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LENGTH", 2)
    eager, compiled = both(loaded)
    compiled.fitted.rooms = Rooms(compiled=True)
    shown = picture()
    said = eager.answer(shown, "w1 w2", max_new_tokens=12)
    assert compiled.answer(shown, "w1 w2", max_new_tokens=12).tokens == said.tokens
    assert kinds(compiled) == 1
