"""Recipes: which scheme each tensor takes, from a preset or a file, as an ordered list of patterns."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgelm.architecture.layer_features import KV_CACHES, NORM_PLACEMENTS
from edgelm.architecture.quantization_scheme import KEEP, SHORTLIST, Scheme, grid_name, parse_scheme
from edgelm.config import ModelConfig
from edgelm.errors import ExportError
from edgelm.files.regular_file import MAX_TOML_BYTES, read_text

# What is folded into the weights before they are quantized, in this order; no cost at run time.
TRANSFORMS = ("rotate", "smooth", "awq")
# The operators of the graph: ONNX Runtime's own where it has them (MatMulNBits, GroupQueryAttention), or the ONNX
# standard's alone (DequantizeLinear, MatMul, Softmax), which other providers and runtimes know too.
OPERATOR_SETS = ("onnxruntime", "standard")
STANDARD = OPERATOR_SETS[1]
PREFILL_SCHEME = "int8-rows"  # of a prefill graph: a scale for each row of a weight, and for each token
_DEFAULT_BOUND = 1.5
_CACHE_BOUND = 1.03


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Tensors whose canonical name matches `pattern` (a regular expression, searched) take `scheme`.

    `{last}` in the pattern stands for the number of the model's last layer.

    Raises:
        ExportError: the pattern is no regular expression, or there is no such scheme.
    """

    pattern: str
    scheme: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern.replace("{last}", "0"))
        except re.error as error:
            raise ExportError(f"The pattern {self.pattern!r} is no regular expression: {error}.") from error
        parse_scheme(self.scheme)


