"""The peer for pretraining: litgpt's Llama, loss, optimizer and Fabric as its `pretrain` has them, on tokens that are ready.

Its command itself only takes data that it prepared and models that it knows by name; it compiles the model too, which on two AVX2
cores made a step eight times as long as it is eagerly.
"""

import json

import lightning
import torch
from language import LENGTH, Clock, options, token_ids
from litgpt import GPT, Config
from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer


def main() -> None:
    chosen, clock = options(), Clock()
    fabric = lightning.Fabric(
        accelerator="cpu", devices=1, precision="bf16-mixed" if chosen.precision == "bf16" else "32-true"
    )
    model = GPT(shape(json.loads((chosen.kept / f"llama-{chosen.size}" / "config.json").read_text())))
    model = fabric.setup(model)
    optimizer = instantiate_torch_optimizer(
        "AdamW", model.parameters(), lr=4e-4, weight_decay=0.1, betas=(0.9, 0.95), fused=True
    )
    optimizer = fabric.setup_optimizers(optimizer)
    rows = torch.tensor(token_ids(chosen))
    for step in range(chosen.steps):
        ids = rows[step * chosen.batch : (step + 1) * chosen.batch]
        loss = chunked_cross_entropy(model(ids[:, :-1].contiguous()), ids[:, 1:].contiguous())
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
    clock.tell(chosen.batch)


def shape(found: dict) -> Config:
    """The same Llama in litgpt's terms."""
    return Config(
        name="bench",
        block_size=LENGTH,
        n_layer=found["num_hidden_layers"],
        n_embd=found["hidden_size"],
        n_head=found["num_attention_heads"],
        n_query_groups=found["num_key_value_heads"],
        intermediate_size=found["intermediate_size"],
        padded_vocab_size=found["vocab_size"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=found["rms_norm_eps"],
        mlp_class_name="LLaMAMLP",
    )


if __name__ == "__main__":
    main()
