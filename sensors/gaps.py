"""Missing samples: short gaps are filled, long ones stay gaps and cost the windows they lie in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sensors.recording import Floats


def interpolate(values: Floats, longest: int) -> None:
    """Fill NaN between two samples of a channel on the line between them, in place, in gaps of up to `longest` samples.

    values    (T, channels)
    """
    for channel in values.T:
        missing = np.isnan(channel)
        for begin, end in gaps(missing):
            if end - begin <= longest and begin > 0 and end < len(channel):
                steps = np.arange(1, end - begin + 1, dtype=np.float32) / np.float32(end - begin + 1)
                channel[begin:end] = channel[begin - 1] + (channel[end] - channel[begin - 1]) * steps


def hold(values: Floats, longest: int) -> None:
    """Let each sample stand for those missing after it, in place, up to `longest` of them. (T, channels)"""
    at = np.arange(len(values))
    for channel in values.T:
        last = np.maximum.accumulate(np.where(np.isnan(channel), -1, at))
        standing = (last >= 0) & (at - last <= longest)
        channel[standing] = channel[last[standing]]


def gaps(missing: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(begin, end) of every stretch of missing samples."""
    edges = np.flatnonzero(np.diff(missing, prepend=False, append=False))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
