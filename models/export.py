"""ONNX export, on the coordinator: the model cut into graph parts, one per modality and one shared.

    modality m:   x_m -> encoder -> h_m;   z.m = h_m W_m^T,   low.m = h_m A_m^T (lora)
    shared:       z, low -> head(relu(z + b + alpha/r low B^T)) -> softmax

A device joins the parts of the modalities that are present by two Sum nodes (device_runtime.inference), so an absent
encoder is not in the graph at all. Needs torch, onnx and onnxscript (extra: export); what it writes needs none of them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import kit as kits
from models.kit import Kit, Scale
from models.network import Network, encode
from models.partition import Partition, Vector, partition
from models.spec import SHARED, Mode, ModelSpec

if TYPE_CHECKING:
    import onnx

OPSET = 18  # the oldest that torch's exporter writes; ONNX Runtime 1.20 reads it
SCORES = "scores"
KEPT = 4  # models whose parts are remembered: tracing takes seconds, and a fleet exports the same one every few rounds
_BATCH = 3  # windows in the example that is traced; any other number works later

Progress = Callable[[float], object]
_made: dict[ModelSpec, dict[str, bytes]] = {}


def export(
    spec: ModelSpec,
    blocks: Mapping[str, Vector],
    base: Mapping[str, Vector],
    folder: Path,
    *,
    version: int = 0,
    versions: Mapping[str, int] | None = None,
    scale: Mapping[str, Scale] | None = None,
    progress: Progress = lambda done: None,
) -> Kit:
    """Write the inference kit of a model into the new directory `folder` and return it.

    blocks, base    trained and frozen vectors by block. ValueError where one is missing or of the wrong length.
    progress        hears how much of the work is done, from 0 to 1
    """
    network = loaded(spec, blocks, base)
    most = len(spec.inputs) + 2  # every modality's graph, the shared one, the whole
    graphs = parts(spec, lambda done: progress(done / most))
    made = Kit(spec, version, graphs, dict(blocks), dict(base), dict(versions or {}), dict(scale or {}))
    kits.save(made, folder, whole(network, spec.names).SerializeToString())
    progress(1.0)
    return made


def loaded(spec: ModelSpec, blocks: Mapping[str, Vector], base: Mapping[str, Vector]) -> Network:
    """The network with these vectors in it. ValueError where one is missing or of the wrong length."""
    network = Network(spec)
    for layouts, vectors, frozen in ((network.cut.trainable, blocks, False), (network.cut.frozen, base, True)):
        for block in layouts:
            if block not in vectors:
                raise ValueError(f"export: {'base of ' if frozen else ''}block {block} is missing")
            network.load(block, vectors[block], base=frozen)
    return network.eval()


def parts(spec: ModelSpec, progress: Progress = lambda done: None) -> dict[str, bytes]:
    """The graph part of every modality, and the shared one under "shared". Depends on the spec alone.

    `progress` hears how many are made.
    """
    if spec not in _made:
        while len(_made) >= KEPT:
            del _made[next(iter(_made))]
        _made[spec] = _parts(spec, progress)
    progress(len(_made[spec]))
    return dict(_made[spec])


def _parts(spec: ModelSpec, progress: Progress) -> dict[str, bytes]:
    cut = partition(spec)
    traced: dict[tuple[int, int], tuple[str, onnx.ModelProto]] = {}  # encoders of the same shape are traced once
    made = {}
    for i in spec.inputs:
        shape = (i.channels, i.samples)
        if shape not in traced:
            traced[shape] = i.name, _modality(spec, cut, i.name)
        like, model = traced[shape]
        made[i.name] = _part(model, cut, i.name, like)
        progress(len(made))
    made[SHARED] = _part(_shared(spec, cut), cut, SHARED, SHARED)
    return made


def whole(network: Network, present: Sequence[str]) -> onnx.ModelProto:
    """One plain ONNX model of these modalities with all tensors fixed; inputs by modality, output `scores`."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, windows: list[Tensor]) -> Tensor:
            return torch.softmax(self.network(dict(zip(present, windows, strict=True))), -1)

    windows = [_example(network.spec, name) for name in present]
    return _exported(Fixed(), (windows,), list(present), [SCORES], ([{0: _batch()} for _ in windows],))


# -- parts ---------------------------------------------------------------------------------------------------


