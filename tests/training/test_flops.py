"""FLOPs counted by hand and by walking the program."""

import jax
import jax.numpy as jnp
import pytest

from imprint_jax.config import Config
from imprint_jax.models import imprint
from imprint_jax.models.attention import Attention, Target, tracing_for
from imprint_jax.training import flops


def test_products_convolutions_and_loops():
    x, w = jnp.zeros((8, 16)), jnp.zeros((16, 32))
    assert flops.count(lambda x, w: x @ w, x, w) == 2 * 8 * 16 * 32
    scan = lambda x: jax.lax.scan(lambda c, _: (c @ jnp.eye(16), None), x, None, length=5)[0]
    assert flops.count(scan, x) == 5 * 2 * 8 * 16 * 16
    assert flops.count(jax.jit(jax.checkpoint(scan)), x) == 5 * 2 * 8 * 16 * 16
    image, kernel = jnp.zeros((2, 10, 12, 3)), jnp.zeros((3, 3, 3, 7))
    conv = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert flops.count(conv, image, kernel) == 2 * (2 * 10 * 12 * 7) * (3 * 3 * 3)
    strided = lambda x, k: jnp.sum(
        jax.lax.conv_general_dilated(
            x, k, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    forward = 2 * (2 * 5 * 6 * 7) * (3 * 3 * 3)
    assert flops.count(strided, image, kernel) == forward
    assert flops.count(jax.grad(strided, (0, 1)), image, kernel) == 3 * forward
    with pytest.raises(NotImplementedError):
        flops.count(lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x + 1, x), x)


def test_cudnns_attention_counts_as_the_plain_one():
    q, k = jnp.zeros((2, 16, 4, 32), jnp.bfloat16), jnp.zeros((2, 8, 4, 32), jnp.bfloat16)
    target = Target("gpu", "8.0")

    def counts(attention: Attention) -> tuple[int, int]:
        forward = lambda q, k: jnp.sum(attention(q, k, k).astype(jnp.float32))
        return flops.count(forward, q, k), flops.count(jax.grad(forward, (0, 1)), q, k)

    with tracing_for(target):
        cudnn, plain = (counts(Attention(target, kernel)) for kernel in ("cudnn", "plain"))
    products = 2 * (2 * 4) * 16 * 8 * 32
    assert plain == cudnn == (2 * products, 6 * products)


def test_the_full_size_networks_cost_what_was_counted_by_hand():
    """GFLOP a forward pass and image: UNet 819, VAE 1,117 and 2,515, DINOv2-g 608 at 224 px."""
    graphdef, params = imprint.split(Config().model)
    spec = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    call = lambda f: lambda params, *args: f(imprint.bind(graphdef, params), *args)
    unet = lambda m, x, c: m.unet(x, jnp.zeros(1, jnp.int32), m.unet.keys_values(c))
    cases = [
        (unet, (spec(1, 64, 64, 4), spec(1, 257, 768)), 819),
        (lambda m, x: m.vae.encode(x), (spec(1, 512, 512, 3),), 1117),
        (lambda m, x: m.vae.decode(x), (spec(1, 64, 64, 4),), 2515),
        (lambda m, x: m.dinov2(x), (spec(1, 224, 224, 3),), 608),
    ]
    for function, args, expected in cases:
        assert flops.count(call(function), params, *args) / 1e9 == pytest.approx(expected, rel=0.02)
