"""Windows: what is learned from. Cut from recordings, never across a label's or a recording's border."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sensors.recording import Floats, Ints


@dataclass(frozen=True)
class Windows:
    """N windows of the same length on the same clock.

    x          modality -> (N, channels, samples) float32; raw units until `scale`d
    y          (N,) class index
    subject    (N,) index into `subjects`
    position   (N,) start of the window within its (subject, class) in [0, 1), by time: splits by contiguous time and
               shares of one subject between devices are cuts along it
    """

    x: dict[str, Floats]
    y: Ints
    subject: Ints
    position: Floats
    subjects: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, chosen: Ints) -> Windows:
        """The windows at these indices, or where this boolean mask is true."""
        return Windows(
            {name: values[chosen] for name, values in self.x.items()},
            self.y[chosen],
            self.subject[chosen],
            self.position[chosen],
            self.subjects,
        )

    def only(self, modalities: Sequence[str]) -> Windows:
        """The same windows seen through fewer sensors; no copy."""
        return Windows(
            {m: self.x[m] for m in modalities if m in self.x},
            self.y,
            self.subject,
            self.position,
            self.subjects,
        )
