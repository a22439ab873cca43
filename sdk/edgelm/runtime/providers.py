"""Execution providers of ONNX Runtime: what each is called, where it keeps a model's cache, and how to get it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgelm.arguments import did_you_mean
from edgelm.errors import ProviderError

CPU = "cpu"
# What computes by far the most of a step. Where one of these runs on the CPU beside another provider, each step waits
# for copies between the two, and is slower than on the CPU alone.
HEAVY_OPERATORS = frozenset(
    {"Attention", "Gemm", "GroupQueryAttention", "MatMul", "MatMulNBits", "MoE", "MultiHeadAttention", "QMoE"}
)


@dataclass(frozen=True, kw_only=True)
class Provider:
    """An execution provider, and the settings that edgelm gives it.

    execution_providers: in ONNX Runtime's words, the one meant and those it hands over to what it cannot compute.
    options: of the first. device: where keys and values lie, in ONNX Runtime's words; "cpu": in the cache's own
    buffers. shares_cache: whether past and present may be the same memory. cache_types: of the keys and values that its
    attention computes with; empty where any do. is_sequential: whether its documentation asks for nodes in turn and for
    no memory pattern. precision: of the graph that suits it. install: the way to get it.
    """

    execution_providers: tuple[str, ...]
    install: str
    precision: str
    options: Mapping[str, str] = field(default_factory=dict)
    device: str = CPU
    shares_cache: bool = True
    cache_types: tuple[str, ...] = ()
    is_sequential: bool = False

    @property
    def name(self) -> str:
        """ONNX Runtime's name of it."""
        return self.execution_providers[0]


_GPU_WHEEL = (
    '`pip uninstall -y onnxruntime` and `pip install "edgelm[gpu]"`, and the driver of NVIDIA '
    "(Linux on x86_64 and aarch64, Windows)"
)

# name -> provider. CUDA's attention knows 16 bits only: GroupQueryAttention<float> is not among the kernels of
# onnxruntime-gpu 1.31.1.
PROVIDERS: Mapping[str, Provider] = {
    CPU: Provider(
        execution_providers=("CPUExecutionProvider",),
        install='`pip install "edgelm[cpu]"`',
        precision="int8, int4 or fp32, with float32 keys and values",
    ),
    "cuda": Provider(
        execution_providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
        options={"arena_extend_strategy": "kSameAsRequested"},  # the cache grows: doubling would take twice its memory
        device="cuda",
        cache_types=("float16",),
        install=_GPU_WHEEL,
        precision="int4 or fp16, with float16 keys and values",
    ),
    "tensorrt": Provider(
        execution_providers=("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
        options={"trt_fp16_enable": "1"},
        device="cuda",
        cache_types=("float16",),
        install=f"{_GPU_WHEEL}, and `pip install tensorrt`",
        precision="fp16, with float16 keys and values; attention and 4-bit products run on CUDA",
    ),
    "directml": Provider(
        execution_providers=("DmlExecutionProvider", "CPUExecutionProvider"),
        device="dml",
        is_sequential=True,
        install="`pip uninstall -y onnxruntime` and `pip install onnxruntime-directml` (Windows 10 and newer)",
        precision="int4 or fp16, with float16 keys and values",
    ),
    "coreml": Provider(
        execution_providers=("CoreMLExecutionProvider", "CPUExecutionProvider"),
        options={"ModelFormat": "MLProgram"},
        shares_cache=False,
        install='`pip install "edgelm[cpu]"` on macOS, whose wheel has it',
        precision="fp16 or fp32 in operators of the ONNX standard (edgelm export --operators standard)",
    ),
    "openvino": Provider(
        execution_providers=("OpenVINOExecutionProvider", "CPUExecutionProvider"),
        options={"device_type": "CPU"},
        shares_cache=False,
        install="`pip uninstall -y onnxruntime` and `pip install onnxruntime-openvino`",
        precision="fp32 or int8 in operators of the ONNX standard (edgelm export --operators standard)",
    ),
    "qnn": Provider(
        execution_providers=("QNNExecutionProvider", "CPUExecutionProvider"),
        options={"backend_path": "QnnHtp.dll"},
        shares_cache=False,
        install="`pip uninstall -y onnxruntime` and `pip install onnxruntime-qnn` (Windows on arm64)",
        precision="a QDQ graph with static shapes, which neither edgelm nor Optimum exports yet",
    ),
    "webgpu": Provider(
        execution_providers=("WebGpuExecutionProvider", "CPUExecutionProvider"),
        device="webgpu",
        install="`pip uninstall -y onnxruntime` and `pip install onnxruntime-webgpu`",
        precision="int4 or fp16, with float16 keys and values",
    ),
}


def provider_named(name: str) -> Provider:
    """Look a provider up.

    Raises:
        ProviderError: there is none of that name.
    """
    if not isinstance(name, str) or name not in PROVIDERS:  # ONNX Runtime takes a list of them, which has no hash
        meant = did_you_mean(str(name).lower(), PROVIDERS, most=1)
        raise ProviderError(f"There is no execution provider {name!r}.{meant} There are: {', '.join(PROVIDERS)}.")
    return PROVIDERS[name]
