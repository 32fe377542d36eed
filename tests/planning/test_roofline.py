"""Seconds by hand, and the links that groups of devices send through."""

import dataclasses
import math

import numpy as np
import pytest

from imprint_jax.planning.hlo import Collective
from imprint_jax.planning.roofline import roofline
from imprint_jax.runtime.accelerators import ACCELERATORS, GPU, MULTIPROCESSORS, Accelerator
from tests.planning.example import PLAN

CHIP = GPU("9.0", 1, 1, 1.0)


def test_the_roofline_by_hand():
    slow = Accelerator(
        "none", flops=1e6, memory=1e9, bandwidth=1e5, link=1e4, network=1e2, node=1, chip=CHIP
    )
    times = roofline(PLAN, slow, utilisation=0.5)
    assert times.fits
    assert times.compute == PLAN.flops / 2 / 0.5e6
    assert times.memory == PLAN.traffic / 1e5
    assert times.network == pytest.approx((160 / 2 + 80) * 2**20 / 1e2)
    assert times.step == max(times.compute, times.memory) + times.network


def test_what_does_not_fit():
    small = dataclasses.replace(ACCELERATORS["h100"], memory=PLAN.peak)  # nothing is left free
    assert not roofline(PLAN, small).fits
    refused = dataclasses.replace(PLAN, out_of_memory="Used 20G of 16G", peak=0)
    assert not roofline(refused, ACCELERATORS["h100"]).fits


@pytest.mark.parametrize(
    ("fsdp", "axes", "bandwidth"),
    [
        (1, ("data",), 8),  # all 8 of a machine are in the group: 8 adapters
        (4, ("data",), 2),
        (8, ("data",), 1),
        (8, ("fsdp",), 100),  # within the machine
        (16, ("fsdp",), 8),
        (4, ("data", "fsdp"), 8),
    ],
)
def test_groups_send_through_all_their_adapters(fsdp, axes, bandwidth):
    mesh = {"data": 64 // fsdp, "fsdp": fsdp}
    size = math.prod(mesh[axis] for axis in axes)
    one = Collective("all-reduce", axes, size, count=1, bytes=1000)
    request = dataclasses.replace(PLAN.request, mesh=mesh)
    large = dataclasses.replace(PLAN, request=request, collectives=(one,))
    machine = Accelerator("none", 1e6, 1e9, 1e5, link=100, network=1, node=8, chip=CHIP)
    assert roofline(large, machine).network == pytest.approx(one.sent / bandwidth)


def test_the_table_of_accelerators_is_consistent():
    assert len({a.device_kind for a in ACCELERATORS.values()}) == len(ACCELERATORS)
    for a in ACCELERATORS.values():
        # Nothing is faster than its memory, or its network than its links.
        assert a.flops > a.bandwidth > a.link > a.network
        assert np.log10(a.memory) > 10
        if isinstance(a.chip, GPU):
            # Tensor cores of every kind do 8 to 32 times what the float32 units do.
            limits = MULTIPROCESSORS[a.chip.compute_capability]
            units = a.chip.multiprocessors * limits.float32_units
            assert 1.5 <= a.flops / (2 * units * a.chip.clock * 1e9) <= 33, a.device_kind
        else:
            for count, shape in a.chip.slices.items():
                assert math.prod(int(side) for side in shape.split("x")) == count
