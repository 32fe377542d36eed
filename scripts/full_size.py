"""The full-size model, proved with random weights: `python scripts/full_size.py FOLDER`.

Writes reference networks of Stable Diffusion v1.4's and DINOv2-g's size with every tensor random
(8 GB), converts them by `imprint convert`, and prints

- the converter's peak memory,
- each network's output against PyTorch's, with time and peak memory of both, each in a process of
  its own, and
- peak memory and time of one composite of 512 px.

Needs 20 GB of disk, 12 GB of memory and PyTorch (pip install '.[test]'). Takes some ten minutes on
two cores.

`python scripts/full_size.py FOLDER --case paint-by-example` writes the public compositor's networks
in the same way (5 GB), converts them, and composes one picture of 512 px in 3 steps by them.

`python scripts/full_size_train.py FOLDER` fine-tunes these weights for a few steps; it needs 22 GB
of memory and 60 GB of disk.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# Outputs to compare: our component, what is called, the input's shape.
CASES = {
    "UNet, 2 x 64x64 latents, 257 tokens": ("unet", "call", (2, 64, 64, 4)),
    "VAE encoder, 512 px": ("vae", "encode", (1, 512, 512, 3)),
    "VAE decoder, 512 px": ("vae", "decode", (1, 64, 64, 4)),
    "DINOv2-g, 224 px": ("dinov2", "call", (1, 224, 224, 3)),
    "DINOv2-g, 518 px": ("dinov2", "call", (1, 518, 518, 3)),
}
CONTEXT = (2, 257, 768)
TIMESTEPS = (3, 981)
HEADER = (
    "| network, fp32 | largest error / largest value | cosine | time ours / torch | peak memory |\n"
    "|---|---|---|---|---|"
)
PEER_PARTS = ("peer-references", "peer-compose")  # each a process, of --case paint-by-example
RUNS = 2  # timed, after one to warm up; the faster counts


def case_input(name: str) -> np.ndarray:
    """The case's input, NHWC float32, the same in every process."""
    return np.random.default_rng(0).normal(size=CASES[name][2]).astype(np.float32)


def case_context() -> np.ndarray:
    """The UNet's context."""
    return np.random.default_rng(1).normal(size=CONTEXT).astype(np.float32)


def write_references(folder: Path) -> None:
    """Saves the reference networks, every tensor random, as diffusers and transformers do."""
    import diffusers
    import transformers

    makers = {
        "sd/unet": lambda: diffusers.UNet2DConditionModel(cross_attention_dim=768),
        "sd/vae": stable_diffusions_vae,
        "dinov2": lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(
                hidden_size=1536,
                num_hidden_layers=40,
                num_attention_heads=24,
                use_swiglu_ffn=True,
                image_size=518,
                patch_size=14,
                num_register_tokens=4,
            )
        ),
    }
    write_random(folder, makers)


def write_paint_by_example(folder: Path) -> None:
    """Saves Paint-by-Example's networks, every tensor random, as its folder on the hub has them."""
    import diffusers
    import transformers
    from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder

    tower = transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=768,
    )
    makers = {
        "unet": lambda: diffusers.UNet2DConditionModel(in_channels=9, cross_attention_dim=768),
        "vae": stable_diffusions_vae,
        "image_encoder": lambda: PaintByExampleImageEncoder(tower),
    }
    write_random(folder, makers)
    index = {"_class_name": "PaintByExamplePipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))


def stable_diffusions_vae():
    """diffusers' network."""
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )


def write_random(folder: Path, makers: dict) -> None:
    """Saves networks with every tensor random, {folder within `folder`: what makes the network}."""
    import torch

    torch.manual_seed(0)
    for name, make in makers.items():
        with torch.device("meta"):
            model = make()
        model = model.to_empty(device="cpu")
        for key, tensor in model.named_parameters():
            # At their usual 0 and 1, swapped norms and biases would pass unseen.
            spread = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
            tensor.data.normal_(0.0, spread)
            if tensor.ndim == 1 and not key.endswith("bias"):
                tensor.data.add_(1.0)
        model.save_pretrained(folder / name)
        print(f"wrote {name}, {sum(p.numel() for p in model.parameters()):,} parameters")


