"""RopeScaling: how the rotary positions of a model are stretched beyond the context that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass

from edgelm.errors import ConfigError
from edgelm.number_bounds import check_count, is_positive

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional")


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context, in Hugging Face's keys.

    `linear` divides positions by `factor`; `dynamic` raises the base with each position beyond the original context;
    `llama3` and `yarn` (arXiv:2309.00071) blend per frequency; `longrope` (arXiv:2402.13753) divides each frequency by
    its own factor, `short_factor` within the original context and `long_factor` for a longer text. `proportional` is
    `linear`, and lets but the fastest `partial_rotary_factor` of the frequencies turn at all.
    """

    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # yarn's ramp begins and ends at whole dimensions
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    partial_rotary_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise ConfigError(f"rope_type is {self.rope_type!r}; supported: {', '.join(ROPE_TYPES)}.")
        if not (is_positive(self.factor) and self.factor >= 1):
            raise ConfigError(f"The rope factor is {self.factor!r:.60}; it must be a number of 1.0 or more.")
        self._check_context()
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            first, second = getattr(self, low), getattr(self, high)
            if not (is_positive(first) and is_positive(second) and first < second):
                raise ConfigError(
                    f"{low} is {first!r:.60} and {high} is {second!r:.60}; both must be numbers above 0, and the first "
                    "below the second."
                )
        if not (is_positive(self.partial_rotary_factor) and self.partial_rotary_factor <= 1):
            raise ConfigError(
                f"The rope's partial_rotary_factor is {self.partial_rotary_factor!r:.60}; it must be above 0, up to 1."
            )
        if self.attention_factor is not None and not is_positive(self.attention_factor):
            raise ConfigError(f"attention_factor is {self.attention_factor!r:.60}; it must be a number above 0.")
        if not isinstance(self.truncate, bool):
            raise ConfigError(f"truncate is {self.truncate!r:.60}; it must be true or false.")
        if self.rope_type == "longrope" and not all(
            factors and all(map(is_positive, factors)) for factors in (self.short_factor, self.long_factor)
        ):
            raise ConfigError(
                "rope_type 'longrope' needs short_factor and long_factor, each a list of numbers above 0."
            )

    def _check_context(self) -> None:
        original = self.original_max_position_embeddings
        check_count(self, "original_max_position_embeddings", 0)
        if self.rope_type not in ("default", "linear", "proportional") and original < 1:
            raise ConfigError(f"rope_type {self.rope_type!r} needs original_max_position_embeddings.")
        # What attention is sharpened by is divided by the logarithm of it.
        if self.rope_type == "longrope" and self.attention_factor is None and original < 2:
            raise ConfigError(
                f"original_max_position_embeddings is {original}; rope_type 'longrope' needs 2 or more, or an "
                "attention_factor."
            )
