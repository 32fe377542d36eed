"""DreamSim: a distance of pictures tuned to people's judgements (Fu et al. 2023).

The embeddings of one tower, or of three side by side, are centred over their channels and brought
to unit length; the distance is 1 - cos. Towers are plain vision transformers whose `qkv` layers
were tuned by low-rank additions (LoRA). Read are the files of the package's releases
(ssundaram21/dreamsim, v0.2), unpacked into one folder:

| form               | towers                    | additions                       |
|--------------------|---------------------------|---------------------------------|
| `ensemble`         | DINO, CLIP, OpenCLIP B/16 | `ensemble_lora/`                |
| `dino_vitb16`      | DINO B/16                 | `dino_vitb16_single_lora/`      |
| `clip_vitb32`      | CLIP B/32                 | `clip_vitb32_single_lora/`      |
| `open_clip_vitb32` | OpenCLIP B/32             | `open_clip_vitb32_single_lora/` |

DINO's tower is `dino_vitbase16_pretrain.pth` of facebookresearch/dino, in the folder itself or in
its `checkpoints/`, where PyTorch's hub puts it; the release's own file holds an unused head.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from imprint_jax.errors import InputError
from imprint_jax.evaluation import vit
from imprint_jax.evaluation.batched import Batched
from imprint_jax.evaluation.encoders import Encoder
from imprint_jax.models import imprint
from imprint_jax.models.clip import CLIPVision
from imprint_jax.models.dinov2 import normalize
from imprint_jax.weights.tensors import StoredTensor, open_tensors, weights_hash

# {form: towers}, in the order of the embedding.
FORMS = {
    "ensemble": ("dino_vitb16", "clip_vitb16", "open_clip_vitb16"),
    "dino_vitb16": ("dino_vitb16",),
    "clip_vitb32": ("clip_vitb32",),
    "open_clip_vitb32": ("open_clip_vitb32",),
}
FILES = {"dino_vitb16": ("dino_vitbase16_pretrain.pth", "checkpoints/dino_vitbase16_pretrain.pth")}
# Additions by tower and block, in the names that the library `peft` gives them.
ADDITION = re.compile(
    r"base_model\.model\.extractor_list\.(\d+)\.model\.blocks\.(\d+)\.attn\.qkv"
    r"\.lora_([AB])(?:\.default)?\.weight"
)


def load(folder: Path) -> Encoder:
    """DreamSim as an encoder, whose embeddings' cosine is 1 - the distance.

    Args:
        folder: Files as the module says; of several forms the first is taken.

    Raises:
        InputError: A file is missing or does not fit.
    """
    lora = {form: folder / _lora_name(form) for form in FORMS}
    form = next((form for form, path in lora.items() if path.is_dir()), None)
    if form is None:
        names = ", ".join(path.name for path in lora.values())
        raise InputError(f"{folder} holds no DreamSim: it needs one of the folders {names}.")
    towers = [_open_tower(folder, tower) for tower in FORMS[form]]
    additions, scale = _open_additions(lora[form])
    params = []
    for number, (tower, tensors) in enumerate(zip(FORMS[form], towers, strict=True)):
        network = vit.read(tensors, f"{folder}'s {tower}")
        _add(network["blocks"], additions, number, scale, lora[form])
        if "clip" in tower:
            if "proj" not in tensors or not vit.NORM_IN <= set(tensors):
                raise InputError(f"{folder}'s {tower} lacks proj or pos_drop: not DreamSim's CLIP.")
            network["proj"] = np.asarray(tensors["proj"].read(), np.float32)
        params.append(network)
    used = {f"{i}.{key}": x for i, tensors in enumerate(towers) for key, x in tensors.items()}
    used |= {f"lora.{key}": x for key, x in additions.items()}
    function = lambda params, images: embed(params, FORMS[form], imprint.to_float(images))
    about = f"DreamSim, {form}"
    size = vit.image_size(params[0])
    return Encoder("dreamsim", about, size, weights_hash(used)[:16], Batched(function, params))


def _lora_name(form: str) -> str:
    return f"{form}_lora" if form == "ensemble" else f"{form}_single_lora"


def _open_tower(folder: Path, tower: str) -> dict[str, StoredTensor]:
    names = FILES.get(tower, (f"{tower}_pretrain.pth.tar",))
    paths = [folder / name for name in names if (folder / name).is_file()]
    if not paths:
        raise InputError(f"{folder} lacks {names[0]}, DreamSim's {tower}.")
    return open_tensors(paths[0])


def _open_additions(folder: Path) -> tuple[dict[str, StoredTensor], float]:
    """The low-rank matrices, and what their product is multiplied by."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        scale = config["lora_alpha"] / config["r"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"Cannot read {folder / 'adapter_config.json'}: {error}.") from error
    if config.get("use_rslora") or config.get("bias", "none") != "none":
        raise InputError(f"{folder} has a kind of LoRA that is not known here.")
    files = [folder / f"adapter_model.{suffix}" for suffix in ("safetensors", "bin")]
    path = next((path for path in files if path.is_file()), files[0])
    return open_tensors(path), scale


def _add(
    blocks: dict, additions: Mapping[str, StoredTensor], tower: int, scale: float, folder: Path
) -> None:
    """Adds a tower's low-rank products to its weights."""
    pairs: dict[int, dict[str, np.ndarray]] = {}
    for key, tensor in additions.items():
        if not (match := ADDITION.fullmatch(key)):
            raise InputError(f"{folder} holds {key}, which is not an addition to a qkv layer.")
        if int(match[1]) == tower:
            pairs.setdefault(int(match[2]), {})[match[3]] = np.asarray(tensor.read(), np.float32)
    weights = blocks["attn.qkv.weight"]
    whole = all(set(pair) == {"A", "B"} for pair in pairs.values())
    if sorted(pairs) != list(range(len(weights))) or not whole:
        raise InputError(f"{folder} does not hold an addition for each block of tower {tower}.")
    for block, pair in pairs.items():
        weights[block] += scale * (pair["B"] @ pair["A"])


def embed(params: list[dict], towers: tuple[str, ...], images: jax.Array) -> jax.Array:
    """Embeddings of unit length.

    Args:
        params: Each tower's, see vit.py; CLIP's with "proj" (c out).
        towers: Their names, as in `FORMS`.
        images: (b s s 3) in [-1, 1].

    Returns:
        (b c) float32: the towers' side by side, centred.
    """
    parts = []
    for tower, network in zip(towers, params, strict=True):
        if "clip" not in tower:
            # The class token without the last norm, as the package takes it from the last block.
            parts.append(vit.tokens(network, normalize(images))[:, 0])
            continue
        activation = "gelu" if tower.startswith("open_clip") else "quick_gelu"
        shown = CLIPVision.normalize(images)
        x = vit.tokens(network, shown, epsilon=1e-5, activation=activation)[:, 0]
        parts.append(vit.norm(network, "norm", x, 1e-5) @ network["proj"])
    x = jnp.concatenate(parts, axis=-1)
    x = x - x.mean(axis=-1, keepdims=True)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
