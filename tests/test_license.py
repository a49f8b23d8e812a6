"""Licenses: read from folders as they are downloaded, carried through every operation, combined without optimism."""

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from onnuri import ledger, license, registry
from onnuri.card import card
from onnuri.evidence import inherited
from onnuri.license import ASK, OTHERS, RESTRICTIONS, TERMS, combined, identified, origins, recognized, stated
from onnuri.model import Model
from onnuri.run import execute

HUB = """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0
wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc
h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++
osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2
llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown other"""
"""The identifiers of huggingface.co/docs/hub/repositories-licenses."""


def under(*names: str) -> list[dict[str, str]]:
    """Parents A, B, C ... under these licenses."""
    return [{"path": chr(65 + i), "id": name, "name": "", "link": ""} for i, name in enumerate(names)]


def folder(place: Path, card: str = "", **files: str) -> Path:
    place.mkdir(exist_ok=True)
    for name, text in {**({"README.md": card} if card else {}), **files}.items():
        (place / name).write_text(text, encoding="utf-8")
    return place


# ---------------------------------------------------------------------------------------------------------- the facts


def test_every_name_is_the_hubs():
    assert set(HUB.split()) == TERMS.keys() | OTHERS and not TERMS.keys() & OTHERS


def test_what_the_names_of_creative_commons_say_is_what_the_terms_say():
    for name in [name for name in TERMS if name.startswith("cc-by")]:
        said, parts = TERMS[name], name.split("-")
        assert ("non-commercial" in said.duties) == ("nc" in parts)
        assert ("no-derivatives" in said.duties) == ("nd" in parts)
        assert bool(said.share) == ("sa" in parts) and "attribution" in said.duties


def test_copyleft_can_be_carried_on():
    """A copyleft license goes into itself, and whatever it goes into is copyleft and is known."""
    for name, said in TERMS.items():
        assert not said.share or said.share[0] == name
        assert all(TERMS[other].share for other in said.share)
        assert not said.share or not said.duties & {"use", "no-derivatives"}


# -------------------------------------------------------------------------------------------------------- combining


@pytest.mark.parametrize(
    ("names", "name", "commercial"),
    [
        ((), "own", "yes"),
        (("mit",), "mit", "yes"),
        (("mit", "mit"), "mit", "yes"),
        (("mit", "apache-2.0", "bsd-3-clause"), "apache-2.0", "yes"),
        (("apache-2.0", "cc-by-nc-4.0"), "cc-by-nc-4.0", "no"),
        (("apache-2.0", "gpl-3.0"), "gpl-3.0", "yes"),
        (("apache-2.0", "gpl-2.0"), "conflict", "yes"),  # FSF: only version 3 takes Apache's patent terms
        (("mit", "gpl-2.0"), "gpl-2.0", "yes"),
        (("gpl-2.0", "gpl-3.0"), "conflict", "yes"),
        (("lgpl-2.1", "gpl-2.0"), "gpl-2.0", "yes"),
        (("lgpl-2.1", "lgpl-3.0"), "gpl-3.0", "yes"),
        (("lgpl-2.1", "apache-2.0"), "gpl-3.0", "yes"),
        (("gpl-3.0", "agpl-3.0"), "agpl-3.0", "yes"),
        (("cc-by-sa-4.0", "gpl-3.0"), "gpl-3.0", "yes"),
        (("cc-by-sa-4.0", "gpl-2.0"), "conflict", "yes"),
        (("cc-by-sa-3.0", "cc-by-sa-4.0"), "cc-by-sa-4.0", "yes"),
        (("cc-by-sa-4.0", "cc-by-nc-4.0"), "conflict", "no"),
        (("cc-by-sa-4.0", "cc-by-nc-sa-4.0"), "conflict", "no"),
        (("cc-by-nc-4.0", "cc-by-nc-sa-4.0"), "cc-by-nc-sa-4.0", "no"),
        (("mpl-2.0", "gpl-3.0"), "gpl-3.0", "yes"),
        (("epl-2.0", "gpl-3.0"), "conflict", "yes"),
        (("gpl-3.0", "llama3.1"), "conflict", "yes, except"),
        (("gemma", "llama3.1"), "gemma-and-llama3.1", "yes, except"),
        (("apache-2.0", "llama3.1"), "llama3.1", "yes, except"),
        (("cc-by-nd-4.0",), "conflict", "yes"),
        (("mit", "cc-by-nc-nd-4.0"), "conflict", "no"),
        (("mit", "unknown"), "unknown", ASK),
        (("cc-by-nc-4.0", "unknown"), "unknown", "no"),  # one refusal is enough
        (("cc-by-nd-4.0", "unknown"), "conflict", ASK),
        (("gpl",), "unknown", ASK),  # which version is not said
        (("grok2-community",), "unknown", ASK),
    ],
)
def test_combinations(names, name, commercial):
    for order in itertools.permutations(names):
        found = combined(under(*order))
        assert found["name"] == name and bool(found["conflicts"]) == (name == "conflict")
        assert found["permitted"]["may be used commercially"].startswith(commercial)
        onward = found["permitted"]["may be passed on"]
        expected = {"conflict": "no", "unknown": ASK, "own": "yes"}.get(name, f"yes, under {name.split('-and-')[0]}")
        assert onward.startswith(expected)


