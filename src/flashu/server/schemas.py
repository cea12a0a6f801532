"""Requests as they come: strict types, known fields only, and one sentence about what is wrong."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from flashu.plan.limits import LIMITS
from flashu.server.errors import ApiError

SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
TEXT = 100_000
"""Most characters of a text; the model's own limit, in tokens, is lower."""


def writable(text: str) -> str:
    """A text that is Unicode; JSON may hold halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be valid Unicode") from error
    return text


Text = Annotated[str, StringConstraints(max_length=TEXT), AfterValidator(writable)]
FilledText = Annotated[str, StringConstraints(min_length=1, max_length=TEXT), AfterValidator(writable)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(writable)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1, description="Seed of the first result; the others count up from it.")]
Count = Annotated[int, Field(ge=1, le=10, description="How many results.")]
Steps = Annotated[int, Field(ge=1, le=LIMITS["steps"].most, description="Forwards before the preset shortens them.")]
Scale = Annotated[
    float, Field(ge=0, le=LIMITS["guidance"].most, allow_inf_nan=False, description="0 or 1 switches guidance off.")
]
Temperature = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False, description="0 takes the likeliest token.")]
Mass = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1, le=LIMITS["max_new_tokens"].most)]
Size = Annotated[str, StringConstraints(max_length=20), Field(description='"WxH" in pixels, or "auto".')]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Drawing(Strict):
    """What images are drawn by; what is not given is the checkpoint's, and comes back with the result."""

    model: Name | None = None
    preset: Name | None = None
    n: Count = 1
    size: Size | None = None
    seed: Seed = 0
    num_inference_steps: Steps | None = None
    guidance_scale: Scale | None = None
    negative_prompt: Text | None = None
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: Annotated[int, Field(ge=0, le=100, description="Quality of jpeg and webp.")] | None = None
    stream: bool = False
    think: Annotated[bool, Field(description="Think in text first, where the model was trained to.")] = False
    partial_images: Annotated[int, Field(ge=0, le=100, description="Previews on the way; needs stream.")] = 0
    user: Name | None = Field(None, description="Accepted, without effect.")

    @model_validator(mode="after")
    def _fits(self) -> Drawing:
        if self.partial_images and not self.stream:
            raise ValueError("partial_images: previews need stream true")
        if self.stream and self.response_format == "url":
            raise ValueError("response_format: a stream carries b64_json only")
        if self.output_compression is not None and self.output_format == "png":
            raise ValueError("output_compression: png has none, ask for jpeg or webp")
        return self


class Generate(Drawing):
    """POST /v1/images/generations."""

    prompt: FilledText


class Edit(Drawing):
    """POST /v1/images/edits: the fields besides the images."""

    model_config = ConfigDict(extra="forbid", strict=False)  # a form holds texts only

    prompt: FilledText


class ImageUrl(Strict):
    url: Annotated[str, StringConstraints(min_length=1)]
    detail: Literal["auto"] | None = None


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Strict):
    role: Literal["user"]
    content: FilledText | Annotated[list[Part], Field(min_length=1, max_length=64)]
    name: Name | None = Field(None, description="Accepted, without effect.")


class StreamOptions(Strict):
    include_usage: bool = False


