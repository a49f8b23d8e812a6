"""Licenses: under which terms a model stands, which of them bind what is made from it, and what may be done with it.

A reading aid and no legal advice. Every model that went in counts as a parent, a teacher too: some licenses reach what is
learned from a model's answers. The licenses of data are not looked at. What a license says stands in `licenses.yaml`; of
one that is not there nothing is assumed.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Terms:
    """What a license says; see `licenses.yaml`."""

    duties: frozenset[str]
    share: tuple[str, ...]
    more: tuple[str, ...]
    title: str


KNOWN: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("licenses.yaml").read_text(encoding="utf-8"))
TERMS = {
    name: Terms(
        frozenset(said.get("duties", "").split()),
        tuple(said.get("share", "").split()),
        tuple(said.get("more", ())),
        said.get("title", ""),
    )
    for name, said in KNOWN["licenses"].items()
}
OTHERS, FAMILIES, SPDX = frozenset(KNOWN["others"]), frozenset(KNOWN["families"]), dict(KNOWN["spdx"])
RESTRICTIONS = frozenset({"non-commercial", "no-derivatives", "use"})
"""Terms that a copyleft license lets nobody add."""

ADVICE = "A reading aid and no legal advice: the texts of the licenses decide."
OWN, UNKNOWN, CONFLICT = "own", "unknown", "conflict"
ASK = "not known: ask; nothing is assumed"

Origin = dict[str, str]
"""{"path": the folder, "id": its license, "name": as the folder calls it, "link": where its text is}; empty where not said."""


# ------------------------------------------------------------------------------------------------- reading a folder

MOST = 2**16  # bytes of a card or a license file that are read
LONGEST = 1000  # characters of the metadata about a license; YAML takes its time over brackets in brackets
HEAD = 1200  # characters of a license file in which its title must stand


def origins(folder: Path, lines: Sequence[dict[str, Any]]) -> list[Origin]:
    """The licenses that a model folder stands under; [] for a model of one's own. `lines`: its ledger, which names the
    parents; a folder without one is read itself."""
    record = lines[-1].get("license") if lines else None
    if record is not None:
        return record["parents"] or stated(folder)
    return stated(folder) or [{"path": str(folder), "id": UNKNOWN, "name": "", "link": ""}]


def stated(folder: Path) -> list[Origin]:
    """What the card and the license file of a folder say. Where they say different things, both are taken to bind."""
    card = front_matter(folder / "README.md")
    named = card.get("license")
    found = [identified(each) for each in (named if isinstance(named, list) else [named]) if isinstance(each, str)]
    by_text, title = license_file(folder)
    name, link = text(card.get("license_name")) or title, text(card.get("license_link"))
    if by_text and by_text not in found:
        found = [each for each in found if each in TERMS.keys() - FAMILIES] + [by_text]
    if not found and title:
        found = ["other"]
    plain = {each: {"path": str(folder), "id": each, "name": "", "link": ""} for each in found}
    return [
        one if each in TERMS else one | {"name": name or each.replace(UNKNOWN, ""), "link": link}
        for each, one in plain.items()
    ]


def front_matter(card: Path) -> dict[str, Any]:
    """What the metadata at the head of a model card say of the license; {} where there is nothing that can be read."""
    head = re.match(r"\ufeff?---\s*\n(.*?)\n---", beginning(card), re.DOTALL)
    entries = re.findall(r"^license\w*:.*(?:\n(?:[ -].*)?)*", head[1], re.MULTILINE) if head else []
    try:
        value = yaml.safe_load("\n".join(entries)[:LONGEST])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def license_file(folder: Path) -> tuple[str, str]:
    """(the license that the folder's license file is recognized as, or "", the file's first line)."""
    for path in texts(folder):
        if path.name.lower().startswith(("lic", "copying")) and (found := beginning(path)):
            first = next((line for line in found.splitlines() if line.strip(" #*=-")), "")
            return recognized(found), text(first.strip(" #*=-"))
    return "", ""


def texts(folder: Path) -> list[Path]:
    """The files of a folder that hold its license and its notices."""
    names = r"(licen[sc]e|copying|notice|use_policy)(\.(txt|md))?"
    return sorted(path for path in folder.iterdir() if path.is_file() and re.fullmatch(names, path.name, re.I))


def recognized(words: str) -> str:
    """The license whose title comes first in a text, "" where none does."""
    words = re.sub(r"[^a-z0-9.+']+", " ", words.lower()).replace("open rail", "openrail").replace(" .", " ")
    found = {name: place for name, its in TERMS.items() if its.title and (place := words[:HEAD].find(its.title)) >= 0}
    # of two that begin at one place (version 2, version 2.1) the longer one is meant
    name = min(found, key=lambda name: (found[name], -len(TERMS[name].title)), default="")
    if name == "bsd-2-clause" and re.search(
        "neither the names? of|nor the names? of|may not be used to endorse", words
    ):
        return (
            "bsd-3-clause-clear" if "no express or implied licenses to any party's patent" in words else "bsd-3-clause"
        )
    return name


def identified(name: str) -> str:
    """A license's name as the Hub writes it, where it is one of the Hub's or of SPDX's; else as it stands."""
    short = name.strip().lower()
    for each in (short, re.sub(r"(-only|-or-later|\+)$", "", short)):
        if (known := SPDX.get(each, each)) in TERMS or known in OTHERS:
            return known
    return text(name) or UNKNOWN