@dataclass(frozen=True, kw_only=True)
class Precision:
    """An ordered list of rules (the first match wins), and how much perplexity it may cost before export refuses.

    Raises:
        ExportError: a transform or the operators are unknown, the operators do not have what is asked for, the name is
            empty, or the bound is below 1.
    """

    rules: tuple[Rule, ...]
    perplexity_bound: float = _DEFAULT_BOUND  # package over source
    transforms: tuple[str, ...] = ()
    kv_cache: str = "fp32"  # what the graph keeps keys and values in
    operators: str = OPERATOR_SETS[0]
    prefill_graph: bool = False  # whether prompts are read by a graph of their own
    name: str = "custom"
    fallback: Precision | None = None  # for models that the transforms do not fit, and that miss the bound

    def __post_init__(self) -> None:
        unknown = [transform for transform in self.transforms if transform not in TRANSFORMS]
        if unknown:
            raise ExportError(f"No transform is called {unknown[0]!r}. There are: {', '.join(TRANSFORMS)}.")
        if self.kv_cache not in KV_CACHES:
            raise ExportError(f"kv_cache is {self.kv_cache!r}; it must be one of {', '.join(KV_CACHES)}.")
        if self.operators not in OPERATOR_SETS:
            raise ExportError(f"operators is {self.operators!r}; it must be one of {', '.join(OPERATOR_SETS)}.")
        if self.operators == STANDARD:
            self._refuse_what_standard_operators_lack()
        if not self.name:
            raise ExportError("name is ''; a recipe's name has a character or more, or is left out.")
        if not self.perplexity_bound >= 1:
            raise ExportError(f"perplexity_bound is {self.perplexity_bound!r}; it must be 1 or more.")

    def _refuse_what_standard_operators_lack(self) -> None:
        fewer = [f"integers of {scheme.bits} bits" for scheme in self.schemes if scheme.bits < 8]
        lacking = fewer[:1]
        lacking += ["a shortlist"] if any(scheme.method == SHORTLIST for scheme in self.schemes) else []
        lacking += ["keys and values in int8"] if self.kv_cache == "int8" else []
        lacking += ["a prefill graph"] if self.prefill_graph else []
        if lacking:
            raise ExportError(
                f"Operators of the ONNX standard are not written for {lacking[0]}: take int8, fp32, fp16 or bf16 for "
                "the weights, fp32 for keys and values, and no prefill graph; or ONNX Runtime's own operators."
            )

    def recipe(self, config: ModelConfig) -> tuple[Rule, ...]:
        """Return the rules for one model, with its layer numbers filled in; what always stays in floats comes first."""
        numbers = sorted({str(count - 1) for count in config.layer_counts})
        last = numbers[0] if len(numbers) == 1 else f"(?:{'|'.join(numbers)})"
        first = [_RATES] if config.state_layers else []
        first += [_STREAMS] if config.altup_num_inputs > 1 else []
        first += [_LATENT_HEADS] if config.kv_lora_rank is not None and self.schemes else []
        rules = (*first, *self.rules)
        return tuple(Rule(pattern=rule.pattern.replace("{last}", last), scheme=rule.scheme) for rule in rules)

    def rows(self, config: ModelConfig) -> tuple[dict[str, str], ...]:
        """Return what the manifest keeps: operators, KV cache and prefill graph where they are not the usual ones,
        transforms in order, rules.
        """
        others = [] if self.operators == OPERATOR_SETS[0] else [{"operators": self.operators}]
        others += [] if self.kv_cache == "fp32" else [{"kv_cache": self.kv_cache}]
        others += [{"prefill_graph": PREFILL_SCHEME}] if self.prefill_graph else []
        others += [{"transform": name} for name in TRANSFORMS if name in self.transforms]
        return (*others, *({"pattern": rule.pattern, "scheme": rule.scheme} for rule in self.recipe(config)))

    @property
    def schemes(self) -> list[Scheme]:
        """The integer schemes among its rules."""
        parsed = [parse_scheme(rule.scheme) for rule in self.rules]
        return [scheme for scheme in parsed if isinstance(scheme, Scheme)]

    @property
    def calibrates(self) -> bool:
        """Tell whether the source has to be run on a text to find the integers of its layers."""
        return any(scheme.method == "gptq" for scheme in self.schemes)

    @property
    def only_smooths(self) -> bool:
        """Tell whether a text is needed for nothing but the largest size of each channel: a short one will do."""
        return self.reading_transforms == ["smooth"] and not self.calibrates

    @property
    def reading_transforms(self) -> list[str]:
        """Its transforms that run the source on a text, in their order: all but a rotation."""
        return [name for name in TRANSFORMS if name in self.transforms and name != "rotate"]

    @property
    def needs_calibration(self) -> bool:
        """Tell whether the source has to be run on a text before its weights are quantized."""
        return bool(self.reading_transforms) or self.calibrates

    @property
    def reads_a_text(self) -> bool:
        """Tell whether the export runs the source or the package on a text, beside the one that it is checked on."""
        return self.needs_calibration or self.kv_cache == "int8"

    def calibrated(self) -> Precision:
        """Return the same with gptq for every integer scheme: what a calibration text is for.

        Fewer than 8 bits get zero points too, which gptq makes use of and which cost no time
        (docs/results/quantization.md); but for the embedding, whose grid has none.
        """
        rules = tuple(dataclasses.replace(rule, scheme=_with_gptq(rule)) for rule in self.rules)
        return dataclasses.replace(self, rules=rules, fallback=self.fallback and self.fallback.calibrated())

    def with_int8_cache(self) -> Precision:
        """Return the same with keys and values in 8 bits, which may cost some perplexity besides (1.3 % measured)."""
        fallback = self.fallback and self.fallback.with_int8_cache()
        bound = _CACHE_BOUND * self.perplexity_bound
        return dataclasses.replace(self, kv_cache="int8", perplexity_bound=bound, fallback=fallback)

    def with_standard_operators(self) -> Precision:
        """Return the same in operators of the ONNX standard alone, which are written for no shortlist."""
        fallback = self.fallback and self.fallback.with_standard_operators()
        plain = [dataclasses.replace(rule, scheme=rule.scheme.removesuffix(f"-{SHORTLIST}")) for rule in self.rules]
        return dataclasses.replace(self, rules=tuple(plain), operators=STANDARD, fallback=fallback)

    def for_model(self, config: ModelConfig) -> Precision:
        """Return it, or the fallback whose transforms fit a model."""
        if self.fallback is None or "smooth" not in self.transforms or _smooths_well(config):
            return self
        return self.fallback.for_model(config)

    def with_prefill_graph(self) -> Precision:
        """Return the same with a graph of its own for prompts.

        It costs 0.3 % in perplexity where the weights are smoothed, as those of int8 are, and 0.5 to 0.9 % where not.
        """
        fallback = self.fallback and self.fallback.with_prefill_graph()
        return dataclasses.replace(self, prefill_graph=True, fallback=fallback)

    def tamed(self) -> list[Precision]:
        """Return what to try where it misses its bound, as where massive activations defeat it.

        First a fallback that has transforms too; then smoothing, and turning the activations as well; then a fallback
        without transforms, which fits any model. Nothing for floats, which have none of that weakness.
        """
        if self.fallback is not None and self.fallback.transforms:
            return [self.fallback, *self.fallback.tamed()]
        if not self.schemes:
            return []
        wanted = [{"smooth"}, {"rotate", "smooth"}]
        tried = [
            dataclasses.replace(
                self, transforms=tuple(name for name in TRANSFORMS if name in {*self.transforms, *more})
            )
            for more in wanted
            if not more <= set(self.transforms)
        ]
        return tried if self.fallback is None else [*tried, self.fallback]


