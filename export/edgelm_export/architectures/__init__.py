"""The model families that edgelm reads: one row each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from edgelm.errors import CheckpointError
from edgelm_export.architectures.afmoe import AFMOE
from edgelm_export.architectures.apertus import APERTUS, APERTUS_1P5
from edgelm_export.architectures.architecture import Architecture, GGUFFamily
from edgelm_export.architectures.bamba import BAMBA
from edgelm_export.architectures.bart import (
    BART,
    BLENDERBOT,
    BLENDERBOT_SMALL,
    M2M_100,
    MARIAN,
    MBART,
    MVP,
    PEGASUS,
    PLBART,
)
from edgelm_export.architectures.bitnet import BITNET
from edgelm_export.architectures.bloom import BLOOM
from edgelm_export.architectures.cohere import COHERE, COHERE2, COHERE_COMPASS
from edgelm_export.architectures.cohere2_moe import COHERE2_MOE
from edgelm_export.architectures.deepseek import (
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    GLM4_MOE_LITE,
    MINICPM3,
    SARVAM_MLA,
    YOUTU,
)
from edgelm_export.architectures.deepseek_moe import DEEPSEEK_MOE, LING, LING_2, SARVAM
from edgelm_export.architectures.dots1 import DOTS1
from edgelm_export.architectures.ernie4_5 import ERNIE4_5, ERNIE4_5_MOE
from edgelm_export.architectures.exaone import EXAONE, EXAONE4, EXAONE_MOE
from edgelm_export.architectures.falcon import FALCON
from edgelm_export.architectures.falcon_h1 import FALCON_H1
from edgelm_export.architectures.flint import FLINT
from edgelm_export.architectures.gemma import GEMMA, GEMMA2, VAULTGEMMA
from edgelm_export.architectures.gemma3 import GEMMA3
from edgelm_export.architectures.gemma3n import GEMMA3N
from edgelm_export.architectures.gemma4 import GEMMA4
from edgelm_export.architectures.glm import CHATGLM, GLM, GLM4, GLM4_MOE
from edgelm_export.architectures.gpt2 import GPT2, GPT_BIGCODE, OPENAI_GPT
from edgelm_export.architectures.gpt_neo import GPT_NEO
from edgelm_export.architectures.gpt_neox import GPT_NEOX
from edgelm_export.architectures.gpt_oss import GPT_OSS
from edgelm_export.architectures.gptj import CODEGEN, GPTJ
from edgelm_export.architectures.granite import GRANITE, GRANITE_MOE, GRANITE_MOE_SHARED
from edgelm_export.architectures.granite_hybrid import GRANITE_HYBRID
from edgelm_export.architectures.granite_swa import GRANITE_MOE_SWA, GRANITE_SWA
from edgelm_export.architectures.hunyuan import HUNYUAN, HUNYUAN_MOE
from edgelm_export.architectures.hy_v3 import HY_V3
from edgelm_export.architectures.hyperclovax import HYPERCLOVAX
from edgelm_export.architectures.internlm2 import INTERNLM2
from edgelm_export.architectures.jais2 import JAIS2
from edgelm_export.architectures.jamba import JAMBA
from edgelm_export.architectures.lacking import LACKING
from edgelm_export.architectures.laguna import LAGUNA
from edgelm_export.architectures.lara_mini import LARA_MINI
from edgelm_export.architectures.lfm2 import LFM2, LFM2_MOE
from edgelm_export.architectures.lfm3 import LFM3
from edgelm_export.architectures.llama import LLAMA
from edgelm_export.architectures.llama4 import LLAMA4
from edgelm_export.architectures.llamas import ARCEE, CWM, HELIUM, INTERNLM3, IQUESTCODER, MLLAMA, SEED_OSS, SMOLLM3
from edgelm_export.architectures.mellum import MELLUM
from edgelm_export.architectures.minicpm import MINICPM
from edgelm_export.architectures.minimax_m2 import MINIMAX_M2
from edgelm_export.architectures.mistral import MINISTRAL, MINISTRAL3, MISTRAL
from edgelm_export.architectures.mixtral import MIXTRAL, PHIMOE
from edgelm_export.architectures.modernbert_decoder import MODERNBERT_DECODER
from edgelm_export.architectures.mpt import MPT
from edgelm_export.architectures.nanochat import NANOCHAT
from edgelm_export.architectures.nemotron import NEMOTRON
from edgelm_export.architectures.nemotron_h import NEMOTRON_H
from edgelm_export.architectures.olmo import FLEX_OLMO, OLMO, OLMO2, OLMO3, OLMOE
from edgelm_export.architectures.olmo_hybrid import OLMO_HYBRID
from edgelm_export.architectures.opt import OPT
from edgelm_export.architectures.persimmon import PERSIMMON
from edgelm_export.architectures.phi import PHI
from edgelm_export.architectures.phi3 import PHI3
from edgelm_export.architectures.qwen import QWEN
from edgelm_export.architectures.qwen2 import MIMO, QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE
from edgelm_export.architectures.qwen3_5 import QWEN3_5, QWEN3_5_MOE
from edgelm_export.architectures.qwen3_next import QWEN3_NEXT
from edgelm_export.architectures.solar_open import SOLAR_OPEN
from edgelm_export.architectures.stablelm import STABLELM
from edgelm_export.architectures.starcoder2 import STARCODER2
from edgelm_export.architectures.t5 import MT5, T5, UMT5
from edgelm_export.architectures.t5gemma import T5GEMMA
from edgelm_export.architectures.xglm import XGLM

ARCHITECTURES: dict[str, Architecture] = {
    "llama": LLAMA,  # Llama 1 to 3, SmolLM2, TinyLlama
    "llama4_text": LLAMA4,  # MobileLLM-R1
    "mllama_text_model": MLLAMA,  # Llama 3.2 Vision
    "ministral3": MINISTRAL3,
    "mistral": MISTRAL,
    "ministral": MINISTRAL,
    "mixtral": MIXTRAL,
    "qwen": QWEN,  # Qwen 1
    "qwen2": QWEN2,  # and Qwen2.5
    "qwen2_moe": QWEN2_MOE,  # and Qwen1.5 with experts
    "qwen3": QWEN3,
    "qwen3_5_text": QWEN3_5,
    "qwen3_5_moe_text": QWEN3_5_MOE,
    "qwen3_moe": QWEN3_MOE,
    "qwen3_next": QWEN3_NEXT,
    "smollm3": SMOLLM3,
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "gemma3n_text": GEMMA3N,
    "gemma4_text": GEMMA4,
    "vaultgemma": VAULTGEMMA,
    "phi": PHI,  # Phi-1 to Phi-2
    "phi3": PHI3,  # Phi-3, Phi-3.5, Phi-4-mini
    "phimoe": PHIMOE,  # Phi-3.5-MoE, Phi-mini-MoE
    "nemotron": NEMOTRON,  # and Minitron
    "nemotron_h": NEMOTRON_H,  # and Nemotron Nano 2 and 3
    "olmo": OLMO,
    "olmo2": OLMO2,
    "olmo3": OLMO3,
    "olmo_hybrid": OLMO_HYBRID,
    "olmoe": OLMOE,
    "flex_olmo": FLEX_OLMO,
    "flint": FLINT,
    "granite": GRANITE,  # Granite 3
    "granitemoe": GRANITE_MOE,
    "granitemoeshared": GRANITE_MOE_SHARED,
    "granitemoehybrid": GRANITE_HYBRID,  # Granite 4
    "granite_swa": GRANITE_SWA,  # Granite Swash
    "granitemoe_swa": GRANITE_MOE_SWA,
    "afmoe": AFMOE,  # Trinity Nano and Mini
    "apertus": APERTUS,
    "apertus1p5_text": APERTUS_1P5,
    "arcee": ARCEE,
    "bamba": BAMBA,
    "bitnet": BITNET,
    "bloom": BLOOM,  # and BLOOMZ
    "codegen": CODEGEN,
    "cohere": COHERE,  # Command R, Aya
    "cohere_compass_text": COHERE_COMPASS,  # North Micro
    "cohere2": COHERE2,  # Command R7B, Tiny Aya
    "cohere2_moe": COHERE2_MOE,  # North Mini Code
    "cwm": CWM,
    "deepseek": DEEPSEEK_MOE,
    "bailing_moe": LING,  # Ling-lite and -plus
    "bailing_moe_v2": LING_2,  # Ling and Ring 2.0
    "dots1": DOTS1,
    "ernie4_5": ERNIE4_5,
    "ernie4_5_moe": ERNIE4_5_MOE,
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_v3": DEEPSEEK_V3,  # also Moonlight and Kanana 2
    "glm4_moe_lite": GLM4_MOE_LITE,  # GLM-4.7-Flash
    "minicpm3": MINICPM3,
    "youtu": YOUTU,
    "exaone": EXAONE,  # EXAONE 3 and 3.5
    "exaone4": EXAONE4,
    "exaone_moe": EXAONE_MOE,  # K-EXAONE
    "falcon": FALCON,  # 7B, 40B, 2 11B
    "falcon_h1": FALCON_H1,
    "helium": HELIUM,
    "hunyuan_v1_dense": HUNYUAN,
    "hunyuan_v1_moe": HUNYUAN_MOE,  # A13B
    "hy_v3": HY_V3,  # Hy3
    "hyperclovax": HYPERCLOVAX,
    "internlm2": INTERNLM2,  # and 2.5
    "internlm3": INTERNLM3,
    "iquestcoder": IQUESTCODER,
    "jais2": JAIS2,
    "jamba": JAMBA,
    "lara_mini": LARA_MINI,  # Lara 4 Mini
    "laguna": LAGUNA,  # XS.2 and XS 2.1
    "lfm2": LFM2,
    "lfm2_moe": LFM2_MOE,  # LFM2-8B-A1B
    "lfm3": LFM3,
    "mellum": MELLUM,  # Mellum 2
    "mimo": MIMO,
    "minicpm": MINICPM,  # 1, 2 and 4
    "minimax_m2": MINIMAX_M2,
    "sarvam_moe": SARVAM,
    "sarvam_mla": SARVAM_MLA,
    "seed_oss": SEED_OSS,
    "solar_open": SOLAR_OPEN,
    "stablelm": STABLELM,
    "starcoder2": STARCODER2,
    "glm": GLM,  # GLM-4-9B, GLM-Edge
    "chatglm": CHATGLM,  # GLM-4-9B in the form of its own code
    "glm4": GLM4,
    "glm4_moe": GLM4_MOE,  # GLM-4.5, GLM-4.5-Air, GLM-4.6
    "gpt2": GPT2,
    "gpt_bigcode": GPT_BIGCODE,  # StarCoder 1
    "gpt_neo": GPT_NEO,  # and TinyStories
    "gpt_neox": GPT_NEOX,  # and Pythia
    "gpt_oss": GPT_OSS,
    "gptj": GPTJ,
    "modernbert-decoder": MODERNBERT_DECODER,  # Ettin
    "mpt": MPT,
    "nanochat": NANOCHAT,
    "opt": OPT,  # and Galactica
    "openai-gpt": OPENAI_GPT,
    "persimmon": PERSIMMON,
    "xglm": XGLM,
    "t5": T5,  # v1.0 and v1.1, Flan-T5
    "mt5": MT5,
    "umt5": UMT5,
    "t5gemma": T5GEMMA,
    "bart": BART,
    "blenderbot": BLENDERBOT,
    "blenderbot-small": BLENDERBOT_SMALL,
    "marian": MARIAN,  # OPUS-MT
    "m2m_100": M2M_100,  # and NLLB-200
    "mbart": MBART,  # and mBART-50
    "mvp": MVP,
    "pegasus": PEGASUS,
    "plbart": PLBART,
}

# What transformers' classes are called that write no text: those with another head, and those with none.
_OTHER_HEAD = re.compile(r"For(Sequence|Token)Classification$|ForQuestionAnswering$|ForMaskedLM$|ForRewardModeling$")
_NO_HEAD = re.compile(r"(?<!LMHead)(?<!MT)Model$")
# What a config has of a model that reads more than text.
_SENSES = ("vision_config", "audio_config")
# What a GGUF file of that general.type is.
_GGUF_PARTS = {
    "adapter": "an adapter (LoRA), which is no model by itself. Put it beside the package of its base (edgelm "
    "export-adapter), or merge it into its base first, with llama-export-lora",
    "mmproj": "the part of a model that reads images or sound; the model itself is another file",
    "imatrix": "statistics for quantizing a model; the model itself is another file",
}
_T5_WITHOUT_DECODER = "t5encoder"  # llama.cpp's name of it
# What Ollama's own converter calls families that llama.cpp's calls otherwise; and how the names of tensors begin that
# read images and sound, which it writes into the model's file. Source: llama/compat in github.com/ollama/ollama
_NAMES_OF_OLLAMA = frozenset({"gptoss", "qwen25vl", "glm4moelite", "olmo3", "glmocr", "deepseekocr"})
_SENSES_OF_OLLAMA = ("v.", "mm.", "a.", "model.vision_tower.")


def architecture_of(values: Mapping[str, Any], where: object) -> Architecture:
    """Find the row of a Hugging Face config.json, by its model_type.

    Raises:
        CheckpointError: there is none, and the message lists those that there are; or it is a model of such a family
            that writes no text, or whose tokens see later ones.
    """
    names, model_type = values.get("architectures"), values.get("model_type")
    name = str(names[0]) if isinstance(names, list) and names else ""
    is_supported = isinstance(model_type, str) and model_type in ARCHITECTURES
    kind = ""
    if _OTHER_HEAD.search(name) or (not is_supported and _NO_HEAD.search(name)):
        kind = f" ({name} has no head that writes text: it embeds, labels or ranks)"
    elif str(model_type) in LACKING:
        kind = f" ({LACKING[str(model_type)]})"
    elif any(values.get(sense) is not None for sense in _SENSES):
        kind = f" ({name or 'it'} reads images or sound too; edgelm runs models of text alone)"
    if not is_supported:
        listed = ", ".join(sorted(ARCHITECTURES))
        raise CheckpointError(f"{where}: model_type {model_type!r} is not supported{kind}; supported: {listed}.")
    if kind:
        raise CheckpointError(f"{where}: this {model_type!r} is not supported{kind}. Take another model of its family.")
    if not values.get("is_causal", True):  # which transformers reads for every family
        raise CheckpointError(
            f"{where}: is_causal is {values['is_causal']!r}, so that tokens see later ones, as in models that embed "
            "texts; supported is causal attention alone. Take another model of its family."
        )
    return ARCHITECTURES[str(model_type)]


def gguf_architecture_of(
    metadata: Mapping[str, Any], where: object, tensors: Iterable[str] = ()
) -> tuple[Architecture, GGUFFamily]:
    """Find the row of a GGUF file's general.architecture, and how llama.cpp knows it.

    tensors: the names of those in the file.

    Where one name stands for models with experts and without (a Mixtral is a Llama there), `expert_count` decides.

    Raises:
        CheckpointError: there is none, and the message lists those that there are; or the file holds no whole model.
    """
    part = "mmproj" if metadata.get("general.architecture") == "clip" else metadata.get("general.type", "model")
    if str(part) in _GGUF_PARTS:
        raise CheckpointError(f"{where} is {_GGUF_PARTS[str(part)]}.")
    name = metadata.get("general.architecture")
    if str(name) in _NAMES_OF_OLLAMA or any(tensor.startswith(_SENSES_OF_OLLAMA) for tensor in tensors):
        raise CheckpointError(
            f"{where} is in a form of Ollama's own, with other names or with what reads images in one file. Take the "
            "GGUF file that the Hugging Face hub has of the model, or its safetensors."
        )
    rows = [(row, row.gguf) for row in ARCHITECTURES.values() if row.gguf is not None]
    families = [(row, gguf) for row, gguf in rows if name in (gguf.architecture, *gguf.also_called)]
    if name == _T5_WITHOUT_DECODER or metadata.get(f"{name}.attention.causal") is False:
        why = f"it is a {name}" if name == _T5_WITHOUT_DECODER else f"{name}.attention.causal is false"
        raise CheckpointError(f"{where} embeds or ranks texts ({why}); edgelm runs models that write them.")
    if not families:
        listed = ", ".join(sorted({name for _, gguf in rows for name in (gguf.architecture, *gguf.also_called)}))
        raise CheckpointError(f"{where}: the GGUF architecture {name!r} is not supported; supported: {listed}.")
    has_experts = bool(metadata.get(f"{name}.expert_count"))
    return next((family for family in families if family[1].has_experts == has_experts), families[0])
