"""The peer for language models: SFT of TRL, bf16, its defaults otherwise, on tokens that are ready."""

import tempfile

import torch
from datasets import Dataset
from language import LENGTH, options, token_ids
from language_trainer import Ticks, settings
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    chosen, ticks = options(), Ticks()
    folder = chosen.kept / f"llama-{chosen.size}"
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = Dataset.from_dict({"input_ids": token_ids(chosen)})
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(out, **settings(chosen.batch, chosen.steps), max_length=LENGTH, gradient_checkpointing=False)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        SFTTrainer(net, config, train_dataset=rows, processing_class=tokenizer, callbacks=[ticks]).train()
    ticks.clock.tell(chosen.batch)


if __name__ == "__main__":
    main()
