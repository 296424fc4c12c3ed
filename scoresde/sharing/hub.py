"""Models on the Hugging Face hub: the record that `save` writes, with a model card.

Nothing is unpickled, and no code of a repository runs: of its files only the model's own are
fetched, and they are read as `load` reads them.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common.checks import as_path, brief_repr, true_or_false
from ..common.errors import CheckpointError, one_line
from ..model.require import require_trainable
from ..model.trainable import Trainable
from ..storage.models import MODEL, load, save
from ..training.history import History
from .cards import model_card

CARD = "README.md"
FILES = (f"{MODEL}.json", f"{MODEL}-*.safetensors")
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
REPOSITORY = re.compile(rf"{_PART}/{_PART}")


def push_to_hub(
    model: Trainable,
    repo: str,
    *,
    card: str | None = None,
    license: str | None = None,
    data: str | None = None,
    history: History | str | os.PathLike[str] | None = None,
    evaluation: Any = None,
    private: bool = False,
    message: str = "Upload a scoresde model",
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload a model to the Hugging Face hub, with a model card; needs `scoresde[hub]`.

    The repository is made if needed. In one commit it gets the files that `save` writes (weights
    in safetensors, names and options in JSON) and README.md; files of an older model are removed.

    Parameters
    ----------
    model : ScoreSDE, or another Trainable
    repo : str
        "user/name".
    card : str, optional
        The README.md, in place of `model_card`'s.
    license, data, history, evaluation
        For the card: see `model_card`.
    private : bool
        Whether a new repository is private.
    message : str
        Of the commit.
    token : str, optional
        Of your account, with the right to write; by default the one that `hf auth login` keeps.
    endpoint : str, optional
        Address of another hub than huggingface.co.

    Returns
    -------
    str
        The address of the commit.

    Raises
    ------
    TypeError, ValueError
        If `save` would not take the model, or for a bad name; before anything is sent.
    ImportError
        Without huggingface_hub.
    huggingface_hub.errors.HfHubHTTPError
        If the hub refuses.

    Examples
    --------
    >>> sde = scoresde.build("vp", "mlp", shape=(2,))
    >>> push_to_hub(sde, "moons")
    Traceback (most recent call last):
    ValueError: repo is 'user/name', got 'moons'
    """
    model = require_trainable(model, "push_to_hub")
    if not isinstance(repo, str) or not REPOSITORY.fullmatch(repo):
        raise ValueError(f"repo is 'user/name', got {brief_repr(repo)}")
    true_or_false("private", private)
    if card is None:
        card = model_card(
            model, name=repo, license=license, data=data, history=history, evaluation=evaluation
        )
    api = _package("push_to_hub").HfApi(endpoint=endpoint, token=token)
    with tempfile.TemporaryDirectory() as place:
        folder = save(model, place)
        (folder / CARD).write_text(card, encoding="utf-8")
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=message,
            allow_patterns=[*FILES, CARD],
            delete_patterns=[FILES[1]],
        )
    return str(getattr(commit, "commit_url", commit))


def from_pretrained(
    repo: str | os.PathLike[str],
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    embed: nn.Module | Mapping[str, nn.Module] | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Any:
    """Load a model from the Hugging Face hub, or from a folder; the hub needs `scoresde[hub]`.

    Only the model's JSON and safetensors are fetched, of one commit, and kept in the cache of
    huggingface_hub. They run no code; a backbone or process of your own must be imported before.

    Parameters
    ----------
    repo : str or path
        "user/name", or the path of a folder that `save` wrote, which is preferred if it exists.
    revision : str, optional
        A branch, tag or commit.
    device : str or torch.device
    embed : nn.Module, or mapping of str to nn.Module, optional
        As for `scoresde.load`.
    token, endpoint
        See `push_to_hub`.

    Returns
    -------
    ScoreSDE, or a model of the kind that was saved
        In eval mode.

    Raises
    ------
    CheckpointError
        If it holds no model of ours, or a damaged one.
    ValueError
        For what is neither a folder nor "user/name".
    ImportError
        Without huggingface_hub.
    huggingface_hub.errors.HfHubHTTPError
        If there is no such repository or revision, or no connection.

    Examples
    --------
    >>> import tempfile
    >>> sde = scoresde.build("vp", "mlp", shape=(2,), width=16)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     from_pretrained(scoresde.save(sde, folder)).process
    VPSDE(beta_min=0.1, beta_max=20.0)
    """
    path = as_path(repo, "repo")
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"revision= is of a repository on the hub, and {path} is a folder")
        return load(path, device, embed=embed)
    if not isinstance(repo, str) or not REPOSITORY.fullmatch(repo):
        raise ValueError(f"there is no folder {path}, and it is no 'user/name' on the hub")
    api = _package("from_pretrained").HfApi(endpoint=endpoint, token=token)
    fetched = Path(api.snapshot_download(repo, revision=revision, allow_patterns=list(FILES)))
    with tempfile.TemporaryDirectory() as place:
        # Files of the cache are links, which `load` does not follow.
        for pattern in FILES:
            for file in fetched.glob(pattern):
                shutil.copyfile(file.resolve(), Path(place, file.name))
        try:
            return load(place, device, embed=embed)
        except CheckpointError as error:
            text = one_line(error).replace(f"{place}{os.sep}", "").replace(place, repo)
            text = text.replace("load(folder, embed=net)", "from_pretrained(repo, embed=net)")
            raise CheckpointError(f"{repo} on the hub: {text}") from None


def _package(verb: str) -> Any:
    """The package huggingface_hub, or an ImportError that says how to install it."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(f"{verb} needs huggingface_hub: pip install scoresde[hub]") from error
    return huggingface_hub
