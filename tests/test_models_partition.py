"""Laws of the partition and of the network cut by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import SHARED, BPolicy, InputSpec, Mode, ModelSpec, block_costs, initial, partition, round_flops
from models.network import Network
from tests.worlds import spec, specs, windows


@given(specs())
@settings(max_examples=60, deadline=None)
def test_every_trainable_tensor_is_in_exactly_one_block(of: ModelSpec) -> None:
    cut, network = partition(of), Network(of)
    named = [t.name for layout in cut.trainable.values() for t in layout]
    assert len(named) == len(set(named))
    assert set(named) == {name for name, p in network.named_parameters() if p.requires_grad}
    for layout in cut.trainable.values():
        for t in layout:
            assert network.get_parameter(t.name).shape == t.shape


@given(specs())
@settings(max_examples=60, deadline=None)
def test_a_block_belongs_to_one_modality_or_is_shared(of: ModelSpec) -> None:
    cut = partition(of)
    assert cut.blocks == (*of.names, SHARED)
    for block in of.names:
        for t in (*cut.trainable[block], *cut.frozen.get(block, ())):
            assert block in t.name.split(".")
    for t in cut.trainable[SHARED]:
        assert not set(of.names) & set(t.name.split("."))


@given(specs(), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_a_block_read_back_is_the_block_that_was_loaded(of: ModelSpec, seed: int) -> None:
    network, rng = Network(of), np.random.default_rng(seed)
    for block in network.cut.blocks:
        vector = rng.standard_normal(network.cut.size(block)).astype(np.float32)
        network.load(block, vector)
        assert np.array_equal(network.read(block), vector)


@given(specs())
@settings(max_examples=40, deadline=None)
def test_an_absent_modality_takes_no_part_in_the_computation(of: ModelSpec) -> None:
    network = Network(of)
    x, _ = windows(of, 3, owned=of.names[:1])
    scores = network({name: torch.from_numpy(values) for name, values in x.items()})
    scores.sum().backward()
    for block in of.names[1:]:
        assert all(p.grad is None for p in network.parameters_of(block))


@given(specs())
@settings(max_examples=40, deadline=None)
def test_a_spec_survives_its_plain_form(of: ModelSpec) -> None:
    assert ModelSpec.from_dict(of.to_dict()) == of


def test_lora_starts_at_the_base_model() -> None:
    for policy in BPolicy:
        of = spec(mode=Mode.LORA, b_policy=policy)
        network = Network(of)
        b = network.get_parameter("fusion.lora_b").detach()
        for name in of.names:  # whichever of A and B is zero, their product is
            assert not (b @ network.get_parameter(f"fusion.lora_a.{name}").detach()).any()


def test_a_frozen_b_has_orthonormal_columns() -> None:
    _, frozen = initial(spec(mode=Mode.LORA, b_policy=BPolicy.FROZEN))
    b = frozen[SHARED].reshape(8, 2)
    assert np.allclose(b.T @ b, np.eye(2), atol=1e-6)


def test_fresh_blocks_are_the_same_bits_for_a_seed_and_differ_between_seeds() -> None:
    one, again, other = (initial(spec(seed=s))[0] for s in (1, 1, 2))
    assert all(np.array_equal(one[b], again[b]) for b in one)
    assert not np.array_equal(one["torso"], other["torso"])


def test_forward_flops_agree_with_torch() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    of = ModelSpec(inputs=(InputSpec("a", 9, 125), InputSpec("b", 3, 64)), classes=19)
    x = {i.name: torch.zeros(7, i.channels, i.samples) for i in of.inputs}
    with FlopCounterMode(display=False) as counter:
        Network(of)(x)
    ours = 7 * sum(cost.forward for cost in block_costs(of).values())
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.01)


def test_bytes_of_a_block_are_its_values_in_float32() -> None:
    of = spec()
    assert {b: c.bytes for b, c in block_costs(of).items()} == {
        b: 4 * partition(of).size(b) for b in partition(of).blocks
    }


def test_freezing_a_block_and_caching_its_features_saves_flops() -> None:
    of = spec()
    everything = dict.fromkeys((*of.names, SHARED), 10)
    less = {SHARED: 10, "arm": 10}
    full = round_flops(of, of.names, everything, 8, 40)
    frozen = round_flops(of, of.names, less, 8, 40, cached=False)
    cached = round_flops(of, of.names, less, 8, 40)
    assert cached < frozen < full


@pytest.mark.parametrize("name", ["", "shared", "Arm", "a.b", "a/b", "1st", "x" * 33, "a+"])
def test_a_modality_name_that_cannot_be_a_topic_level_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="modality name"):
        InputSpec(name, 3, 16)


def test_a_vector_of_the_wrong_length_is_refused_and_changes_nothing() -> None:
    network = Network(spec())
    before = network.read("arm")
    with pytest.raises(ValueError, match="block arm"):
        network.load("arm", before[:-1])
    assert np.array_equal(network.read("arm"), before)
