"""States for reports: a small training run, a hostile one, a large one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import jsonckpt


def training_state(step: int) -> dict[str, Any]:
    """A model that has been trained for some steps, with its optimizer and schedule."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.ReLU(), torch.nn.Linear(20, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    history = []
    for at in range(step):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 30)).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        history.append({"step": at + 1, "loss": loss.item()})
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
        "step": step,
        "epoch": 1,
        "history": history,
        "rng": {"torch": torch.get_rng_state()},
    }


def saved(path: Path, state: Any, **options: Any) -> Path:
    jsonckpt.save(state, path, **options)
    return path


#: Texts that would do harm if they became markup, or that turn other text round.
ATTACKS = [
    "<img src=x onerror=\"document.title='owned'\">",
    "</script><script>document.title='owned'</script>",
    "<!--<script>",
    "]]>",
    "a\u202eb\u2066c\u200b",
    "a\u2028b\u2029c",
    "nul\x00\x07",
    "&lt;b&gt;&amp;",
    "\" onclick=alert(1) x='",
    "javascript:alert(1)",
    "@@program@@ @@data@@",
    "__proto__",
    "constructor",
    "toString",
    "\ud800 alone",
]


def hostile_state() -> dict[str, Any]:
    deep: Any = {"w": torch.ones(2)}
    for _ in range(95):
        deep = {"<b>": [deep]}
    state: dict[str, Any] = {text: torch.randn(3, 4) for text in ATTACKS}
    state["values"] = list(ATTACKS)
    state["k" * 5_000] = 1
    state["keys"] = {text: text for text in ATTACKS}
    state["history"] = [{**dict.fromkeys(ATTACKS, at), "step": at} for at in range(4)]
    state["long"] = "<" * (1 << 20)
    state["k" * 900] = torch.ones(2)
    state["deep"] = deep
    state["optimizer"] = {
        "state": {0: {"exp_avg": torch.ones(3, 4), "exp_avg_sq": torch.ones(3, 4), "step": 1}},
        "param_groups": [{"lr": 0.1, "params": [0], "param_names": ATTACKS[:1]}],
    }
    return state
