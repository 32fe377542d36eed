"""The Hugging Face hub: models by their name there, ORG/NAME or ORG/NAME@REVISION.

All is left to `huggingface_hub`: where files are kept (HF_HOME), the token (HF_TOKEN, or its
login's), and offline mode (HF_HUB_OFFLINE=1). Nothing is fetched but what the caller names.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from imprint_jax.errors import InputError

log = logging.getLogger(__name__)

NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
# Of a released folder: never a pickle.
MODEL_FILES = ("config.json", "*.safetensors", "README.md", "LICENCE*")


def is_name(text: str) -> bool:
    """Whether a text has the form of a model's name on the hub."""
    return NAME.fullmatch(text) is not None


def fetch(name: str, patterns: Sequence[str] = MODEL_FILES, ignored: Sequence[str] = ()) -> Path:
    """The folder of a repository's files on this machine; fetches those that are missing.

    Args:
        name: "ORG/NAME", or "ORG/NAME@REVISION" with a branch, a tag or a commit.
        patterns: What to fetch; others that were fetched before are in the folder too.
        ignored: What not to fetch of it.

    Raises:
        InputError: There is no such repository or revision, it is not open to this user, there is
            no network, or `huggingface_hub` is not installed.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise InputError(f"{name!r} is no name on the hub: give ORG/NAME, or ORG/NAME@REVISION.")
    with errors_of_the_hub(name):
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            match["repository"],
            revision=match["revision"],
            allow_patterns=list(patterns),
            ignore_patterns=list(ignored),
        )
    log.info("%s is commit %s", name, Path(folder).name)
    return Path(folder)


# What `imprint convert hub:ORG/NAME` fetches for a kind: of each folder the configuration and the
# weights, not their copies in half precision or for training on.
CONVERTED = {
    "sd": ("model_index.json", "scheduler/*.json", "unet/*", "vae/*"),
    "paint-by-example": (
        *("model_index.json", "scheduler/*.json", "feature_extractor/*.json"),
        *("unet/*", "vae/*", "image_encoder/*"),
    ),
    "objectstitch": ("ObjectStitch.pth",),
    "dinov2": ("config.json", "model*.safetensors*", "pytorch_model*.bin*"),
}
CONVERTED |= {"sd-inpainting": CONVERTED["sd"], "clip": CONVERTED["dinov2"]}
COPIES = ("*fp16*", "*bf16*", "*non_ema*", "*.msgpack", "*.onnx", "*.h5", "*.ckpt")


def fetch_to_convert(name: str, kind: str) -> Path:
    """What a kind of public weights has to be converted from: a repository's folder, or a file.

    Weights are fetched as safetensors, or as pickles where a repository has nothing else.

    Args:
        name: As `fetch`.
        kind: One of `CONVERTED`.

    Raises:
        InputError: As `fetch`, or the kind must be told.
    """
    if kind not in CONVERTED:
        raise InputError(f"Say what {name} is: --kind {', '.join(CONVERTED)}.")
    patterns = CONVERTED[kind]
    if kind == "objectstitch":
        return fetch(name, patterns) / patterns[0]
    folder = fetch(name, patterns, [*COPIES, "*.bin"])
    places = {folder / Path(pattern).parent for pattern in patterns if "json" not in pattern}
    if all(any(place.glob("*.safetensors")) for place in places):
        return folder
    return fetch(name, patterns, COPIES)


def name_of(folder: Path) -> str:
    """ "ORG/NAME@COMMIT" of a folder that `fetch` returned; of any other its own name."""
    snapshots, repository = folder.parent, folder.parent.parent.name
    if snapshots.name != "snapshots" or not repository.startswith("models--"):
        return folder.name
    return f"{repository.removeprefix('models--').replace('--', '/', 1)}@{folder.name}"


@contextmanager
def errors_of_the_hub(name: str) -> Iterator[None]:
    """Turns what `huggingface_hub` says of a repository into one sentence, an `InputError`."""
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise InputError(
            f"There is no folder {name}; to look for it on the hub: pip install 'imprint_jax[hub]'."
        ) from error
    try:
        yield
    except errors.GatedRepoError as error:
        raise InputError(
            f"{name} is gated: accept its terms on the hub, then log in with `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"There is no folder {name}, and no such repository on the hub that this user may read:"
            " if it is private, log in with `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"The repository has no revision as in {name}.") from error
    except errors.LocalEntryNotFoundError as error:
        raise InputError(
            f"There is no folder {name}, it is not among the files fetched from the hub before, and"
            " the hub cannot be reached."
        ) from error
    except errors.HFValidationError as error:
        raise InputError(f"{name!r} is no name on the hub: {error}") from error
    # Whatever else the network, the hub or the disk says: the library has no class for all of it.
    except (errors.HTTPError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{name} could not be fetched or sent: {reason}") from error
