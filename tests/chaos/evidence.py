"""What can be known from outside: the journal, read while it is written, and what the coordinator publishes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from coordinator.segment import Segment
from protocol.config import BrokerConfig
from protocol.messages import CoordinatorState, Manifest, RoundSummary, decode
from protocol.mqtt import MqttTransport
from protocol.topics import Topics
from protocol.transport import Connected, Received


class Evidence:
    """Collects commits from the journal and versions from the broker, and every contradiction between them.

    commits    round -> (ids of its updates, digests of its blocks)
    said       (epoch, block, version) -> digest, as published
    """

    def __init__(self, folder: Path, fleet: str, port: int) -> None:
        self.commits: dict[int, tuple[tuple[str, ...], dict[str, bytes]]] = {}
        self.said: dict[tuple[int, str, int], bytes] = {}
        self.contradictions: list[str] = []
        self._renewed: set[tuple[str, int]] = set()  # (block, version) that only brought a new normalisation
        self.boots: list[tuple[float, str]] = []  # when a life of the coordinator was first heard of
        self.summary: tuple[float, RoundSummary] | None = None  # the latest, and when it came
        self.when: dict[int, float] = {}  # round -> when its commit was first seen
        self._folder, self._topics = folder / "journal", Topics(fleet)
        self._transport = MqttTransport(BrokerConfig(port=port), "operator-chaos-evidence")
        self._transport.open(self._heard)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    @property
    def round(self) -> int:
        """The last round known to be committed."""
        return max(self.commits, default=0)

    def close(self) -> None:
        """Look once more, and stop."""
        self._stop.set()
        self._thread.join()
        self._transport.close()
        self.look()
        self._judge()

    # -- the journal ------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.look()

    def look(self) -> None:
        """Read what is in the journal now."""
        for path in sorted(self._folder.glob("*-*.log")):
            try:
                fd = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue  # compacted away meanwhile
            first, marker = path.stem.split("-")
            segment = Segment(path, fd, int(first), bytes.fromhex(marker))
            try:
                for _, place in segment.scan():
                    kind, header = place.head()
                    if kind == "commit":
                        self._commit(header)
                    elif kind == "open":
                        self._renewed |= set(header["versions"].items())
            finally:
                segment.close()

    def _commit(self, header: dict[str, Any]) -> None:
        round, found = header["round"], (tuple(header["updates"]), dict(header["digests"]))
        before = self.commits.setdefault(round, found)
        self.when.setdefault(round, time.monotonic())
        if before != found:
            self.contradictions.append(f"round {round} was committed twice, differently")

    def _judge(self) -> None:
        rounds = sorted(self.commits)
        lost = sorted(set(range(1, self.round + 1)) - set(rounds))
        if lost:
            self.contradictions.append(f"committed rounds were lost: {lost}")
        counted: dict[str, int] = {}
        for round in rounds:
            for update in self.commits[round][0]:
                if update in counted:
                    self.contradictions.append(f"update {update} counts in rounds {counted[update]} and {round}")
                counted[update] = round
        self.updates = len(counted)
        committed = {digest for _, digests in self.commits.values() for digest in digests.values()}
        for (_, block, version), digest in self.said.items():
            fresh = not version or block.endswith(".base") or (block, version) in self._renewed
            if not fresh and digest not in committed:
                self.contradictions.append(f"{block} {version} was published and is in no commit")

    # -- what is published ------------------------------------------------------------------------------

    def _heard(self, event: object) -> None:
        try:
            if isinstance(event, Connected):
                coordinator = self._topics.coordinator
                self._transport.subscribe(self._topics.manifest("+"), coordinator("state"), coordinator("round"))
            elif isinstance(event, Received) and event.payload:
                if event.topic.endswith("/manifest"):
                    self._manifest(decode(Manifest, event.payload))
                elif event.topic.endswith("/round"):
                    self.summary = time.monotonic(), decode(RoundSummary, event.payload)
                else:
                    state = decode(CoordinatorState, event.payload)
                    if state.online and all(state.boot != boot for _, boot in self.boots):
                        self.boots.append((time.monotonic(), state.boot))
        except Exception as error:  # a callback must not raise; what happened is told at the end
            self.contradictions.append(f"{type(error).__name__}: {error}")

    def _manifest(self, m: Manifest) -> None:
        before = self.said.setdefault((m.epoch, m.block, m.version), m.digest)
        if before != m.digest:
            self.contradictions.append(f"{m.block} {m.version} was published with two contents")
