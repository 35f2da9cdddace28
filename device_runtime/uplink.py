"""An update on its way up: all of its chunks, or after a cut only those that the coordinator lacks."""

from __future__ import annotations

from device_runtime.events import Upload
from protocol.chunks import chunk_size, count, split
from protocol.messages import RESUME, Chunk, Report


def question(update: str, length: int, max_payload: int) -> Report:
    """Asks which chunks of an update of `length` bytes have not come; answered by an Answer with `resume`."""
    return Report(id=update, kind=RESUME, ok=True, values={"chunks": count(length, chunk_size(max_payload))})


def pieces(upload: Upload, body: bytes, max_payload: int) -> list[Chunk]:
    """What is to be sent of an update. No copies: the chunks view `body`."""
    every = split(upload.update, body, chunk_size(max_payload))
    return [every[k] for k in upload.chunks if k < len(every)] or every