class Chat(Strict):
    """POST /v1/chat/completions: one question or message, or, with ``modalities`` ["image"], what to draw or edit."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1)]
    model: Name | None = None
    preset: Name | None = None
    modalities: Annotated[list[Literal["text", "image"]], Field(min_length=1, max_length=1)] = ["text"]
    n: Count = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    seed: Seed = 0
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Temperature = 0.0
    top_p: Mass | None = None
    stop: FilledText | Annotated[list[FilledText], Field(max_length=4)] | None = None
    think: bool = False
    size: Size | None = None
    height: Annotated[int, Field(ge=1, le=LIMITS["height"].most)] | None = None
    width: Annotated[int, Field(ge=1, le=LIMITS["width"].most)] | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Scale | None = None
    negative_prompt: Text | None = None
    user: Name | None = Field(None, description="Accepted, without effect.")

    @model_validator(mode="after")
    def _fits(self) -> Chat:
        of_text = ("max_tokens", "max_completion_tokens", "top_p", "stop", "temperature")
        of_image = ("size", "height", "width", "num_inference_steps", "guidance_scale", "negative_prompt")
        wrong, other = (of_text, "text") if self.modalities == ["image"] else (of_image, "image")
        for name in wrong:
            if name in self.model_fields_set:
                raise ValueError(f'{name}: is for modalities ["{other}"]')
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens: give it or max_completion_tokens, not both")
        if self.size is not None and (self.height is not None or self.width is not None):
            raise ValueError("size: give it or height and width, not both")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: needs stream true")
        return self

    @model_validator(mode="before")
    @classmethod
    def _merged(cls, data: Any) -> Any:
        """Fields in ``extra_body`` count as if they stood beside it."""
        if not isinstance(data, Mapping) or "extra_body" not in data:
            return data
        extra = data["extra_body"]
        if not isinstance(extra, Mapping):
            raise ValueError("extra_body: must be an object")
        if twice := sorted(set(extra) & set(data)):
            raise ValueError(f"{twice[0]}: given twice, in extra_body and beside it")
        return {**{name: value for name, value in data.items() if name != "extra_body"}, **extra}


B = TypeVar("B", bound=BaseModel)


def read(kind: type[B], data: Any, own: Collection[str] = ()) -> tuple[B, dict[str, Any]]:
    """A request of a kind, and its fields that only this model has, of the names in ``own``. `ApiError` 400 with the
    first thing that is wrong."""
    if not isinstance(data, Mapping):
        raise ApiError(400, "the body must be one JSON object")
    extra = data.get("extra_body")
    extra = extra if isinstance(extra, Mapping) else {}
    given = {name: _plain(name, value) for name, value in (*extra.items(), *data.items()) if name in own}
    data = {name: value for name, value in data.items() if name not in own}
    if given and extra:
        data["extra_body"] = {name: value for name, value in extra.items() if name not in own}
    try:
        return kind.model_validate(data), given
    except ValidationError as error:
        raise first_error(error.errors(include_url=False, include_context=False, include_input=False)) from error


def _plain(name: str, value: Any) -> Any:
    """A number, text, truth value, or a list of them as a tuple."""
    if isinstance(value, list) and len(value) <= 16 and not any(isinstance(one, list | dict) for one in value):
        return tuple(value)
    if value is None or isinstance(value, list | dict):
        raise ApiError(400, f"{name}: must be a number, a text, true or false, or a short list of them", name)
    return value


UNKNOWN = "is no field of this request: see /docs for those there are"


def first_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """What is wrong, in one sentence, and with which field: of the first field that is, the error that lies deepest
    (the forms that a field may have each say why it is not one of them)."""
    error = max((e for e in errors if e["loc"][:1] == errors[0]["loc"][:1]), key=lambda e: len(e["loc"]))
    message = str(error["msg"]).removeprefix("Value error, ")
    field, colon, _ = message.partition(": ")
    if not error["loc"]:
        return ApiError(400, message, field if colon else None)
    # The names of a union's forms are no part of the field's.
    param = ".".join(str(part) for part in error["loc"] if isinstance(part, int) or part.isidentifier())
    if error["type"] == "extra_forbidden":
        return ApiError(400, f"{param}: {UNKNOWN}", param)
    sentence = re.sub("^(Input|String|List|Tuple) should", "must", message).replace("Field required", "missing")
    return ApiError(400, f"{param}: {sentence}", param)


def size_of(text: str | None) -> tuple[int | None, int | None]:
    """(width, height) of "WxH"; None for "auto"."""
    if text is None or text == "auto":
        return None, None
    found = SIZE.fullmatch(text)
    if found is None:
        raise ApiError(400, f'size: must be "WxH" in pixels or "auto", not {text!r}', "size")
    return int(found[1]), int(found[2])
