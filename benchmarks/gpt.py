"""A small GPT-2 and the text that it is trained on: real weights and optimizer moments to save.

The shape is the guide's: vocabulary 50257, width 256, 8 layers, 8 heads, 19.3 M parameters.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["GPT", "initial_state", "train"]

VOCABULARY, WIDTH, LAYERS, HEADS, CONTEXT = 50257, 256, 8, 8, 512
_SEED = 20240229
_BATCH, _LENGTH = 2, 64


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x``: ``(batch, length, width)``."""
        batch, length, _ = x.shape
        heads = self.c_attn(x).view(batch, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        projected: torch.Tensor = self.c_proj(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return projected


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.attn = _Attention()
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(approximate="tanh"), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x``: ``(batch, length, width)``."""
        x = x + self.attn(self.ln_1(x))
        y: torch.Tensor = x + self.mlp(self.ln_2(x))
        return y


class GPT(nn.Module):
    """A decoder with its output tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, WIDTH)
        self.wpe = nn.Embedding(CONTEXT, WIDTH)
        self.h = nn.ModuleList(_Block() for _ in range(LAYERS))
        self.ln_f = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """``ids``: ``(batch, length)`` of int64; returns logits ``(batch, length, vocabulary)``."""
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        logits: torch.Tensor = self.lm_head(self.ln_f(x))
        return logits


def _token_ids() -> torch.Tensor:
    """Half a megabyte of English that comes with every Python, as ids by falling frequency."""
    from pydoc_data.topics import topics

    text = "\n\n".join(f"{name}\n{topics[name]}" for name in sorted(topics))
    words = re.findall(r" ?\w+|\s+|[^\w\s]", text)
    ranked = sorted(Counter(words).items(), key=lambda item: (-item[1], item[0]))
    number = {word: rank for rank, (word, _) in enumerate(ranked[:VOCABULARY])}
    return torch.tensor([number[word] for word in words if word in number])


def _fresh_model() -> GPT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        return GPT()


def initial_state() -> dict[str, torch.Tensor]:
    """The model's tensors before the first step of :func:`train`: the same in every call."""
    return {name: tensor.detach() for name, tensor in _fresh_model().named_parameters()}


def train(steps: int) -> dict[str, Any]:
    """Train from scratch, and return a checkpoint with the members of the guide's checkpoint."""
    ids = _token_ids()
    model = _fresh_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    generator = torch.Generator().manual_seed(_SEED)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(ids) - _LENGTH - 1, (_BATCH,), generator=generator)
        batch = torch.stack([ids[start : start + _LENGTH + 1] for start in starts.tolist()])
        logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return {
        "epoch": 1,
        "step": len(losses),
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": schedule.state_dict(),
        "loss": losses[-1],
        "history": losses,
        "tokens": len(losses) * _BATCH * _LENGTH,
        "text": f"{len(ids):,} tokens of Python's own documentation (pydoc_data.topics)",
    }
