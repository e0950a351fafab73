"""``dataset-metadata.json``: its rules, each with a message that says it. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ..errors import ArgumentError, listed, quote

METADATA_NAME: Final = "dataset-metadata.json"
LICENSES: Final = (
    *("CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0"),
    *("CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "CC-BY-NC-ND-4.0", "GPL-2.0", "GPL-3.0", "LGPL-3.0"),
    *("AGPL-3.0", "FDL-1.3", "apache-2.0", "ODbL-1.0", "DbCL-1.0", "ODC-BY-1.0", "PDDL"),
    *("CDLA-Permissive-1.0", "CDLA-Sharing-1.0", "US-Government-Works", "copyright-authors"),
    *("other", "unknown"),
)
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


def title_of(identifier: str) -> str:
    """A title made of the slug, if it may be one.

    >>> title_of("me/text-gen-checkpoint")
    'Text gen checkpoint'
    """
    words = identifier.rpartition("/")[2].replace("-", " ")
    return words[:1].upper() + words[1:]


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``old`` with the members of ``new`` that are given; what is required is filled in.

    >>> merged({"id": "me/run-one", "keywords": ["nlp"]}, {"title": None, "license": "PDDL"})
    ... # doctest: +NORMALIZE_WHITESPACE
    {'id': 'me/run-one', 'title': 'Run one', 'licenses': [{'name': 'PDDL'}], 'keywords': ['nlp']}
    """
    given = {key: value for key, value in new.items() if value is not None}
    license_name = given.pop("license", None)
    if license_name is not None:
        given["licenses"] = [{"name": license_name}]
    whole = {**old, **given}
    identifier = whole.get("id")
    whole.setdefault("title", title_of(identifier) if isinstance(identifier, str) else None)
    whole.setdefault("licenses", [{"name": "other"}])
    first = {key: whole.get(key) for key in ("id", "title", "licenses")}
    return first | {key: value for key, value in whole.items() if key not in first}


def check(metadata: Mapping[str, Any], is_file: Callable[[str], bool]) -> None:
    """Check all rules.

    Args:
        is_file: whether a path relative to the directory is a file in it.

    Raises:
        ArgumentError: rules are broken; the message says each.
    """
    problems = [
        *_of_id(metadata.get("id")),
        *_of_length("title", metadata.get("title"), 6, 50),
        *_of_licenses(metadata.get("licenses")),
        *_of_optional(metadata),
        *_of_resources(metadata.get("resources"), is_file),
    ]
    if problems:
        raise ArgumentError("; ".join(problems), file=METADATA_NAME)


def _of_id(value: Any) -> list[str]:
    if not isinstance(value, str) or value.count("/") != 1:
        return [f"id must be owner/slug, such as me/text-gen-checkpoint, not {quote(value)}"]
    owner, _, slug = value.partition("/")
    problems = []
    if not _OWNER.fullmatch(owner):
        problems.append(f"the owner in id must be your Kaggle user name, not {quote(owner)}")
    if not _SLUG.fullmatch(slug):
        problems.append(
            f"the slug must be lower-case letters and digits with single hyphens between them, not "
            f"{quote(slug)}"
        )
    return problems + _of_length("the slug", slug, 6, 50)


def _of_length(what: str, value: Any, least: int, most: int) -> list[str]:
    if not isinstance(value, str):
        return [f"{what} must be text of {least} to {most} characters, not {quote(value)}"]
    if not least <= len(value) <= most:
        return [f"{what} must have {least} to {most} characters, {quote(value)} has {len(value)}"]
    return []


def _of_licenses(value: Any) -> list[str]:
    names = (
        [item.get("name") for item in value if isinstance(item, dict)]
        if (isinstance(value, list))
        else []
    )
    if len(names) != 1:
        return [f'licenses must be a list of exactly one {{"name": …}}, not {quote(value)}']
    if names[0] not in LICENSES:
        return [f"no license {quote(names[0])}; there are {', '.join(LICENSES)}"]
    return []


def _of_optional(metadata: Mapping[str, Any]) -> list[str]:
    problems = []
    if metadata.get("subtitle"):
        problems += _of_length("subtitle", metadata["subtitle"], 20, 80)
    if not isinstance(metadata.get("description", ""), str):
        problems.append(f"description must be text, not {quote(metadata['description'])}")
    keywords = metadata.get("keywords", [])
    if not isinstance(keywords, list) or not all(isinstance(word, str) for word in keywords):
        problems.append(f"keywords must be a list of words, not {quote(keywords)}")
    return problems


def _of_resources(value: Any, is_file: Callable[[str], bool]) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(_is_resource(item) for item in value):
        return [f'resources must be a list of {{"path": …, "description": …}}, not {quote(value)}']
    paths = [item["path"] for item in value]
    missing = [path for path in paths if not is_file(path)]
    double = sorted({path for path in paths if paths.count(path) > 1}) if len(paths) < 1000 else []
    problems = []
    if missing:
        problems.append(f"resources name files that are not there: {_names(missing)}")
    if double:
        problems.append(f"resources name a path twice: {_names(double)}")
    return problems


def _is_resource(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("path"), str)


def _names(paths: Sequence[str]) -> str:
    return listed(paths, 3)
