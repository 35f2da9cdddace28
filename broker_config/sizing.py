"""How much the broker may hold for one client, computed from fleet and model, with the computation in words."""

from __future__ import annotations

from dataclasses import dataclass

CHUNK = 112 * 1024  # bytes of data a chunk carries (protocol.chunks.CHUNK)
SMALL_MESSAGES = 4  # status, report, answer, assignment: what a device causes in a round beside its chunks
ROUNDS = 2  # a round's worth may still wait when the next one comes
LEAST_MESSAGES, LEAST_BYTES = 1_000, 64 * 1024 * 1024
MIB = 1024 * 1024


@dataclass(frozen=True)
class Sizes:
    """Limits of one client's queue, and where they come from."""

    messages: int
    bytes: int
    said: tuple[str, ...]


def sizes(devices: int, model_bytes: int) -> Sizes:
    """The worst burst is a whole fleet's updates waiting for one coordinator."""
    chunks = max(1, -(-model_bytes // CHUNK))
    messages = ROUNDS * devices * (chunks + SMALL_MESSAGES)
    size = ROUNDS * devices * model_bytes
    kept, held = max(messages, LEAST_MESSAGES), max(size, LEAST_BYTES)
    return Sizes(
        kept,
        held,
        (
            f"a model of {model_bytes:,} bytes is {chunks} chunk{'s' * (chunks > 1)} of {CHUNK:,} bytes at most",
            f"{devices:,} devices x ({chunks} + {SMALL_MESSAGES} messages) x {ROUNDS} rounds = {messages:,} messages"
            + (f", at least {LEAST_MESSAGES:,}" if kept > messages else ""),
            f"{devices:,} devices x {model_bytes:,} bytes x {ROUNDS} rounds = {size / MIB:,.0f} MiB"
            + (f", at least {LEAST_BYTES // MIB} MiB" if held > size else ""),
            f"the broker's memory in the worst case: about {held / MIB + 20:,.0f} MiB",
        ),
    )
