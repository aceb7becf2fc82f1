# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Which files of a folder go to the Hub, and how."""

import json
import os
import re
from concurrent.futures import Future
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, hf_hub_download

from ..checkpoints import tiny_checkpoint, tiny_checkpoints
from .errors import HubError, hub_errors
from .settings import TRAINING_ARGS, read_training_args


POLICY_TYPE = "unmask_policy"
# Folder of the diffusion language model that was trained together with a policy.
DLLM_FOLDER = "dllm"
CARD = "README.md"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_OWN_WEIGHTS = tuple(
    f"{stem}{ending}"
    for stem in ("model", "adapter_model")
    for ending in (".safetensors", "-?????-of-?????.safetensors", ".safetensors.index.json")
)
_MODEL_FILES = (
    *_WEIGHTS,
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "value_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
# What belongs to a run beside its model. Everything that is not named here stays: optimizers, rollouts, pickled
# arguments, logs, checkpoints.
_RUN_FILES = (CARD, "LICENSE*", "LICENCE*", TRAINING_ARGS, "results.json", "frontier.csv", "frontier.png")
_FOLDERS = (DLLM_FOLDER, "value_model", "additional_chat_templates")


def hub_files(folder: str | os.PathLike) -> list[str]:
    """Files of a folder that are uploaded, relative to it, sorted."""
    folder, found = Path(folder), []
    for path in folder.iterdir():
        if path.is_file() and _matches(path.name, (*_MODEL_FILES, *_RUN_FILES)):
            found.append(path.name)
    for name in _FOLDERS:
        inside = folder / name
        patterns = ("*.jinja",) if name == "additional_chat_templates" else _MODEL_FILES
        for path in inside.iterdir() if inside.is_dir() else ():
            if path.is_file() and _matches(path.name, patterns):
                found.append(f"{name}/{path.name}")
    return sorted(found)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def folder_kind(folder: str | os.PathLike) -> str:
    """What a trainer saved in a folder: `"adapter"`, `"policy"` or `"model"`.

    Raises:
        ValueError: none of them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is not a folder.")
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if not (folder / "config.json").is_file():
        raise ValueError(f"{str(folder)!r} holds neither config.json nor adapter_config.json: no trainer saved it.")
    return "policy" if _read(folder / "config.json").get("model_type") == POLICY_TYPE else "model"


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not valid JSON: {error}.") from error


def check_weights(folder: str | os.PathLike):
    """Raise a ValueError where the weights of a folder are missing, or not all there."""
    folder = Path(folder)
    if folder_kind(folder) == "adapter":
        if not (folder / "adapter_model.safetensors").is_file():
            raise ValueError(f"{str(folder)!r} has no adapter_model.safetensors: save the adapter again.")
        return
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        missing = {name for name in _read(index)["weight_map"].values() if not (folder / name).is_file()}
        if missing:
            raise ValueError(f"{str(folder)!r} lacks {', '.join(sorted(missing))}, which its index names: copy them.")
    elif not (folder / "model.safetensors").is_file():
        raise ValueError(
            f"{str(folder)!r} has no model.safetensors: save the model with `trainer.save_model()`. Pickled weights "
            "are not uploaded."
        )


def check_one_kind(folder: str | os.PathLike, kind: str):
    """Raise a ValueError where a folder holds weights that another run left there, and that would be uploaded with
    those of this one.

    Args:
        folder (`str` or `os.PathLike`):
            The folder, which need not exist yet.
        kind (`str`):
            As [`folder_kind`] says, of what is to be pushed.
    """
    names = ["adapter_config.json", "adapter_model.safetensors"]
    if kind == "adapter":
        names = ["model.safetensors", "model.safetensors.index.json"]
    if kind != "policy":
        names.append(DLLM_FOLDER)
    found = [name for name in names if os.path.exists(os.path.join(folder, name))]
    if found:
        wanted = {"adapter": "an adapter", "policy": "an unmasking policy", "model": "a whole model"}[kind]
        raise ValueError(
            f"{str(folder)!r} is to hold {wanted}, and also holds {', '.join(found)}, of another run: together they "
            "are loaded as neither. Choose another output_dir, or move them away."
        )


def check_folder(folder: str | os.PathLike):
    """Raise where a folder would not make a repository that can be used alone.

    Raises:
        ValueError: weights, tokenizer, generation settings or the card are missing, or something in it is only to be
            found on this machine.
    """
    folder = Path(folder)
    kind = folder_kind(folder)
    check_one_kind(folder, kind)
    check_weights(folder)
    if kind != "policy" and not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"{str(folder)!r} has no tokenizer: `tokenizer.save_pretrained(folder)` writes it.")
    if not (folder / "generation_config.json").is_file():
        raise ValueError(
            f"{str(folder)!r} has no generation_config.json, which says how to decode: `DiffusionGenerationConfig(…)"
            ".save_pretrained(folder)` writes it."
        )
    if not (folder / CARD).is_file():
        raise ValueError(f"{str(folder)!r} has no {CARD}, the card: `trainer.create_model_card()` writes it.")
    if kind == "adapter":
        check_base(_read(folder / "adapter_config.json").get("base_model_name_or_path"))
    if kind == "policy" and (folder / DLLM_FOLDER).is_dir():
        check_weights(folder / DLLM_FOLDER)
        if folder_kind(folder / DLLM_FOLDER) == "adapter":
            check_base(_read(folder / DLLM_FOLDER / "adapter_config.json").get("base_model_name_or_path"))
    unmasking = _read(folder / "generation_config.json").get("unmasking")
    if isinstance(unmasking, str) and os.path.isabs(unmasking) and not _is_own(unmasking, folder):
        raise ValueError(
            f"generation_config.unmasking={unmasking!r} is a folder of this machine. Push that policy first, and name "
            "its id there."
        )


def _is_own(path: str, folder: Path) -> bool:
    """Whether a path is that of the folder, or of the one that the trainer wrote to."""
    written_to = read_training_args(str(folder)).get("arguments", {}).get("output_dir")
    if written_to and os.path.abspath(written_to) == os.path.abspath(path):
        return True
    return os.path.isdir(path) and os.path.samefile(path, folder)


def check_base(base: str | None):
    """Raise a ValueError where the base of an adapter is known by a path of this machine, which means nothing
    elsewhere."""
    if base and tiny_name(base) is None and (os.path.isdir(base) or os.path.isabs(base)):
        raise ValueError(
            f"The base model of the adapter is a folder of this machine, {base!r}: who loads the adapter from the Hub "
            "does not have it. Train from a Hub id, or push the merged model (push_merged_adapter=True, or "
            "`trl-diffusion push --merge_adapter`)."
        )


def tiny_name(source: str | None) -> str | None:
    """Name of the tiny checkpoint that a path or name is that of; `None` where it is none."""
    for name in tiny_checkpoints() if source else ():
        if source == name or (os.path.isdir(source) and os.path.samefile(source, tiny_checkpoint(name))):
            return name
    return None


# What is written into the copy that goes to the Hub


def card_for(card: str, repo_id: str, places: list[str], revision: str | None = None) -> str:
    """A card whose quick start loads from the Hub.

    Args:
        card (`str`):
            The card.
        repo_id (`str`):
            Its repository.
        places (`list[str]`):
            Where the model was: folders or ids that the quick start may name.
        revision (`str`, *optional*):
            The branch that it goes to, where that is not the main one.

    Raises:
        ValueError: the card has no quick start, or one that loads something else.
    """
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    if code is None:
        raise ValueError(f"{CARD} has no quick start: `trainer.create_model_card()` writes a card with one.")
    block = code[1]
    for place in sorted({place for place in places if place}, key=len, reverse=True):
        for literal in (f'"{place}"', json.dumps(place, ensure_ascii=False), f"'{place}'", repr(place)):
            block = block.replace(literal, f'"{repo_id}"')
    block = re.sub(rf'(from_pretrained\("{re.escape(repo_id)}"), revision="[^"]*"', r"\1", block)  # of another push
    if _is_branch(revision):
        block = block.replace(f'from_pretrained("{repo_id}"', f'from_pretrained("{repo_id}", revision="{revision}"')
    if repo_id not in block:
        raise ValueError(
            f"The quick start of {CARD} does not load {repo_id!r}, nor any of {', '.join(sorted(set(places)))}. Write "
            "that name there, or the card again with `trainer.create_model_card()`."
        )
    return card[: code.start(1)] + block + card[code.end(1) :]


def hub_contents(
    folder: str | os.PathLike,
    repo_id: str,
    card: str | None = None,
    places: list[str] | None = None,
    revision: str | None = None,
) -> dict[str, str | bytes]:
    """Path in the repository -> file on this machine, or its content where that differs from the file's: ids of the
    Hub stand in it instead of folders of this machine. Arguments as in [`push_folder`]."""
    folder = Path(folder)
    written = read_training_args(str(folder)).get("repo_id")
    places = [str(folder), str(folder.absolute()), *(places or []), *([written] if written else [])]
    found: dict[str, str | bytes] = {name: str(folder / name) for name in hub_files(folder)}
    if CARD in found:
        card = (folder / CARD).read_text(encoding="utf-8") if card is None else card
        found[CARD] = card_for(card, repo_id, [*places, repo_id], revision).encode()
    for name in list(found):
        kind = os.path.basename(name)
        if kind == "generation_config.json":
            config = _read(folder / name)
            unmasking = config.get("unmasking")
            if isinstance(unmasking, str) and os.path.isabs(unmasking) and _is_own(unmasking, folder):
                found[name] = _json(
                    {**config, "unmasking": f"{repo_id}@{revision}" if _is_branch(revision) else repo_id}
                )
        elif kind == "adapter_config.json":
            config = _read(folder / name)
            tiny = tiny_name(config.get("base_model_name_or_path"))
            if tiny is not None:
                found[name] = _json({**config, "base_model_name_or_path": tiny})
    return found


def _is_own_weight(name: str) -> bool:
    """Whether a file of a repository is one that a push may have put there. Other weights are their owner's."""
    folder, _, base = name.rpartition("/")
    return folder in ("", DLLM_FOLDER, "value_model") and _matches(base, _OWN_WEIGHTS)


def _is_branch(revision: str | None) -> bool:
    return revision not in (None, constants.DEFAULT_REVISION)


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


# Upload


def check_kind(repo_id: str, kind: str, token: str | None = None, revision: str | None = None):
    """Raise where a branch of a repository holds another kind of thing, which would be loaded instead, or with it.

    Args:
        repo_id (`str`):
            The repository.
        kind (`str`):
            As [`folder_kind`] says.
        token (`str`, *optional*), revision (`str`, *optional*):
            For the Hub.
    """
    with hub_errors(repo_id):
        there = HfApi(token=token).list_repo_files(repo_id, revision=revision)
        found = None
        if "adapter_config.json" in there:
            found = "adapter"
        elif "config.json" in there:
            path = hf_hub_download(repo_id, "config.json", revision=revision, token=token)
            found = "policy" if _read(Path(path)).get("model_type") == POLICY_TYPE else "model"
    if found not in (None, kind):
        names = {"adapter": "an adapter", "policy": "an unmasking policy", "model": "a whole model"}
        raise HubError(
            f"{repo_id!r} holds {names[found]}, and {names[kind]} is to be pushed: both in one repository are loaded "
            "as neither. Choose another repo_id, or another branch (hub_revision, `--revision`)."
        )


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    message: str,
    token: str | None = None,
    revision: str | None = None,
    blocking: bool = True,
    card: str | None = None,
    places: list[str] | None = None,
) -> CommitInfo | Future:
    """Upload what belongs to the model of a folder, in one commit; weights of an older push that are no longer there
    are deleted in it.

    Args:
        folder (`str` or `os.PathLike`):
            What a trainer saved.
        repo_id (`str`):
            A repository that exists.
        message (`str`):
            Commit message.
        token (`str`, *optional*), revision (`str`, *optional*):
            For the Hub.
        blocking (`bool`, *optional*, defaults to `True`):
            Wait for the upload to end; otherwise a future of it is returned, which also holds what went wrong.
        card (`str`, *optional*):
            Instead of the folder's card.
        places (`list[str]`, *optional*):
            What else the card's quick start may call the folder.

    Raises:
        HubError: the Hub refuses it.
    """
    api = HfApi(token=token)
    if not blocking:  # reading and hashing the weights, and asking the Hub, take their time, and can fail
        return api.run_as_future(push_folder, folder, repo_id, message, token, revision, True, card, places)
    new = hub_contents(folder, repo_id, card, places, revision)
    with hub_errors(repo_id):
        there = api.list_repo_files(repo_id, revision=revision)
        stale = [name for name in there if _is_own_weight(name) and name not in new]
        return api.create_commit(
            repo_id,
            [CommitOperationDelete(name) for name in stale]
            + [CommitOperationAdd(name, content) for name, content in new.items()],
            commit_message=message,
            revision=revision,
        )
