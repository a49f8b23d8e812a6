"""The leanest peer: a loop written by hand, autocast where bf16 is asked for and fused AdamW, on tokens that are ready. Where it is
judged it learns in the usual way: the rate rises over a twentieth of the steps and falls along a cosine."""

import torch
from language import Clock, bits_per_byte, options, token_ids
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup


def main() -> None:
    chosen, clock = options(), Clock()
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_pretrained(chosen.kept / f"llama-{chosen.size}", dtype=torch.float32).train()
    if chosen.lora:
        from peft import LoraConfig, get_peft_model

        net = get_peft_model(net, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    rows = torch.tensor(token_ids(chosen))
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, chosen.steps // 20, chosen.steps)
    forward = torch.compile(net) if chosen.compile else net
    order = torch.randperm(len(rows))
    for step in range(chosen.steps):
        ids = rows[order[torch.arange(step * chosen.batch, (step + 1) * chosen.batch) % len(rows)]]
        with torch.autocast("cpu", torch.bfloat16, enabled=chosen.precision == "bf16"):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clock.tick()
    clock.tell(chosen.batch, {"bits_per_byte": bits_per_byte(net.eval(), chosen)} if chosen.judged else {})


if __name__ == "__main__":
    main()
