"""OLMo 2: a Llama with norms behind each part, and of all query and of all key heads together.

Its row reads GGUF files of OLMo 3 too, which llama.cpp tells apart by their window.
"""

from __future__ import annotations

from typing import Any

from edgelm_export.architectures import gguf_header, llama
from edgelm_export.architectures.architecture import Architecture, GGUFFamily, GGUFHeader
from edgelm_export.architectures.gemma2 import GGUF_NAMES
from edgelm_export.architectures.gguf_values import WINDOW_PATTERN, float32_number, rope_by_kind, whole_number
from edgelm_export.tensor_map import TensorLayout

# OLMo 3's.
_WINDOW_KEYS = dict.fromkeys(("attention.sliding_window", WINDOW_PATTERN, "rope.freq_base_swa"))
# llama.cpp's converter writes config.json's attention_factor there, which is the whole; llama.cpp multiplies by it.
_ATTENTION = "olmo2.rope.scaling.attn_factor"


def _gguf_to_hf_config(header: GGUFHeader) -> dict[str, Any]:
    values = gguf_header.to_hf_config(header, _WINDOW_KEYS)
    if values["rope_scaling"] and _ATTENTION in header.metadata:
        factor = float32_number(header.metadata, _ATTENTION)
        values["rope_scaling"] = {**values["rope_scaling"], "attention_factor": factor}
    window = whole_number(header.metadata, "olmo2.attention.sliding_window", 0)
    if not window:
        return values
    # llama.cpp takes the pattern of the published models, whatever the file has for it.
    values |= {"model_type": "olmo3", "sliding_window": window}
    return rope_by_kind(values, header)


OLMO2 = Architecture(
    model_type="olmo2",
    defaults={"rms_norm_eps": 1e-5, "eos_token_id": 50279},
    read_config=llama.to_model_config,
    features={"norm_placement": "post", "qk_norm": True, "qk_norm_scope": "projection", "mlp_bias": False},
    gguf=GGUFFamily(
        architecture="olmo2",
        to_hf_config=_gguf_to_hf_config,
        layout=TensorLayout(names=GGUF_NAMES | llama.GGUF_QK_NORMS),
    ),
)
