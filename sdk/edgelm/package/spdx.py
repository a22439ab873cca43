"""SPDX identifiers of the licences that models have, whatever their source calls them."""

from __future__ import annotations

from collections.abc import Mapping

_IDENTIFIERS = """
AFL-3.0 AGPL-3.0-only Apache-2.0 Artistic-2.0 BSD-2-Clause BSD-3-Clause BSD-3-Clause-Clear BSL-1.0 C-UDA-1.0 CC-BY-2.0
CC-BY-2.5 CC-BY-3.0 CC-BY-4.0 CC-BY-NC-2.0 CC-BY-NC-3.0 CC-BY-NC-4.0 CC-BY-NC-ND-3.0 CC-BY-NC-ND-4.0 CC-BY-NC-SA-2.0
CC-BY-NC-SA-3.0 CC-BY-NC-SA-4.0 CC-BY-ND-4.0 CC-BY-SA-3.0 CC-BY-SA-4.0 CC0-1.0 CDLA-Permissive-1.0 CDLA-Permissive-2.0
CDLA-Sharing-1.0 ECL-2.0 EPL-1.0 EPL-2.0 EUPL-1.1 EUPL-1.2 GPL-2.0-only GPL-3.0-only ISC LGPL-2.1-only LGPL-3.0-only
LGPLLR LPPL-1.3c MIT MPL-2.0 MS-PL NCSA ODC-By-1.0 ODbL-1.0 OFL-1.1 OSL-3.0 PDDL-1.0 PostgreSQL Unlicense WTFPL Zlib
etalab-2.0
"""
# What the hub calls those that it does not call by their identifier in lower case.
# Source: https://huggingface.co/docs/hub/repositories-licenses.
_HUB_WORDS = {
    "AGPL-3.0-only": "agpl-3.0",
    "C-UDA-1.0": "c-uda",
    "GPL-2.0-only": "gpl-2.0",
    "GPL-3.0-only": "gpl-3.0",
    "LGPL-2.1-only": "lgpl-2.1",
    "LGPL-3.0-only": "lgpl-3.0",
    "LGPLLR": "lgpl-lr",
    "ODC-By-1.0": "odc-by",
    "ODbL-1.0": "odbl",
    "PDDL-1.0": "pddl",
}
# The hub's words for families of licences, and for those that SPDX does not know.
_HUB_ALONE = """
bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd cc creativeml-openrail-m deepfloyd-if-license
gemma gfdl gpl lgpl llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 openrail openrail++
"""

_KNOWN: Mapping[str, str] = {name.lower(): name for name in _IDENTIFIERS.split()} | {
    word: name for name, word in _HUB_WORDS.items()
}


def spdx_identifier(license_: str) -> str | None:
    """Return the SPDX identifier of a licence that a source names, or None: the models' own licences have none."""
    return _KNOWN.get(license_.strip().lower())


def hub_word(license_: str) -> str | None:
    """Return the hub's word for a licence, or None: it has words for some alone."""
    identifier, word = spdx_identifier(license_), license_.lower()
    if identifier is not None:
        return _HUB_WORDS.get(identifier, identifier.lower())
    return word if word in _HUB_ALONE.split() else None


def stated_license(license_: object, name: object) -> str | None:
    """Return what a source says of its licence; where that is `other`, the name that it gives it beside that word."""
    if license_ == "other" and isinstance(name, str) and name.strip():
        return name
    return license_ if isinstance(license_, str) else None