def rule_for(recipe: tuple[Rule, ...], name: str) -> Rule | None:
    """Return the rule that a tensor takes: the first that matches."""
    return next((rule for rule in recipe if re.search(rule.pattern, name)), None)


def scheme_for(recipe: tuple[Rule, ...], name: str) -> str:
    """Return the scheme of a tensor.

    Raises:
        ExportError: no rule matches.
    """
    rule = rule_for(recipe, name)
    if rule is not None:
        return rule.scheme
    raise ExportError(f'No rule of the recipe matches {name}. End it with a rule for all the rest: pattern = ".".')


def integer_scheme_for(recipe: tuple[Rule, ...], name: str) -> Scheme | None:
    """Return the scheme by which a tensor becomes integers; None: it stays in floats, or on its source's grid.

    Raises:
        ExportError: no rule matches.
    """
    scheme = parse_scheme(scheme_for(recipe, name))
    return scheme if isinstance(scheme, Scheme) else None


def _smooths_well(config: ModelConfig) -> bool:
    """Tell whether smoothing has a place at every projection of a model, and the calibration can run it.

    Before attention, with nothing beside it, and feed-forward stand norms that can be divided, and a gated feed-forward
    whose first product can.
    """
    before_attention, _, before_feed_forward, _ = NORM_PLACEMENTS[config.norm_placement]
    divisible = before_attention is not None and before_feed_forward is not None and not config.norm.endswith("_plain")
    runs = config.encoder is None and config.position != "relative"
    alone = not config.laurel_rank  # where attention is not the only one to read its norm
    return runs and divisible and alone and config.mlp_gated and config.num_experts == 0


def _with_gptq(rule: Rule) -> str:
    scheme = parse_scheme(rule.scheme)
    if not isinstance(scheme, Scheme) or scheme.method == SHORTLIST:
        return rule.scheme
    symmetric = scheme.symmetric and (scheme.bits == 8 or "embed_tokens" in rule.pattern)
    return f"{grid_name(scheme.bits, scheme.block_size, symmetric)}-gptq"


# How much a head of linear attention, or of Mamba, forgets and writes: small, and an error of it adds up over a text.
RATES = r"\.linear_attn\.in_proj_[ab]\.|\.mamba\.(?:in_proj_dt|x_proj|dt_proj)\."
_RATES = Rule(pattern=RATES, scheme="fp32")
# How residual streams are predicted and corrected: small, and all of them go through it in every layer.
STREAMS = r"\.altup\."
_STREAMS = Rule(pattern=STREAMS, scheme="fp32")
# Queries are taken to the latent vectors by small matrices, of each head its own, which all its scores go through.
LATENT_HEADS = r"\.self_attn\.heads\."
_LATENT_HEADS = Rule(pattern=LATENT_HEADS, scheme="int8-block64")
_EMBEDDING = r"embed_tokens|lm_head"
_HEAD = r"embed_tokens\.|lm_head"  # the embedding may be the head too; tables of layers' features never are
_OUTER_LAYERS = r"layers\.(0|{last})\."

_SHORTLIST = Rule(pattern=_HEAD, scheme=f"int8-block128-{SHORTLIST}")

