"""`imprint push`: a released folder to the Hugging Face hub, with a model card."""

from pathlib import Path

from imprint_jax.config.fields import ReleasedConfig
from imprint_jax.errors import InputError
from imprint_jax.weights import hub, release


def push(
    folder: Path,
    repository: str,
    *,
    trained: str,
    licence: str | None = None,
    picture: Path | None = None,
    private: bool = False,
) -> str:
    """Uploads a whole released folder with a model card; makes the repository if there is none.

    Args:
        folder: The folder; its config.json, weights and licences are uploaded.
        repository: "ORG/NAME".
        trained: How it was trained, for the card.
        licence: What the weights stand under, as the hub calls it ("apache-2.0"); may be None where
            public weights that they come from decide it.
        picture: A .png to show in the card.
        private: Whether a new repository is open to nobody else.

    Returns:
        The address of the commit.

    Raises:
        InputError: The folder is not whole, a licence is missing, or as `hub.fetch`.
    """
    config = release.load_config(folder)
    release.check_whole(folder)
    if picture is not None and (picture.suffix.lower() != ".png" or not picture.is_file()):
        raise InputError(f"The picture {picture} must be a .png file.")
    card = _card(
        repository, config, release.load_licences(folder), trained, licence, picture is not None
    )
    files: dict[str, Path | bytes] = {}
    files |= {path.name: path for pattern in hub.MODEL_FILES for path in folder.glob(pattern)}
    files |= {"README.md": card.encode()} | ({"picture.png": picture} if picture else {})
    with hub.errors_of_the_hub(repository):
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(
            repository,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=x) for name, x in files.items()],
            commit_message="Weights for imprint_jax",
        )
    return commit.commit_url


def _card(
    repository: str,
    config: ReleasedConfig,
    licences: dict[str, str],
    trained: str,
    licence: str | None,
    has_picture: bool,
) -> str:
    """The model card: what it is, how it was trained, its licence."""
    if unstated := [name for name, text in licences.items() if "not stated" in text]:
        raise InputError(
            f"The licence of {', '.join(unstated)} is not stated: weights cannot be published"
            " without one. If you know it, write it into config.json's licences."
        )
    if any("CreativeML OpenRAIL-M" in text for text in licences.values()):
        licence = "creativeml-openrail-m"
    if licence is None:
        raise InputError("Say under which licence the weights are: --licence apache-2.0, ...")
    side = config.image_size
    encoder = {"dinov2": "DINOv2", "clip": "CLIP"}[config.model.encoder]
    lines = [
        *("---", "library_name: imprint_jax", "pipeline_tag: image-to-image"),
        *(f"license: {licence}", "tags:", "- image-compositing", "---", ""),
        *(f"# {repository.rpartition('/')[2]}", ""),
        *(["![An object, a photo, and one in the other](picture.png)", ""] if has_picture else []),
        "Puts an object from one photo into another, with imprint_jax:",
        "",
        "```sh",
        f"imprint compose --model {repository} --object object.png --background photo.jpg \\",
        "    --box 100,100,400,400 --out composite.png",
        "```",
        "",
        f"**What it is.** A diffusion model of {side} x {side} pixels, conditioned by {encoder} on"
        f" the object and working in the crop around the hole; `config.json` has all sizes.",
        "",
        f"**How it was trained.** {trained}",
        "",
        f"**Licence.** {licence}.",
        *(["", "| component | its public weights' licence |", "|---|---|"] if licences else []),
        *(f"| {name} | {text} |" for name, text in licences.items()),
        "",
    ]
    return "\n".join(lines)
