"""The leanest peer: a loop written by hand, bf16 by autocast and fused AdamW, on tokens that are ready."""

import torch
from language import Clock, options, token_ids
from transformers import AutoModelForCausalLM


def main() -> None:
    chosen, clock = options(), Clock()
    net = AutoModelForCausalLM.from_pretrained(chosen.kept / f"llama-{chosen.size}", dtype=torch.float32).train()
    rows = torch.tensor(token_ids(chosen))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    forward = torch.compile(net) if chosen.compile else net
    for step in range(chosen.steps):
        ids = rows[step * chosen.batch : (step + 1) * chosen.batch]
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
    clock.tell(chosen.batch)


if __name__ == "__main__":
    main()
