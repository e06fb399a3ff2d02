"""Which ONNX operators TensorRT's parser takes, and of which types: docs/operators.md of onnx-tensorrt, TensorRT 10.15.

Left out is what no CLIP tower has a use for (windows, quantised types, sequences, random numbers, recurrent layers).
UINT8 is for inputs and outputs of the network alone: `Cast`, and no other operator, takes it.
"""

SOURCE = "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md"
OPSETS = range(9, 25)

_FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
_NUMBERS = _FLOATS | {"INT32", "INT64"}
_ANY = _NUMBERS | {"BOOL"}
_NAMES = {
    _FLOATS: """
        Acos Acosh Asin Asinh Atan Atanh Attention AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos
        Cosh CumSum Einsum Elu Erf Exp Floor Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization
        HardSigmoid HardSwish Hardmax InstanceNormalization IsInf LayerNormalization LeakyRelu Log LogSoftmax LRN
        LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization ParametricSoftplus PRelu Reciprocal Resize
        RMSNormalization RotaryEmbedding Round ScaledTanh Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh
        ThresholdedRelu Upsample""",
    _NUMBERS: """
        Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean Min Mod
        Mul Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
        ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK""",
    _ANY: """
        Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity OneHot Reshape
        ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where""",
    frozenset({"BOOL"}): "And Not Or Xor",
    _ANY | {"UINT8"}: "Cast CastLike",
}
TYPES = {name: types for types, names in _NAMES.items() for name in names.split()}  # of the first input
