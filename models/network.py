"""The network in torch: z = b + sum over present m of (W_m + alpha/r B A_m) h_m, y = head(relu(z)).

Read top to bottom: convolutional encoders, one fusion tensor per modality, a linear head. An absent modality
is not computed at all. No BatchNorm: its running statistics would leak who was absent.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.partition import Partition, TensorSpec, Vector, initial, partition
from models.spec import Mode, ModelSpec


class Network(nn.Module):
    """Parameters are held by the names of the partition; `load` and `read` move whole blocks in and out."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.cut: Partition = partition(spec)
        for layouts, trained in ((self.cut.trainable, True), (self.cut.frozen, False)):
            for t in (t for layout in layouts.values() for t in layout):
                self._register(t, trained)
        trainable, frozen = initial(spec)
        for block, vector in trainable.items():
            self.load(block, vector)
        for block, vector in frozen.items():
            self.load(block, vector, base=True)

    def _register(self, t: TensorSpec, trained: bool) -> None:
        # Dots are not allowed in a parameter's name: the path becomes nested modules, as torch itself does.
        *path, leaf = t.name.split(".")
        module: nn.Module = self
        for name in path:
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module.get_submodule(name)
        module.register_parameter(leaf, nn.Parameter(torch.zeros(t.shape), requires_grad=trained))

    # -- forward ---------------------------------------------------------------------------------

    def encode(self, name: str, x: Tensor) -> Tensor:
        """Features of one modality: (N, channels, samples) -> (N, d_m)."""
        return encode(self.spec, name, self._tensors(), x)

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        """Class scores from the features of the modalities that are there: {m: (N, d_m)} -> (N, classes)."""
        return fuse(self.spec, self._tensors(), features)

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        """{m: (N, channels, samples)} -> (N, classes); modalities missing from `x` cost nothing."""
        return self.fuse({name: self.encode(name, x[name]) for name in self.spec.names if name in x})

    def _tensors(self) -> dict[str, Tensor]:
        return dict(self.named_parameters())

    # -- blocks in and out -----------------------------------------------------------------------

    @torch.no_grad()
    def load(self, block: str, vector: Vector, *, base: bool = False) -> None:
        """Copy a block's vector into its parameters. ValueError if its length is wrong."""
        for name, values in self.cut.views(block, vector, base=base).items():
            self.get_parameter(name).copy_(torch.tensor(values))

    @torch.no_grad()
    def read(self, block: str, *, base: bool = False) -> Vector:
        """A copy of a block as one flat vector, in the parameters' dtype."""
        tensors = [self.get_parameter(t.name).reshape(-1) for t in self._layout(block, base)]
        flat: Vector = torch.cat(tensors).cpu().numpy() if tensors else torch.zeros(0).numpy()
        return flat

    def parameters_of(self, block: str) -> list[nn.Parameter]:
        """The trainable parameters of `block`, in the layout's order."""
        return [self.get_parameter(t.name) for t in self._layout(block, False)]

    def _layout(self, block: str, base: bool) -> tuple[TensorSpec, ...]:
        return self.cut.frozen.get(block, ()) if base else self.cut.trainable[block]


def encode(spec: ModelSpec, name: str, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Encoder of modality `name` as a function of its tensors: (N, channels, samples) -> (N, d_m)."""
    for layer in range(len(spec.widths)):
        at = f"encoders.{name}.{layer}"
        weight = tensors[f"{at}.weight"]  # (out, in, kernel)
        if f"{at}.down" in tensors:
            weight = weight + (tensors[f"{at}.up"] @ tensors[f"{at}.down"]).view_as(weight)
        x = F.conv1d(x, weight, tensors[f"{at}.bias"], stride=spec.stride, padding=spec.kernel // 2)
        x = F.relu(x)  # (N, widths[layer], shorter)
    if spec.widths:
        x = F.adaptive_avg_pool1d(x, spec.bins)  # (N, widths[-1], bins)
    return x.flatten(1)  # (N, d_m)


def fuse(spec: ModelSpec, tensors: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> Tensor:
    """Fusion layer and head as a function of their tensors: {m: (N, d_m)} -> (N, classes)."""
    return F.linear(embed(spec, tensors, features), tensors["head.weight"], tensors["head.bias"])


def embed(spec: ModelSpec, tensors: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> Tensor:
    """What the head reads, relu(z): {m: (N, d_m)} -> (N, d)."""
    z: Tensor = tensors["fusion.bias"]  # (d,)
    low: Tensor | None = None
    for name, h in features.items():
        z = z + h @ tensors[f"fusion.weight.{name}"].T  # (N, d)
        if spec.mode is Mode.LORA:
            part = h @ tensors[f"fusion.lora_a.{name}"].T  # (N, r)
            low = part if low is None else low + part
    if low is not None:
        z = z + (spec.alpha / spec.rank) * (low @ tensors["fusion.lora_b"].T)
    return F.relu(z)
