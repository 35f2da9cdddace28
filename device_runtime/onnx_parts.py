"""A kit's graph parts and a model's tensors put together to one ONNX model, without the onnx package.

An ONNX file is a protobuf message. Protobuf merges a message that comes in pieces: repeated fields add up, embedded
messages are merged. So the parts are joined by writing them one behind the other, and what a device adds itself, sums
over the present modalities and tensors, is a few fields written by hand (onnx.proto: NodeProto, TensorProto).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from models.kit import Kit
from models.partition import Vector, partition
from models.spec import SHARED, Mode

_FLOAT = 1  # TensorProto.DataType


def joined(kit: Kit, present: Sequence[str], tensors: Mapping[str, Vector]) -> bytes:
    """The model of the present modalities as ONNX bytes; `tensors` by parameter name, more than needed is fine."""
    outputs = ("z", "low") if kit.spec.mode is Mode.LORA else ("z",)
    cut = partition(kit.spec)
    used = [t.name for block in (*present, SHARED) for t in (*cut.trainable[block], *cut.frozen.get(block, ()))]
    pieces = [kit.parts[name] for name in present]
    pieces += [_in_graph(1, _sum([f"{output}.{name}" for name in present], output)) for output in outputs]
    pieces.append(kit.parts[SHARED])
    pieces += [_in_graph(5, _tensor(name, tensors[name])) for name in used]
    return b"".join(pieces)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field: string, bytes, embedded message or packed numbers."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _in_graph(number: int, content: bytes) -> bytes:
    """A ModelProto with nothing but this field of its graph (1: node, 5: initializer)."""
    return _field(7, _field(number, content))


def _sum(inputs: Sequence[str], output: str) -> bytes:
    names = b"".join(_field(1, name.encode()) for name in inputs)
    return names + _field(2, output.encode()) + _field(3, f"sum.{output}".encode()) + _field(4, b"Sum")


def _tensor(name: str, values: Vector) -> bytes:
    shape = b"".join(_varint(size) for size in values.shape)
    raw = np.ascontiguousarray(values, "<f4").tobytes()
    return _field(1, shape) + _varint(2 << 3) + _varint(_FLOAT) + _field(8, name.encode()) + _field(9, raw)
