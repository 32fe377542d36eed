"""Programs' texts are read as they are run: bytes, counts, loops, groups."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from imprint_jax.models.attention import Attention
from imprint_jax.planning import hlo
from imprint_jax.training import flops, sharding
from tests.planning import small_program

PROGRAMS = Path(__file__).parent / "programs"

MESH = {"data": 4, "fsdp": 2}


def spec(mesh, shape, *where):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*where)))


def program(function, *args) -> hlo.Program:
    return hlo.Program(jax.jit(function).lower(*args).compile().as_text())


def test_a_gathered_parameter_and_reduced_gradients_have_their_bytes():
    mesh = sharding.make_mesh(2)
    whole = NamedSharding(mesh, P())
    w = spec(mesh, (64, 128), None, "fsdp")
    gather = lambda w: jax.lax.with_sharding_constraint(w, whole)
    (collective,) = hlo.collectives(program(gather, w), MESH)
    assert collective == hlo.Collective("all-gather", ("fsdp",), 2, 1, 64 * 128 * 4)
    assert collective.sent == 64 * 128 * 4 / 2

    x, w = spec(mesh, (16, 64), ("data", "fsdp")), spec(mesh, (64, 32))
    grad = jax.grad(lambda w, x: jnp.sum(jnp.sin(x @ w)))
    (collective,) = hlo.collectives(program(grad, w, x), MESH)
    assert collective == hlo.Collective("all-reduce", ("data", "fsdp"), 8, 1, 64 * 32 * 4)
    assert collective.sent == 2 * 7 / 8 * 64 * 32 * 4

    x = spec(mesh, (16, 64), "data")
    (collective,) = hlo.collectives(program(grad, w, x), MESH)
    assert (collective.axes, collective.group) == (("data",), 4)


@pytest.mark.parametrize("count", [3, 10])
def test_a_scan_of_k_blocks_counts_k_times(count):
    mesh = sharding.make_mesh(2)
    whole = NamedSharding(mesh, P())

    def blocks(x, ws):
        def block(x, w):
            return jnp.sin(x @ jax.lax.with_sharding_constraint(w, whole)), None

        return jax.lax.scan(block, x, ws)[0]

    x, ws = spec(mesh, (16, 32), ("data", "fsdp")), spec(mesh, (count, 32, 32), None, "fsdp")
    (collective,) = hlo.collectives(program(blocks, x, ws), MESH)
    assert (collective.kind, collective.count, collective.bytes) == (
        "all-gather",
        count,
        count * 32 * 32 * 4,
    )
    assert flops.count(blocks, x, ws) == count * 2 * 16 * 32 * 32


def test_chunked_attention_stays_on_its_device():
    """A loop over samples would be run whole by every device."""
    mesh = sharding.make_mesh(2)
    q = spec(mesh, (8, 1024, 2, 8), ("data", "fsdp"))
    assert Attention().kernel_for(q, q) == "chunked"
    grad = jax.grad(lambda q, k, v: jnp.sum(Attention()(q, k, v)), argnums=(0, 1, 2))
    assert hlo.collectives(program(grad, q, q, q), MESH) == ()


LOOP = """\
%body (x: f32[8]) -> f32[8] {
  ROOT %g = f32[8]{0} all-gather(%x), replica_groups={{0,1}}, dimensions={0}
}

%condition (x: f32[8]) -> pred[] {
  ROOT %p = pred[] constant(true)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  ROOT %w = f32[8]{0} while(%x), condition=%condition, body=%body, backend_config=KNOWN
}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LOOP, "a loop of unknown length"),
        (LOOP.replace("while(%x)", "sort(%x)"), "nothing was seen to run"),
        (LOOP.replace("while(%x)", "ragged-all-to-all(%x)"), "unknown form"),
        (LOOP.replace("while(%x)", "all-gather(%x), replica_groups=@x"), "groups of an unknown"),
        ("", "no entry"),
    ],
)
def test_a_program_that_is_not_understood_is_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        hlo.collectives(hlo.Program(text), {"data": 1, "fsdp": 2})


