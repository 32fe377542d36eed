"""A plan written by hand, for what only reads plans."""

from imprint_jax.planning.hlo import Collective
from imprint_jax.planning.plan import AttentionUse, Plan, Request

MIB = 2**20

PLAN = Plan(
    request=Request("stage1", (), {"data": 1, "fsdp": 2}, {"data": 1, "fsdp": 2}, "h100"),
    batch_size=8,
    accumulation=2,
    total_steps=1000,
    trained=40 * MIB,
    frozen=10 * MIB,
    average=40 * MIB,
    moments=80 * MIB,
    inputs=MIB,
    gradients=40 * MIB,
    temporary=300 * MIB,
    peak=450 * MIB,
    traffic=5_000_000_000,
    flops=4_000_000_000_000,
    model_flops=3_000_000_000_000,
    attentions=(
        AttentionUse("chunked", 2, 4096, 4096, 1, 512, "float32", "float32"),
        AttentionUse("cudnn", 40, 261, 261, 24, 64, "bfloat16", ""),
    ),
    library_calls={"__cudnn$fmhaSoftmax": 80},
    collectives=(
        Collective("all-gather", ("fsdp",), 2, 4, 160 * MIB),
        Collective("all-reduce", ("fsdp",), 2, 2, 80 * MIB),
    ),
    compiler="XLA:GPU of a test",
    compile_seconds=12.0,
    out_of_memory="",
    key="0123456789abcdef",
)