def test_reasons_name_the_parent():
    found = combined(under("apache-2.0", "cc-by-nc-4.0"))
    assert found["permitted"]["may be used commercially"] == "no, because B is cc-by-nc-4.0"
    assert "say what was changed in A, apache-2.0 and B, cc-by-nc-4.0" in found["conditions"]
    found = combined(under("gpl-2.0", "gpl-3.0", "mit"))
    assert found["conflicts"] == ["A is gpl-2.0 and B is gpl-3.0: no license meets the terms of both"]
    assert any('"Built with Llama"' in line for line in combined(under("llama3.1"))["conditions"])
    assert any("700 million" in line for line in combined(under("llama2"))["conditions"])
    assert "no legal advice" in found["advice"]


@given(st.lists(st.sampled_from(sorted(TERMS.keys() | OTHERS)), max_size=4))
def test_nothing_is_loosened(names):
    """Whatever binds a parent binds the child; more parents never permit more; the same again changes nothing."""
    found = combined(under(*names))
    terms = [TERMS[name] for name in names if name in TERMS]
    commercial = found["permitted"]["may be used commercially"]
    assert commercial.startswith("no, ") == any("non-commercial" in said.duties for said in terms)
    if any(name not in TERMS for name in names):
        assert not commercial.startswith("yes") and not found["permitted"]["may be passed on"].startswith("yes")
    if found["name"] in TERMS:
        carried = TERMS[found["name"]]
        assert all(said.duties & RESTRICTIONS <= carried.duties for said in terms)
        assert all(found["name"] in said.share for said in terms if said.share)
    assert combined(found["parents"]) == found
    if found["name"] == "conflict" and names:
        assert combined(under(*names, "mit"))["name"] == "conflict"


# ---------------------------------------------------------------------------------------------------------- reading

APACHE = "                                 Apache License\n                           Version 2.0, January 2004\n"
TEXTS = {
    "apache-2.0": APACHE,
    "mit": "MIT License\n\nCopyright (c) X\n\nPermission is hereby granted, free of charge, to any person obtaining a copy\nof"
    " this software and associated documentation files",
    "bsd-3-clause": "Copyright X\n\nRedistribution and use in source and binary forms, with or\n...\n3. Neither the name of X",
    "bsd-2-clause": "Copyright X\n\nRedistribution and use in source and binary forms, with or without\nmodification ...",
    "cc-by-4.0": "Attribution 4.0 International\n\n=====\n",
    "cc-by-nc-4.0": "Attribution-NonCommercial 4.0 International\n",
    "cc-by-sa-4.0": "Creative Commons Attribution-ShareAlike 4.0 International Public License",
    "cc-by-nc-sa-4.0": "Attribution-NonCommercial-ShareAlike 4.0 International\n",
    "gpl-3.0": "GNU GENERAL PUBLIC LICENSE\n  Version 3, 29 June 2007\n",
    "lgpl-3.0": "GNU LESSER GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007\n ... version 3 of the GNU General Public License",
    "lgpl-2.1": "GNU LESSER GENERAL PUBLIC LICENSE\n Version 2.1, February 1999\n",
    "agpl-3.0": "GNU AFFERO GENERAL PUBLIC LICENSE\n Version 3, 19 November 2007\n",
    "llama2": "LLAMA 2 COMMUNITY LICENSE AGREEMENT\t\nLlama 2 Version Release Date: July 18, 2023",
    "llama3": "META LLAMA 3 COMMUNITY LICENSE AGREEMENT\nMeta Llama 3 Version Release Date: April 18, 2024",
    "llama3.1": "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1 Version Release Date: July 23, 2024",
    "gemma": "Gemma Terms of Use\n\nLast modified: March 24, 2025",
    "creativeml-openrail-m": "Copyright (c) 2022 X and contributors\n\nCreativeML Open RAIL-M\ndated August 22, 2022",
    "openrail++": "CreativeML Open RAIL++-M License dated July 26, 2023",
    "": "Tongyi Qianwen LICENSE AGREEMENT\n\nTongyi Qianwen Release Date: August 3, 2023",
}


