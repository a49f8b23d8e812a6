"""The peer for language models: SFT of TRL, its defaults otherwise, on tokens that are ready."""

import tempfile

import torch
from datasets import Dataset
from language import LENGTH, options, token_ids
from language_trainer import Ticks, settings
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    chosen, ticks = options(), Ticks()
    folder = chosen.kept / f"llama-{chosen.size}"
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = Dataset.from_dict({"input_ids": token_ids(chosen)})
    with tempfile.TemporaryDirectory() as out:
        how = settings(chosen.batch, chosen.steps, chosen.precision == "bf16")
        config = SFTConfig(out, **how, max_length=LENGTH, gradient_checkpointing=False)
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear") if chosen.lora else None
        tokenizer = AutoTokenizer.from_pretrained(folder)
        SFTTrainer(
            net, config, train_dataset=rows, processing_class=tokenizer, callbacks=[ticks], peft_config=lora
        ).train()
    ticks.clock.tell(chosen.batch)


if __name__ == "__main__":
    main()