# In blocks of 64 the kernels of 8 bits give a row the same bits in any company; in wider ones they are faster, and on
# some processors do not (docs/results/graph-and-settings.md).
_INT8 = Precision(
    name="int8",
    rules=(Rule(pattern=".", scheme="int8-block64"),),
    transforms=("smooth",),
    perplexity_bound=1.03,
    fallback=Precision(name="int8", rules=(Rule(pattern=".", scheme="int8-block64"),), perplexity_bound=1.03),
)
# 8 bits where fewer cost most (docs/results/quantization.md): the head decides every token, and the first and last
# layers' errors are not averaged out by others.
_PRESETS = (
    Precision(name="fp32", rules=(Rule(pattern=".", scheme="fp32"),), perplexity_bound=1.001),
    Precision(name="fp16", rules=(Rule(pattern=".", scheme="fp16"),), perplexity_bound=1.005),
    Precision(name="bf16", rules=(Rule(pattern=".", scheme="bf16"),), perplexity_bound=1.02),
    _INT8,
    Precision(
        name="int8-wide",
        rules=(_SHORTLIST, Rule(pattern=".", scheme="int8-block128")),
        transforms=("smooth",),
        perplexity_bound=1.02,  # on the check's 1,000 tokens a percent is chance
        fallback=_INT8,
    ),
    Precision(
        name="int4",
        rules=(
            _SHORTLIST,
            Rule(pattern=_EMBEDDING, scheme="int8-block128"),
            Rule(pattern=_OUTER_LAYERS, scheme="int8-block128"),
            Rule(pattern=".", scheme="int4-block64"),
        ),
    ),
    Precision(
        name="int2",
        rules=(
            Rule(pattern=_EMBEDDING, scheme="int8-block64"),
            Rule(pattern=_OUTER_LAYERS, scheme="int8-block64"),
            Rule(pattern=r"[qkv]_proj|o_proj|conv|down_proj", scheme="int4-block64-asymmetric-gptq"),
            Rule(pattern=".", scheme="int2-block64-asymmetric-gptq"),
        ),
        perplexity_bound=4.0,
    ),
    Precision(name="keep", rules=(Rule(pattern=".", scheme=KEEP),), perplexity_bound=1.03),
)
PRECISIONS: dict[str, Precision] = {precision.name: precision for precision in _PRESETS}
QUANTIZED = tuple(name for name, precision in PRECISIONS.items() if precision.schemes)  # those with integers of ours
MIXED = "mixed"  # widths by the layers' sensitivity, for a size or a loss that is named with it
DEFAULT_PRECISION = "int8"  # nearly lossless, and the fastest at that quality (docs/results/smollm2-135m.md)


def precision_named(name: str) -> Precision:
    """Look a preset up.

    Raises:
        ExportError: there is none of that name.
    """
    if name not in PRECISIONS:
        raise ExportError(f"No precision {name!r}. There are: {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]


def read_recipe(path: Path) -> Precision:
    """Read a recipe from a TOML or JSON file: `rules`, and of Precision's other fields those that are wanted.

    Raises:
        ExportError: it cannot be read, or does not hold a recipe.
    """
    try:
        text = read_text(path, MAX_TOML_BYTES)
        values = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"{path} cannot be read as a recipe: {error}.") from error
    try:
        return _recipe_of(values, path.stem)
    except (ExportError, ValueError, OverflowError) as error:  # a number too long for a message, or for a float
        raise ExportError(f"{path}: {error}") from error


def _recipe_of(values: Any, name: str) -> Precision:
    fields: dict[str, Any] = {"name": str, "rules": list, "transforms": list, "kv_cache": str, "operators": str}
    fields |= {"prefill_graph": bool, "perplexity_bound": (int, float)}
    kinds = {str: "a text", list: "a list", bool: "true or false", (int, float): "a number"}
    if not isinstance(values, dict) or not values.get("rules"):
        raise ExportError("A recipe has a list `rules`, each with a `pattern` and a `scheme`.")
    for key, value in values.items():
        if key not in fields:
            raise ExportError(f"A recipe has no {key!r}; it has {', '.join(fields)}.")
        if not isinstance(value, fields[key]) or (isinstance(value, bool) and fields[key] is not bool):
            raise ExportError(f"{key} is {value!r}; it must be {kinds[fields[key]]}.")
    for row in values["rules"]:
        if not isinstance(row, dict) or row.keys() != {"pattern", "scheme"}:
            raise ExportError(f"A rule has a `pattern` and a `scheme`, nothing else: {row!r}.")
        if not all(isinstance(value, str) for value in row.values()):
            raise ExportError(f"A rule's `pattern` and `scheme` are texts: {row!r}.")
    made = {"rules": tuple(Rule(**row) for row in values["rules"]), "transforms": tuple(values.get("transforms", ()))}
    bound = float(values.get("perplexity_bound", _DEFAULT_BOUND))
    return Precision(**{"name": name, **values, **made, "perplexity_bound": bound})
