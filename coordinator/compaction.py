"""Compaction of a journal: which segments to write anew as one, and the copy that takes their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgpack

from coordinator.segment import Draft, Place, Segment, sync_directory

MANY = 16  # small segments: fewer cost nothing, while copying them does
_COPY = 16 * 1024 * 1024  # bytes copied between two fdatasyncs


def runs(
    sealed: Sequence[Segment], held: Mapping[Segment, Sequence[int]], total: Mapping[Segment, int], full: int
) -> Iterator[list[Segment]]:
    """Neighbouring segments to write anew as one: those with records to drop, and small ones where they are many.

    held   positions to keep, of each sealed segment;  total  records in it now;  full  bytes of a full segment
    """
    small = {segment for segment in sealed if segment.size < full // 4}
    run: list[Segment] = []
    for segment in sealed:
        if _worn(segment, held, total) or (segment in small and len(small) > MANY):
            run.append(segment)
            continue
        yield from _worth(run, held, total)
        run = []
    yield from _worth(run, held, total)


def _worth(
    run: list[Segment], held: Mapping[Segment, Sequence[int]], total: Mapping[Segment, int]
) -> Iterator[list[Segment]]:
    if len(run) > 1 or any(_worn(segment, held, total) for segment in run):
        yield run


def _worn(segment: Segment, held: Mapping[Segment, Sequence[int]], total: Mapping[Segment, int]) -> bool:
    return len(held[segment]) < total[segment] or not total[segment]


def copied(old: Segment, records: Sequence[tuple[int, Place]]) -> tuple[Segment, list[Place]]:
    """A segment with these records, put in place of the file of `old`, or OSError."""
    directory = old.path.parent
    new, places, batch = Segment.create(directory, old.first, marker=old.marker, suffix=".tmp"), [], []
    try:
        for n, (position, place) in enumerate(records):
            kind, header = place.head()
            body = place.read(0, None)
            batch.append(Draft(position, kind, header, msgpack.packb([kind, header]), body, place.body_crc))
            if n == len(records) - 1 or sum(draft.size for draft in batch) > _COPY:
                places += new.append(batch)
                batch.clear()
        new.path.replace(old.path)
        # The others go only when this stands: a crash in between leaves records twice, never none.
        sync_directory(directory)
    except BaseException:
        new.close()
        raise
    new.path = old.path
    return new, places
