"""A draft's loss: unrolled as it will be used, from its own output (EAGLE-3's training-time test)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flashu.models.draft import DraftNetwork
from flashu.models.layers import AttentionContext, KeyValue
from flashu.models.protocol import UnifiedModel
from flashu.training.draft.taught import Taught


@dataclass(frozen=True, eq=False)
class Unrolled:
    """``loss`` to minimise; ``kl`` and ``ce`` of each step; ``tried`` and ``right``: drafted tokens of each step behind
    right ones alone, and those of them that were right."""

    loss: Tensor
    kl: Sequence[float]
    ce: Sequence[float]
    tried: Sequence[int]
    right: Sequence[int]


def unrolled(
    network: DraftNetwork, model: UnifiedModel, rows: Taught, steps: int, *, decay: float = 0.8, ce: float = 0.1
) -> Unrolled:
    """KL(model, draft) + ``ce`` times the cross-entropy of the model's likeliest token, for ``steps`` drafted tokens
    from every position; step j counts ``decay`` to its power.

    Position s reads the features of token s (step 0) or its own output at s - 1 (later), and the embedding of token
    s + 1; it predicts token s + 2. At step j it sees what step 0 made of tokens up to s - j, and of each later step the
    one position on its way.
    """
    device, count = rows.x.device, rows.x.shape[1] - 1
    slot = torch.arange(count, device=device)
    x = rows.x[:, 1:].to(network.dtype)
    features = network.features([part[:, :-1].to(network.dtype) for part in rows.collected])
    rope = network.rope(slot[None])
    pasts: list[KeyValue | None] = [None] * len(network.kv_shape())
    hidden, total = features, torch.zeros((), device=device)
    alive = torch.ones(len(x), count, dtype=torch.bool, device=device)
    kls, ces, tried, hits = list[float](), list[float](), list[int](), list[int]()
    with torch.no_grad():
        target = model.logits(rows.hidden[:, 1:]).float()  # [B, S - 1, V]: of token s + 2 at position s
    for step in range(steps):
        masks = [slot[None] <= slot[:, None] - step]  # [query, key]
        masks += [slot[None] == slot[:, None] - step + later for later in range(1, step + 1)]
        mask = torch.cat(masks, dim=1)[None, None]
        if step:
            hidden = F.pad(hidden, (0, 0, 1, 0))[:, :-1]
            alive = F.pad(alive, (1, 0))[:, :-1]
        contexts = [AttentionContext(rope, mask, past) for past in pasts]
        hidden, kvs = (network.extrapolated if step else network)(x, hidden, contexts)
        pasts = [past if kv is None else kv for past, kv in zip(pasts, kvs, strict=True)]
        # The first token of an answer is never drafted, and no token behind the last.
        wanted = (slot + 1 >= rows.first[:, None] + step) & (slot + 2 < rows.length[:, None])
        p, logits = target[wanted], network.logits(hidden[wanted]).float()
        best, ids = p.argmax(-1), network.target_ids
        right = (logits.argmax(-1) if ids is None else ids[logits.argmax(-1)]) == best
        if ids is not None:
            p = p[:, ids]
            held = torch.isin(best, ids)
            p, logits = p[held], logits[held]
        log_p, log_q = p.log_softmax(-1), logits.log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum() / max(len(p), 1)
        hard = F.nll_loss(log_q, p.argmax(-1), reduction="sum") / max(len(p), 1)
        total = total + decay**step * (kl + ce * hard)
        tried.append(int((wanted & alive).sum()))
        was = torch.zeros_like(wanted)
        was[wanted] = right
        alive = alive & was
        hits.append(int(alive.sum()))
        kls.append(kl.item())
        ces.append(hard.item())
    return Unrolled(total, kls, ces, tried, hits)
