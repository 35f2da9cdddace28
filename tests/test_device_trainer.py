"""Local training keeps its laws: who may change what, and that every shortcut gives the same weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402  torch is optional, so it is looked for first

from device_runtime.features import ResidentFeatures  # noqa: E402
from device_runtime.trainer import Trained, TrainingError, train  # noqa: E402
from models.local import Local, batches, kept  # noqa: E402
from models.network import Network  # noqa: E402
from models.spec import SHARED, BPolicy, InputSpec, Mode, ModelSpec  # noqa: E402

NAMES = ("chest", "ecg", "wrist")
SPEC = ModelSpec(
    inputs=(InputSpec("chest", 3, 24), InputSpec("ecg", 1, 32), InputSpec("wrist", 6, 24)),
    classes=4,
    widths=(4, 6),
    bins=2,
    fusion=8,
    rank=2,
    seed=3,
)
LORA = replace(SPEC, mode=Mode.LORA)
MODELS = {
    "full": SPEC,
    "lora": LORA,
    "lora with encoder adapters": replace(LORA, encoder_rank=2),
    "lora with a frozen B": replace(LORA, b_policy=BPolicy.FROZEN),
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def windows(names, count=20, seed=0):
    rng = np.random.default_rng(seed)
    x = {}
    for i in SPEC.inputs:
        values = rng.standard_normal((count, i.channels, i.samples)).astype(np.float32)
        if i.name in names:
            x[i.name] = torch.from_numpy(values)
    return x, torch.from_numpy(rng.integers(0, SPEC.classes, count))


def network(spec, seed=1):
    """A network away from its initial point, so that zeros (biases, LoRA's B) do not hide mistakes."""
    net, rng = Network(spec), np.random.default_rng(seed)
    for block in net.cut.blocks:
        vector = net.read(block)
        net.load(block, vector + 0.1 * rng.standard_normal(len(vector)).astype(np.float32))
    return net


def run(spec, names, steps, local, *, round=5, device="d1", **more) -> tuple[Network, Trained]:
    net = network(spec)
    x, y = windows(names)
    return net, train(net, x, y, steps, local, device=device, round=round, **more)


def reference(spec, names, steps, local, *, round=5, device="d1"):
    """The rule as models.local states it, with torch's own optimiser and no cache, block by block."""
    net = network(spec).double()
    x, y = windows(names)
    x = {m: v.double() for m, v in x.items()}
    if local.zero_fill:
        x |= {i.name: torch.zeros(len(y), i.channels, i.samples).double() for i in spec.inputs if i.name not in x}
    present = [m for m in spec.names if m in x]
    base = {n: p.detach().clone() for n, p in net.named_parameters()}
    total = max(steps.values())
    chosen, keep = batches(local, device, round, len(y), total), kept(local, device, round, total, present)
    optimisers = {b: torch.optim.SGD(net.parameters_of(b), local.lr, momentum=local.momentum) for b in steps}
    taken = dict.fromkeys(steps, 0)
    for t in range(total):
        here = [m for n, m in enumerate(present) if keep[t, n]]
        active = [b for b in steps if t < steps[b] and b in (*here, SHARED)]
        if not active:
            continue
        loss = F.cross_entropy(net({m: x[m][chosen[t]] for m in here}), y[chosen[t]])
        trained = {t.name for b in active for t in net.cut.trainable[b]}
        for n, p in net.named_parameters():
            if n in trained and local.prox:
                loss = loss + local.prox / 2 * ((p - base[n]) ** 2).sum()
        net.zero_grad(set_to_none=True)
        loss.backward()
        for n, p in net.named_parameters():
            if n not in trained:
                p.grad = None
        if local.clip:
            torch.nn.utils.clip_grad_norm_([p for p in net.parameters() if p.grad is not None], local.clip)
        for b in active:
            optimisers[b].step()
            taken[b] += 1
    start = network(spec).double()
    return {b: net.read(b) - start.read(b) for b in steps if taken[b]}, {b: s for b, s in taken.items() if s}


@st.composite
def rounds(draw):
    spec = draw(st.sampled_from(sorted(MODELS)))
    names = draw(st.sets(st.sampled_from(NAMES), min_size=1))
    zero_fill = draw(st.booleans())
    trainable = NAMES if zero_fill else sorted(names)
    steps = {b: draw(st.integers(0, 6)) for b in trainable if draw(st.booleans())} | {SHARED: draw(st.integers(1, 6))}
    local = Local(
        lr=0.1,
        momentum=draw(st.sampled_from([0.0, 0.9])),
        batch=draw(st.sampled_from([3, 8, 32])),
        prox=draw(st.sampled_from([0.0, 0.5])),
        dropout=draw(st.sampled_from([0.0, 0.4])),
        clip=draw(st.sampled_from([0.0, 0.3])),
        cache=draw(st.booleans()),
        zero_fill=zero_fill,
        double=True,
    )
    return MODELS[spec], names, steps, local


@settings(max_examples=60, deadline=None)
@given(rounds())
def test_a_round_equals_a_plain_loop_with_torchs_own_optimiser(case):
    spec, names, steps, local = case
    _, got = run(spec, names, steps, local)
    deltas, taken = reference(spec, names, {b: s for b, s in steps.items() if s}, local)
    assert got.steps == taken
    assert set(got.deltas) == set(deltas)
    for block, delta in deltas.items():
        np.testing.assert_allclose(got.deltas[block], delta, rtol=1e-9, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(rounds())
def test_only_trained_blocks_change_by_a_single_bit(case):
    spec, names, steps, local = case
    net, got = run(spec, names, steps, local)
    before = network(spec)
    before.to(torch.float64)
    for block in net.cut.blocks:
        same = before.read(block).tobytes() == net.read(block).tobytes()
        assert same or block in got.steps, block
        assert before.read(block, base=True).tobytes() == net.read(block, base=True).tobytes()
        if block in got.deltas:
            np.testing.assert_array_equal(got.deltas[block], net.read(block) - before.read(block))
    if not local.zero_fill:
        assert not (set(NAMES) - names) & set(got.deltas)


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_a_round_gives_the_same_bits_when_repeated(spec):
    steps = {"chest": 5, "wrist": 3, SHARED: 6}
    first, second = (run(spec, NAMES, steps, Local(dropout=0.3))[1] for _ in range(2))
    assert {b: d.tobytes() for b, d in first.deltas.items()} == {b: d.tobytes() for b, d in second.deltas.items()}
    assert first.loss == second.loss


def test_another_device_or_round_draws_other_batches():
    steps = {"chest": 3, SHARED: 3}
    here = run(SPEC, NAMES, steps, Local())[1]
    for other in (run(SPEC, NAMES, steps, Local(), round=6)[1], run(SPEC, NAMES, steps, Local(), device="d2")[1]):
        assert not np.array_equal(here.deltas["chest"], other.deltas["chest"])


def test_a_frozen_block_is_encoded_once_per_window_and_round():
    _, got = run(SPEC, NAMES, {"chest": 10, SHARED: 10}, Local(batch=8))
    assert got.computed == {"chest": 80, "ecg": 20, "wrist": 20}
    _, got = run(SPEC, NAMES, {"chest": 10, SHARED: 10}, Local(batch=8, cache=False))
    assert got.computed == {"chest": 80, "ecg": 80, "wrist": 80}


def test_a_block_that_stops_early_is_cached_with_the_weights_it_ended_with():
    _, got = run(SPEC, NAMES, {"chest": 4, SHARED: 12}, Local(batch=8))
    assert got.computed["chest"] == 4 * 8 + 20
    assert got.steps == {"chest": 4, SHARED: 12}


def test_frozen_encoders_are_run_once_for_good():
    resident, x_y, base = ResidentFeatures(), windows(NAMES), dict.fromkeys(NAMES, b"1")
    more = {"resident": resident, "made_of": base, "window_ids": np.arange(20)}
    steps, local = {"chest": 10, SHARED: 10}, Local(batch=8)
    _, first = run(LORA, NAMES, steps, local, **more)
    _, second = run(LORA, NAMES, steps, local, **more)
    assert first.computed == dict.fromkeys(NAMES, 20)
    assert second.computed == dict.fromkeys(NAMES, 0)
    for block in steps:
        np.testing.assert_array_equal(first.deltas[block], second.deltas[block])
    # Five windows left the ring and five came in: only those are encoded.
    net = network(LORA)
    moved = train(net, *x_y, steps, local, device="d1", round=7, **(more | {"window_ids": np.arange(5, 25)}))
    assert moved.computed == dict.fromkeys(NAMES, 5)
    # Another base model: everything again.
    _, anew = run(LORA, NAMES, steps, local, **(more | {"made_of": base | {"ecg": b"2"}}))
    assert anew.computed["ecg"] == 20


def test_training_stops_at_a_step_border_and_says_so():
    asked = iter([False, False, True])
    _, got = run(SPEC, NAMES, {"chest": 8, SHARED: 8}, Local(), stop=lambda: next(asked))
    assert got.partial
    assert got.steps == {"chest": 2, SHARED: 2}
    _, two = run(SPEC, NAMES, {"chest": 2, SHARED: 2}, replace(Local()), round=5)
    assert not two.partial
    assert set(two.deltas) == set(got.deltas)


def test_seconds_per_block_add_up_to_the_wall_clock():
    _, got = run(SPEC, NAMES, {"chest": 30, SHARED: 30}, Local())
    assert sum(got.seconds.values()) == pytest.approx(got.wall)
    assert got.times["chest"].backward > 0
    assert got.times["ecg"].backward == 0
    assert got.times["chest"].trained == got.times[SHARED].encoded == 30 * 16


def test_a_block_the_device_does_not_have_is_refused_and_nothing_changes():
    net = network(SPEC)
    before = {b: net.read(b).tobytes() for b in net.cut.blocks}
    with pytest.raises(TrainingError, match=r"\['ecg'\].*cannot be trained"):
        train(net, *windows({"chest"}), {"ecg": 3, SHARED: 3}, Local(), device="d", round=0)
    assert before == {b: net.read(b).tobytes() for b in net.cut.blocks}


def test_windows_of_the_wrong_shape_are_refused():
    x, y = windows(NAMES)
    x["ecg"] = x["ecg"][:, :, :-1]
    with pytest.raises(TrainingError, match=r"modality ecg: windows of shape \(20, 1, 31\), the model takes"):
        train(network(SPEC), x, y, {SHARED: 1}, Local(), device="d", round=0)


def test_values_that_are_not_finite_never_leave_the_device():
    with pytest.raises(TrainingError, match="not finite"):
        run(SPEC, NAMES, {"chest": 200, SHARED: 200}, Local(lr=1e6))
