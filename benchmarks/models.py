"""The models that are measured beside peers: what each is made of, who is measured with it, and how much."""

from __future__ import annotations

from dataclasses import dataclass

from contestants import CONTESTANTS, Contestant
from workload import FULL, QUICK, Effort, Workload

SMOLLM2, GEMMA3, LLAMA = "smollm2-135m", "gemma3-270m", "llama-1.7b"


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model of the benchmark.

    weights: what all of its files are made of, as the page says it. source: its name in the catalogue; None is random
    weights. left_out: names of contestants that are not measured with it, and `why`, as the page says it.
    """

    name: str
    title: str
    weights: str
    source: str | None
    left_out: tuple[str, ...] = ()
    why: str = ""
    full: Effort = FULL
    quick: Effort = QUICK

    @property
    def contestants(self) -> list[Contestant]:
        return [contestant for contestant in CONTESTANTS if contestant.name not in self.left_out]


# A step takes a tenth of a second, and no text is likelier than another one to random weights.
_FEW = Effort(
    rounds=3,
    workloads=(Workload(prompt_tokens=512, new_tokens=32), Workload(prompt_tokens=32, new_tokens=64)),
    perplexity_windows=0,
    starts=2,
)
_FEWER = Effort(rounds=1, workloads=(Workload(prompt_tokens=32, new_tokens=16),), perplexity_windows=0, starts=1)

MODELS = {
    model.name: model
    for model in (
        Model(
            name=SMOLLM2,
            title="SmolLM2-135M-Instruct",
            weights="the same weights (the Q4_1 GGUF, dequantized)",
            source="smollm2-135m-instruct",
        ),
        Model(
            name=GEMMA3,
            title="Gemma 3 270M",
            weights="the same weights (the Q4_K_M GGUF, dequantized)",
            source="gemma-3-270m",
            left_out=("edgelm-keep", "llama-source", "genai-int8", "genai-int4"),
            why="keep, which stays on a file's grid, is not measured: most of this one has more than 4 bits. "
            "onnxruntime-genai is not measured: beside transformers 5 its builder (0.18) takes no Gemma 3, whose "
            "rotations are two.",
        ),
        Model(
            name=LLAMA,
            title="A Llama of 1.7B random weights",
            weights="the same random weights, in SmolLM2-1.7B's shape",
            source=None,
            left_out=(
                "edgelm-keep",
                "llama-source",
                "edgelm-int8-wide",
                "edgelm-int8-prefill",
                "edgelm-int8-long",
                "edgelm-int8-wide-long",
                "edgelm-int4-long",
                "genai-int8",
                "edgelm-fp32",
            ),
            why="What has less to say here is not measured: other kinds of int8, int8 keys, and onnxruntime-genai's "
            "int8.",
            full=_FEW,
            quick=_FEWER,
        ),
    )
}