@pytest.mark.parametrize("name", TEXTS)
def test_license_files(name, tmp_path):
    assert recognized(TEXTS[name]) == name
    [found] = stated(folder(tmp_path, LICENSE=TEXTS[name]))
    assert found["id"] == (name or "other")
    assert found["name"] == ("" if name else "Tongyi Qianwen LICENSE AGREEMENT")


def test_whole_texts():
    """The texts that Debian and its kin keep; skipped where there are none."""
    place = Path("/usr/share/common-licenses")
    known = {"Apache-2.0": "apache-2.0", "GPL-2": "gpl-2.0", "GPL-3": "gpl-3.0", "LGPL-2.1": "lgpl-2.1"}
    known |= {"LGPL-3": "lgpl-3.0", "MPL-2.0": "mpl-2.0", "CC0-1.0": "cc0-1.0", "BSD": "bsd-3-clause"}
    there = [name for name in known if (place / name).exists()]
    if not there:
        pytest.skip(f"no license texts in {place}")
    assert {name: recognized((place / name).read_text(errors="replace")) for name in there} == {
        n: known[n] for n in there
    }


@pytest.mark.parametrize(
    ("card", "files", "names"),
    [
        ("---\nlicense: apache-2.0\n---\n", {}, ["apache-2.0"]),
        ("---\r\nlicense: MIT\r\nlanguage: ko\r\n---\r\ntext", {}, ["mit"]),
        ("---\nlicense: [mit, gpl-3.0]\n---", {}, ["mit", "gpl-3.0"]),
        ("---\nlicense: GPL-3.0-or-later\n---", {}, ["gpl-3.0"]),
        ("---\nlicense: other\nlicense_name: qwen\nlicense_link: LICENSE\n---", {"LICENSE": "Qwen"}, ["other"]),
        ("---\nlicense: other\n---", {"LICENSE.md": "# " + TEXTS["cc-by-nc-4.0"]}, ["cc-by-nc-4.0"]),
        ("---\nlicense: openrail\n---", {"LICENSE": TEXTS["openrail++"]}, ["openrail++"]),
        ("---\nlicense: apache-2.0\n---", {"LICENSE.txt": APACHE}, ["apache-2.0"]),
        ("---\nlicense: apache-2.0\n---", {"LICENSE": TEXTS["cc-by-nc-4.0"]}, ["apache-2.0", "cc-by-nc-4.0"]),
        ("", {"COPYING": TEXTS["gpl-3.0"], "NOTICE": APACHE}, ["gpl-3.0"]),
        ("---\nlicense: my own words\n---", {}, ["my own words"]),
        ("---\nlanguage: ko\n---", {}, []),
        ("license: mit", {}, []),
        ("---\nlicense: {a: [\n---", {}, []),
        ("---\n- license\n---", {}, []),
        ("---\nlicense: 3\n---", {}, []),
        ("---\nlicense: " + "[" * 9000 + "\n---", {}, []),
        ("---\n" + "[" * 9000 + "\nlicense:\n- mit\n- gpl-3.0\n---", {}, ["mit", "gpl-3.0"]),
        ("\x00---\n\x00", {}, []),
    ],
)
def test_folders(card, files, names, tmp_path):
    found = stated(folder(tmp_path, card, **files))
    assert [one["id"] for one in found] == names
    assert combined(found)["permitted"]
    if not names:
        assert origins(tmp_path, []) == [{"path": str(tmp_path), "id": "unknown", "name": "", "link": ""}]


def test_spdx_names_are_known():
    assert [identified(name) for name in ("ODbL-1.0", "CC0-1.0", "LGPL-2.1-only", "openrail++")] == [
        "odbl",
        "cc0-1.0",
        "lgpl-2.1",
        "openrail++",
    ]


