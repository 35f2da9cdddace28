"""The access list at a real Mosquitto: nothing more and nothing less than the topic table."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_config.acl import Access, Part, User, rules, summary
from broker_config.launcher import Broker
from protocol.topics import TABLE
from tests import acl_matrix

pytestmark = pytest.mark.usefixtures("broker")


def test_every_identity_can_do_exactly_what_the_table_says(broker: Broker, tmp_path: Path) -> None:
    matrix = acl_matrix.run(tmp_path)
    assert matrix.differences == []
    assert matrix.cells > 30_000


@pytest.mark.parametrize(
    ("hole", "seen"),
    [
        ("pattern write relief/v1/+/device/%u/#", "A may not publish on relief/v1/annexe/device/A/status"),
        ("pattern read relief/v1/ward/device/+/assignment", "A may not receive"),
        ("pattern write relief/v1/ward/block/+/manifest", "A may not clear relief/v1/ward/block/acc/manifest"),
    ],
)
def test_the_matrix_sees_a_hole_in_the_access_list(broker: Broker, tmp_path: Path, hole: str, seen: str) -> None:
    device = next(who for who in acl_matrix.PEOPLE if who.name == "A")
    extra = [acl_matrix.Topic("relief/v1/annexe/device/A/status", 9, acl_matrix.OTHER, "A")]
    matrix = acl_matrix.run(tmp_path, f"\n{hole}\n", people=(device,), extra=extra)
    assert any(seen in difference for difference in matrix.differences)


def test_a_device_writes_only_below_its_own_name() -> None:
    allowed = rules(User("d1", Part.DEVICE, "f", "d1"))
    written = [topic for access, topic in allowed if access is not Access.READ]
    assert written
    assert all(topic.startswith("relief/v1/f/device/d1/") for topic in written)


def test_nobody_writes_what_the_table_gives_to_another() -> None:
    for part in (Part.CONTROL, Part.BULK, Part.DEVICE, Part.OPERATOR):
        writes = sum(access is not Access.READ for access, _ in rules(User("u", part, "f", "u")))
        assert writes == sum(
            leaf.writer is part.role and (part.role.value != "coordinator" or leaf.bulk is (part is Part.BULK))
            for leaf in TABLE
        )


def test_the_summary_has_a_row_for_every_leaf() -> None:
    assert all(f"`{leaf.path}`" in summary() for leaf in TABLE)
