"""The bill of materials of a package, in CycloneDX 1.6: what it is, what it holds, and what it was made of."""

from __future__ import annotations

import re
import uuid
from typing import Any

from edgelm._version import __version__
from edgelm.package.manifest import Manifest
from edgelm.package.spdx import spdx_identifier

_NAMESPACE = uuid.UUID("5bb5ac25-0f14-5f0e-9a51-6d5c0f6ba1d3")  # of edgelm's packages alone


def bill_of_materials(manifest: Manifest) -> dict[str, Any]:
    """Describe a package as CycloneDX's JSON; the same package gives the same text.

    Source: https://cyclonedx.org/docs/1.6/json/ (components of the types machine-learning-model, data and file).
    """
    hashes = "".join(entry.sha256 for entry in manifest.files)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, manifest.name + hashes)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "edgelm", "version": __version__}]},
            "component": _model(manifest),
        },
        "components": [
            {
                "type": "file",
                "bom-ref": f"file:{entry.path}",
                "name": entry.path,
                "hashes": [{"alg": "SHA-256", "content": entry.sha256}],
                "properties": [{"name": "edgelm:size", "value": str(entry.size)}],
            }
            for entry in manifest.files
        ],
        "dependencies": [{"ref": "model", "dependsOn": [f"file:{entry.path}" for entry in manifest.files]}],
    }


def _model(manifest: Manifest) -> dict[str, Any]:
    facts = {
        "precision": manifest.precision,
        "context_length": manifest.context_length,
        **{f"opset:{domain or 'ai.onnx'}": version for domain, version in manifest.opsets.items()},
        **{f"created_by:{tool}": version for tool, version in manifest.created_by.items()},
    }
    card: dict[str, Any] = {
        "modelParameters": {
            "task": "text-generation",
            "architectureFamily": "transformer",
            "modelArchitecture": manifest.architecture,
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        }
    }
    if manifest.quality is not None:
        figures = {"perplexity": manifest.quality.perplexity, "source_perplexity": manifest.quality.source_perplexity}
        metrics = [{"type": name, "value": f"{value:.6g}"} for name, value in figures.items()]
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest.name,
        "modelCard": card,
        "pedigree": {"ancestors": [_ancestor(file) for file in manifest.source.get("files", ())]},
        "properties": [{"name": f"edgelm:{name}", "value": str(value)} for name, value in facts.items()],
    }
    if manifest.license is not None:
        identifier = spdx_identifier(manifest.license)
        model["licenses"] = [{"license": {"id": identifier} if identifier else {"name": manifest.license}}]
    return model


def _ancestor(file: Any) -> dict[str, Any]:
    """Describe one file that the weights came from, as the manifest's `source` has it."""
    described: dict[str, Any] = {"type": "data", "name": str(file.get("path", "unnamed"))}
    if re.fullmatch("[0-9a-fA-F]{64}", str(file.get("sha256"))):  # else no program would take any of the bill
        described["hashes"] = [{"alg": "SHA-256", "content": file["sha256"]}]
    return described
