"""A disk that is full, under everything that the coordinator writes besides its journal: said, and never the end."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from coordinator.checkpoint import latest
from coordinator.history import History
from coordinator.scorer import Scored
from coordinator.versions import Versions
from protocol.memory import MemoryBroker
from tests.test_system_memory import coordinator, devices, until
from tests.worlds import spec


def fill(place: Path) -> Path:
    """Take all the space that is left."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return ballast


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_that_find_no_space_wait_and_come_whole_and_in_order(full_disk: Path) -> None:
    history = History(full_disk / "metrics.jsonl")
    history.score(1, 0.0, {"f1": 0.1})
    ballast = fill(full_disk)
    # 100 lines of 60 bytes: some still fit into the page that is there, one is cut in the middle.
    for n in range(2, 102):
        history.score(n, 0.0, {"f1": 0.1})
    assert "wait for space" in history.problem
    assert all(line["kind"] == "scores" for line in lines(full_disk / "metrics.jsonl"))
    ballast.unlink()
    history.score(102, 0.0, {"f1": 0.1})
    assert history.problem == ""
    history.close()
    assert [line["round"] for line in lines(full_disk / "metrics.jsonl")] == list(range(1, 103))


def test_a_piece_of_a_line_that_a_crash_left_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 1}\n{"rou')
    history = History(path)
    history.score(2, 0.0, {})
    history.close()
    assert [line["round"] for line in lines(path)] == [1, 2]


def test_rounds_go_on_without_space_for_their_history_and_an_alarm_says_so(tmp_path: Path, full_disk: Path) -> None:
    of, broker = spec(3), MemoryBroker()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").symlink_to(full_disk / "metrics.jsonl")
    (full_disk / "metrics.jsonl").touch()
    ballast = fill(full_disk)
    run, stop, told = coordinator(broker, tmp_path / "run", of, 0), threading.Event(), []
    run.listeners.append(lambda round, fields: told.append((round, dict(fields["alarms"]))))
    thread = threading.Thread(target=run.run, args=(stop,))
    with devices(broker, tmp_path / "state", of):
        thread.start()
        until(lambda: any(round >= 4 and "no space" in str(alarms).lower() for round, alarms in told))
        ballast.unlink()
        until(lambda: "history" not in told[-1][1])
        stop.set()
        run.wake()
        thread.join(20)
    rounds = [line["round"] for line in lines(full_disk / "metrics.jsonl")]
    assert rounds == list(range(1, run.core.round))


def test_a_journal_that_cannot_be_compacted_is_an_alarm_until_it_can(tmp_path: Path, full_disk: Path) -> None:
    of, broker = spec(3), MemoryBroker()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "journal").symlink_to(full_disk, target_is_directory=True)
    with devices(broker, tmp_path / "state", of):
        coordinator(broker, tmp_path / "run", of, 2).run(threading.Event())
    life = coordinator(broker, tmp_path / "run", of, 2)
    life._resume()
    ballast = fill(full_disk)
    life.core.round += 1  # as after another commit: the records before the last checkpoint but one may go
    life._checkpoint(force=True)
    assert "no space" in life.alarms["checkpoint"]
    assert latest(tmp_path / "run" / "checkpoints") is not None
    ballast.unlink()
    life._checkpoint(force=True)
    assert "checkpoint" not in life.alarms
    life.ledger.close()
    life.history.close()


def test_scores_that_find_no_space_are_an_alarm_until_the_next_are_written(tmp_path: Path, full_disk: Path) -> None:
    of, broker = spec(3), MemoryBroker()
    (tmp_path / "run").mkdir()
    life = coordinator(broker, tmp_path / "run", of, 2)
    (tmp_path / "run" / "versions").symlink_to(full_disk, target_is_directory=True)
    life._resume()
    for round in (1, 2):
        life.versions.register(round, life.blocks, {}, of, life.base, {})
    ballast = fill(full_disk)
    life._scored(Scored(1, 0.0, {"in_subject": 0.5}))
    life._say(force=True)
    assert "No space left" in life.alarms["versions"]
    life._scored(Scored(3, 0.0, {"in_subject": 0.7}))  # not registered: nothing is written
    life._say(force=True)
    assert "versions" in life.alarms
    ballast.unlink()
    life._scored(Scored(2, 0.0, {"in_subject": 0.6}))
    life._say(force=True)
    assert "versions" not in life.alarms
    assert Versions(tmp_path / "run" / "versions").known[1].scores == {"in_subject": 0.5}
    life.ledger.close()
    life.history.close()


def test_a_listener_that_fails_is_an_alarm_and_the_summary_goes_out(tmp_path: Path) -> None:
    of, broker = spec(3), MemoryBroker()
    heard: list[int] = []

    def tracker(round: int, fields: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    run = coordinator(broker, tmp_path / "run", of, 2)
    run.listeners += [tracker, lambda round, fields: heard.append(round)]
    with devices(broker, tmp_path / "state", of):
        run.run(threading.Event())
    assert max(heard) == 3
    assert "No space left" in run.alarms["listener"]


@pytest.mark.parametrize("text", ["", "no line at all", "{}\n" * 20_000, '{"ended": 3.0}\n]\n7\nnonsense\n'])
def test_any_file_can_be_continued(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    history = History(path)
    history.close()
    history.close()
    assert path.read_text() == text[: text.rfind("\n") + 1]