def test_a_loop_whose_length_stands_there():
    text = LOOP.replace("KNOWN", '{"known_trip_count":{"n":"7"}}')
    (collective,) = hlo.collectives(hlo.Program(text), {"data": 1, "fsdp": 2})
    assert (collective.count, collective.bytes) == (7, 7 * 32)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("{}", [[0, 1, 2, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
    ],
)
def test_groups_in_every_notation(groups, expected):
    assert hlo._replica_groups(f"x, replica_groups={groups}, y", (2, 2)) == expected


@pytest.fixture(scope="module", params=["h100", "v5e"])
def compiled(request) -> tuple[str, hlo.Program]:
    """The small program as XLA:GPU and XLA:TPU compiled it."""
    return request.param, hlo.Program((PROGRAMS / f"{request.param}.txt").read_text())


def test_weights_are_gathered_and_gradients_summed_a_block_at_a_time_on_every_chip(compiled):
    _, text = compiled
    size = small_program.WIDTH * 3 * small_program.WIDTH * 2  # a block's weights in bfloat16
    times = small_program.BLOCKS
    assert hlo.collectives(text, small_program.MESH) == (
        hlo.Collective("all-gather", ("fsdp",), 2, times, times * size),
        hlo.Collective("all-reduce", ("data", "fsdp"), 4, times, times * size),
    )


def test_library_calls_are_counted_as_often_as_they_run(compiled):
    chip, text = compiled
    calls = hlo.library_calls(text)
    if chip == "h100":
        assert calls["__cudnn$fmhaSoftmax"] == small_program.BLOCKS
        assert calls["__cudnn$fmhaSoftmaxBackward"] == small_program.BLOCKS
        # A product forwards and two backwards.
        assert calls["__cublas$lt$matmul"] == 3 * small_program.BLOCKS
    else:
        assert not any("cudnn" in name for name in calls)


SLICES = """\
%stacked (p: f32[100,8], i: s32[], x: f32[8]) -> f32[8] {
  %p = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[8]{0} parameter(2)
  %zero = s32[] constant(0)
  %slice = f32[1,8]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,8}
  %w = f32[8]{0} bitcast(%slice)
  ROOT %y = f32[8]{0} multiply(%w, %x)
}

%update (p: f32[100,8], i: s32[], x: f32[1,8]) -> f32[100,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[1,8]{1,0} parameter(2)
  %zero = s32[] constant(0)
  ROOT %y = f32[100,8]{1,0} dynamic-update-slice(%p, %x, %i, %zero)
}

ENTRY %main (p: f32[100,8], i: s32[], x: f32[8]) -> f32[100,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[8]{0} parameter(2)
  %y = f32[8]{0} fusion(%p, %i, %x), kind=kLoop, calls=%stacked
  %z = (f32[8]{0}, s8[33554432]{0}) custom-call(%y), custom_call_target="__cublas$gemm"
  %g = f32[8]{0} get-tuple-element(%z), index=0
  %b = f32[1,8]{1,0} bitcast(%g)
  ROOT %r = f32[100,8]{1,0} fusion(%p, %i, %b), kind=kLoop, calls=%update
}
"""


def test_memory_traffic_by_hand():
    """A row of 8 floats is 32 bytes; of what is stacked only the row in question moves."""
    stacked = 32 + 4 + 32 + 32  # the row, its number, x, the result
    product = 32 + 32  # without the workspace
    update = 4 + 32 + 32
    assert hlo.memory_traffic(hlo.Program(SLICES), "gpu") == stacked + product + update


def test_what_stays_in_a_tpu_s_vector_memory_is_no_traffic():
    text = SLICES.replace("%y = f32[8]{0} fusion", "%y = f32[8]{0:T(128)S(1)} fusion")
    program = hlo.Program(text)
    assert hlo.memory_traffic(program, "gpu") - hlo.memory_traffic(program, "tpu") == 2 * 32


def test_traffic_is_between_one_pass_over_what_is_computed_and_plain_attention_s(compiled):
    chip, text = compiled
    activations = 2 * small_program.TOKENS * small_program.WIDTH * 2  # a device's, bfloat16
    scores = 2 * small_program.HEADS * small_program.TOKENS**2 * 4
    traffic = hlo.memory_traffic(text, {"h100": "gpu", "v5e": "tpu"}[chip])
    assert small_program.BLOCKS * 10 * activations < traffic < small_program.BLOCKS * 20 * scores
