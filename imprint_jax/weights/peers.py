"""Paint-by-Example and ObjectStitch: public compositors of Stable Diffusion's UNet and CLIP.

Both turn CLIP's tokens into the UNet's context by a mapper (`models.adapter.Mapper`), and have the
same tensors; what differs is in `PEERS`. Read are diffusers' folder `image_encoder/`
(PaintByExampleImageEncoder), in both spellings of CLIP's names, and the original checkpoints.
"""

import re

from flax import traverse_util

from imprint_jax.errors import InputError
from imprint_jax.models.clip import CLIP_MEAN, CLIP_STD
from imprint_jax.weights import clip
from imprint_jax.weights.mapping import Piece, Table, axes_of
from imprint_jax.weights.tensors import StoredTensor

# What a released folder of each says beside its networks' sizes.
PEERS: dict[str, dict[str, dict]] = {
    # Fantasy-Studio/Paint-by-Example: scripts/inference.py, test.sh, ldm/data/open_images.py.
    "paint-by-example": dict(
        model=dict(encoder="clip", adapter_kind="mapper", object_tokens="class"),
        diffusion=dict(hole_fill="exact", final_blend=False),
        sampling=dict(num_steps=50, guidance_scale=5.0, sampler="ddim", spacing="leading"),
        # It was trained on boxes and 10 pixels around them, of photos of 1024 pixels; as a share,
        # of an object of a third of the photo.
        object_view=dict(fit="stretch", margin=0.03, background="photo", resample="bicubic"),
    ),
    # bcmi/ObjectStitch-Image-Composition: scripts/inference.py, ldm/data/open_images.py.
    "objectstitch": dict(
        model=dict(encoder="clip", adapter_kind="mapper", object_tokens="all"),
        diffusion=dict(hole_fill="exact", final_blend=False),
        sampling=dict(
            num_steps=50, guidance_scale=5.0, sampler="ddim", spacing="leading", mask_level=3
        ),
        object_view=dict(fit="stretch", margin=0.0, background="black", resample="bilinear"),
    ),
}
# By the authors' README files, of the published weights.
LICENCES = {
    "paint-by-example": "CreativeML OpenRAIL-M",
    "objectstitch": "not stated by its authors; it derives from CreativeML OpenRAIL-M weights",
}

# Our paths in the mapper, and diffusers' names; {i} is a block's number.
NAMES = {
    "norm_out": "final_layer_norm",
    "proj": "proj_out",
    "blocks/{i}/norm1": "mapper.blocks.{i}.norm1",
    "blocks/{i}/norm2": "mapper.blocks.{i}.norm3",  # theirs has no second attention
    "blocks/{i}/attn/proj": "mapper.blocks.{i}.attn1.to_out.0",
    "blocks/{i}/mlp/fc1": "mapper.blocks.{i}.ff.net.0.proj",
    "blocks/{i}/mlp/fc2": "mapper.blocks.{i}.ff.net.2",
}
QKV = "mapper.blocks.{i}.attn1.to_%s"
NULL = "uncond_vector"
# The original names of a block's layers, and diffusers'; and of what is outside of the blocks.
ORIGINAL_LAYERS = {
    "ln_1": "norm1",
    "ln_2": "norm3",
    "attn.c_proj": "attn1.to_out.0",
    "mlp.c_fc": "ff.net.0.proj",
    "mlp.c_proj": "ff.net.2",
}
ORIGINAL_NULL = "learnable_vector"


def mapper_settings(tensors: dict[str, StoredTensor], name: str) -> dict:
    """`config.model.adapter` of a mapper in diffusers' names.

    Raises:
        InputError: It is none.
    """
    first = "mapper.blocks.0.ff.net.0.proj.weight"
    needed = (first, "final_layer_norm.weight", "proj_out.weight", NULL)
    if lacking := [key for key in needed if key not in tensors]:
        raise InputError(f"{name} is no Paint-by-Example's: it lacks {', '.join(lacking)}.")
    numbers = [re.match(r"mapper\.blocks\.(\d+)\.", key) for key in tensors]
    return dict(
        width_in=tensors["final_layer_norm.weight"].shape[0],
        width=tensors["proj_out.weight"].shape[0],
        depth=1 + max(int(match[1]) for match in numbers if match),
        num_heads=1,  # PaintByExampleMapper in diffusers; ldm/modules/encoders/xf.py
        mlp_width=tensors[first].shape[0],
    )


