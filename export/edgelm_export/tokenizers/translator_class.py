"""The tokenizer classes of transformers that say what a source is written in, whatever tokenizer.json says of it.

Older versions of transformers put NLLB's language behind a source, and wrote that into tokenizer.json. Newer ones put
it in front, as the models were trained.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.errors import CheckpointError
from edgelm_export.tokenizers.tokenizer_json import TOKENIZER_CONFIG, post_processor

_END = "</s>"
_M2M_100 = (
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr "
    "ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or "
    "pa pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu"
)
_MBART = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM "
    "ne_NP nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
)
_MBART_50 = (
    "af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE "
    "sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
)
# Of PLBart: programs, and English.
_PLBART = ["java", "python", "en_XX"]
_PLBART_MULTI = [*_PLBART, "javascript", "php", "ruby", "go"]


@dataclass(frozen=True, kw_only=True)
class TranslatorClass:
    """What a class knows: how its tokens name a language, and what a source is written in where nobody says it.

    language: None is in nothing. behind: the language stands behind the source and its end, not in front of it;
    legacy_behaviour asks for that too. languages: in the order of their ids; none where folders list them. has_mask:
    behind those stands <mask>.
    """

    language: str | None
    form: str = "{}"
    behind: bool = False
    languages: Sequence[str] = ()
    has_mask: bool = True

    def around(self, config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Return the tokens before a source, and those behind it."""
        language = self.language if config.get("src_lang") is None else config["src_lang"]
        if language is None:
            return [], [_END]
        before, _, after = self.form.partition("{}")
        # PLBart's folders may give the token in the place of the name.
        token = self.form.format(str(language).removeprefix(before).removesuffix(after))
        behind = self.behind or config.get("legacy_behaviour") is True
        return ([], [_END, token]) if behind else ([token], [_END])


CLASSES: Mapping[str, TranslatorClass] = {
    "NllbTokenizer": TranslatorClass(language="eng_Latn"),
    "MBart50Tokenizer": TranslatorClass(language="en_XX", languages=[*_MBART.split(), *_MBART_50.split()]),
    "MBartTokenizer": TranslatorClass(language="en_XX", behind=True, languages=_MBART.split()),
    "M2M100Tokenizer": TranslatorClass(language="en", form="__{}__", languages=_M2M_100.split()),
    "PLBartTokenizer": TranslatorClass(language=None, form="__{}__", behind=True, languages=_PLBART),
}
_OF_MANY_PROGRAMS = TranslatorClass(
    language="en_XX", form="__{}__", behind=True, languages=_PLBART_MULTI, has_mask=False
)


def translator_class(name: str, config: Mapping[str, Any]) -> TranslatorClass | None:
    """Find a class by its name, and by the languages that tokenizer_config.json asks for; None is another one."""
    is_larger = name == "PLBartTokenizer" and config.get("language_codes") == "multi"
    return _OF_MANY_PROGRAMS if is_larger else CLASSES.get(name)


def with_source_language(tokenizer: str, config: Mapping[str, Any], folder: Path) -> str:
    """Return a tokenizer.json whose sources stand between the tokens that its class puts around them.

    config: tokenizer_config.json's. One of another class, or without the tokens of this one, is returned as it is.

    Raises:
        CheckpointError: src_lang names a language that there is no token for.
    """
    name = config.get("tokenizer_class")
    class_ = translator_class(name.removesuffix("Fast"), config) if isinstance(name, str) else None
    if class_ is None:
        return tokenizer
    values = json.loads(tokenizer)
    added = values.get("added_tokens")
    tokens = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    pairs = ((token.get("content"), token.get("id")) for token in tokens)
    ids = {content: id_ for content, id_ in pairs if isinstance(content, str) and type(id_) is int}
    before, behind = class_.around(config)
    missing = [token for token in (*before, *behind) if token not in ids]
    if missing and config.get("src_lang") is not None:
        raise CheckpointError(
            f"{folder / TOKENIZER_CONFIG}: src_lang is {reprlib.repr(config['src_lang'])}, and tokenizer.json has no "
            f"added token {missing[0]!r:.80}."
        )
    around = None if missing else post_processor(before, behind, ids)
    if around is None or _says(values.get("post_processor"), around):
        return tokenizer
    values["post_processor"] = around
    return json.dumps(values, ensure_ascii=False)


def _says(found: object, around: Mapping[str, Any]) -> bool:
    """Tell whether a post-processor does with one text what another does."""
    return isinstance(found, dict) and all(found.get(key) == around[key] for key in ("single", "special_tokens"))
