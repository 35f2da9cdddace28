"""Rivals and ablations do what their papers say, checked against small cases worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from coordinator.aggregation import Contribution, Weighting, fold
from coordinator.strategies import STRATEGIES, Settings, strategy
from coordinator.strategies.heterofl import FedRolex, HeteroFL
from coordinator.strategies.lora_rivals import FediLoRA, FedSALoRA, FFALoRA
from coordinator.strategies.momentum import ReliefMomentum
from coordinator.strategies.partial import FedEL, TimelyFL
from coordinator.strategies.relief import Relief
from coordinator.strategies.submodels import Part, SubModels
from coordinator.work import Member, speed_from_flops
from models.local import Local
from models.partition import Vector, partition
from models.spec import SHARED, InputSpec, Mode, ModelSpec
from tools.coordinator import chosen

SPEC = ModelSpec((InputSpec("chest", 2, 24), InputSpec("ecg", 1, 24)), 3, widths=(4, 8), bins=2, fusion=8, rank=4)
LORA = ModelSpec(SPEC.inputs, 3, mode=Mode.LORA, widths=(4, 8), bins=2, fusion=8, rank=4)
SETTINGS = Settings(epochs=2, local=Local(batch=10))


def member(name: str, owned: tuple[str, ...], flops: float, spec: ModelSpec = SPEC) -> Member:
    return Member(name, owned, 40, speed_from_flops(spec, flops), rate=1e9)


FAST, SLOW = member("fast", ("chest", "ecg"), 1e9), member("slow", ("chest",), 0.25e9)


def sent(device: str, samples: int, values: list[float]) -> Contribution:
    return Contribution(device, samples, 1.0, np.array(values, np.float32))


def views(spec: ModelSpec, masks: Mapping[str, Vector], block: str) -> dict[str, Vector]:
    return partition(spec).views(block, masks[block])


def test_every_method_cites_its_source_and_says_what_it_does_with_an_absent_modality() -> None:
    for name, cls in STRATEGIES.items():
        assert cls.name == name
        assert cls.source.startswith(("arXiv ", "doi "))
        assert cls.absent


def test_fedprox_is_fedavg_with_a_pull_of_a_hundredth() -> None:
    local = strategy("fedprox")(SPEC, SETTINGS).local()
    assert (local.prox, local.zero_fill, local.cache) == (0.01, True, False)
    assert strategy("fedavg")(SPEC, SETTINGS).local().prox == 0.0


def test_heterofl_gives_a_quarter_as_fast_device_half_of_the_channels() -> None:
    method = HeteroFL(SPEC, SETTINGS)
    method.plan(1, [FAST, SLOW])
    assert all(mask.all() for mask in method.parts["fast"].masks.values())
    chest = views(SPEC, method.parts["slow"].masks, "chest")
    assert chest["encoders.chest.0.bias"].tolist() == [1, 1, 0, 0]
    assert chest["encoders.chest.1.weight"][:, :, 0].sum() == 4 * 2  # 4 of 8 outputs, 2 of 4 inputs
    assert chest["encoders.chest.1.weight"][4:].sum() == chest["encoders.chest.1.weight"][:, 2:].sum() == 0
    assert chest["fusion.weight.chest"].sum() == 4 * (4 * 2)  # 4 of 8 rows, 4 channels x 2 bins
    assert views(SPEC, method.parts["slow"].masks, SHARED)["head.bias"].tolist() == [1, 1, 1]


def test_heterofl_averages_each_coordinate_over_the_devices_that_hold_it() -> None:
    method = HeteroFL(SPEC, SETTINGS)
    whole, half = np.array([1, 1, 1.0]), np.array([1, 0, 0.0])
    method.parts = {"a": Part({"x": whole}, True, 1, 1), "b": Part({"x": half}, True, 1, 1)}
    folded = method.fold("x", 3, [sent("a", 10, [1, 2, 3]), sent("b", 30, [5, 0, 0])], 40)
    assert folded is not None
    np.testing.assert_allclose(folded.delta, [(10 * 1 + 30 * 5) / 40, 2, 3])


def test_heterofl_masks_classes_that_a_device_does_not_have() -> None:
    assert HeteroFL(SPEC, SETTINGS).local().own_classes
    assert not TimelyFL(SPEC, SETTINGS).local().own_classes


def test_a_coordinate_that_nobody_holds_stays() -> None:
    method = HeteroFL(SPEC, SETTINGS)
    method.parts = {"a": Part({"x": np.array([1.0, 0.0])}, True, 1, 1)}
    folded = method.fold("x", 2, [sent("a", 10, [4, 0])], 10)
    assert folded is not None
    assert folded.delta.tolist() == [4, 0]


def test_fedrolex_rolls_its_channels_on_by_one_a_round_and_comes_round() -> None:
    method = FedRolex(SPEC, SETTINGS)
    assert [method.channels(round, 4, 0.5).tolist() for round in (1, 2, 4, 5)] == [[0, 1], [1, 2], [0, 3], [0, 1]]


def test_narrow_devices_start_with_zeros_where_they_hold_nothing_and_others_with_the_whole_model() -> None:
    method = HeteroFL(SPEC, SETTINGS)
    method.plan(1, [FAST, SLOW])
    blocks = {b: np.ones(partition(SPEC).size(b), np.float32) for b in partition(SPEC).blocks}
    for block, values in method.base("slow", blocks).items():
        assert (values == method.parts["slow"].masks[block]).all()
    whole = TimelyFL(SPEC, SETTINGS)
    whole.plan(1, [FAST, SLOW])
    assert whole.base("slow", blocks) is blocks


def test_timelyfl_trains_from_the_output_as_deep_as_the_time_allows() -> None:
    method = TimelyFL(SPEC, Settings(epochs=2, deadline="fastest", local=Local(batch=10)))
    plans = method.plan(1, [FAST, SLOW])
    assert method.parts["fast"].compute == pytest.approx(1.0)
    slow = views(SPEC, method.parts["slow"].masks, SHARED)
    assert slow["head.weight"].all()
    assert not views(SPEC, method.parts["slow"].masks, "chest")["encoders.chest.0.weight"].any()
    assert 1 <= plans["slow"].steps[SHARED] < plans["fast"].steps[SHARED] == 8


def test_the_arithmetic_of_partial_training_falls_with_depth() -> None:
    method = TimelyFL(SPEC, SETTINGS)
    costs = [method.compute(range(first, method.depths)) for first in range(method.depths)]
    assert costs[0] == 1.0
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] > 0.3  # the forward pass is never saved


def test_fedels_window_slides_from_the_output_to_the_input_and_starts_again() -> None:
    method = FedEL(SPEC, SETTINGS)
    first = []
    for round in range(1, 6):
        method.plan(round, [FAST, SLOW])
        masks = method.parts["slow"].masks
        trained = [n for n in range(method.depths) if (method._masks[n]["chest"] * masks["chest"]).any()]
        head = bool(views(SPEC, masks, SHARED)["head.weight"].any())
        first.append(min([*trained, *([3] if head else [])]))
    assert first == [3, 2, 1, 0, 3]


def test_ffa_lora_leaves_a_alone_and_trains_b() -> None:
    method = FFALoRA(LORA, SETTINGS)
    method.plan(1, [member("d", ("chest",), 1e9, LORA)])
    masks = method.parts["d"].masks
    assert not masks["chest"].any()
    assert views(LORA, masks, SHARED)["fusion.lora_b"].all()


def test_fedilora_gives_slow_devices_fewer_slices_of_the_rank() -> None:
    method = FediLoRA(LORA, SETTINGS)
    fast, slow = member("fast", ("chest",), 1e9, LORA), member("slow", ("chest",), 0.45e9, LORA)
    method.plan(1, [fast, slow])
    masks = method.parts["slow"].masks
    assert views(LORA, masks, "chest")["fusion.lora_a.chest"].any(axis=1).tolist() == [True, True, False, False]
    assert views(LORA, masks, SHARED)["fusion.lora_b"].any(axis=0).tolist() == [True, True, False, False]
    assert all(mask.all() for mask in method.parts["fast"].masks.values())


def test_fedsa_lora_keeps_each_devices_b_and_the_global_one_is_their_mean() -> None:
    method = FedSALoRA(LORA, SETTINGS)
    method.plan(1, [member("a", ("chest",), 1e9, LORA), member("b", ("chest",), 1e9, LORA)])
    size = partition(LORA).size(SHARED)
    own = method._mask == 0
    blocks = {SHARED: np.zeros(size)}
    for device, moved in (("a", 1.0), ("b", 3.0)):
        base = method.base(device, blocks)
        method.trained(device, base, {SHARED: np.full(size, moved)})
    equal = [Contribution("a", 10, 1.0, np.full(size, 1.0)), Contribution("b", 10, 1.0, np.full(size, 3.0))]
    folded = method.fold(SHARED, size, equal, 20)
    assert folded is not None
    np.testing.assert_allclose(folded.delta, 2.0)
    blocks = {SHARED: blocks[SHARED] + folded.delta}
    again = method.base("b", blocks)[SHARED]
    assert (again[own] == 3.0).all() and (again[~own] == 2.0).all()
    method.base("a", blocks)
    still = [Contribution(d, 10, 1.0, np.zeros(size)) for d in ("a", "b")]
    unmoved = method.fold(SHARED, size, still, 20)
    assert unmoved is not None
    np.testing.assert_allclose(unmoved.delta, 0.0)  # the mean of 1 and 3, seen from the global 2


def test_server_momentum_by_hand_over_two_rounds_and_across_a_restart() -> None:
    method = ReliefMomentum(SPEC, SETTINGS)
    folded = fold(2, [sent("a", 1, [1.0, -2.0])], Weighting.NOVA)
    assert folded is not None
    once = method.apply("chest", np.zeros(2, np.float32), folded)
    np.testing.assert_allclose(once, [1.8, -3.6])  # Delta + 0.8 v, v = Delta
    restarted = ReliefMomentum(SPEC, SETTINGS)
    restarted.restore(method.state())
    for m in (method, restarted):
        twice = m.apply("chest", once, folded)
        np.testing.assert_allclose(twice - once, [1 + 0.8 * 1.8, -2 - 0.8 * 3.6], rtol=1e-6)


def test_a_block_that_rested_keeps_its_velocity_and_others_do_not_touch_it() -> None:
    method = ReliefMomentum(SPEC, SETTINGS)
    folded = fold(1, [sent("a", 1, [1.0])], Weighting.NOVA)
    assert folded is not None
    method.apply("chest", np.zeros(1, np.float32), folded)
    for _ in range(3):
        method.apply("ecg", np.zeros(1, np.float32), folded)
    after = method.apply("chest", np.zeros(1, np.float32), folded)
    np.testing.assert_allclose(after, [1 + 0.8 * 1.8])


def test_random_blocks_follow_the_seed_and_change_from_round_to_round() -> None:
    a, b = (strategy("relief-momentum-random")(SPEC, SETTINGS) for _ in range(2))
    assert isinstance(a, ReliefMomentum) and isinstance(b, ReliefMomentum)
    assert a.utility(4) == b.utility(4) != a.utility(5)


def test_sub_models_say_that_they_need_a_part() -> None:
    with pytest.raises(TypeError, match="does not say which part"):
        SubModels(SPEC, SETTINGS).plan(1, [FAST])


def test_what_only_the_simulator_can_run_is_refused_by_a_real_coordinator() -> None:
    alone = {name for name, cls in STRATEGIES.items() if cls.simulator_only}
    assert {"fedbuff", "heterofl", "harmony", "mfedmc", "oracle", "fedsa-lora"} <= alone
    assert {"relief", "fedavg", "fedprox", "flism", "relief-momentum-samples"} & alone == set()
    for name in alone:
        with pytest.raises(ValueError, match=rf"coordinator\.strategy: '{name}' runs in the simulator alone"):
            chosen(name)
    assert chosen("relief").name == "relief"


def test_a_device_that_can_afford_nothing_but_the_head_sits_out_unless_told_otherwise() -> None:
    head = 4 * partition(SPEC).size(SHARED)  # bytes of the one block that its uplink has room for
    poor, later = Settings(epochs=2, local=Local(batch=10), bytes=head), Relief.warm_up + 1
    assert Relief(SPEC, poor).plan(later, [FAST, SLOW]) == {}
    head_alone = type("HeadAlone", (Relief,), {"head_alone": True})(SPEC, poor)  # as an experiment's options do it
    steps = {name: plan.steps for name, plan in head_alone.plan(later, [FAST, SLOW]).items()}
    assert steps == {"fast": {SHARED: 8}, "slow": {SHARED: 8}}