def run_torch(folder: Path, name: str) -> tuple[np.ndarray, float]:
    """The reference's output and its fastest time in seconds."""
    import diffusers
    import torch
    import transformers

    component, method, _ = CASES[name]
    nchw = lambda x: torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    nhwc = lambda x: x.numpy().transpose(0, 2, 3, 1)
    x = nchw(case_input(name))
    if component == "unet":
        model = diffusers.UNet2DConditionModel.from_pretrained(folder / "sd/unet")
        context = torch.from_numpy(case_context())
        call = lambda: nhwc(model(x, torch.tensor(TIMESTEPS), context).sample)
    elif component == "vae":
        model = diffusers.AutoencoderKL.from_pretrained(folder / "sd/vae")
        scale = model.config.scaling_factor
        if method == "encode":
            call = lambda: nhwc(model.encode(x).latent_dist.mean * scale)
        else:
            call = lambda: nhwc(model.decode(x / scale).sample)
    else:
        model = transformers.Dinov2WithRegistersModel.from_pretrained(folder / "dinov2")
        call = lambda: model(x).last_hidden_state.numpy()
    model.eval()
    with torch.inference_mode():
        return fastest(call)


def run_ours(folder: Path, name: str) -> tuple[np.ndarray, float]:
    """Our output and its fastest time in seconds."""
    import jax
    import jax.numpy as jnp
    from flax import nnx, traverse_util

    from imprint_jax.models import imprint
    from imprint_jax.weights import release

    component, method, _ = CASES[name]
    section = getattr(release.load_config(folder / "ours").model, component)
    params = release.load_component(folder / "ours", component)
    flat = traverse_util.flatten_dict(params)
    del params
    for path in flat:  # one by one, so that each array is in memory once
        flat[path] = jnp.asarray(flat[path])
    params = traverse_util.unflatten_dict(flat)
    make = lambda: imprint.build(section, dtype=jnp.float32, rngs=nnx.Rngs(0))
    graphdef, _ = nnx.split(nnx.eval_shape(make), nnx.Param)

    @jax.jit
    def forward(params, x, context):
        module = nnx.merge(graphdef, params)
        if component == "unet":
            return module(x, jnp.array(TIMESTEPS), module.keys_values(context))
        return module(x) if method == "call" else getattr(module, method)(x)

    x, context = jnp.asarray(case_input(name)), jnp.asarray(case_context())
    return fastest(lambda: np.asarray(forward(params, x, context)))


def fastest(call) -> tuple[np.ndarray, float]:
    """A call's result, and the fastest of `RUNS` after one to warm up."""
    output, times = call(), []
    for _ in range(RUNS):
        start = time.perf_counter()
        output = call()
        times.append(time.perf_counter() - start)
    return output, min(times)


def write_adapter(folder: Path) -> None:
    """Adds a random adapter to the converted weights, unless there is one."""
    from imprint_jax.models import init
    from imprint_jax.weights import release

    model = release.load_config(folder / "ours").model
    if not (folder / "ours/adapter.safetensors").exists():
        release.write_component(folder / "ours", "adapter", init.draw("adapter", model, 0))


def compose(folder: Path, num_steps: int) -> None:
    """One composite of 512 px by a released folder."""
    from imprint_jax import Compositor

    compositor = Compositor.from_pretrained(folder)
    rng = np.random.default_rng(0)
    thing = np.dstack([rng.integers(0, 256, (300, 200, 3)), np.full((300, 200), 255)])
    photo = rng.integers(0, 256, (512, 512, 3)).astype(np.uint8)
    hole = np.zeros((512, 512), bool)
    hole[150:400, 180:340] = True
    start = time.perf_counter()
    picture = compositor(thing.astype(np.uint8), photo, hole, num_steps=num_steps)
    print(json.dumps({"seconds": time.perf_counter() - start, "size": picture.size}))


