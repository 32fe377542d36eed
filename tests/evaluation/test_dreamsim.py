"""DreamSim and DINO against transformers of PyTorch with the same weights.

Before, all four forms were compared once with the code of the package dreamsim 0.2.1 itself, at
full width and three blocks: distances differed by 2e-7 at most.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from imprint_jax.errors import InputError
from imprint_jax.evaluation import dreamsim, encoders, identity

CHANNELS, DEPTH, SIZE, OUT = 128, 2, 32, 16  # two heads of 64
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Reference(torch.nn.Module):
    """A vision transformer of PyTorch's own layers, and its state in the names of DINO's files."""

    def __init__(self, patch: int, *, clip: bool = False, quick: bool = False):
        super().__init__()
        epsilon = 1e-5 if clip else 1e-6
        activation = (lambda x: x * torch.sigmoid(1.702 * x)) if quick else torch.nn.functional.gelu
        self.patches = torch.nn.Conv2d(3, CHANNELS, patch, patch)
        self.cls = torch.nn.Parameter(torch.randn(1, 1, CHANNELS))
        self.pos = torch.nn.Parameter(torch.randn(1, 1 + (SIZE // patch) ** 2, CHANNELS))
        self.norm_in = torch.nn.LayerNorm(CHANNELS, epsilon) if clip else None
        self.blocks = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(
                CHANNELS, CHANNELS // 64, 2 * CHANNELS, 0.0, activation, epsilon,
                batch_first=True, norm_first=True,
            )
            for _ in range(DEPTH)
        )  # fmt: skip
        self.norm = torch.nn.LayerNorm(CHANNELS, epsilon)
        self.proj = torch.nn.Parameter(torch.randn(CHANNELS, OUT)) if clip else None
        for x in self.parameters():
            torch.nn.init.normal_(x, 1.0 if x.ndim == 1 else 0.0, 0.2)
        self.eval()

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1) + self.pos
        x = x if self.norm_in is None else self.norm_in(x)
        for block in self.blocks:
            x = block(x)
        return x[:, 0] if self.proj is None else self.norm(x[:, 0]) @ self.proj

    def file(self) -> dict[str, torch.Tensor]:
        state = {"cls_token": self.cls, "pos_embed": self.pos}
        layers = {"patch_embed.proj": self.patches, "norm": self.norm}
        if self.proj is not None:
            state["proj"], layers["pos_drop"] = self.proj, self.norm_in
        for i, block in enumerate(self.blocks):
            layers |= {
                f"blocks.{i}.norm1": block.norm1,
                f"blocks.{i}.norm2": block.norm2,
                f"blocks.{i}.attn.proj": block.self_attn.out_proj,
                f"blocks.{i}.mlp.fc1": block.linear1,
                f"blocks.{i}.mlp.fc2": block.linear2,
            }
            state[f"blocks.{i}.attn.qkv.weight"] = block.self_attn.in_proj_weight
            state[f"blocks.{i}.attn.qkv.bias"] = block.self_attn.in_proj_bias
        for name, layer in layers.items():
            state |= {f"{name}.{k}": x for k, x in layer.state_dict().items()}
        return {key: x.detach().clone() for key, x in state.items()}


def write(folder: Path, form: str) -> list[Reference]:
    """DreamSim's files at random, and the towers they are of, additions included."""
    torch.manual_seed(0)
    towers, additions = [], {}
    for number, name in enumerate(dreamsim.FORMS[form]):
        clip = "clip" in name
        patch = 8 if name.endswith("b32") else 16
        tower = Reference(patch, clip=clip, quick=name.startswith("clip"))
        if clip:
            torch.save({"state_dict": tower.file()}, folder / f"{name}_pretrain.pth.tar")
        else:
            (folder / "checkpoints").mkdir()
            torch.save(tower.file(), folder / "checkpoints" / "dino_vitbase16_pretrain.pth")
        prefix = f"base_model.model.extractor_list.{number}.model"
        for i, block in enumerate(tower.blocks):
            a, b = torch.randn(4, CHANNELS), torch.randn(3 * CHANNELS, 4)
            additions[f"{prefix}.blocks.{i}.attn.qkv.lora_A.weight"] = a
            additions[f"{prefix}.blocks.{i}.attn.qkv.lora_B.weight"] = b
            block.self_attn.in_proj_weight.data += 0.5 / 4 * b @ a
        towers.append(tower)
    lora = folder / dreamsim._lora_name(form)
    lora.mkdir()
    (lora / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 0.5}))
    save_file(additions, lora / "adapter_model.safetensors")
    return towers


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for _ in range(count)]


def normalized(picture: np.ndarray, mean, deviation) -> torch.Tensor:
    scaled = (picture / 255 - np.array(mean)) / np.array(deviation)
    return torch.tensor(scaled.transpose(2, 0, 1)[None], dtype=torch.float32)


@pytest.mark.parametrize("form", dreamsim.FORMS)
def test_distances_equal_the_references(form, tmp_path):
    towers = write(tmp_path, form)
    items = pictures(3)
    with torch.no_grad():
        embeddings = []
        for picture in items:
            shown = [normalized(picture, *(IMAGENET if t.proj is None else CLIP)) for t in towers]
            x = torch.cat([t(image) for t, image in zip(towers, shown, strict=True)], dim=-1)
            embeddings.append(x - x.mean())
        expected = [1 - torch.cosine_similarity(embeddings[0], x).item() for x in embeddings]
    encoder = dreamsim.load(tmp_path)
    assert (encoder.name, encoder.size, encoder.about) == ("dreamsim", SIZE, f"DreamSim, {form}")
    ours = np.stack(list(encoder.embed((x,) for x in items)))
    np.testing.assert_allclose(1 - identity.cosine(ours[0], ours), expected, atol=1e-5)
    assert min(expected[1:]) > 0.01 and abs(expected[0]) < 1e-6


def test_dino_is_an_encoder_by_its_class_token(tmp_path):
    torch.manual_seed(1)
    tower = Reference(16)
    torch.save(tower.file(), tmp_path / "dino_deitsmall16_pretrain.pth")
    encoder = encoders.load(tmp_path / "dino_deitsmall16_pretrain.pth")
    assert (encoder.name, encoder.size) == ("dino", SIZE)
    (picture,) = pictures(1)
    with torch.no_grad():
        expected = tower.norm(tower(normalized(picture, *IMAGENET)))[0]
    np.testing.assert_allclose(next(encoder.embed(iter([(picture,)]))), expected, atol=1e-5)


def test_files_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no DreamSim: it needs one of the folders ensemble"):
        dreamsim.load(tmp_path)
    write(tmp_path, "dino_vitb16")
    lora = tmp_path / "dino_vitb16_single_lora"
    (lora / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        dreamsim.load(tmp_path)
    (lora / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 0.5}')
    save_file({}, lora / "adapter_model.safetensors")
    with pytest.raises(InputError, match="does not hold an addition for each block of tower 0"):
        dreamsim.load(tmp_path)
    (tmp_path / "checkpoints" / "dino_vitbase16_pretrain.pth").unlink()
    with pytest.raises(InputError, match=r"lacks dino_vitbase16_pretrain\.pth"):
        dreamsim.load(tmp_path)
