"""Whatever folder: architectures that no other test names, and all that are named, through a whole life. What is written
the library opens with our logits; PEFT reads the adapters."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import folders as F
from command import some
from onnuri.errors import Refusal
from onnuri.model import open_model
from onnuri.run import execute

peft = pytest.importorskip("peft")
EXACT = 1e-5
DECODER = F.DECODER | {"num_key_value_heads": 4}
WIDE = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
UNNAMED = {
    # class of transformers: the entries of its config, beside its own defaults
    "OPTForCausalLM": {"hidden_size": 32, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "Phi3ForCausalLM": {},
    "DeepseekV3ForCausalLM": {
        "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "first_k_dense_replace": 1,
    },
    "HeliumForCausalLM": {"head_dim": 8},
    "MambaForCausalLM": {"state_size": 4, "time_step_rank": 4},
    "AlbertForSequenceClassification": {"embedding_size": 16},
    "ModernBertForSequenceClassification": {},
    "ElectraForMaskedLM": {"embedding_size": 16},
    "Dinov2ForImageClassification": {"image_size": F.SIDE, "patch_size": 8},
    "RegNetForImageClassification": WIDE | {"embedding_size": 8, "groups_width": 4},
    "SegformerForImageClassification": WIDE | {"num_attention_heads": [1, 2, 2, 4]},
}  # fmt: skip
ODD = ("OPTForCausalLM",)
"""One of them."""

REFUSED = {"MambaForCausalLM": "export"}  # a scan over places, which a graph of any length cannot say
NOT_IN_PEFT = {"MambaForCausalLM"}  # PEFT itself refuses the layers of this type


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Callable[[str], str]:
    """name of a class -> records that it can be asked about."""
    root = tmp_path_factory.mktemp("data")
    found = {
        "LM": F.write_texts(root / "language.jsonl", "text"),
        "ForSequenceClassification": F.write_texts(root / "texts.jsonl", "text", "label"),
        "ForImageClassification": F.write_pictures(root / "pictures", F.LABELS),
        "sounds": F.write_sounds(root / "sounds", F.LABELS),
    }
    return lambda name: str(next(path for ending, path in found.items() if name.endswith(ending)))


def made(name: str, folder: Path) -> Path:
    """A tiny folder of this class: built by transformers, with a tokenizer or a processor beside it."""
    import transformers

    kind = getattr(transformers, name).config_class
    known = kind().to_dict()
    entries = {key: value for key, value in DECODER.items() if key in known and name.endswith(("LM", "fication"))}
    if name.endswith("ForImageClassification"):
        entries = {key: value for key, value in F.ENCODER.items() if key in known}
    if not name.endswith("ForCausalLM"):
        entries |= F.HEAD
    torch.manual_seed(0)
    getattr(transformers, name)(kind(**{**entries, **UNNAMED[name]})).eval().save_pretrained(folder)
    if name.endswith("ForImageClassification"):
        F.save_processor("ViT", folder)
    else:
        (F.llama_tokenizer() if name.endswith("ForCausalLM") else F.bert_tokenizer()).save_pretrained(folder)
    return folder


def reopen(name: str, folder: Path):
    import transformers

    net, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, use_safetensors=True)
    assert not any(report.values()), report
    return net.eval()


@torch.no_grad()
def logits(name: str, net) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    if name.endswith("ForImageClassification"):
        return net(torch.randn(2, 3, F.SIDE, F.SIDE, generator=draw)).logits
    return net(torch.randint(5, 150, (2, 12), generator=draw)).logits


NAMED = (*F.LANGUAGE, *F.TEXTS, *F.MASKED, *F.PICTURES, *F.SOUNDS)


@pytest.mark.parametrize("name", some(UNNAMED, ODD))
def test_an_architecture_that_nobody_named(name, data, tmp_path):
    folder = made(name, tmp_path / "base")

    def run(operation: str, source: str, out: str | None, **settings) -> dict:
        other = {"other": str(tmp_path / settings.pop("other"))} if "other" in settings else {}
        inputs = {"model": str(tmp_path / source), "data": data(name), **other}
        line = execute(operation, settings, inputs, tmp_path / out if out else None, quiet=True)
        assert all(promise["kept"] for promise in line.get("promises", []))
        return line

    run("evaluate", "base", None)
    run("predict", "base", "answers.jsonl")
    run("train", "base", "trained", steps=1, batch_size=8)
    run("adapt", "base", "adapter", steps=2, batch_size=8, rank=2, learning_rate=0.01)
    run("bake", "adapter", "baked")
    run("prune", "base", "pruned")
    run("merge", "base", "merged", other="trained")
    for written in ("trained", "baked", "pruned", "merged"):
        gap = logits(name, reopen(name, tmp_path / written)) - logits(name, open_model(tmp_path / written).net)
        assert float(gap.abs().max()) <= EXACT, written
    adapted = logits(name, open_model(tmp_path / "adapter").net)
    assert not torch.equal(adapted, logits(name, reopen(name, folder)))
    if name not in NOT_IN_PEFT:
        assert (tmp_path / "adapter" / "adapter_config.json").exists()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = peft.PeftModel.from_pretrained(reopen(name, folder), str(tmp_path / "adapter")).eval()
        assert float((logits(name, theirs) - adapted).abs().max()) <= EXACT
    run("quantize", "base", "packed")
    if name in REFUSED:
        with pytest.raises(Refusal, match="one graph of this net"):
            run(REFUSED[name], "packed", "never")
    else:
        run("export", "packed", "exported")


@pytest.mark.parametrize("name", some(NAMED, ("llama_tied", "mixtral", "bert_mlm", "resnet", "hubert")))
def test_every_named_architecture_merges(name, data, tmp_path):
    ending = {
        (*F.LANGUAGE, *F.MASKED): "LM",
        F.TEXTS: "ForSequenceClassification",
        F.PICTURES: "ForImageClassification",
        F.SOUNDS: "sounds",
    }
    records = data(next(kind for names, kind in ending.items() if name in names))
    inputs = {"model": str(F.save(name, tmp_path / "one")), "data": records}
    execute("train", {"steps": 1, "batch_size": 8}, inputs, tmp_path / "other", quiet=True)
    line = execute("merge", {}, inputs | {"other": str(tmp_path / "other")}, tmp_path / "merged", quiet=True)
    assert line["promises"] and all(promise["kept"] for promise in line["promises"])
    gap = F.logits(name, F.reopen(name, tmp_path / "merged")) - F.logits(name, open_model(tmp_path / "merged").net)
    assert float(gap.abs().max()) <= EXACT
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["architectures"] == [F.DESIGNS[name][0]]
