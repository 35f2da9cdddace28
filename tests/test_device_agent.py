"""The agent's rules: what a device does about everything that can happen to it, without any network."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_runtime.agent import Agent
from device_runtime.events import (
    Adopt,
    Ask,
    Drop,
    GiveUp,
    Health,
    Keep,
    ManifestHeard,
    Obey,
    Publish,
    Released,
    SensorsChanged,
    StartTraining,
    StopTraining,
    Subscribe,
    Tick,
    TrainingDone,
    TrainingFailed,
    Unsubscribe,
    Upload,
    UseModel,
)
from device_runtime.events import ChunkHeard as Piece
from models.spec import InputSpec, Mode, ModelSpec
from protocol.chunks import split
from protocol.messages import (
    Answer,
    Assignment,
    Chunk,
    CoordinatorState,
    Manifest,
    Order,
    Report,
    Status,
    Update,
    update_id,
)
from protocol.topics import Topics
from protocol.transport import Connected, Lost, Stopped

FULL = ModelSpec((InputSpec("chest", 3, 24), InputSpec("wrist", 3, 24)), classes=3, widths=(4,), bins=2)
LORA = ModelSpec((InputSpec("chest", 3, 24), InputSpec("wrist", 3, 24)), classes=3, widths=(4,), bins=2, mode=Mode.LORA)
FLEET = Topics("f")


def agent(boot="b1", owned=("wrist",), *, windows=10, can_train=True, kept=(), predicts=()) -> Agent:
    birth = Status(online=True, boot=boot, modalities=dict.fromkeys(owned, 3), windows=windows, can_train=can_train)
    return Agent(FLEET, "d1", birth, jitter=lambda: 0.5, kept=kept, predicts=predicts)


def state(boot="c1", epoch=1, spec=FULL, online=True) -> CoordinatorState:
    return CoordinatorState(online=online, boot=boot, epoch=epoch, model=spec.to_dict() if online else {})


def block(name, version=1, epoch=1, fill=1.0, size=20, pieces=1) -> tuple[ManifestHeard, list[Piece]]:
    data = np.full(size, fill, np.float32).tobytes()
    chunks = split(f"{epoch}.{version}", data, -(-len(data) // pieces))
    manifest = Manifest(
        block=name,
        version=version,
        epoch=epoch,
        chunks=len(chunks),
        size=len(data),
        digest=hashlib.sha256(data).digest(),
    )
    return ManifestHeard(name, manifest), [Piece(name, chunk) for chunk in chunks]


def assignment(id="1.1", round=1, epoch=1, steps=None, version=1, versions=None, **more) -> Assignment:
    steps = {"wrist": 4, "shared": 4} if steps is None else steps
    versions = versions or {"wrist": version, "shared": version}
    return Assignment(id=id, round=round, epoch=epoch, steps=steps, versions=versions, deadline=60.0, **more)


def result(a: Assignment, boot="b1") -> TrainingDone:
    id = update_id("d1", boot, a.id)
    update = Update(id=id, device="d1", boot=boot, round=a.round, epoch=a.epoch, assignment=a.id, blocks={}, samples=10)
    return TrainingDone(a.id, update)


def feed(a: Agent, *events, now=0.0) -> list:
    return [action for event in events for action in a.handle(event, now)]


def deliver(a: Agent, *names, version=1, epoch=1, now=0.0) -> list:
    actions = []
    for name in names:
        manifest, chunks = block(name, version, epoch, fill=float(version))
        actions += feed(a, manifest, *chunks, now=now)
    return actions


def ready(a: Agent, spec=FULL) -> Agent:
    feed(a, Connected(1 << 20), state(spec=spec))
    deliver(a, "wrist", "shared", *(("wrist.base",) if spec is LORA else ()))
    return a


def of(kind, actions) -> list:
    return [action for action in actions if isinstance(action, kind)]


def births(actions) -> list:
    return [p.message for p in of(Publish, actions) if isinstance(p.message, Status)]


def declined(actions) -> list:
    return [p.message for p in of(Publish, actions) if isinstance(p.message, Report)]


# -- connecting ----------------------------------------------------------------------------------------------


def test_every_connect_subscribes_again_and_tells_the_birth():
    a = agent()
    for _ in range(2):
        actions = feed(a, Connected(1 << 20))
        filters = [f for s in of(Subscribe, actions) for f in s.filters]
        assert FLEET.coordinator("state") in filters
        assert {FLEET.device("d1", leaf) for leaf in ("assignment", "answer", "order")} <= set(filters)
        (birth,) = of(Publish, actions)
        assert birth.retain
        assert birth.message.boot == "b1"
        feed(a, Lost("gone"))


def test_blocks_of_other_modalities_are_never_asked_for():
    a = agent()
    actions = feed(a, Connected(1 << 20), state())
    filters = [f for s in of(Subscribe, actions) for f in s.filters]
    assert FLEET.manifest("wrist") in filters
    assert FLEET.manifest("shared") in filters
    assert not any("chest" in f for f in filters)
    assert feed(a, block("chest")[0]) == []
    assert "chest" not in a.downloads.held


def test_chunks_are_fetched_only_where_the_digest_is_new():
    a = ready(agent())
    feed(a, Lost("gone"), Connected(1 << 20))
    same, _ = block("wrist", version=1)
    assert of(Subscribe, feed(a, same)) == []
    newer, _ = block("wrist", version=2, fill=2.0)
    assert of(Subscribe, feed(a, newer)) == [Subscribe((FLEET.chunk("wrist", "0"),))]


def carrying(manifest: ManifestHeard, chunks: list[Piece]) -> list[Piece]:
    """As a coordinator sends them: the first chunk has the manifest with it."""
    first = chunks[0].chunk.model_copy(update={"manifest": manifest.manifest})
    return [Piece(chunks[0].block, first), *chunks[1:]]


def test_chunks_that_bring_their_manifest_need_no_second_message():
    a = agent()
    feed(a, Connected(1 << 20), state())
    manifest, chunks = block("wrist")
    assert of(Subscribe, feed(a, manifest)) == [Subscribe((FLEET.chunk("wrist", "0"),))]
    feed(a, *carrying(manifest, chunks))
    assert a.downloads.held["wrist"].manifest == manifest.manifest
    newer, chunks = block("wrist", version=2, fill=2.0)
    feed(a, *carrying(newer, chunks))
    assert a.downloads.held["wrist"].manifest == newer.manifest
    assert a.downloads.held["wrist"].vector[0] == 2.0
    assert feed(a, newer) == [Unsubscribe((FLEET.manifest("wrist"),))]  # nobody needs it any more
    assert a.downloads.held["wrist"].manifest == newer.manifest
    feed(a, Lost("gone"), Connected(1 << 20))
    assert feed(a, newer) == []  # after a reconnect it says again whether anything is new


def test_a_block_that_grows_is_followed_with_all_its_chunks():
    a = agent()
    feed(a, Connected(1 << 20), state())
    manifest, chunks = block("wrist")
    feed(a, manifest, *carrying(manifest, chunks))
    newer, chunks = block("wrist", version=2, fill=2.0, pieces=3)
    first, *others = carrying(newer, chunks)
    assert feed(a, first) == [Subscribe((FLEET.chunk("wrist", "+"),))]
    assert feed(a, newer) == []  # that filter has the manifest too: to unsubscribe would bring nothing
    feed(a, *others)
    assert a.downloads.held["wrist"].manifest == newer.manifest


def test_chunks_of_an_older_coordinator_come_without_a_manifest():
    a = agent()
    feed(a, Connected(1 << 20), state())
    for version in (1, 2):
        manifest, chunks = block("wrist", version=version, fill=version)
        feed(a, *chunks)
        assert of(Unsubscribe, feed(a, manifest)) == []
        feed(a, *chunks)
        assert a.downloads.held["wrist"].manifest == manifest.manifest


def test_a_chunk_with_the_manifest_of_another_version_changes_nothing():
    a = ready(agent())
    before = a.downloads.held["wrist"]
    _, chunks = block("wrist", version=2, fill=2.0)
    newest, _ = block("wrist", version=3, fill=3.0)
    (note,) = feed(a, Piece("wrist", chunks[0].chunk.model_copy(update={"manifest": newest.manifest})))
    assert note.text == "Chunk: block wrist: the manifest with it is of another version"
    assert a.downloads.held["wrist"] is before
    assert not a.downloads.needs("wrist")
    assert a.counts["refused messages"] == 1


def test_a_block_that_did_not_change_gets_its_new_version_without_a_download():
    a = ready(agent())
    feed(a, block("wrist", version=2, fill=1.0)[0], block("shared", version=2, fill=1.0)[0])
    assert of(StartTraining, feed(a, assignment(version=2)))


def test_the_circuit_breakers_word_ends_the_runtime():
    assert feed(agent(), Stopped(135, "not authorised")) == [GiveUp("not authorised")]


# -- the coordinator's life ----------------------------------------------------------------------------------


def test_another_life_of_the_coordinator_gets_a_birth_and_every_unanswered_update():
    a = ready(agent())
    feed(a, assignment())
    done = result(assignment())
    assert of(Upload, feed(a, done)) == [Upload(done.update.id)]
    actions = feed(a, state(boot="c2"), Tick(), now=1.0)
    assert len(births(actions)) == 1
    assert of(Upload, feed(a, Tick(), now=2.1)) == [Upload(done.update.id)]


def test_the_same_state_again_brings_no_new_birth():
    a = ready(agent())
    assert births(feed(a, state())) == []


def test_a_coordinator_that_comes_back_gets_a_birth():
    a = ready(agent())
    feed(a, state(online=False))
    assert len(births(feed(a, state()))) == 1


def test_a_new_epoch_stops_training_and_its_result_is_forgotten():
    a = ready(agent())
    feed(a, assignment())
    assert of(StopTraining, feed(a, state(epoch=2))) == [StopTraining("1.1")]
    assert of(Keep, feed(a, result(assignment()))) == []


def test_a_model_that_is_none_is_refused_and_the_old_one_stays():
    a = ready(agent())
    broken = state().model_copy(update={"model": {"inputs": 3}, "boot": "c2"})
    assert of(UseModel, feed(a, broken)) == []
    assert a.model == FULL
    assert a.counts["refused messages"] == 1


# -- downloads -----------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.data())
def test_chunks_in_any_order_number_and_mix_of_versions_give_exactly_the_wanted_one(data):
    a = agent()
    feed(a, Connected(1 << 20), state())
    _, stale = block("wrist", version=1, fill=1.0, pieces=3)
    manifest, fresh = block("wrist", version=2, fill=2.0, pieces=3)
    events = data.draw(st.permutations([manifest, *stale, *fresh, *fresh]))
    feed(a, *events)
    # Chunks of two unfinished versions fit at a time, so nothing of the wanted one is ever lost.
    held = a.downloads.held["wrist"]
    assert held.manifest.version == 2
    np.testing.assert_array_equal(held.vector, np.full(20, 2.0, np.float32))


def test_a_torn_version_is_never_held():
    a = agent()
    feed(a, Connected(1 << 20), state())
    manifest, pieces = block("wrist", pieces=3)
    feed(a, manifest, *pieces[:2])
    bad = Piece("wrist", Chunk(id="1.1", index=2, count=3, digest=pieces[2].chunk.digest, data=b"\0" * 4))
    feed(a, bad)
    assert "wrist" not in a.downloads.held
    assert a.counts["refused messages"] == 1


def test_missing_blocks_are_asked_for_again():
    a = agent()
    feed(a, Connected(1 << 20), state(), assignment())
    deliver(a, "shared")
    assert a.wakes() <= 5.0
    (again,) = of(Subscribe, feed(a, Tick(), now=5.0))
    assert set(again.filters) == {FLEET.manifest("wrist"), FLEET.chunk("wrist", "+")}
    assert of(Subscribe, feed(a, Tick(), now=5.1)) == []


# -- assignments ---------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.data())
def test_training_starts_once_whatever_comes_first(data):
    a = agent()
    feed(a, Connected(1 << 20))
    manifests, pieces = zip(*(block(name) for name in ("wrist", "shared")), strict=True)
    rest = [*manifests, *(p for ps in pieces for p in ps), assignment(), assignment()]
    # Manifests are only heeded once the model says which blocks are needed: the state is retained and comes first.
    started = of(StartTraining, feed(a, state(), *data.draw(st.permutations(rest))))
    assert len(started) == 1
    assert set(started[0].blocks) == {"wrist", "shared"}
    assert started[0].present == ("wrist",)


def test_lora_waits_for_the_frozen_bases_too():
    a = agent()
    feed(a, Connected(1 << 20), state(spec=LORA), assignment())
    assert of(StartTraining, deliver(a, "wrist", "shared")) == []
    (start,) = of(StartTraining, deliver(a, "wrist.base"))
    assert set(start.blocks) == {"wrist", "shared", "wrist.base"}


def test_versions_of_another_round_or_epoch_do_not_start_it():
    a = ready(agent())
    assert of(StartTraining, feed(a, assignment(version=2))) == []
    a = ready(agent())
    feed(a, state(epoch=2))
    assert of(StartTraining, feed(a, assignment(epoch=2))) == []


def test_zero_filling_needs_every_block():
    a = ready(agent())
    versions = {"chest": 1, "wrist": 1, "shared": 1}
    steps = {"chest": 2, "wrist": 2, "shared": 2}
    actions = feed(a, assignment(steps=steps, versions=versions, training={"zero_fill": True}))
    assert FLEET.manifest("chest") in [f for s in of(Subscribe, actions) for f in s.filters]
    (start,) = of(StartTraining, deliver(a, "chest"))
    assert start.present == ("chest", "wrist")


@pytest.mark.parametrize(
    ("a", "order", "reason"),
    [
        (agent(can_train=False), {}, "torch is not installed"),
        (agent(windows=0), {}, "no labelled windows"),
        (agent(), {"steps": {"chest": 3, "shared": 3}}, r"blocks \['chest'\] cannot be trained here"),
        (agent(), {"steps": {"ecg": 3}}, r"blocks \['ecg'\] are not in the model"),
        (agent(), {"steps": {"wrist": 0}}, "no steps"),
        (agent(), {"versions": {"wrist": 1}}, "no version of the block 'shared'"),
        (agent(), {"versions": {"chest": 1, "shared": 1}}, "names versions of"),
    ],
)
def test_what_cannot_be_done_is_declined_with_the_reason(a, order, reason):
    ready(a)
    actions = feed(a, assignment(**order))
    (report,) = declined(actions)
    assert (report.id, report.kind, report.ok) == ("1.1", "declined", False)

    assert re.search(reason, report.reason), report.reason
    assert of(StartTraining, actions) == []


def test_a_device_in_bad_health_declines_and_takes_part_again_when_it_is_well():
    a = ready(agent())
    feed(a, Health("battery low: 11 %, limit 20 %"))
    (report,) = declined(feed(a, assignment()))
    assert report.reason == "battery low: 11 %, limit 20 %"
    feed(a, Health(""))
    assert of(StartTraining, feed(a, assignment("1.2", round=2)))


def test_a_newer_assignment_supersedes_an_older_one_and_never_the_other_way_round():
    a = ready(agent())
    feed(a, assignment())
    actions = feed(a, assignment("1.2", round=2))
    assert of(StopTraining, actions) == [StopTraining("1.1")]
    assert of(StartTraining, actions) == []
    assert feed(a, assignment("1.1")) == []
    actions = feed(a, result(assignment()))
    assert of(Keep, actions) == []
    (start,) = of(StartTraining, actions)
    assert start.assignment.id == "1.2"


def test_an_assignment_of_an_older_epoch_is_ignored_and_counted():
    a = ready(agent())
    feed(a, state(epoch=3))
    assert feed(a, assignment(epoch=2)) == []
    assert a.counts["stale assignments"] == 1


def test_an_assignment_of_an_epoch_to_come_waits_for_the_state():
    a = ready(agent())
    assert feed(a, assignment(epoch=2)) == []
    assert of(StartTraining, feed(a, state(epoch=2)) + deliver(a, "wrist", "shared", epoch=2))


def test_a_deadline_that_passes_while_blocks_are_missing_ends_the_waiting():
    a = agent()
    feed(a, Connected(1 << 20), state(), assignment())
    feed(a, Tick(), now=60.0)
    assert of(StartTraining, deliver(a, "wrist", "shared", now=61.0)) == []


# -- updates -------------------------------------------------------------------------------------------------


def test_an_update_is_kept_first_and_sent_after_its_slot():
    a = ready(agent())
    feed(a, assignment(slot=3.0))
    done = result(assignment())
    actions = feed(a, done, now=10.0)
    assert of(Keep, actions) == [Keep(done.update)]
    assert of(Upload, actions) == []
    assert a.wakes() == 13.0
    assert of(Upload, feed(a, Tick(), now=13.0)) == [Upload(done.update.id)]


def test_an_update_is_repeated_with_growing_pauses_until_it_is_answered():
    a = ready(agent())
    feed(a, assignment())
    sent = feed(a, result(assignment()))
    times, now = [], 0.0
    while len(times) < 5:
        now = a.wakes()
        if of(Upload, feed(a, Tick(), now=now)):
            times.append(now)
    pauses = np.diff([0.0, *times])
    assert list(pauses) == sorted(pauses)
    assert pauses[0] < pauses[-1]
    update = of(Upload, sent)[0].update
    assert of(Drop, feed(a, Answer(update=update, accepted=True), now=now)) == [Drop(update, True)]
    assert a.wakes() == float("inf")


def test_nothing_is_sent_while_the_connection_is_down():
    a = ready(agent())
    feed(a, assignment())
    feed(a, Lost("gone"))
    done = result(assignment())
    assert of(Upload, feed(a, done)) == []
    assert of(Upload, feed(a, Tick(), now=500.0)) == []
    assert of(Upload, feed(a, Connected(1 << 20), now=501.0)) == [Upload(done.update.id)]


def test_after_a_cut_only_what_has_not_come_is_sent():
    a, resuming = ready(agent()), state().model_copy(update={"resumes": True})
    feed(a, resuming, assignment())
    id = of(Upload, feed(a, result(assignment())))[0].update
    feed(a, Lost("gone"), now=1.0)
    again = feed(a, Connected(1 << 20), now=2.0)
    assert of(Ask, again) == [Ask(id)]
    assert of(Upload, again) == []
    told = Answer(update=id, accepted=False, again=True, resume=True, missing=[3, 4])
    assert of(Upload, feed(a, told, now=2.1)) == [Upload(id, (3, 4))]
    assert of(Upload, feed(a, told, now=2.2)) == []  # a copy
    assert of(Ask, feed(a, Tick(), now=2.0 + 10.0)) == [Ask(id)]  # so are the answer's answers
    nothing_there = told.model_copy(update={"missing": []})
    assert of(Upload, feed(a, nothing_there, now=12.1)) == [Upload(id)]
    assert of(Drop, feed(a, Answer(update=id, accepted=True), now=13.0)) == [Drop(id, True)]
    assert a.wakes() == float("inf")


def test_a_question_that_is_not_answered_is_asked_again():
    a, resuming = ready(agent()), state().model_copy(update={"resumes": True})
    feed(a, resuming, assignment(), result(assignment()), Lost("gone"))
    now, asked = 1.0, of(Ask, feed(a, Connected(1 << 20), now=1.0))
    while len(asked) < 4:
        now = a.wakes()
        asked += of(Ask, feed(a, Tick(), now=now))
    assert 1.0 + 5.0 + 10.0 < now < 1.0 + 10.0 + 20.0 + 40.0


def test_another_life_of_the_coordinator_is_sent_everything():
    a, resuming = ready(agent()), state().model_copy(update={"resumes": True})
    feed(a, resuming, assignment())
    id = of(Upload, feed(a, result(assignment())))[0].update
    feed(a, Lost("gone"), Connected(1 << 20), now=2.0)
    feed(a, resuming.model_copy(update={"boot": "c2"}), now=2.1)
    assert of(Upload, feed(a, Tick(), now=3.1)) == [Upload(id)]
    late = Answer(update=id, accepted=False, again=True, resume=True, missing=[1])
    assert of(Upload, feed(a, late, now=3.2)) == []  # of the life before


def test_a_coordinator_that_does_not_know_the_question_is_sent_everything():
    a = ready(agent())
    feed(a, assignment())
    id = of(Upload, feed(a, result(assignment())))[0].update
    assert of(Upload, feed(a, Lost("gone"), Connected(1 << 20), now=2.0)) == [Upload(id)]


def test_a_refused_update_is_dropped_and_one_refused_for_now_is_not():
    a = ready(agent())
    feed(a, assignment())
    id = of(Upload, feed(a, result(assignment())))[0].update
    assert of(Drop, feed(a, Answer(update=id, accepted=False, reason="busy", again=True), now=1.0)) == []
    assert of(Upload, feed(a, Tick(), now=1.0 + 10.0)) == [Upload(id)]
    assert of(Drop, feed(a, Answer(update=id, accepted=False, reason="stale"), now=12.0)) == [Drop(id, False)]
    assert of(Drop, feed(a, Answer(update=id, accepted=False, reason="stale"), now=12.0)) == []


def test_an_assignment_that_is_done_brings_the_same_update_again():
    a = ready(agent())
    feed(a, assignment())
    id = of(Upload, feed(a, result(assignment())))[0].update
    actions = feed(a, assignment(), now=0.5)
    assert of(Upload, actions) == [Upload(id)]
    assert of(StartTraining, actions) == []
    feed(a, Answer(update=id, accepted=True), now=1.0)
    assert feed(a, assignment(), now=1.5) == []


def test_a_device_that_was_killed_answers_with_the_update_in_its_outbox():
    old = update_id("d1", "b1", "1.1")
    a = ready(agent(boot="b2", kept=[(old, "1.1")]))
    actions = feed(a, assignment())
    assert of(StartTraining, actions) == []
    a = agent(boot="b3", kept=[(old, "1.1")])
    assert of(Upload, feed(a, Connected(1 << 20))) == []  # first it hears whom it could ask
    assert a.wakes() == 1.0
    assert of(Upload, feed(a, Tick(), now=1.0)) == [Upload(old)]
    assert of(Upload, feed(agent(boot="b3", kept=[(old, "1.1")]), Connected(1 << 20), state())) == [Upload(old)]


def test_after_a_kill_in_the_middle_of_an_upload_only_what_has_not_come_is_sent():
    old = update_id("d1", "b1", "1.1")
    a = agent(boot="b2", kept=[(old, "1.1")])
    feed(a, Connected(1 << 20))
    actions = feed(a, state().model_copy(update={"resumes": True}), now=0.1)
    assert of(Ask, actions) == [Ask(old)]
    assert of(Upload, actions) == []
    told = Answer(update=old, accepted=False, again=True, resume=True, missing=[1])
    assert of(Upload, feed(a, told, now=0.2)) == [Upload(old, (1,))]


def test_a_training_that_failed_is_declined_and_not_tried_again():
    a = ready(agent())
    feed(a, assignment())
    (report,) = declined(feed(a, TrainingFailed("1.1", "block wrist: not finite")))
    assert report.reason == "block wrist: not finite"
    actions = feed(a, assignment())
    assert declined(actions)
    assert not of(StartTraining, actions)


def test_update_ids_tell_lives_and_assignments_apart():
    assert len({update_id(d, b, a) for d in ("d1", "d2") for b in ("b1", "b2") for a in ("1.1", "1.2")}) == 8
    assert update_id("d1", "b1", "1.1") == update_id("d1", "b1", "1.1")


# -- sensors -------------------------------------------------------------------------------------------------


def test_a_sensor_that_goes_leaves_the_birth_and_comes_back():
    a = ready(agent(owned=("wrist", "chest")))
    (gone,) = births(feed(a, SensorsChanged({"wrist": 3}, 10, {})))
    assert set(gone.modalities) == {"wrist"}
    (back,) = births(feed(a, SensorsChanged({"wrist": 3, "chest": 3}, 10, {})))
    assert set(back.modalities) == {"wrist", "chest"}


def test_windows_that_trickle_in_do_not_flood_the_broker_with_births():
    a = ready(agent(windows=0))
    count, now = 0, 0.0
    for n in range(1, 400):
        now += 0.1
        count += len(births(feed(a, SensorsChanged({"wrist": 3}, n, {}), now=now)))
    assert 3 <= count <= 1 + 40 / 2.0
    assert births(feed(a, Tick(), now=now + 2.0)) == [] or a.status.windows == 399


def test_a_small_change_of_windows_is_told_once_they_rest():
    a = ready(agent(windows=0))
    told = births(feed(a, SensorsChanged({"wrist": 3}, 100, {}), now=10.0))
    told += births(feed(a, Tick(), now=13.0))
    assert [status.windows for status in told][-1:] == [100]
    assert births(feed(a, SensorsChanged({"wrist": 3}, 104, {}), now=20.0)) == []
    assert births(feed(a, SensorsChanged({"wrist": 3}, 108, {}), now=23.0)) == []
    assert births(feed(a, Tick(), now=26.0)) == []
    (rested,) = births(feed(a, Tick(), now=28.0))
    assert rested.windows == 108


# -- everything at once --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_order_of_events_trains_an_assignment_twice_or_loses_an_update(data):
    """A random life: the work asked for is done at most once, and an update is sent until it is answered."""
    a, now = agent(), 0.0
    started: list[str] = []
    kept: set[str] = set()
    answered: set[str] = set()
    training: Assignment | None = None
    for _ in range(data.draw(st.integers(5, 40))):
        kinds = ["connect", "lose", "state", "assign", "deliver", "finish", "answer", "wait"]
        kind, n = data.draw(st.sampled_from(kinds)), data.draw(st.integers(1, 3))
        now += data.draw(st.floats(0.0, 5.0))
        actions = []
        if kind == "connect":
            actions = feed(a, Connected(1 << 20), now=now)
        elif kind == "lose":
            actions = feed(a, Lost("cut"), now=now)
        elif kind == "state":
            actions = feed(a, state(), now=now)
        elif kind == "assign":
            actions = feed(a, assignment(f"1.{n}", round=n), now=now)
        elif kind == "deliver":
            actions = deliver(a, "wrist", "shared", now=now)
        elif kind == "finish" and training:
            actions, training = feed(a, result(training), now=now), None
        elif kind == "answer" and kept - answered:
            update = sorted(kept - answered)[0]
            actions = feed(a, Answer(update=update, accepted=True), now=now)
            answered.add(update)
            assert of(Drop, actions)
        else:
            actions = feed(a, Tick(), now=now)
        for start in of(StartTraining, actions):
            assert training is None or training.id in [s.assignment for s in of(StopTraining, actions)]
            started.append(start.assignment.id)
            training = start.assignment
        kept |= {k.update.id for k in of(Keep, actions)}
        assert not {u.update for u in of(Upload, actions)} & answered
    assert len(started) == len(set(started))
    feed(a, Lost("cut"), now=now)
    assert {u.update for u in of(Upload, feed(a, Connected(1 << 20), now=now + 1))} == kept - answered


# -- registered versions -------------------------------------------------------------------------------------


def test_a_registered_version_is_fetched_whole_under_its_own_names_and_then_adopted():
    a = ready(agent(predicts=("wrist",)))
    order = Order(id="o1", kind="adopt", args={"version": 12})
    (asked,) = feed(a, order)
    assert set(asked.filters) == {FLEET.manifest("wrist.v12"), FLEET.manifest("shared.v12")}
    assert not of(Adopt, deliver(a, "wrist.v12", version=3)), "a part of a version is none"
    before = dict(a.downloads.held)
    (adopt,) = of(Adopt, deliver(a, "shared.v12", version=3))
    assert (adopt.order, adopt.version, set(adopt.blocks)) == (order, 12, {"wrist", "shared"})
    assert adopt.blocks["wrist"].manifest.version == 3
    assert not any(".v12" in name for name in a.downloads.held), "its bytes are kept once"
    assert {b: h for b, h in before.items() if ".v12" not in b} == a.downloads.held
    assert not of(Adopt, deliver(a, "wrist.v12", "shared.v12", version=3)), "once is enough"


def test_chunks_before_manifests_a_reconnect_and_a_newer_order_do_not_confuse_an_adoption():
    a = ready(agent(predicts=("wrist",)))
    feed(a, Order(id="o1", kind="adopt", args={"version": 12}))
    deliver(a, "wrist.v12", version=3)
    feed(a, Order(id="o2", kind="adopt", args={"version": 13}))
    assert not of(Adopt, deliver(a, "shared.v12", version=3)), "that one is not wanted any more"
    feed(a, Lost("gone"))
    again = [f for s in of(Subscribe, feed(a, Connected(1 << 20))) for f in s.filters]
    assert {FLEET.manifest("wrist.v13"), FLEET.manifest("shared.v13")} <= set(again)
    done = []
    for name in ("shared.v13", "wrist.v13"):
        manifest, chunks = block(name, 4, pieces=3)
        done += feed(a, *reversed(chunks), manifest)
    assert [(one.version, one.order.id) for one in of(Adopt, done)] == [(13, "o2")]


def test_a_sensor_that_appears_while_a_version_is_on_its_way_does_not_hold_it_up():
    a = ready(agent(predicts=("wrist",)))
    feed(a, Order(id="o1", kind="adopt", args={"version": 12}))
    feed(a, SensorsChanged({"wrist": 3, "chest": 3}, 10, {}))
    (adopt,) = of(Adopt, deliver(a, "wrist.v12", "shared.v12", version=3))
    assert set(adopt.blocks) == {"wrist", "shared"}


def test_an_adoption_that_cannot_be_is_answered_and_one_without_a_version_means_the_newest():
    a = agent(predicts=("wrist",))
    (report,) = declined(feed(a, Order(id="o1", kind="adopt", args={"version": 12})))
    assert (report.id, report.ok) == ("o1", False)
    assert "no coordinator" in report.reason
    ready(a)
    assert of(Obey, feed(a, Order(id="o2", kind="adopt")))
    for wrong in (0, -1, "12", None, [12], 1.5):
        assert not of(Adopt, feed(a, Order(id="o3", kind="adopt", args={"version": wrong})))
    assert a.counts["refused messages"] == 6


def test_a_device_that_only_trains_has_nothing_to_adopt_with():
    (report,) = declined(feed(ready(agent()), Order(id="o1", kind="adopt", args={"version": 12})))
    assert report.reason == "this device does not predict"


def test_inference_follows_what_it_owns_also_while_a_sensor_is_silent():
    a = agent(owned=("wrist",), predicts=("wrist", "chest"))
    followed = [f for s in of(Subscribe, feed(a, Connected(1 << 20), state())) for f in s.filters]
    assert {FLEET.manifest(b) for b in ("wrist", "chest", "shared")} <= set(followed)
    deliver(a, "wrist", "chest", "shared", version=2)
    assert set(a.downloads.held) == {"wrist", "chest", "shared"}
    (asked,) = feed(a, Order(id="o1", kind="adopt", args={"version": 12}))
    assert set(asked.filters) == {FLEET.manifest(f"{b}.v12") for b in ("wrist", "chest", "shared")}
    (adopt,) = of(Adopt, deliver(a, "wrist.v12", "chest.v12", "shared.v12", version=3))
    assert set(adopt.blocks) == {"wrist", "chest", "shared"}


def test_training_alone_downloads_only_what_delivers():
    a = agent(owned=("wrist",))
    feed(a, Connected(1 << 20), state())
    deliver(a, "wrist", "chest", "shared")
    assert set(a.downloads.held) == {"wrist", "shared"}


def test_the_birth_says_which_registered_version_predicts():
    a = ready(agent())
    (birth,) = births(feed(a, Released(12), now=10.0))
    assert birth.release == 12
    assert not births(feed(a, Released(12), now=20.0))
