"""Files of named tensors, read one tensor at a time: safetensors, and PyTorch's own.

A file is opened as a dict of `StoredTensor`s: names, shapes and dtypes are known at once, values
are read when asked for. PyTorch's files are pickles; they are opened only in the mode that builds
tensors and plain containers and refuses everything else (`weights_only`), so that no file runs
code.
"""

import hashlib
import json
import pickle
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from imprint_jax.errors import InputError
from imprint_jax.runtime.files import atomic_file

# safetensors' names of the dtypes that weights come in.
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
}
TORCH_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt", ".tar")  # DreamSim's are .pth.tar
# The one global that Stable Diffusion's original checkpoints name beside tensors: the class of a
# training callback, as a key of a dict. An empty class stands in for it.
CHECKPOINT_CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
# What the pickle reader raises for bytes that are no pickle: whatever they happen to ask of it.
_DAMAGED = (
    *(RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(AssertionError, ArithmeticError, struct.error),
)
# What a download leaves in the place of the file that was meant.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        shape: Its shape.
        dtype: NumPy dtype; bfloat16 is ml_dtypes'.
        read: Reads it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def open_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, by its suffix: .safetensors, .bin, .pth, .pt, .ckpt.

    Raises:
        InputError: No such file, another suffix, a damaged file, or a pickle with more in it than
            tensors.
    """
    if not path.is_file():
        raise InputError(f"The weights file {path} is missing.")
    check_download(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _open_torch(path)
    raise InputError(
        f"{path} is no weights file; known are .safetensors, {', '.join(TORCH_SUFFIXES)}."
    )


def check_download(path: Path) -> None:
    """Checks that a file is not what a failed download leaves instead of weights.

    Raises:
        InputError: It is empty, a git-LFS pointer, a web page, or a text.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise InputError(f"{path} is damaged: it is empty.")
    if start.startswith(LFS_POINTER):
        raise InputError(
            f"{path} is a git-LFS pointer, not the file itself: run `git lfs pull` where it was"
            " cloned, or download the file."
        )
    if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        raise InputError(f"{path} is a web page, not the file itself: download it again.")
    if path.suffix in (".safetensors", *TORCH_SUFFIXES) and _is_text(start):
        line = start.decode().strip().partition("\n")[0][:80]
        raise InputError(f"{path} holds no weights but a text: {line!r}. Download it again.")


def _is_text(start: bytes) -> bool:
    return all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start)


