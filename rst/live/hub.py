"""Adapters on the Hugging Face hub: download a folder by its id, and upload one, with huggingface_hub."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from rst.delta.file import CONFIG_FILE, DELTA_FILE
from rst.delta.sparse_delta import Encoding, SparseDelta
from rst.errors import CheckpointError, ConfigError
from rst.extras import install_command
from rst.live.adapter_folder import CARD_FILE, write_adapter
from rst.live.signature import check_signature

if TYPE_CHECKING:
    from typing_extensions import Unpack


class HubOptions(TypedDict, total=False):
    """Where to look for an adapter and how, in the terms of huggingface_hub, and whose signatures to trust."""

    subfolder: str | None
    """Of the folder or the repository."""
    revision: str | None
    """Of the adapter, not of its base."""
    token: str | bool | None
    """For a private repository."""
    cache_dir: str | None
    """Where downloaded files are kept."""
    local_files_only: bool
    """Do not go to the network."""
    trusted_keys: Sequence[str | os.PathLike[str]] | None
    """Take only what one of these signed: PEM files, see `rst.live.signature`."""


class PushOptions(TypedDict, total=False):
    """How to upload an adapter, in the terms of huggingface_hub."""

    commit_message: str
    commit_description: str | None
    private: bool | None
    """For a new repository; an existing one stays as it is."""
    token: str | bool | None
    revision: str | None
    """The branch to upload to, created if missing."""
    create_pr: bool


def find_adapter(
    model_id: str | os.PathLike[str],
    files: Sequence[str] = (CONFIG_FILE, DELTA_FILE),
    **options: "Unpack[HubOptions]",
) -> Path:
    """Return an adapter's path: `model_id` itself if it is a local folder or file, else the hub's, downloaded.

    Args:
        model_id: a folder that `save_pretrained` wrote, a delta's file, or a repository on the hub.
        files: the files that are needed.
        **options: see `HubOptions`. With `trusted_keys`, all files of a repository are downloaded.

    Raises:
        CheckpointError: the folder, the file or the adapter on the hub does not exist, or the hub cannot be reached.
        ConfigError: an option is unknown.
        SignatureError: none of the `trusted_keys` signed the adapter, or it was changed since.
    """
    _check_options(options, HubOptions)
    trusted_keys = options.pop("trusted_keys", None)
    local = Path(model_id)
    if local.is_dir():
        place = local / (options.get("subfolder") or "")
    elif local.is_file():
        place = local
    elif trusted_keys is None:
        place = _download_files(os.fspath(model_id), files, **options)
    else:
        place = download_adapter(os.fspath(model_id), **options)
    if trusted_keys is not None:
        check_signature(place, trusted_keys)
    return place


def download_adapter(model_id: str, subfolder: str | None = None, **options: Any) -> Path:
    """Return an adapter's folder with all files, which a signature covers. Raises as `download_folder`."""
    within = f"{subfolder}/*" if subfolder else None
    return download_folder(model_id, allow_patterns=within, **options) / (subfolder or "")


def download_folder(model_id: str, **options: Any) -> Path:
    """Return a repository's folder in the hub's cache, as filled by `snapshot_download` with these options.

    Raises:
        CheckpointError: the repository does not exist, or the hub cannot be reached.
    """
    hub = _import_hub(f"{model_id}: no such file or folder; to look for it on the hub")
    try:
        return Path(hub.snapshot_download(model_id, **options))
    except Exception as error:  # network errors have another class in each version of huggingface_hub
        raise CheckpointError(f"no such file or folder, and not on the hub ({error})", file=model_id) from error


def _download_files(model_id: str, files: Sequence[str], **options: Any) -> Path:
    hub = _import_hub(f"{model_id}: no such folder; to look for it on the hub")
    try:
        return [Path(hub.hf_hub_download(model_id, name, **options)).parent for name in files][-1]
    except Exception as error:  # as above
        raise CheckpointError(f"{model_id}: no such folder, and not an RST adapter on the hub ({error})") from error


def push_adapter(delta: SparseDelta, repo_id: str, encoding: Encoding = "coo", **options: "Unpack[PushOptions]") -> str:
    """Create the repository if necessary, upload the adapter's folder in one commit, and return the commit's URL.

    An existing card in the repository is kept.

    Raises:
        CheckpointError: huggingface_hub is not installed.
        ConfigError: an option is unknown.
        huggingface_hub.errors.HfHubHTTPError: the hub refuses the upload.
    """
    _check_options(options, PushOptions)
    hub = _import_hub(f"{repo_id}: to upload to the hub")
    api = hub.HfApi(token=options.get("token"))
    repo_id = api.create_repo(repo_id, private=options.get("private"), exist_ok=True).repo_id
    revision = options.get("revision")
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    names = [CONFIG_FILE, DELTA_FILE]
    if not api.file_exists(repo_id, CARD_FILE, revision=revision):
        names.append(CARD_FILE)
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(folder, delta, encoding)
        info = api.create_commit(  # not upload_folder, which may make several commits
            repo_id,
            [hub.CommitOperationAdd(name, Path(folder) / name) for name in names],
            commit_message=options.get("commit_message", "Upload an RST adapter"),
            commit_description=options.get("commit_description"),
            revision=revision,
            create_pr=options.get("create_pr", False),
        )
    return str(info.commit_url)


def _check_options(options: Mapping[str, object], known: type) -> None:
    """Raise for unknown options: a misspelt keyword would otherwise be ignored silently."""
    if unknown := sorted(options.keys() - known.__annotations__.keys()):
        raise ConfigError(f"unknown keywords {unknown}; known keywords are {sorted(known.__annotations__)}")


def _import_hub(purpose: str) -> Any:
    """Return huggingface_hub. Raises a `CheckpointError` that says how to install it."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(f"{purpose}, {install_command('peft')}") from error
    return huggingface_hub
