"""Recordings that a demo can run on: at least three subjects, else made-up files in the data set's original format."""

from __future__ import annotations

import os
from pathlib import Path

from sensors.locate import Found, find
from sensors.originals import write_mhealth, write_pamap2
from tools.shown import progress

LEAST_SUBJECTS = 3
MADE_UP = 5  # subjects
WRITERS = {"mhealth": write_mhealth, "pamap2": write_pamap2}


def recordings(data: str, folder: Path) -> Found:
    """What `find` finds; where that is too little of PAMAP2 or MHEALTH, generated originals below `folder`.

    The devices look where we look: RELIEF_DATA is set for them to the generated files.
    """
    found = find(data)
    writer = WRITERS.get(data)
    if writer is None or (found.path and len(found.dataset.subjects()) >= LEAST_SUBJECTS):
        return found
    why = (
        f"{found.path} has {len(found.dataset.subjects())} subject, a demo needs {LEAST_SUBJECTS}"
        if found.path
        else f"no recordings of {data} found"
    )
    with progress(f"making recordings up in the format of {data}", MADE_UP, "subjects") as step:
        writer(folder / data, subjects=MADE_UP, progress=step)
    os.environ["RELIEF_DATA"] = str(folder.resolve())
    made = find(data)
    note = f"{data}: {why}; {len(made.dataset.subjects())} generated subjects in the original format, not real people"
    return Found(made.dataset, made.path, note)