def beginning(path: Path) -> str:
    """The first MOST bytes of a file as text; "" where there is no file."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        return file.read(MOST).decode("utf-8", "replace").replace("\r\n", "\n")


def text(value: Any) -> str:
    """A short line that can stand in a card and on a page, whatever was found."""
    line = " ".join(value.split()) if isinstance(value, str) else ""
    return "".join(letter for letter in line if letter.isprintable())[:120]


# ------------------------------------------------------------------------------------------------------- combining


def combined(parents: Iterable[Origin]) -> dict[str, Any]:
    """What binds a model made from `parents`: the name of its license ("own", "unknown", "conflict", several joined by
    "-and-"), the front matter of its card, what is permitted, on which conditions, and which terms exclude each other."""
    found = list({(one["path"], one["id"]): one for one in parents}.values())
    known = [one for one in found if one["id"] in TERMS]
    conflicts = excluded(known)
    name = CONFLICT if conflicts else UNKNOWN if len(known) < len(found) else child(known)
    return {
        "name": name,
        "front": front(name, found),
        "parents": found,
        "permitted": permitted(name, found),
        "conditions": conditions(known),
        "conflicts": conflicts,
        "advice": ADVICE,
    }


def excluded(known: list[Origin]) -> list[str]:
    """The terms that cannot be met when what is made from these models is passed on."""
    alone = [
        f"{is_under([one])}, which allows nobody to pass on what is made from it"
        for one in known
        if has(one, "no-derivatives")
    ]
    sharing = [one for one in known if not has(one, "no-derivatives")]
    pairs = [(a, b) for i, a in enumerate(sharing) for b in sharing[i + 1 :] if not fitting([a, b])]
    together = [f"{is_under(pair)}: no license meets the terms of both" for pair in pairs]
    if not together and not fitting(sharing):
        together = [f"{is_under(sharing)}: no license meets the terms of all"]
    return list(dict.fromkeys(alone + together))


def fitting(known: Sequence[Origin]) -> list[str]:
    """The licenses under which what is made from these may be passed on; ["any"] where none of them is copyleft."""
    sharing = [TERMS[one["id"]].share for one in known if TERMS[one["id"]].share]
    return [name for name in sharing[0] if all(goes_into(one, name) for one in known)] if sharing else ["any"]


def goes_into(one: Origin, copyleft: str) -> bool:
    """Whether what stands under one license can be passed on under a copyleft license, which lets nothing be added."""
    its, target = TERMS[one["id"]], TERMS[copyleft]
    if its.share:
        return copyleft in its.share
    ends = "patents" in its.duties and copyleft in ("gpl-2.0", "lgpl-2.1")  # FSF: a restriction to version 2
    return its.duties & RESTRICTIONS <= target.duties and not ends


def child(known: list[Origin]) -> str:
    """The name of the license that carries the terms of all of them."""
    names = list(dict.fromkeys(one["id"] for one in known))
    if not names:
        return OWN
    possible = fitting(known)
    if possible != ["any"]:
        return next((name for name in names if name in possible), possible[0])
    binding = [name for name in names if TERMS[name].duties & RESTRICTIONS]
    return "-and-".join(sorted(binding)) if binding else max(names, key=lambda name: len(TERMS[name].duties))


def front(name: str, found: list[Origin]) -> dict[str, str]:
    """The card's metadata in the Hub's words."""
    if name == OWN:
        return {}
    if name == UNKNOWN and len(found) == 1 and found[0]["id"] != UNKNOWN:
        one = found[0]
        listed = one["id"] in OTHERS and one["id"] != "other"
        stated = {"license": one["id"]} if listed else {"license": "other", "license_name": one["name"]}
        return stated | ({"license_link": one["link"]} if one["link"] else {})
    return {"license": name} if name in TERMS or name == UNKNOWN else {"license": "other", "license_name": name}


def permitted(name: str, found: list[Origin]) -> dict[str, str]:
    """{what: whether, and why} in plain words."""
    return {"may be used commercially": commercially(found), "may be passed on": passed_on(name, found)}


def commercially(found: list[Origin]) -> str:
    if closed := [one for one in found if has(one, "non-commercial")]:
        return f"no, because {is_under(closed)}"
    if unknown := unknown_of(found):
        return f"{ASK} ({is_under(unknown)})"
    limited = [one for one in found if has(one, "use")]
    return f"yes, except for the uses that are forbidden, because {is_under(limited)}" if limited else "yes"


def passed_on(name: str, found: list[Origin]) -> str:
    if name == OWN:
        return "yes: no other model went in, so that its license is yours to choose"
    if name == CONFLICT:
        return "no: for your own use only"
    if unknown := unknown_of(found):
        return f"{ASK} ({is_under(unknown)})"
    return f"yes, under {name.replace('-and-', ' and ')}"


def conditions(known: list[Origin]) -> list[str]:
    """What must be done when the model is passed on."""
    asked = {
        "attribution": "keep the copyright notices and license texts of {} and name their authors",
        "changes": "say what was changed in {}",
        "source": "give the source, in the form in which it is worked on, to all who get it ({})",
        "network": "give the source also to those who only use it over a network ({})",
        "non-commercial": "no commercial use ({})",
        "use": "pass on the list of forbidden uses and keep to it ({})",
        "patents": "the patent grant ends for whoever sues over patents in it ({})",
    }
    found = [
        line.format(" and ".join(called(one) for one in those))
        for duty, line in asked.items()
        if (those := [one for one in known if has(one, duty)])
    ]
    sharing = [f"pass it on under the same license ({called(one)})" for one in known if TERMS[one["id"]].share]
    return list(dict.fromkeys([*found, *sharing, *(f"{m} ({called(o)})" for o in known for m in TERMS[o["id"]].more)]))


def has(one: Origin, duty: str) -> bool:
    return one["id"] in TERMS and duty in TERMS[one["id"]].duties


def unknown_of(found: list[Origin]) -> list[Origin]:
    return [one for one in found if one["id"] not in TERMS]


def called(one: Origin) -> str:
    return f"{one['path']}, {one['id']}"


def is_under(those: Sequence[Origin]) -> str:
    """ "A is mit and B is of unknown license"."""
    return " and ".join(
        f"{one['path']} is "
        + (
            one["id"]
            if one["id"] in TERMS
            else f"under {one['name']!r}: read it"
            if one["name"]
            else "of unknown license"
        )
        for one in those
    )