def _modality(spec: ModelSpec, cut: Partition, name: str) -> onnx.ModelProto:
    tensors = _tensors(cut, name)
    names = list(tensors)
    lora = spec.mode is Mode.LORA

    class Modality(nn.Module):
        def forward(self, x: Tensor, values: list[Tensor]) -> tuple[Tensor, ...]:
            by_name = dict(zip(names, values, strict=True))
            h = encode(spec, name, by_name, x)  # (N, d_m)
            z = F.linear(h, by_name[f"fusion.weight.{name}"])  # (N, d)
            return (z, F.linear(h, by_name[f"fusion.lora_a.{name}"])) if lora else (z,)  # low: (N, r)

    outputs = [f"z.{name}", f"low.{name}"] if lora else [f"z.{name}"]
    example = (_example(spec, name), list(tensors.values()))
    return _exported(Modality(), example, [name, *names], outputs, ({0: _batch()}, [None] * len(names)))


def _shared(spec: ModelSpec, cut: Partition) -> onnx.ModelProto:
    tensors = _tensors(cut, SHARED)
    names = list(tensors)
    lora = spec.mode is Mode.LORA

    class Shared(nn.Module):
        def forward(self, sums: list[Tensor], values: list[Tensor]) -> Tensor:
            by_name = dict(zip(names, values, strict=True))
            z = sums[0] + by_name["fusion.bias"]  # (N, d)
            if lora:
                z = z + (spec.alpha / spec.rank) * F.linear(sums[1], by_name["fusion.lora_b"])
            return torch.softmax(F.linear(F.relu(z), by_name["head.weight"], by_name["head.bias"]), -1)  # (N, classes)

    sums = [torch.zeros(_BATCH, spec.fusion), *([torch.zeros(_BATCH, spec.rank)] if lora else [])]
    inputs = ["z", "low"] if lora else ["z"]
    batch = _batch()
    return _exported(
        Shared(),
        (sums, list(tensors.values())),
        [*inputs, *names],
        [SCORES],
        ([{0: batch} for _ in sums], [None] * len(names)),
    )


def _part(model: onnx.ModelProto, cut: Partition, block: str, like: str) -> bytes:
    """A ModelProto that says only what this part adds: its nodes, constants, windows and overridable tensors.

    `model` was traced for block `like`, of the same shape. Names inside get the part's name in front; what other parts
    or the device refer to keeps its own.
    """
    import onnx

    outside = {i.name: i.name for i in model.graph.input} | {o.name: o.name for o in model.graph.output}
    outside |= dict(zip(_tensors(cut, like), _tensors(cut, block), strict=True))
    outside |= {like: block, f"z.{like}": f"z.{block}", f"low.{like}": f"low.{block}", "": ""}
    part = onnx.ModelProto()
    part.graph.CopyFrom(model.graph)
    for node in part.graph.node:
        for names in (node.input, node.output):
            names[:] = [outside.get(name, f"{block}.{name}") for name in names]
        node.name = f"{block}.{node.name}"
        node.doc_string = ""
        del node.metadata_props[:]
    for constant in part.graph.initializer:
        constant.name = f"{block}.{constant.name}"
    swapped = {t.name for t in cut.trainable[block]} if cut.spec.mode is Mode.LORA else set()
    for given in part.graph.input:
        given.name = outside[given.name]
    kept = [i for i in part.graph.input if i.name in swapped or i.name == block]
    for names in (part.graph.input, part.graph.output, part.graph.value_info, part.graph.metadata_props):
        del names[:]
    part.graph.input.extend(kept)
    if block == SHARED:
        part.ir_version, part.producer_name = model.ir_version, "relief"
        part.opset_import.extend(model.opset_import)
        part.graph.name = "relief"
        part.graph.output.extend(model.graph.output)
    serialised: bytes = part.SerializeToString()
    return serialised


def _tensors(cut: Partition, block: str) -> dict[str, Tensor]:
    """Zeros in the shape of every tensor of the block, trained and frozen."""
    layout = (*cut.trainable[block], *cut.frozen.get(block, ()))
    return {t.name: torch.zeros(t.shape) for t in layout}


def _example(spec: ModelSpec, name: str) -> Tensor:
    i = spec.input(name)
    return torch.zeros(_BATCH, i.channels, i.samples)


def _batch() -> Any:
    return torch.export.Dim("windows", min=1)


def _exported(
    module: nn.Module, example: tuple[Any, ...], inputs: list[str], outputs: list[str], dynamic: tuple[Any, ...]
) -> onnx.ModelProto:
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise ImportError("export needs onnx and onnxscript; run: pip install 'relief-edge[export]'") from None
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            example,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of optional packages and of its own internals; its errors are exceptions and come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
