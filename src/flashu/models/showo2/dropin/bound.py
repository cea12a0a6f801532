"""What an instance of the original class is bound to: its four generating methods, signatures as they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flashu.interfaces.bound import BoundMethods
from flashu.models.showo2.dropin.drawing import Call

if TYPE_CHECKING:
    from flashu.models.showo2.dropin.handle import DropIn


class ShowO2Methods(BoundMethods):
    """Calls on one instance, answered by a `DropIn`, or by the instance's own class where that cannot."""

    METHODS = ("t2i_generate", "mmu_generate", "lm_generate", "mm_generate")

    def __init__(self, module: nn.Module, behind: DropIn) -> None:
        super().__init__(module)
        self.behind = behind

    def t2i_generate(
        self,
        image_latents: Any = None,
        t: Any = None,
        text_tokens: Any = None,
        attention_mask: Any = None,
        modality_positions: Any = None,
        first_frame_as_cond: bool = False,
        only_denoise_last_image: bool = False,
        max_seq_len: int | None = None,
        guidance_scale: float = 0.0,
        **kwargs: Any,
    ) -> Any:
        """One evaluation: velocity [R, c, H, W], under guidance the guided one twice."""
        call = Call(
            image_latents, t, text_tokens, attention_mask, modality_positions, guidance_scale, only_denoise_last_image
        )
        # This flag holds the first frame of a video still.
        if not first_frame_as_cond:
            v = self.behind.velocity(self.module, call)
            if v is not None:
                return v
        return self.original("t2i_generate")(
            image_latents=image_latents,
            t=t,
            text_tokens=text_tokens,
            attention_mask=attention_mask,
            modality_positions=modality_positions,
            first_frame_as_cond=first_frame_as_cond,
            only_denoise_last_image=only_denoise_last_image,
            max_seq_len=max_seq_len,
            guidance_scale=guidance_scale,
            **kwargs,
        )

    def mmu_generate(
        self,
        input_embeds: Any = None,
        attention_mask: Any = None,
        max_new_tokens: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        eos_token: Any = None,
    ) -> Any:
        """Tokens (each a scalar tensor) that answer an embedded question [1, S, h]."""
        stops = () if eos_token is None else (int(eos_token),)
        sampling = {"temperature": temperature, "top_k": top_k}
        tokens = self.behind.answer(
            self.module, input_embeds, attention_mask, max_new_tokens, stops, late=True, **sampling
        )
        if tokens is not None:
            return [torch.tensor(token, device=input_embeds.device) for token in tokens]
        return self.original("mmu_generate")(
            input_embeds=input_embeds,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            eos_token=eos_token,
        )

    def lm_generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        tokenizer: Any = None,
        max_new_tokens: int = 100,
        boi_token: Any = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        device: Any = None,
    ) -> Any:
        """Text that follows a list of token ids. As in the original, the list grows by the tokens of the text."""
        given = {name: value for name, value in locals().items() if name != "self"}
        row = torch.tensor([input_ids], device=self.behind.model.device)
        text = None
        if attention_mask is None:
            x = self.behind.embed(self.module, row)
            text = self._text(x, None, given)
        return self.original("lm_generate")(**given) if text is None else text

    def mm_generate(
        self,
        input_ids: Any = None,
        image_latents: Any = None,
        t: Any = None,
        modality_positions: Any = None,
        attention_mask: Any = None,
        tokenizer: Any = None,
        max_new_tokens: int = 100,
        boi_token: Any = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        device: Any = None,
    ) -> Any:
        """Text that follows token ids with images in place of some of them; the list grows as in `lm_generate`."""
        given = {name: value for name, value in locals().items() if name != "self"}
        text = None
        if isinstance(attention_mask, Tensor) and image_latents is not None and image_latents.ndim == 4:
            row = torch.tensor([input_ids], device=self.behind.model.device)
            x = self.behind.spliced(self.module, row, image_latents, t, modality_positions)
            text = self._text(x, attention_mask, given)
        return self.original("mm_generate")(**given) if text is None else text

    def _text(self, x: Tensor, mask: Tensor | None, given: dict[str, Any]) -> str | None:
        tokenizer, ids = given["tokenizer"], given["input_ids"]
        stops = [token for token in (tokenizer.eos_token_id, given["boi_token"]) if token is not None]
        sampling = {name: given[name] for name in ("temperature", "top_k", "top_p")}
        tokens = self.behind.answer(self.module, x, mask, given["max_new_tokens"], stops, late=False, **sampling)
        if tokens is None:
            return None
        ids.extend(tokens)
        return tokenizer.decode(tokens, skip_special_tokens=False)
