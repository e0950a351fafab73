"""A training loop that goes on exactly where it stopped. Run it, stop it, and run it again.

Five lines are for jsonckpt: they are marked. The checkpoints are in the folder ``run``.
"""

import torch

import jsonckpt  # 1

STEPS = 300

torch.manual_seed(0)
inputs = torch.randn(512, 8)
targets = inputs.square().sum(1, keepdim=True)

model = torch.nn.Sequential(
    torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(32, 1)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

state = jsonckpt.TrainState(model=model, optimizer=optimizer, scheduler=scheduler)  # 2
with jsonckpt.CheckpointManager(  # 3
    "run", every_steps=25, keep_last=2, keep_best=("loss", "min", 1), deadline="11h30m"
) as manager:
    for step in range(manager.restore(state) or 1, STEPS + 1):  # 4
        chosen = torch.randint(len(inputs), (32,))
        loss = (model(inputs[chosen]) - targets[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % 25 == 0:
            print(f"step {step}: loss {loss.item()!r}", flush=True)
        if manager.step(step, state, metrics={"loss": loss}):  # 5
            break  # the time is up, or a signal came: this step is saved
