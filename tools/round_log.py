"""The coordinator's log: a line while devices are waited for, one for every round and one for every evaluation."""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger("relief.coordinator")


class RoundLog:
    """Takes every summary and logs what is new in it; `expect` devices are waited for before round 1."""

    def __init__(self, expect: int) -> None:
        self._expect = expect
        self._round = self._scored = 0  # the last that were logged; summaries tell of this life's rounds only
        self._waiting = -1

    def take(self, round: int, fields: dict[str, Any]) -> None:
        """A summary, as it was published."""
        trail, scored = fields["trail"], fields["scored"]
        if not trail:
            self._wait(sum(device["state"] != "offline" for device in fields["devices"].values()))
        for one in trail:
            if one["round"] > self._round:
                self._round = one["round"]
                told = (one["round"], one["updates"], one["assigned"], one["ended"] - one["began"], one["loss"])
                log.info("round %d: %d of %d devices, %.1f s, loss %.3f", *told)
        for one in scored:
            if one["round"] > self._scored:
                self._scored = one["round"]
                scores = ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in one.items() if k not in ("round", "at"))
                log.info("round %d: F1 %s", one["round"], scores)

    def _wait(self, there: int) -> None:
        if there != self._waiting:
            self._waiting = there
            log.info("devices: %d of %d are there", there, self._expect)
