"""The systems that bundles are made for."""

from __future__ import annotations

from dataclasses import dataclass

NEWEST_GLIBC = 35  # the oldest of the targets has 2.35
OLDEST_GLIBC = 17


@dataclass(frozen=True)
class Target:
    """One system.

    release    ID and VERSION_ID of its os-release
    limits     requirements that keep its own builds usable
    about      what it runs on, and what was never shown on it
    """

    name: str
    python: str
    release: str
    limits: tuple[str, ...]
    about: str
    arch: str = "aarch64"

    @property
    def platforms(self) -> tuple[str, ...]:
        """Wheel platforms it takes, the newest first."""
        return (*(f"manylinux_2_{n}_{self.arch}" for n in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1)),
                f"manylinux2014_{self.arch}")  # fmt: skip

    @property
    def resolver_platform(self) -> str:
        """The resolver's word for it."""
        return f"{self.arch}-manylinux_2_28"


# torch: from 2.11 on the index's aarch64 builds are for CUDA 13, which an Orin's GPU does not have; 2.10 is for CPUs.
# numpy 1.26 serves NVIDIA's builds of torch whether they were made for numpy 1 or 2.
_CPU_TORCH = "torch<2.11"
TARGETS = {
    one.name: one
    for one in (
        Target("jetpack6", "3.10", "ubuntu 22.04", ("numpy<2", _CPU_TORCH), "Jetson Orin; never run on a board"),
        Target("jetpack7", "3.12", "ubuntu 24.04", (_CPU_TORCH,), "Jetson Thor and Orin; never run on a board"),
        Target(
            "debian12-arm64", "3.11", "debian 12", (_CPU_TORCH,), "any arm64 board with Debian 12; run in emulation"
        ),
    )
}


def target(name: str) -> Target:
    """A target by name. ValueError that lists them."""
    if name not in TARGETS:
        raise ValueError(f"target {name!r} is not known: {', '.join(TARGETS)}")
    return TARGETS[name]
