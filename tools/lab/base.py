"""Where every method of a comparison starts: fresh weights, or for lora a base trained on the public subjects."""

from __future__ import annotations

from models.partition import Vector, initial
from models.pretrain import lora_from, pretrain
from models.spec import Mode
from tools.lab.world import World


def starting_point(world: World) -> tuple[dict[str, Vector], dict[str, Vector]]:
    """(trainable, frozen) vectors, the same for all methods.

    ValueError where lora has no public windows to make its base from.
    """
    if world.spec.mode is Mode.FULL:
        return initial(world.spec)
    if not len(world.public):
        raise ValueError("a lora experiment needs public windows for its base: set `public` to a number of subjects")
    return lora_from(pretrain(world.spec, world.public.x, world.public.y, seed=world.spec.seed), world.spec)
