"""Makers of tiny Hugging Face folders: built, initialised and saved by transformers and diffusers themselves.

A few layers, 16 to 32 wide, with a tokenizer or an image processor beside them, as a user would have downloaded them.
"""

import json
import random
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

LABELS = ["kind", "unkind"]
SIDE = 32  # pixels of a picture
LENGTH = 64  # tokens that a net can take
RATE = 8000  # samples a second of a sound
WORDS = {
    "kind": ["is great", "정말 좋아요", "was a joy from the first page to the last", "fine"],
    "unkind": ["is awful", "별로예요", "was dull and far too long for what it had to say", "no"],
}
THINGS = ["the book", "the show", "영화", "a walk in the rain", "음식"]

# ---------------------------------------------------------------------------------------------------------------- data


def sentences(n: int = 48) -> list[dict[str, str]]:
    draw = random.Random(0)
    rows = []
    for i in range(n):
        label = LABELS[i % 2]
        rows.append({"text": f"{draw.choice(THINGS)} {draw.choice(WORDS[label])} {i}", "label": label})
    return rows


def write_texts(path: Path, *names: str) -> Path:
    """jsonl with these columns of `sentences`."""
    lines = [json.dumps({name: row[name] for name in names}, ensure_ascii=False) for row in sentences()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_pictures(folder: Path, labels: list[str], n: int = 48) -> Path:
    """A folder of pngs per label: a bright bar, lying or standing, on noise."""
    draw = np.random.default_rng(0)
    for i in range(n):
        picture = draw.integers(0, 120, (SIDE, SIDE, 3))
        bar = slice(4 * (i % 7), 4 * (i % 7) + 4)
        picture[(slice(None), bar) if i % 2 else bar] += 120
        (folder / labels[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.astype(np.uint8)).save(folder / labels[i % 2] / f"{i}.png")
    return folder


def write_sounds(folder: Path, labels: list[str], n: int = 48) -> Path:
    """A folder of WAV files per label, of 16 bits and unlike lengths: a low or a high tone in noise."""
    draw = np.random.default_rng(0)
    for i in range(n):
        time = np.arange(2400 + 137 * (i % 5)) / RATE
        tone = 0.3 * np.sin(2 * np.pi * (400, 1600)[i % 2] * time) + draw.normal(0, 0.05, len(time))
        (folder / labels[i % 2]).mkdir(parents=True, exist_ok=True)
        with wave.open(str(folder / labels[i % 2] / f"{i}.wav"), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes((tone * 2**15).astype("<i2").tobytes())
    return folder


# ------------------------------------------------------------------------------------------- tokenizers and processors


def bpe(marks: list[str], template: str) -> Any:
    """A byte-level BPE whose first tokens are `marks`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([row["text"] for row in sentences()], trainer)
    if template:
        used = [(mark, marks.index(mark)) for mark in marks if mark in template]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return backend


def gpt_tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=bpe(["<|endoftext|>"], ""), eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )  # no padding token, as GPT-2's own


def llama_tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    backend = bpe(["<unk>", "<s>", "</s>", "<pad>"], "<s> $A")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def roberta_tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    marks = {
        "cls_token": "<s>",
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    backend = bpe(list(marks.values()), "<s> $A </s>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=LENGTH, **marks)


def bert_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    marks = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    backend: Any = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=list(marks.values()), show_progress=False)
    backend.train_from_iterator([row["text"] for row in sentences()], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=LENGTH, **marks)


def save_processor(name: str, folder: Path) -> None:
    """The image processor `name` of transformers, on PIL."""
    import transformers

    size = {"shortest_edge": SIDE} if name.startswith(("ConvNext", "MobileNet")) else {"height": SIDE, "width": SIDE}
    extra = {"crop_pct": 1.0} if name.startswith("ConvNext") else {}
    extra |= {"crop_size": {"height": SIDE, "width": SIDE}} if name.startswith("MobileNet") else {}
    getattr(transformers, f"{name}ImageProcessorPil")(size=size, **extra).save_pretrained(folder)


def save_extractor(name: str, folder: Path) -> None:
    """The feature extractor of a folder of sounds; this Whisper hears one second, at twice the rate of the data."""
    from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

    if name == "whisper_audio":
        made = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    else:
        made = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=name == "hubert")
    made.save_pretrained(folder)


# -------------------------------------------------------------------------------------------------------------- folders

HEAD = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
DECODER = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "tie_word_embeddings": False,
}
ENCODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LISTENER = ENCODER | {
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 4, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
}
DESIGNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # name: (class of transformers, its config, the config's entries)
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER),
    "llama_tied": ("LlamaForCausalLM", "LlamaConfig", DECODER | {"tie_word_embeddings": True}),
    "llama_bf16": ("LlamaForCausalLM", "LlamaConfig", DECODER | {"num_hidden_layers": 1}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", DECODER | {"num_hidden_layers": 1, "head_dim": 16}),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        DECODER | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "tie_word_embeddings": True},
    ),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        DECODER | {"num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": 300,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": LENGTH,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
    "bert": (
        "BertForSequenceClassification",
        "BertConfig",
        ENCODER | HEAD | {"vocab_size": 200, "max_position_embeddings": LENGTH},
    ),
    "roberta": (
        "RobertaForSequenceClassification",
        "RobertaConfig",
        ENCODER | HEAD | {"num_hidden_layers": 1, "vocab_size": 300, "max_position_embeddings": LENGTH + 2},
    ),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        HEAD
        | {
            "vocab_size": 200,
            "max_position_embeddings": LENGTH,
            "dim": 32,
            "hidden_dim": 48,
            "n_layers": 1,
            "n_heads": 4,
        },
    ),
    "bert_body": ("BertModel", "BertConfig", ENCODER | {"vocab_size": 200, "max_position_embeddings": LENGTH}),
    "bert_mlm": ("BertForMaskedLM", "BertConfig", ENCODER | {"vocab_size": 200, "max_position_embeddings": LENGTH}),
    "bert_tagger": (
        "BertForTokenClassification",
        "BertConfig",
        ENCODER | HEAD | {"vocab_size": 200, "max_position_embeddings": LENGTH},
    ),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        ENCODER | HEAD | {"num_hidden_layers": 1, "image_size": SIDE, "patch_size": 8},
    ),
    "vit_body": ("ViTModel", "ViTConfig", ENCODER | {"num_hidden_layers": 1, "image_size": SIDE, "patch_size": 8}),
    "resnet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        HEAD | {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
    ),
    "mobilenet": (
        "MobileNetV2ForImageClassification",
        "MobileNetV2Config",
        HEAD | {"image_size": SIDE, "depth_multiplier": 0.25, "min_depth": 8, "depth_divisible_by": 8},
    ),
    "swin": (
        "SwinForImageClassification",
        "SwinConfig",
        HEAD
        | {
            "image_size": SIDE,
            "patch_size": 4,
            "embed_dim": 16,
            "depths": [1, 1],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    "convnext": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        HEAD | {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 1]},
    ),
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", LISTENER | HEAD),
    "hubert": (
        "HubertForSequenceClassification",
        "HubertConfig",
        LISTENER | HEAD | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    ),
    "whisper_audio": (
        "WhisperForAudioClassification",
        "WhisperConfig",
        HEAD
        | {
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "num_mel_bins": 16,
            "max_source_positions": 50,
            "classifier_proj_size": 16,
            "vocab_size": 300,
            "pad_token_id": 0,
        },
    ),
}
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt2": gpt_tokenizer,
    "roberta": roberta_tokenizer,
    **dict.fromkeys(("bert", "bert_body", "bert_mlm", "bert_tagger", "distilbert"), bert_tokenizer),
    **dict.fromkeys(("llama", "llama_tied", "llama_bf16", "qwen3", "gemma2", "mixtral"), llama_tokenizer),
}
PROCESSORS = {
    "vit": "ViT",
    "vit_body": "ViT",
    "swin": "ViT",
    "resnet": "ConvNext",
    "convnext": "ConvNext",
    "mobilenet": "MobileNetV2",
}
LANGUAGE = ("llama", "llama_tied", "llama_bf16", "qwen3", "gemma2", "mixtral", "gpt2")
TEXTS = ("bert", "roberta", "distilbert")
MASKED = ("bert_mlm",)
PICTURES = ("vit", "resnet", "mobilenet", "swin", "convnext")
SOUNDS = ("wav2vec2", "hubert", "whisper_audio")
DIFFUSION = ("unet", "ddpm")
ARCHITECTURES = (*LANGUAGE, *TEXTS, *MASKED, *PICTURES, *SOUNDS, *DIFFUSION)


def build(name: str) -> Any:
    """The net alone: random, in eval mode, its batch-norm statistics moved off their defaults."""
    import transformers

    kind, config, entries = DESIGNS[name]
    torch.manual_seed(0)
    net = getattr(transformers, kind)(getattr(transformers, config)(**entries))
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if torch.nn.utils.parametrize.is_parametrized(
            module
        ):  # lengths of weight norm other than those of its directions
            module.parametrizations.weight.original0.data.mul_(
                1 + torch.rand(module.parametrizations.weight.original0.shape)
            )
    return net.to(torch.bfloat16 if name.endswith("bf16") else torch.float32).eval()


def save(name: str, folder: Path, **options: Any) -> Path:
    """The folder of one of ARCHITECTURES or of a body, with all that a user would find in it."""
    if name in DIFFUSION:
        return save_diffusion(name, folder)
    build(name).save_pretrained(folder, **options)
    if name in TOKENIZERS:
        TOKENIZERS[name]().save_pretrained(folder)
    elif name in SOUNDS:
        save_extractor(name, folder)
    else:
        save_processor(PROCESSORS[name], folder)
    return folder


def save_diffusion(name: str, folder: Path) -> Path:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
    )
    if name == "unet":
        unet.save_pretrained(folder)
    else:
        DDPMPipeline(unet, DDPMScheduler(20)).save_pretrained(folder)
    return folder


def as_cache_snapshot(folder: Path, root: Path) -> Path:
    """The folder as the Hugging Face cache keeps it: snapshots/REVISION/NAME -> ../../blobs/DIGEST."""
    snapshot = root / "models--tiny--net" / "snapshots" / "0123abcd"
    blobs = root / "models--tiny--net" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        (blobs / f"blob{number}").write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        up = "/".join([".."] * (1 + len(link.relative_to(snapshot.parent.parent).parts) - 2))
        link.symlink_to(f"{up}/blobs/blob{number}")
    return snapshot


def auto_class(name: str) -> Any:
    """The library's own class that opens this folder."""
    import diffusers
    import transformers

    if name in DIFFUSION:
        return diffusers.UNet2DModel
    kinds = {
        LANGUAGE: "AutoModelForCausalLM",
        TEXTS: "AutoModelForSequenceClassification",
        MASKED: "AutoModelForMaskedLM",
        PICTURES: "AutoModelForImageClassification",
        SOUNDS: "AutoModelForAudioClassification",
    }
    return getattr(transformers, next(auto for names, auto in kinds.items() if name in names))


def reopen(name: str, folder: Path) -> Any:
    """By the library's own class, its loading report checked to be empty."""
    net, report = auto_class(name).from_pretrained(
        folder / "unet" if name == "ddpm" else folder, output_loading_info=True, use_safetensors=True
    )
    assert not any(report.values()), report
    return net.eval()


@torch.no_grad()
def logits(name: str, net: Any) -> torch.Tensor:
    """What the library's own forward pass gives for a fixed input."""
    draw = torch.Generator().manual_seed(1)
    if name in DIFFUSION:
        return net(torch.randn(2, 3, 16, 16, generator=draw), torch.tensor([3, 9]), return_dict=False)[0]
    if name in PICTURES:
        return net(torch.randn(2, 3, SIDE, SIDE, generator=draw)).logits
    if name == "whisper_audio":
        return net(torch.randn(2, 16, 100, generator=draw)).logits
    if name in SOUNDS:
        return net(torch.randn(2, 2400, generator=draw)).logits
    return net(torch.randint(5, 150, (2, 12), generator=draw)).logits.float()
