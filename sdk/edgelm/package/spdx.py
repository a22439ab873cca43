"""SPDX identifiers of the licences that models have, whatever their source calls them."""

from __future__ import annotations

from collections.abc import Mapping

_IDENTIFIERS = """
AFL-3.0 AGPL-3.0-only Apache-2.0 BSD-2-Clause BSD-3-Clause BSL-1.0 CC-BY-4.0 CC-BY-NC-4.0 CC-BY-NC-ND-4.0
CC-BY-NC-SA-4.0 CC-BY-SA-3.0 CC-BY-SA-4.0 CC0-1.0 ECL-2.0 EUPL-1.2 GPL-2.0-only GPL-3.0-only ISC LGPL-3.0-only
MIT MPL-2.0 ODbL-1.0 PDDL-1.0 Unlicense WTFPL Zlib
"""
# SPDX's word -> the hub's, where the hub's is not simply the identifier in lower case.
HUB_LICENSES: Mapping[str, str] = {
    "AGPL-3.0-only": "agpl-3.0",
    "GPL-2.0-only": "gpl-2.0",
    "GPL-3.0-only": "gpl-3.0",
    "LGPL-3.0-only": "lgpl-3.0",
}
_KNOWN = {name.lower(): name for name in _IDENTIFIERS.split()} | {hubs: name for name, hubs in HUB_LICENSES.items()}


def spdx_identifier(license_: str) -> str | None:
    """Return the SPDX identifier of a licence that a source names, or None: the models' own licences have none."""
    return _KNOWN.get(license_.strip().lower())