def read_json(path: Path) -> dict:
    """The content of a JSON file that holds an object.

    Raises:
        InputError: It is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing.")
    check_download(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object.")
    return content


def open_folder(folder: Path, stem: str) -> dict[str, StoredTensor]:
    """The tensors of a Hugging Face folder: one file, or shards listed by an index.

    Taken is the first there is of STEM.safetensors, STEM.safetensors.index.json, and the same of
    `.bin`; else the one variant, in the names that diffusers and transformers have given it:
    STEM.fp16.safetensors, STEM.safetensors.index.fp16.json, STEM.fp16.safetensors.index.json.

    Args:
        folder: Where the files are.
        stem: "diffusion_pytorch_model" or "model".

    Raises:
        InputError: None is there, several variants are, or as `open_tensors`.
    """
    # transformers calls its pickles pytorch_model.bin.
    stems = (stem, "pytorch_model") if stem == "model" else (stem,)
    for name in stems:
        for suffix in (".safetensors", ".bin"):
            if (folder / f"{name}{suffix}").is_file():
                return open_tensors(folder / f"{name}{suffix}")
            if (folder / f"{name}{suffix}.index.json").is_file():
                return _open_shards(folder / f"{name}{suffix}.index.json")
    for suffix in ("safetensors", "bin"):
        one = rf"\.\w+\.{suffix}"
        index = rf"\.{suffix}\.index\.\w+\.json|{one}\.index\.json"
        pattern = re.compile(rf"({'|'.join(stems)})({one}|{index})")
        variants = sorted(p for p in folder.glob("*") if pattern.fullmatch(p.name))
        if len(variants) == 1 and variants[0].suffix == ".json":
            return _open_shards(variants[0])
        if len(variants) == 1:
            return open_tensors(variants[0])
        if variants:
            names = ", ".join(p.name for p in variants)
            raise InputError(f"{folder} holds {names}, of which one can be read: keep one.")
    raise InputError(f"{folder} lacks {stem}.safetensors, or its shards and their index.")


def _open_shards(index: Path) -> dict[str, StoredTensor]:
    content = read_json(index).get("weight_map")
    weight_map = content if isinstance(content, dict) else {}
    names = weight_map.values()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise InputError(f"{index} is damaged: its weight_map names no file of each tensor.")
    shards = {name: open_tensors(index.parent / name) for name in sorted(set(weight_map.values()))}
    lacking = sorted(key for key, name in weight_map.items() if key not in shards[name])
    if lacking:
        raise InputError(f"The shards of {index} lack {', '.join(lacking)}.")
    return {key: shards[name][key] for key, name in weight_map.items()}


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        # Mapped pages would count as this process's memory; read, they are gone when freed.
        file = safetensors.safe_open(path, framework="np", backend="pread")
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}.") from error
    tensors = {}
    for key in file.keys():
        entry = file.get_slice(key)
        if entry.get_dtype() not in DTYPES:
            raise _unreadable_dtype(path, key, entry.get_dtype())
        read = lambda key=key: file.get_tensor(key)
        tensors[key] = StoredTensor(tuple(entry.get_shape()), DTYPES[entry.get_dtype()], read)
    return tensors


def _open_torch(path: Path) -> dict[str, StoredTensor]:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"Reading {path.suffix} files needs PyTorch: pip install 'imprint_jax[torch]', or get"
            " the weights as .safetensors."
        ) from error

    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # else the format before PyTorch 1.6
    stand_in = type("ModelCheckpoint", (), {})
    try:
        with torch.serialization.safe_globals([(stand_in, CHECKPOINT_CALLBACK)]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        # PyTorch's message names the global, and advises to load the file without protection.
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise InputError(
                f"{path} is refused: it holds {refused[1]}, which is no tensor and could run code."
            ) from error
        raise InputError(f"{path} is damaged, or no file of PyTorch tensors.") from error
    except _DAMAGED as error:
        raise InputError(f"{path} is damaged, or no file of PyTorch tensors.") from error

    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dict of tensors.")

    def stored(key: str, tensor: torch.Tensor) -> StoredTensor:
        tensor = tensor.detach()
        if tensor.dtype == torch.bfloat16:  # which NumPy has not
            bits = tensor.contiguous().view(torch.int16)
            bfloat16 = DTYPES["BF16"]
            return StoredTensor(tuple(tensor.shape), bfloat16, lambda: bits.numpy().view(bfloat16))
        name = str(tensor.dtype).removeprefix("torch.")
        dtype = next((dtype for dtype in DTYPES.values() if dtype.name == name), None)
        if dtype is None or tensor.layout != torch.strided:
            raise _unreadable_dtype(path, key, name)
        return StoredTensor(tuple(tensor.shape), dtype, tensor.numpy)

    tensors = {key: x for key, x in content.items() if isinstance(x, torch.Tensor)}
    return {str(key): stored(key, x) for key, x in tensors.items()}


def _unreadable_dtype(path: Path, key: str, dtype: str) -> InputError:
    return InputError(
        f"{path} holds {key} as {dtype}, which cannot be read: get the weights as float32, float16"
        " or bfloat16."
    )


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file; under its name it is whole or not at all.

    Args:
        path: The file; replaced if it exists.
        tensors: Contiguous arrays.
        metadata: Texts for the file's header.
    """
    with atomic_file(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            safetensors.numpy.save_file(dict(tensors), partial, metadata)
        except safetensors.SafetensorError as error:  # as a full disk
            raise InputError(f"Cannot write {path}: {error}.") from error
        partial.chmod(mode)  # safetensors lets only the owner read it


def file_hash(path: Path) -> str:
    """The file's SHA-256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_hash(tensors: Mapping[str, StoredTensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, whatever files they are in; hexadecimal."""
    return arrays_hash((key, tensor.read()) for key, tensor in sorted(tensors.items()))


def arrays_hash(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    """SHA-256 over names, dtypes, shapes and values in their order; hexadecimal."""
    digest = hashlib.sha256()
    for key, array in arrays:
        digest.update(f"{key} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
