"""`relief pretrain`: the base model under the LoRA blocks, from given subjects' recordings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tools.configuration import ModelConfig, dataset
from tools.shown import progress

if TYPE_CHECKING:
    from sensors.recording import Recording

console = Console()


def pretrain(
    out: Annotated[Path, typer.Option(help="Folder for the base model.")],
    data: Annotated[str, typer.Option("--dataset", help="dsads, dsads15, mhealth, pamap2 or synthetic.")] = "synthetic",
    subjects: Annotated[str, typer.Option(help="Subjects to train on, separated by commas; by default all.")] = "",
    epochs: Annotated[int, typer.Option(min=1, help="Times through all windows.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the first weights and the order of the windows.")] = 0,
) -> None:
    """Train a base model for mode lora and write it to a folder.

    Example: relief pretrain --dataset dsads --subjects 1,2 --out base
    """
    import torch

    from coordinator.checkpoint import save
    from models.pretrain import pretrain as train
    from sensors.scaling import Scaling, sums
    from sensors.windows import cut

    torch.set_num_threads(max(1, torch.get_num_threads()))
    recordings = dataset(data)
    chosen = [s for s in subjects.split(",") if s] or list(recordings.subjects())
    unknown = sorted(set(chosen) - set(recordings.subjects()))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: {data} has the subjects {', '.join(recordings.subjects())}")
    with progress(f"reading {data}", len(chosen), "subjects") as step:

        def read() -> Iterator[Recording]:
            for n, subject in enumerate(chosen):
                step(n, f"subject {subject}")
                yield from recordings.recordings(subject)

        windows = cut(read(), recordings)
        scaling = Scaling.of(sums(windows))
        windows = scaling.apply(windows)
    spec = ModelConfig(dataset=data, seed=seed).spec(recordings)
    with progress("training", epochs, "epochs") as step:
        blocks = train(
            spec,
            windows.x,
            windows.y,
            epochs=epochs,
            seed=seed,
            progress=lambda epoch, loss: step(epoch, f"loss {loss:.3f}"),
        )
    scales = {m: (scaling.center[m].tolist(), scaling.width[m].tolist()) for m in scaling.center}
    written = save(out, 0, blocks, spec, {"scales": scales, "dataset": data, "subjects": chosen, "epochs": epochs})
    console.print(f"base model of {len(windows):,} windows from {len(chosen)} subjects: {written}")
