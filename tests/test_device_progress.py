"""A round survives a restart: what was trained so far is taken up again, or begun anew where it does not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

torch = pytest.importorskip("torch")

from device_runtime.progress import Progress, State  # noqa: E402  torch is looked for first
from device_runtime.trainer import train  # noqa: E402
from models.local import Local  # noqa: E402
from models.spec import SHARED  # noqa: E402
from tests.test_device_trainer import LORA, NAMES, SPEC, network, windows  # noqa: E402

STEPS = {"chest": 9, "wrist": 4, SHARED: 12}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Stopping:
    """True at the n-th question."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("stopped_at", [1, 5, 11])
@pytest.mark.parametrize("spec", [SPEC, LORA, replace(LORA, encoder_rank=2)], ids=lambda s: s.mode.value)
@pytest.mark.parametrize("local", [Local(dropout=0.3), Local(prox=0.1, clip=0.5, double=True)], ids=["plain", "double"])
def test_a_round_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, spec, local, stopped_at):
    def go(**more):
        net = network(spec)
        return train(net, *windows(NAMES), STEPS, local, device="d1", round=3, **more)

    whole, progress = go(), Progress(tmp_path)
    assert progress.begin("k") is None
    assert go(progress=progress, stop=Stopping(stopped_at)).partial
    state = Progress(tmp_path).begin("k")
    assert state is not None
    assert state.step == stopped_at
    second = go(resume=state)
    assert second.steps == whole.steps
    assert second.wall > state.seconds > 0
    assert second.loss == pytest.approx(whole.loss, rel=1e-4)
    for block, delta in whole.deltas.items():
        # A cache that is filled anew sees other batches, which moves the last bits of features.
        np.testing.assert_allclose(second.deltas[block], delta, rtol=1e-5, atol=1e-7)


def state(step: int = 3) -> State:
    vectors = {"chest": np.arange(4, dtype=np.float32), SHARED: np.ones(2, np.float32)}
    return State(step, vectors, {b: v * 2 for b, v in vectors.items()}, {"chest": 2, SHARED: 3}, 1.5, 3, 0.25, 7.5)


def test_what_was_kept_comes_back(tmp_path):
    progress = Progress(tmp_path)
    assert progress.begin("k") is None
    progress.save(state())
    found = Progress(tmp_path).begin("k")
    assert (found.step, found.done, found.loss, found.seen) == (3, {"chest": 2, SHARED: 3}, 1.5, 3)
    assert (found.seconds, found.joules) == (0.25, 7.5)
    np.testing.assert_array_equal(found.momentum["chest"], [0, 2, 4, 6])


def test_what_a_runtime_kept_that_did_not_count_joules_is_taken_up_too(tmp_path):
    progress = Progress(tmp_path)
    progress.begin("k")
    progress.save(state())
    (path,) = tmp_path.iterdir()
    about = {"key": "k", "step": 3, "done": {}, "loss": 1.5, "seen": 3, "seconds": 0.25}
    save_file({}, str(path), {"about": json.dumps(about)})
    assert (progress.begin("k").seconds, progress.begin("k").joules) == (0.25, 0.0)


def test_another_assignment_or_other_blocks_begin_anew(tmp_path):
    progress = Progress(tmp_path)
    progress.begin("k")
    progress.save(state())
    assert Progress(tmp_path).begin("other") is None


def test_a_damaged_file_begins_anew(tmp_path):
    progress = Progress(tmp_path)
    progress.begin("k")
    progress.save(state())
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[:20], whole[:-1]):
        path.write_bytes(damaged)
        assert Progress(tmp_path).begin("k") is None


def test_a_short_round_never_touches_the_disk(tmp_path):
    now = [0.0]
    progress = Progress(tmp_path, clock=lambda: now[0])
    progress.begin("k")
    net = network(SPEC)
    train(net, *windows(NAMES), STEPS, Local(), device="d1", round=3, progress=progress)
    assert list(tmp_path.iterdir()) == []
    now[0] = 6.0
    assert progress.due()


def test_a_folder_that_cannot_be_written_does_not_stop_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    progress = Progress(tmp_path / "file", every=0.0)
    progress.begin("k")
    done = train(network(SPEC), *windows(NAMES), STEPS, Local(), device="d1", round=3, progress=progress)
    assert not done.partial
    progress.clear()
