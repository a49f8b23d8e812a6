"""The peer that most people use: the Trainer of transformers, its defaults otherwise, on tokens that are ready."""

import tempfile
from typing import Any

import torch
from language import Clock, options, token_ids
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows: list[list[int]]):
        self.rows = torch.tensor(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


class Ticks(TrainerCallback):
    def __init__(self) -> None:
        self.clock = Clock()

    def on_step_end(self, args, state, control, **_) -> None:
        self.clock.tick()


def settings(batch: int, steps: int, bf16: bool = True) -> dict[str, Any]:
    """What every side that the Trainer runs is told; all else is its default."""
    return {
        "use_cpu": True,
        "bf16": bf16,
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "learning_rate": 1e-4,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def main() -> None:
    chosen, ticks = options(), Ticks()
    net = AutoModelForCausalLM.from_pretrained(chosen.kept / f"llama-{chosen.size}", dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, **settings(chosen.batch, chosen.steps, chosen.precision == "bf16"))
        Trainer(net, arguments, train_dataset=Rows(token_ids(chosen)), callbacks=[ticks]).train()
    ticks.clock.tell(chosen.batch)


if __name__ == "__main__":
    main()
