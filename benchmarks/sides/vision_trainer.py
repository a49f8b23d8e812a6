"""The Trainer of transformers on a ViT, bf16: pictures prepared by the model's processor when their turn comes."""

import tempfile
from typing import Any

import torch
from language_trainer import Ticks, settings
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments
from vision import BATCH, options, pictures


class Pictures(torch.utils.data.Dataset):
    def __init__(self, rows: list[dict[str, Any]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def main() -> None:
    chosen, ticks = options(), Ticks()
    folder = chosen.kept / "vit"
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    net = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32)

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in rows])}

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(out, **settings(BATCH, chosen.steps), remove_unused_columns=False)
        data = Pictures(pictures(chosen))
        Trainer(net, arguments, train_dataset=data, data_collator=collate, callbacks=[ticks]).train()
    ticks.clock.tell(BATCH)


if __name__ == "__main__":
    main()
