"""A model is an ordinary module: whatever is done to its weights and layers counts, in eager and compiled engines."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import flashu
from flashu.inference.actions import AnswerRequest
from flashu.inference.run import Run, complete
from flashu.models.showo2 import naive
from flashu.models.showo2.layout import ShowO2Layout
from flashu.models.showo2.reference import Reference, additive, question_rows, with_one_more
from flashu.plan import LayerPlan
from flashu.runtime import compile as compiling
from flashu.runtime.compile import LayerCalls
from flashu.runtime.layout import TokenLayout
from flashu.runtime.runner import Runner
from tests.conftest import tiny_model

FORCED = 7
"""The token that every answer consists of, so that answers stay comparable."""
TOKENS = 3
PICTURE = torch.linspace(-1, 1, 3 * 64 * 64).view(3, 64, 64)


def computed(engine: flashu.Engine) -> Tensor:
    """The latents of a guided drawing and the logits of an answer [n]: every layer in blocks, prefills and tokens."""
    latents = engine.generate("w1 w2", steps=2, decode=False).latents
    logits: list[Tensor] = []

    def choose(values: Tensor) -> Tensor:
        logits.append(values.double())
        return torch.full((len(values),), FORCED)

    (script,) = engine.layout.answer([AnswerRequest("w3 w4", (PICTURE,), TOKENS)])
    run = Run(script, engine.recipe, engine.model.spec, choose=choose)
    with torch.inference_mode():
        complete(engine.executor(), [run])
    return torch.cat((latents.double().flatten(), torch.cat(logits).flatten()))


@torch.inference_mode()
def expected(model: flashu.ShowO2) -> Tensor:
    """The same by the original's loops, which call the model's modules one by one."""
    latents = Reference(model, model.processor).generate("w1 w2", steps=2, decode=False).latents
    x, mask = question_rows(ShowO2Layout(model, model.processor), [(PICTURE, "w3 w4")])
    grown, logits = additive(mask, model.dtype), []
    for _ in range(TOKENS):
        logits.append(naive.decode(model, x, grown)[1][:, -1].double())
        x = torch.cat((x, model.embed_tokens(torch.tensor([[FORCED]]))), dim=1)
        grown = with_one_more(grown)
    return torch.cat((latents.double().flatten(), torch.cat(logits).flatten()))


class Adapter(nn.Module):
    """A low-rank adapter around a linear layer, as peft's."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.full((2, base.in_features), 0.02))
        self.b = nn.Parameter(torch.linspace(-0.3, 0.3, 2 * base.out_features).view(base.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


PLACES = (
    "showo.model.layers.2.self_attn.q_proj",
    "showo.model.layers.3.self_attn.v_proj",
    "showo.model.layers.4.mlp.gate_proj",
    "showo.model.layers.5.mlp.down_proj",
    "diffusion_head_a.0.self_attn.v_proj",
    "diffusion_head_a.1.mlp.up_proj",
    "diffusion_head_a.2.adaLN_modulation.1",
)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


def other_data(linear: nn.Linear) -> None:
    linear.weight.data = linear.weight.data * 1.5


@torch.no_grad()
def written(linear: nn.Linear) -> None:
    linear.weight.mul_(1.5)


def another_parameter(linear: nn.Linear) -> None:
    linear.weight = nn.Parameter(linear.weight.detach() * 1.5, requires_grad=False)


def hooked(linear: nn.Linear) -> None:
    linear.register_forward_hook(lambda _module, _args, out: 1.5 * out)


def hooked_before(linear: nn.Linear) -> None:
    linear.register_forward_pre_hook(lambda _module, args: (1.5 * args[0],))


CHANGES = (other_data, written, another_parameter, hooked, hooked_before)


@pytest.fixture(scope="module")
def calls() -> Iterator[dict[str, LayerCalls]]:
    """Eager calls, and compiled ones that have already met every kind of input."""
    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compiling, "LIMIT", 1000)  # no test may end in the eager fallback
        made = {"eager": LayerCalls(), "compiled": LayerCalls(True, backend="eager")}
        computed(engine_of(tiny_model(), made["compiled"]))
        yield made
    torch._dynamo.reset()


def engine_of(model: flashu.ShowO2, calls: LayerCalls) -> flashu.Engine:
    engine = flashu.Engine(model, model.processor)
    engine.prepared.calls = calls
    return engine


def check(model: flashu.ShowO2, calls: LayerCalls, change: Callable[[], object]) -> None:
    """A change after the first results moves the results, to what the original's loops then compute."""
    engine = engine_of(model, calls)
    before = computed(engine)
    torch.testing.assert_close(before, expected(model), atol=1e-4, rtol=1e-4)
    change()
    after = computed(engine)
    assert float((after - before).abs().max()) > 1e-3
    torch.testing.assert_close(after, expected(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", PLACES)
def test_changed_weights_and_hooks_count(
    name: str, change: Callable[[nn.Linear], None], how: str, calls: dict[str, LayerCalls]
) -> None:
    model = tiny_model()
    check(model, calls[how], lambda: change(model.get_submodule(name)))  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize("name", PLACES)
def test_an_adapter_around_a_projection_counts(name: str, how: str, calls: dict[str, LayerCalls]) -> None:
    model = tiny_model()
    check(model, calls[how], lambda: put(model, name, Adapter(model.get_submodule(name))))  # type: ignore[arg-type]


def others(model: nn.Module) -> dict[str, Tensor]:
    """A state dict of the same names and shapes."""
    return {name: 0.9 * value + 0.01 for name, value in model.state_dict().items()}


@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_loaded_states_and_casts_count(how: str, calls: dict[str, LayerCalls]) -> None:
    model = tiny_model()
    check(model, calls[how], lambda: model.load_state_dict(others(model)))
    model.double()
    torch.testing.assert_close(computed(engine_of(model, calls[how])), expected(model), atol=1e-4, rtol=1e-4)


def pickled(model: flashu.ShowO2) -> flashu.ShowO2:
    return pickle.loads(pickle.dumps(model))


def saved(model: flashu.ShowO2) -> flashu.ShowO2:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved], ids=lambda copied: copied.__name__)
def test_a_copy_is_the_same_model_and_another(
    copied: Callable[[flashu.ShowO2], flashu.ShowO2], how: str, calls: dict[str, LayerCalls]
) -> None:
    model = tiny_model()
    engine = engine_of(model, calls[how])
    before = computed(engine)
    twin = copied(model)
    assert torch.equal(computed(engine_of(twin, calls[how])), before)
    twin.load_state_dict(others(twin))
    assert torch.equal(computed(engine), before)
    torch.testing.assert_close(computed(engine_of(twin, calls[how])), expected(twin), atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_weight_of_the_decoder_and_an_adapter() -> None:
    model = tiny_model().requires_grad_(True)
    put(model, PLACES[0], Adapter(model.get_submodule(PLACES[0])))  # type: ignore[arg-type]
    ids = torch.arange(10).view(2, 5)
    Runner(model).walk(model.embed_tokens(ids), TokenLayout.causal([5, 5]), LayerPlan()).hidden.sum().backward()
    decoder = dict(model.showo.model.named_parameters())
    assert len(decoder) == 2 + 6 * 12 + 2
    assert [name for name, value in decoder.items() if value.grad is None] == []