def mapper_table(abstract: dict) -> Table:
    """diffusers' names; queries, keys and values are thirds of our fused projection."""
    pieces = []
    for path, x in traverse_util.flatten_dict(abstract, sep="/").items():
        if path == "null_token":
            pieces.append(Piece(path, NULL, lead=2))
            continue
        layer, _, kind = path.rpartition("/")
        word = "bias" if kind == "bias" else "weight"
        axes = axes_of(path, x.ndim)
        number = re.match(r"blocks/(\d+)/", path)
        i = number[1] if number else ""
        layer = layer.replace(f"blocks/{i}/", "blocks/{i}/")
        if layer in NAMES:
            pieces.append(Piece(path, f"{NAMES[layer].format(i=i)}.{word}", axes))
            continue
        third = x.shape[-1] // 3
        for n, letter in enumerate("qkv"):
            part = (..., slice(n * third, (n + 1) * third))
            pieces.append(Piece(path, f"{QKV.format(i=i) % letter}.{word}", axes, part))
    return Table(pieces)


def split(tensors: dict[str, StoredTensor]) -> tuple[dict, dict]:
    """The tensors of an image_encoder/ by what they belong to.

    Returns:
        CLIP's, in the names of its own folders: files of transformers 4 have a level
        `vision_model` that those of transformers 5 have not. And the mapper's.
    """
    tower = {
        f"vision_model.{key.removeprefix('model.').removeprefix('vision_model.')}": tensor
        for key, tensor in tensors.items()
        if key.startswith("model.")
    }
    return tower, {key: x for key, x in tensors.items() if not key.startswith("model.")}


def diffusers_names(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """What makes the condition in an original checkpoint, under the names of image_encoder/."""
    named = {}
    for key, tensor in tensors.items():
        layer, _, kind = key.removeprefix("cond_stage_model.").rpartition(".")
        block = re.fullmatch(r"mapper\.resblocks\.(\d+)\.(.+)", layer)
        if key == ORIGINAL_NULL:
            named[NULL] = tensor
        elif key.startswith("cond_stage_model.transformer."):
            named["model." + key.removeprefix("cond_stage_model.transformer.")] = tensor
        elif layer == "final_ln":
            named[f"final_layer_norm.{kind}"] = tensor
        elif key.startswith("proj_out."):
            named[key] = tensor
        elif block and block[2] == "attn.c_qkv":
            for n, letter in enumerate("qkv"):
                named[f"{QKV.format(i=block[1]) % letter}.{kind}"] = _third(tensor, n)
        elif block and block[2] in ORIGINAL_LAYERS:
            named[f"mapper.blocks.{block[1]}.{ORIGINAL_LAYERS[block[2]]}.{kind}"] = tensor
        elif key.startswith("cond_stage_model."):
            named[key] = tensor  # of unknown use: the table will say so
    return named


def _third(tensor: StoredTensor, n: int) -> StoredTensor:
    """One of three equal parts along the first axis: queries, keys and values of one head."""
    rows = tensor.shape[0] // 3
    part = slice(n * rows, (n + 1) * rows)
    return StoredTensor((rows, *tensor.shape[1:]), tensor.dtype, lambda: tensor.read()[part])


def tower_table(abstract: dict) -> Table:
    """CLIP's names within image_encoder/, as transformers 4 wrote them."""
    table = clip.hf_table(abstract)
    return Table([piece._replace(key=f"model.{piece.key}") for piece in table.pieces])


def image_encoder_config(tower: dict, adapter: dict) -> dict:
    """diffusers' config.json of PaintByExampleImageEncoder for our tower and mapper."""
    return clip.hf_config(tower) | {
        "architectures": ["PaintByExampleImageEncoder"],
        "projection_dim": adapter["width"],
    }


def pipeline_files(released: dict) -> dict[str, dict]:
    """The JSON files that make the networks' folders a PaintByExamplePipeline of diffusers.

    Args:
        released: A config.json's content.

    Returns:
        {path within the folder: content}.
    """
    diffusion, side = released["diffusion"], released["object_size"]
    mean, std = [list(x) for x in (CLIP_MEAN, CLIP_STD)]
    return {
        "scheduler/scheduler_config.json": {
            "_class_name": "PNDMScheduler",
            "beta_end": diffusion["beta_end"],
            "beta_schedule": "scaled_linear",
            "beta_start": diffusion["beta_start"],
            "num_train_timesteps": diffusion["num_train_timesteps"],
            "prediction_type": diffusion["prediction_type"],
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
        },
        "feature_extractor/preprocessor_config.json": {
            "crop_size": {"height": side, "width": side},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": mean,
            "image_processor_type": "CLIPImageProcessor",
            "image_std": std,
            "resample": 3,  # bicubic
            "size": {"shortest_edge": side},
        },
        "model_index.json": {
            "_class_name": "PaintByExamplePipeline",
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "image_encoder": ["paint_by_example", "PaintByExampleImageEncoder"],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "PNDMScheduler"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    }
