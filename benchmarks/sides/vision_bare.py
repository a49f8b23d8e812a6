"""A loop written by hand on a ViT, bf16 by autocast and fused AdamW, on pixels that are ready."""

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
from vision import BATCH, Clock, options, pictures


def main() -> None:
    chosen, clock = options(), Clock()
    net = AutoModelForImageClassification.from_pretrained(chosen.kept / "vit", dtype=torch.float32).train()
    rows = pictures(chosen)
    processor = AutoImageProcessor.from_pretrained(chosen.kept / "vit", backend="pil")
    pixels = processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    labels = torch.tensor([row["label"] for row in rows])
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    for step in range(chosen.steps):
        part = slice(step * BATCH, (step + 1) * BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            loss = net(pixel_values=pixels[part], labels=labels[part]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
    clock.tell(BATCH)


if __name__ == "__main__":
    main()
