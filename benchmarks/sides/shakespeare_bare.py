"""The peer on tiny shakespeare: the recipe that nanoGPT (Karpathy 2022) gives for a processor, as a bare loop of PyTorch over
the GPT-2 of transformers: 4 layers, 4 heads, 128 wide, blocks of 64 characters, 12 of them a step, 2,000 steps.

Judged as ours is: on all of the last tenth in blocks of 64, each character once, where the recipe itself samples 20 batches.

    python benchmarks/sides/shakespeare_bare.py --data DATA
"""

import argparse
import json
import math
from pathlib import Path

import torch
from shakespeare import BLOCK, divided
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

BATCH, STEPS, WARM, RATE, LEAST, DECAY = 12, 2000, 100, 1e-3, 1e-4, 0.1


def rate(step: int) -> float:
    if step < WARM:
        return RATE * (step + 1) / (WARM + 1)
    return LEAST + (RATE - LEAST) / 2 * (1 + math.cos(math.pi * (step - WARM) / (STEPS - WARM)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    texts = divided(parser.parse_args().data)
    characters = sorted({*texts["train"], *texts["test"]})
    ids = {split: torch.tensor([characters.index(one) for one in text]) for split, text in texts.items()}
    torch.manual_seed(1337)
    config = GPT2Config(
        vocab_size=len(characters), n_positions=BLOCK, n_embd=128, n_layer=4, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    net = GPT2LMHeadModel(config)
    matrices, others = ([p for p in net.parameters() if (p.dim() > 1) == whether] for whether in (True, False))
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99))
    for step in range(STEPS):
        places = torch.randint(len(ids["train"]) - BLOCK, (BATCH, 1)) + torch.arange(BLOCK + 1)
        taken = ids["train"][places]
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        loss = cross_entropy(net(taken[:, :-1]).logits.flatten(0, 1), taken[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    print(json.dumps({"nats_per_character": judged(net.eval(), ids["test"])}))


@torch.no_grad()
def judged(net: GPT2LMHeadModel, ids: torch.Tensor) -> float:
    """The mean over all characters but the first, whole blocks."""
    count = (len(ids) - 1) // BLOCK * BLOCK
    given, asked = ids[:count].view(-1, BLOCK), ids[1 : count + 1].view(-1, BLOCK)
    losses = [
        cross_entropy(net(x).logits.flatten(0, 1), y.flatten()) for x, y in zip(given.split(100), asked.split(100))
    ]
    weights = torch.tensor([len(x) for x in given.split(100)], dtype=torch.float32)
    return float((torch.stack(losses) * weights).sum() / weights.sum())


if __name__ == "__main__":
    main()