# --------------------------------------------------------------------------------------------------------- traveling


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    """A model of one's own, and the same as someone else's download under cc-by-nc-4.0: no ledger, another card."""
    root = tmp_path_factory.mktemp("life")
    execute("train", {"family": "tabular", "steps": 3}, {"data": "builtin:iris"}, root / "own", quiet=True)
    execute("prune", {}, {"model": root / "own", "data": "builtin:iris"}, root / "next", quiet=True)
    shutil.copytree(root / "own", root / "got")
    shutil.rmtree(root / "got" / "onnuri")
    folder(root / "got", "---\nlicense: cc-by-nc-4.0\n---\n")
    for operation, source, out in (("prune", "got", "pruned"), ("quantize", "pruned", "packed")):
        execute(operation, {}, {"model": root / source, "data": "builtin:iris"}, root / out, quiet=True)
    return root


def test_a_model_of_ones_own(life):
    for name in ("own", "next"):
        record = ledger.read(life / name)[-1]["license"]
        assert record["name"] == "own" and record["parents"] == []
        assert "yours to choose" in (life / name / "README.md").read_text()
        assert "license" not in license.front_matter(life / name / "README.md")


def test_a_license_travels_through_every_operation(life):
    """Named after the folder that it came with, though two operations lie between."""
    record = ledger.read(life / "packed")[-1]["license"]
    assert record["parents"] == [{"path": str(life / "got"), "id": "cc-by-nc-4.0", "name": "", "link": ""}]
    assert record["name"] == "cc-by-nc-4.0" and ledger.verify(life / "packed") == []
    assert license.front_matter(life / "packed" / "README.md")["license"] == "cc-by-nc-4.0"
    assert f"no, because {life / 'got'} is cc-by-nc-4.0" in (life / "packed" / "README.md").read_text().replace(
        "\\", ""
    )


def test_the_base_of_a_downloaded_adapter_counts(tmp_path):
    base = folder(tmp_path / "base", "---\nlicense: llama2\n---")
    adapter = folder(tmp_path / "adapter", "---\nlicense: cc-by-nc-4.0\n---")
    on_base: Any = SimpleNamespace(folder=base)
    found = {"model": Model(registry.family("tabular"), nn.Identity(), None, adapter, base=on_base)}
    record = inherited(registry.operation("prune"), {"model": str(adapter), "data": "x"}, found)
    assert record["name"] == "cc-by-nc-4.0-and-llama2" and len(record["parents"]) == 2
    found["model"].base = None
    assert inherited(registry.operation("prune"), {"model": str(adapter)}, found)["name"] == "cc-by-nc-4.0"


def test_an_author_chooses_by_writing_it_into_the_card(life, tmp_path):
    assert origins(folder(tmp_path, "---\nlicense: mit\n---"), ledger.read(life / "own"))[0]["id"] == "mit"


def test_a_ledger_from_before_licenses_were_recorded(life):
    old = {name: value for name, value in ledger.read(life / "own")[-1].items() if name != "license"}
    assert origins(life / "own", [old])[0]["id"] == "unknown"


@given(st.text(max_size=60), st.text(max_size=60))
@example("\n", "\n")
def test_what_a_folder_calls_its_license_breaks_no_card(tmp_path_factory, name, link):
    """The front matter stays readable, and says what was said."""
    place = folder(tmp_path_factory.mktemp("card"))
    said = {"license": "other", "license_name": name, "license_link": link}
    (place / "README.md").write_text("---\n" + yaml.safe_dump(said) + "---\n", encoding="utf-8")
    line = LINE | {"license": combined(origins(place, []))}
    (place / "README.md").write_text(card([line]), encoding="utf-8")
    again = yaml.safe_load((place / "README.md").read_text(encoding="utf-8").split("\n---\n")[0])
    assert again["license"] == "other" and again["license_name"] == (license.text(name) or "other")
    assert again.get("license_link", "") == license.text(link) and again["pipeline_tag"] == "x"


LINE = {
    "operation": "prune",
    "family": "tabular",
    "task": "x",
    "inputs": [{"role": "model", "path": "a"}],
    "seconds": 1.0,
    "energy": {"joules": 1.0, "error": 0.5},
    "after": None,
}
