"""Transformers' Emu3 (tiny, random) in a plain loop, its layers routed: python examples/train_unimod.py [UPDATES]"""

import sys

import torch
from transformers import Emu3Config, Emu3ForConditionalGeneration

import flashu

UPDATES = int(sys.argv[1]) if len(sys.argv) > 1 else 20
WORDS, CODES = 60, 64

names = ["<|endoftext|>", "<image>", "<|extra_200|>", "<|image start|>"]
words = {name: WORDS + n for n, name in enumerate(names)}
first = WORDS + len(words)
words |= {f"<|visual token {code:06d}|>": first + code for code in range(CODES)}
text = {
    "vocab_size": first + CODES, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "attention_dropout": 0.0, "pad_token_id": WORDS,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
image = {
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
    "hidden_size": 32,
    "codebook_size": CODES,
}
torch.manual_seed(0)
model = Emu3ForConditionalGeneration(
    Emu3Config(vq_config=image, text_config=text, vocabulary_map=words, image_token_id=WORDS + 1)
).train()

behind = flashu.apply_unimod(model, "emu3-paper")
optimizer = torch.optim.AdamW([*model.parameters(), *behind.routers.parameters()], lr=2e-3)
for update in range(UPDATES):
    drawn = torch.cat((torch.randint(0, WORDS, (2, 8)), first + torch.arange(24).repeat(2, 1)), dim=1)
    answer = torch.arange(32).repeat(2, 1) % 7
    ids = torch.cat((drawn, answer))
    labels = ids.clone()
    labels[:, :8] = -100
    loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(update + 1, round(loss.item(), 3))
flashu.remove_unimod(model)
