"""The official checkpoints' config.json: the arguments of the original class, put into our terms."""

from __future__ import annotations

from typing import Any

from flashu.errors import CheckpointError
from flashu.models.defaults import GenerationDefaults
from flashu.models.showo2.config import HeadConfig, LLMConfig, ShowO2Config, VisionConfig

VOCABULARY = 151669  # Qwen2.5's 151665 tokens and the four Show-o2 adds
FACTOR = 8  # pixels per latent cell of the Wan2.1 autoencoder
HEAD = HeadConfig()
LLMS = {
    "Qwen2.5-1.5B-Instruct": LLMConfig(VOCABULARY, 1536, 8960, 28, 12, 2, tie_word_embeddings=True),
    "Qwen2.5-7B-Instruct": LLMConfig(VOCABULARY, 3584, 18944, 28, 28, 4, tie_word_embeddings=False),
}
VISIONS = {"siglip-so400m-patch14-384": VisionConfig()}
DEFAULT_VISION = "google/siglip-so400m-patch14-384"
MAX_TEXT = {27: 290, 32: 251, 64: 251}  # by grid side: the original's row length less the image and four marks


def official_config(data: dict[str, Any]) -> ShowO2Config:
    """Sizes from the original's arguments; those that never changed its shape are passed over.

    A model this code cannot build raises ``CheckpointError``, and so does an argument that contradicts another.
    """
    llm, vision = (
        _known(LLMS, data, "llm_model_path"),
        _known(VISIONS, data, "clip_pretrained_model_path", DEFAULT_VISION),
    )
    vocabulary = data.get("llm_vocab_size") or VOCABULARY
    expected = {"hidden_size": llm.hidden_size, "clip_latent_dim": vision.hidden_size, "add_time_embeds": True}
    for key, value in expected.items():
        if data.get(key, value) != value:
            raise CheckpointError(f"config.json: {key} is {data[key]!r}, but the models it names need {value!r}")
    values = llm.__dict__ | {"vocab_size": vocabulary}
    return ShowO2Config(
        llm=LLMConfig(**values),
        vision=vision,
        head=HeadConfig(**(HEAD.__dict__ | {"num_layers": data.get("num_diffusion_layers", HEAD.num_layers)})),
        image_latent_dim=data.get("image_latent_dim", 16),
        image_latent_height=data.get("image_latent_height", 16),
        image_latent_width=data.get("image_latent_width", 16),
        patch_size=data.get("patch_size", 2),
    )


def official_defaults(config: ShowO2Config) -> GenerationDefaults:
    """The released scripts' settings: 50 steps at 432 px, 20 at 512 and 1024."""
    cell = config.patch_size * FACTOR
    height, width = config.image_latent_height * cell, config.image_latent_width * cell
    return GenerationDefaults(steps=20 if max(height, width) > 432 else 50, height=height, width=width)


def max_text(config: ShowO2Config) -> int:
    """The most prompt tokens the released scripts keep at this size."""
    return MAX_TEXT.get(config.image_latent_height, 251)


def _known(table: dict[str, Any], data: dict[str, Any], key: str, default: str = "") -> Any:
    """The table's entry for the model a path or hub id names by its last part."""
    path = data.get(key) or default
    if not path:
        raise CheckpointError(f"config.json: {key} is missing; it names the model this one is built on")
    name = str(path).rstrip("/").rsplit("/", 1)[-1]
    if name not in table:
        raise CheckpointError(f"config.json: {key} is {path!r}; only {', '.join(table)} can be read")
    return table[name]
