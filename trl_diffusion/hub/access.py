# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Whether a repository can be written to, found out before there is something to lose."""

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.utils import validate_repo_id

from .errors import HubError, hub_errors, no_token_advice, offline_advice


def check_can_push(repo_id: str, token: str | None = None):
    """Raise what is known without the Hub: no token, no network allowed, or no name.

    Raises:
        HubError: with what to do about it.
    """
    if constants.is_offline_mode():
        raise HubError(offline_advice(f"pushing to {repo_id!r}"))
    with hub_errors(repo_id):
        validate_repo_id(repo_id)
    if not (token or get_token()):
        raise HubError(no_token_advice())


def prepare_repo(
    repo_id: str, token: str | None = None, private: bool | None = None, revision: str | None = None
) -> str:
    """Create the repository of a model, and its branch, where there are none, and make sure that it can be written to.

    Args:
        repo_id (`str`):
            `name`, in the account of the token, or `user/name`.
        token (`str`, *optional*):
            Defaults to HF_TOKEN, or that of `hf auth login`.
        private (`bool`, *optional*):
            Whether a new repository is private. Defaults to the account's own setting.
        revision (`str`, *optional*):
            Branch to push to.

    Returns:
        `str`: the whole id, `user/name`.

    Raises:
        HubError: there is no token, it may not write there, the Hub cannot be reached, or the name is not valid.
    """
    check_can_push(repo_id, token)
    api = HfApi(token=token)
    with hub_errors(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        # A repository that exists is found by those too who may not write to it.
        api.auth_check(repo_id, write=True)
        if revision not in (None, constants.DEFAULT_REVISION):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id