def measured(arguments: list[str]) -> tuple[float, float, str]:
    """Runs a Python command; returns seconds, peak memory in GiB, and its last line.

    Raises:
        subprocess.CalledProcessError: The command failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise subprocess.CalledProcessError(process.returncode, arguments, output)
    lines = output.strip().splitlines()
    return time.perf_counter() - start, usage.ru_maxrss / 2**20, lines[-1] if lines else ""


def compare(folder: Path, name: str) -> str:
    """One row of the table of parity."""
    outputs, cells = {}, []
    for side in ("ours", "torch"):
        file = Path(tempfile.gettempdir()) / f"full_size_{os.getpid()}_{side}.npy"
        arguments = [__file__, str(folder), "--case", name, "--side", side, "--output", str(file)]
        _, memory, seconds = measured(arguments)
        outputs[side] = np.load(file).astype(np.float64).ravel()
        file.unlink()
        cells.append((float(seconds), memory))
    ours, theirs = outputs["ours"], outputs["torch"]
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
    (our_time, our_memory), (their_time, their_memory) = cells
    return (
        f"| {name} | {error:.1e} | {cosine:.7f} | {our_time:.1f} / {their_time:.1f} s"
        f" = {our_time / their_time:.2f} | {our_memory:.1f} / {their_memory:.1f} GiB |"
    )


def prepare(folder: Path) -> None:
    """Writes and converts the reference networks, unless that was done."""
    if not (folder / "dinov2/config.json").exists():
        # In a process of its own: a child's peak memory counts from its parent's.
        measured([__file__, str(folder), "--case", "references"])
    if not (folder / "ours/dinov2.safetensors").exists():
        for source in ("sd", "dinov2"):
            command = ["-m", "imprint_jax", "convert", str(folder / source), str(folder / "ours")]
            seconds, memory, _ = measured(command)
            print(f"converted {source} in {seconds:.0f} s, peak memory {memory:.1f} GiB")


def compose_as_peer(folder: Path) -> None:
    """Paint-by-Example, from its folder on the hub to a picture of 512 px; prints what it takes."""
    source, ours = str(folder / "paint-by-example"), str(folder / "peer")
    write, draw = ([__file__, str(folder), "--case", part] for part in PEER_PARTS)
    if not Path(source, "model_index.json").exists():
        measured(write)
    seconds, memory, _ = measured(["-m", "imprint_jax", "convert", source, ours])
    print(f"converted in {seconds:.0f} s, peak memory {memory:.1f} GiB", flush=True)
    seconds, memory, line = measured(draw)
    print(f"512 px composite, 3 steps: {line}, {seconds:.0f} s in all, {memory:.1f} GiB")


def main() -> None:
    """Reads the command line and does all, or one case of one side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where weights go; what is there is used again")
    parts = ("references", "compose", *PEER_PARTS, "paint-by-example")
    parser.add_argument("--case", choices=[*CASES, *parts], help="only this")
    parser.add_argument("--side", choices=["ours", "torch"], help="with --case: one side")
    parser.add_argument("--output", type=Path, help="with --side: where its output goes")
    options = parser.parse_args()
    if options.side:
        run = run_ours if options.side == "ours" else run_torch
        output, seconds = run(options.folder, options.case)
        np.save(options.output, output)
        print(seconds)
        return
    match options.case:
        case "references":
            return write_references(options.folder)
        case "compose":
            write_adapter(options.folder)
            return compose(options.folder / "ours", 2)
        case "peer-references":
            return write_paint_by_example(options.folder / "paint-by-example")
        case "peer-compose":
            return compose(options.folder / "peer", 3)

    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    folder = options.folder
    if options.case == "paint-by-example":
        return compose_as_peer(folder)
    prepare(folder)
    print(HEADER)
    for name in [options.case] if options.case else CASES:
        print(compare(folder, name), flush=True)
    if not options.case:
        seconds, memory, line = measured([__file__, str(folder), "--case", "compose"])
        print(f"512 px composite, 2 steps: {line}, {seconds:.0f} s in all, {memory:.1f} GiB")


if __name__ == "__main__":
    main()
