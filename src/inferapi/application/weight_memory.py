"""Which formats weights can have on a device, and the bytes that they take: pure functions of a profile."""

from __future__ import annotations

from inferapi.domain.model import Device, DeviceKind, LinearShape, LoadOptions, ModelProfile, Quantization

BYTES_BY_DTYPE = {"bfloat16": 2, "float16": 2, "float32": 4}

_STORED_BITS = (
    dict.fromkeys(("BOOL", "U8", "I8"), 8)
    | dict.fromkeys(("I16", "U16"), 16)
    | dict.fromkeys(("I32", "U32"), 32)
    | dict.fromkeys(("I64", "U64", "C64"), 64)
)
_STORED_AS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0"}
_PACKED_DTYPES = {"bfloat16", "float32"}  # that oneDNN's packed kernels know, see engine/packing.py
# On a CPU a row's inputs are quantized in groups, each with a float32 scale or, in int4, a scale and a minimum of 16
# bits each. Inputs and outputs are padded, see engine/native/formats.py.
_GROUP = {Quantization.INT8: 64, Quantization.INT4: 32}
_BITS = {Quantization.INT8: 8, Quantization.INT4: 4}
_PADDED_INPUTS, _PADDED_OUTPUTS = 64, 16
_SCALE_BYTES = 4
_NF4_GROUP = 64  # bitsandbytes' int4: numbers that share a float32 scale, across rows


def uses_native_kernels(options: LoadOptions, device: Device) -> bool:
    """Whether kernels compiled for this CPU compute the linear layers: they do so in bf16."""
    return device.kind is DeviceKind.CPU and device.native_kernels and options.dtype == "bfloat16"


def quantization_problem(options: LoadOptions, device: Device) -> str | None:
    """Why weights cannot be quantized so on this device; ``None`` if they can, or need not.

    The dtype of ``options`` is never ``auto`` here.
    """
    if options.quantization is None or device.kind is not DeviceKind.CPU or uses_native_kernels(options, device):
        return None
    if device.native_kernels:
        return f"a CPU multiplies quantized weights in bfloat16, not in {options.dtype}"
    return f"on a CPU that takes kernels compiled for it, and {device.native_kernels_reason}"


def weights_bytes(profile: ModelProfile, options: LoadOptions, device: Device) -> int:
    """All tensors, tied ones once: packed ones as stored, others by dtype and quantization.

    Unquantized, floating-point tensors are at ``options.dtype``, which is never ``auto`` here, and others as stored.
    """
    if profile.prequantized:
        return profile.stored_bytes
    width = BYTES_BY_DTYPE[options.dtype]
    total = sum(
        count * (width if stored in _FLOATS else _STORED_BITS.get(stored, 32) // 8)
        for stored, count in profile.parameters_by_dtype.items()
    )
    if options.quantization is None:
        return total
    on_cpu = device.kind is DeviceKind.CPU
    quantized = _grouped_bytes if on_cpu else _bitsandbytes_bytes
    total += sum(quantized(linear, options.quantization) - linear.parameters * width for linear in profile.linears)
    if on_cpu and profile.output is not None:  # eight bits, also where the others have four
        total += _grouped_bytes(profile.output, Quantization.INT8) - profile.output.parameters * width
    return total


def output_copy_bytes(profile: ModelProfile, options: LoadOptions, device: Device) -> int:
    """A second copy of an output layer that is tied to the embedding: one looks rows up, the other multiplies.

    oneDNN packs it, and a quantization makes it int8; native kernels compute bf16 on the embedding itself.
    """
    if device.kind is not DeviceKind.CPU or not profile.ties_output:
        return 0
    tied = LinearShape(profile.vocab_size, profile.hidden_size)
    if options.quantization is not None:
        return _grouped_bytes(tied, Quantization.INT8)
    if options.dtype not in _PACKED_DTYPES or uses_native_kernels(options, device):
        return 0
    return tied.parameters * BYTES_BY_DTYPE[options.dtype]


def conversion_bytes(profile: ModelProfile, options: LoadOptions, device: Device) -> int:
    """What a load on a CPU holds of its own before it quantizes: all that is not stored in ``options.dtype``.

    What is stored so is mapped from its file, and quantized from there.
    """
    if options.quantization is None or device.kind is not DeviceKind.CPU:
        return 0
    mapped = _STORED_AS[options.dtype]
    counts = profile.parameters_by_dtype
    return BYTES_BY_DTYPE[options.dtype] * sum(counts[stored] for stored in counts if stored in _FLOATS - {mapped})


def _grouped_bytes(linear: LinearShape, quantization: Quantization) -> int:
    inputs, outputs = _padded(linear.inputs, _PADDED_INPUTS), _padded(linear.outputs, _PADDED_OUTPUTS)
    scales = inputs // _GROUP[quantization] * _SCALE_BYTES
    return linear.count * outputs * (inputs * _BITS[quantization] // 8 + scales)


def _padded(length: int, to: int) -> int:
    return -(-length // to) * to


def _bitsandbytes_bytes(linear: LinearShape, quantization: Quantization) -> int:
    """Its int8 has a scale a row; its int4 is NF4."""
    if quantization is Quantization.INT8:
        return linear.parameters + linear.count * linear.outputs * _SCALE_BYTES
    return linear.parameters // 2 + -(-linear.parameters // _NF4_GROUP) * _SCALE_BYTES
