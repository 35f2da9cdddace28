"""`relief pretrain`: the base model under the LoRA blocks, from given subjects' recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tools.configuration import ModelConfig, dataset

console = Console()


def pretrain(
    out: Annotated[Path, typer.Option(help="Folder for the base model.")],
    data: Annotated[str, typer.Option("--dataset", help="dsads, dsads15, mhealth, pamap2 or synthetic.")] = "synthetic",
    subjects: Annotated[str, typer.Option(help="Subjects to train on, separated by commas; by default all.")] = "",
    epochs: Annotated[int, typer.Option(min=1)] = 20,
    seed: Annotated[int, typer.Option(min=0)] = 0,
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
    with console.status(f"reading {data}, subjects {', '.join(chosen)}"):
        windows = cut((r for s in chosen for r in recordings.recordings(s)), recordings)
        scaling = Scaling.of(sums(windows))
        windows = scaling.apply(windows)
    spec = ModelConfig(dataset=data, seed=seed).spec(recordings)
    with console.status("") as status:
        blocks = train(
            spec,
            windows.x,
            windows.y,
            epochs=epochs,
            seed=seed,
            progress=lambda epoch, loss: status.update(f"epoch {epoch} of {epochs}, loss {loss:.3f}"),
        )
    scales = {m: (scaling.center[m].tolist(), scaling.width[m].tolist()) for m in scaling.center}
    written = save(out, 0, blocks, spec, {"scales": scales, "dataset": data, "subjects": chosen, "epochs": epochs})
    console.print(f"base model of {len(windows):,} windows from {len(chosen)} subjects: {written}")
