"""What is installed and what this machine offers: facts for a bug report, one line each.

What the kernels are is told by `models.attention`, which is above this room: the command adds it.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

import jax

# What the package needs, then what its extras bring.
REQUIRED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# The extra, and a module of it that is imported where it is used.
EXTRAS = {
    "segment": "onnxruntime",
    "render": "embreex",
    "metrics": "skimage",
    "beam": "apache_beam",
    "ui": "gradio",
    "torch": "torch",
    "hub": "huggingface_hub",
    "plan-gpu": "jax_cuda13_plugin",
    "plan-tpu": "libtpu",
}
# Less memory or room than this ends an ordinary use of a full-size model: its float32 weights are
# 8.3 GB (1,136 + 860 + 84 + 36 million parameters), and a checkpoint of stage 2 holds four copies.
FULL_SIZE_MEMORY = 12e9
FULL_SIZE_DISK = 40e9


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of what it stands on."""
    names = ("imprint_jax", *REQUIRED)
    return {"python": platform.python_version()} | {name: _version(name) for name in names}


def extras() -> dict[str, bool]:
    """Which extras are installed."""
    return {name: importlib.util.find_spec(module) is not None for name, module in EXTRAS.items()}


def devices() -> list[str]:
    """JAX's devices, with their memory where it is known."""
    lines = []
    for device in jax.local_devices():
        memory = (device.memory_stats() or {}).get("bytes_limit")
        lines.append(f"{device.device_kind}" + (f", {memory / 1e9:.0f} GB" if memory else ""))
    return lines


def memory() -> tuple[float, float]:
    """Bytes of this machine's memory: all, and what is available."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = (os.sysconf(name) * page for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    # Linux says how much could be used without swapping, caches included.
    if Path("/proc/meminfo").is_file():
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    return float(total), float(free)


def disk(folder: Path) -> float:
    """Bytes that are free where the folder is, or would be."""
    while not folder.exists():
        folder = folder.parent
    return float(shutil.disk_usage(folder).free)


def advice(platform_name: str, free_memory: float, free_disk: float) -> list[str]:
    """What would be slow or refused here, as sentences.

    Args:
        platform_name: As `jax.default_backend()`.
        free_memory: Bytes.
        free_disk: Bytes, where trainings are kept.
    """
    lines = []
    if platform_name == "cpu":
        lines.append(
            "No accelerator: mini composes in seconds and trains in hours; a full-size picture"
            " takes many minutes, and full-size training is out of reach."
        )
        if shutil.which("nvidia-smi"):
            lines.append(
                "JAX runs on the CPU beside an NVIDIA driver: pip install 'imprint_jax[gpu]'."
            )
    if free_memory < FULL_SIZE_MEMORY:
        lines.append(
            f"{free_memory / 1e9:.0f} GB of memory are free; a full-size model wants"
            f" {FULL_SIZE_MEMORY / 1e9:.0f} GB to be loaded."
        )
    if free_disk < FULL_SIZE_DISK:
        lines.append(
            f"{free_disk / 1e9:.0f} GB of disk are free; a full-size training wants"
            f" {FULL_SIZE_DISK / 1e9:.0f} GB for its checkpoints."
        )
    return lines


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
