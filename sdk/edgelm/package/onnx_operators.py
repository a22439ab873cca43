"""The operators that a model's graph may use: what decoders are made of, and nothing that reads files or runs code.

What edgelm exports, and what the exporters of onnxruntime-genai and Optimum write for decoders. Not in it, on purpose:
`EPContext` (a compiled blob, or a path to one), `PythonOp`, `ATen`, and every domain of custom operators.
"""

from __future__ import annotations

from collections.abc import Mapping

_STANDARD = """
Abs Add And ArgMax ArgMin Attention BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Clip Concat
Constant ConstantOfShape Conv Cos CumSum DequantizeLinear Div DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand
EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm Greater GreaterOrEqual HardSigmoid HardSwish Identity If
IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization MatMul MatMulInteger Max
Mean Min Mish Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow QuantizeLinear RMSNormalization Range Reciprocal ReduceL2
ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape RotaryEmbedding Round
Scan ScatterElements ScatterND Shape Sigmoid Sign SimplifiedLayerNormalization Sin Size Slice Softmax Softplus Split
Sqrt Squeeze Sub Sum Swish Tan Tanh TensorScatter Tile TopK Transpose Trilu Unsqueeze Where Xor
"""

_MICROSOFT = """
Attention BiasGelu BiasSplitGelu CausalConvWithState CDist DecoderMaskedMultiHeadAttention DynamicQuantizeMatMul
FastGelu FusedGemm FusedMatMul GatherBlockQuantized GatherND Gelu GemmaRotaryEmbedding GroupQueryAttention
LinearAttention MatMulBnb4 MatMulInteger16 MatMulIntegerToFloat MatMulNBits MoE MultiHeadAttention PackedAttention
PackedMultiHeadAttention PagedAttention QAttention QGemm QLinearAdd QLinearMul QMoE QuickGelu RotaryEmbedding
SkipLayerNormalization SkipSimplifiedLayerNormalization SimplifiedLayerNormalization SparseAttention Trilu
"""

# Domain -> operators; "" is ONNX's own.
OPERATORS: Mapping[str, frozenset[str]] = {
    "": frozenset(_STANDARD.split()),
    "com.microsoft": frozenset(_MICROSOFT.split()),
}
