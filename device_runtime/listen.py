"""From a topic and its bytes to an event of the agent."""

from __future__ import annotations

from device_runtime.events import ChunkHeard, Event, ManifestHeard
from protocol.errors import Malformed
from protocol.messages import Answer, Assignment, Chunk, CoordinatorState, Label, Manifest, Order, decode
from protocol.topics import Topics
from protocol.transport import Received


def heard(topics: Topics, device: str, message: Received) -> Event | None:
    """The event that a message is; None for what is not meant for a device. Raises Malformed or TooLarge."""
    levels = topics.parse(message.topic)
    if levels is None or not message.payload:
        return None  # an empty payload clears a retained topic
    if levels == ("coordinator", "state"):
        return decode(CoordinatorState, message.payload)
    if len(levels) == 3 and levels[0] == "block":
        block = levels[1]
        if levels[2] == "manifest":
            manifest = decode(Manifest, message.payload)
            if manifest.block != block:
                raise Malformed("Manifest", f"block: {manifest.block!r} on the topic of {block!r}")
            return ManifestHeard(block, manifest)
        chunk = decode(Chunk, message.payload)
        if chunk.manifest and chunk.manifest.block != block:
            raise Malformed("Chunk", f"manifest.block: {chunk.manifest.block!r} on the topic of {block!r}")
        return ChunkHeard(block, chunk)
    if levels[:2] == ("device", device) and len(levels) == 3:
        return _to_us(levels[2], message.payload)
    return None


def _to_us(leaf: str, payload: bytes) -> Event | None:
    if leaf == "assignment":
        return decode(Assignment, payload)
    if leaf == "answer":
        return decode(Answer, payload)
    if leaf == "order":
        return decode(Order, payload)
    if leaf == "label":
        return decode(Label, payload)
    return None
