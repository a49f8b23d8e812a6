"""A folder that no family claims: what was found, what was looked for, and which families come near."""

import json
import subprocess
import sys

import pytest

import folders as F
from onnuri import registry
from onnuri.errors import BadInput
from onnuri.model import open_model


@pytest.mark.parametrize(
    "name, near, far",
    [
        ("bert_tagger", "text_classifier comes near", "image_classifier comes"),
        ("bert_body", "masked_lm comes near", "image_classifier comes"),
        ("vit_body", "image_classifier", "causal_lm c"),
    ],
)
def test_a_body_names_the_families_that_could_take_it(name, near, far, tmp_path):
    with pytest.raises(BadInput, match=near) as caught:
        open_model(F.save(name, tmp_path / name))
    assert far not in str(caught.value)
    assert all(f"{family} (" in str(caught.value) for family in registry.entries("families"))
    assert f"--family {near.split()[0]}" in caught.value.hint or near.split()[0] in caught.value.hint


def test_an_unknown_type_is_proposed_and_an_empty_folder_listed(tmp_path):
    for architecture in ("LamaModel", "LamaForCausalLM"):  # nobody's, and one that a family claims by its ending
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "lama", "architectures": [architecture]}))
        with pytest.raises(BadInput, match=r"does not know model_type 'lama', did you mean .*llama"):
            open_model(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "notes.txt")
    with pytest.raises(BadInput, match=r"it holds notes\.txt"):
        open_model(tmp_path)


def test_a_pickle_in_our_own_sub_folder_is_one_still(tmp_path):
    """Only the numbers that lie beside the text of their graph are none."""
    from onnuri.errors import BadInput
    from onnuri.hub import check_folder

    (tmp_path / "onnuri").mkdir()
    (tmp_path / "onnuri" / "model.bin").write_bytes(b"numbers")
    (tmp_path / "onnuri" / "model.xml").write_text("<net/>", encoding="utf-8")
    check_folder(tmp_path)
    (tmp_path / "onnuri" / "model.xml").unlink()
    with pytest.raises(BadInput, match="pickled"):
        check_folder(tmp_path)


def test_a_folder_is_claimed_without_what_takes_seconds_to_load(tmp_path):
    """Neither transformers nor torch's compiler, of which each takes as long as torch itself."""
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    code = (
        "import sys; from pathlib import Path; from onnuri import claims, registry; "
        "[registry.operation(name) for name in registry.entries('operations')]; "
        f"print(claims.claimed_by(Path({str(tmp_path)!r})).name); "
        "print([name for name in ('transformers', 'torch._dynamo') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["causal_lm", "[]"]
