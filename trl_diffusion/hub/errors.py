# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What to do about an error of the Hub."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


LOG_IN = "set HF_TOKEN, or log in with `hf auth login`"


class HubError(OSError):
    """Something on the Hub could not be read or written; the message says what to do."""


def hub_advice(error: BaseException, repo_id: str | None = None) -> str | None:
    """What to do about an error that `huggingface_hub` raised, or that was raised because of one.

    Args:
        error (`BaseException`):
            The error.
        repo_id (`str`, *optional*):
            What was to be read or written, where the error does not say.

    Returns:
        `str`, *optional*: what happened and the remedy; `None` where the Hub is not the reason.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__
    for link in chain:
        if isinstance(link, HubError):
            return str(link)
    for kind, advise in _ADVICE:
        for link in chain:
            if isinstance(link, kind):
                return advise(link, getattr(link, "repo_id", None) or repo_id)
    return None


@contextmanager
def hub_errors(repo_id: str | None = None) -> Iterator[None]:
    """Raise the Hub's errors as [`HubError`], with what to do about them; others as they are."""
    try:
        yield
    except Exception as error:
        advice = hub_advice(error, repo_id)
        if advice is None or isinstance(error, HubError):
            raise
        raise HubError(advice) from error


def offline_advice(doing: str) -> str:
    """What to say where the Hub is needed and must not be asked."""
    return f"HF_HUB_OFFLINE=1 (or TRANSFORMERS_OFFLINE=1) forbids {doing}. Unset it."


def no_token_advice() -> str:
    """What to say where there is no token."""
    return (
        f"No Hugging Face token was found: {LOG_IN}. One that may write is made at "
        f"{constants.ENDPOINT}/settings/tokens."
    )


def _named(repo_id: str | None) -> str:
    return "the repository" if repo_id is None else repr(repo_id)


def _gated(error: GatedRepoError, repo_id: str | None) -> str:
    page = f"{constants.ENDPOINT}/{repo_id}"
    if error.response.status_code == 401:
        return (
            f"{_named(repo_id)} is gated, and no token was sent: accept its conditions at {page}, and with the "
            f"token of that account {LOG_IN}."
        )
    return (
        f"{_named(repo_id)} is gated, and the account of the token is not on its list: accept its conditions at "
        f"{page} with that account (some authors answer by hand), or use the token of an account that did."
    )


def _not_found(error: RepositoryNotFoundError, repo_id: str | None) -> str:
    return (
        f"There is no model {_named(repo_id)} at {constants.ENDPOINT} that this account may see. Check the name "
        f"('user/name'); it may be a dataset or a Space. If it is private, {LOG_IN}."
    )


def _revision(error: RevisionNotFoundError, repo_id: str | None) -> str:
    said = error.server_message or error
    return f"{_named(repo_id)} has no branch, tag or commit of that name ({said}). Its page lists them."


def _status(error: HfHubHTTPError, repo_id: str | None) -> str | None:
    status = error.response.status_code
    said = error.server_message or error.response.headers.get("X-Error-Message") or f"status {status}"
    if status == 401:
        return (
            f"The Hub at {constants.ENDPOINT} does not know the token ({said}): it may have expired. Make one at "
            f"{constants.ENDPOINT}/settings/tokens and {LOG_IN}; HF_TOKEN comes before the log-in."
        )
    if status == 403:
        return (
            f"The token may not write to {_named(repo_id)} ({said}). Use a token with the role 'write' of an account "
            "that may, or another repo_id."
        )
    if status == 429 or status >= 500:
        return f"The Hub at {constants.ENDPOINT} answered {status} ({said}). Try again later."
    return None


def _bad_id(error: HFValidationError, repo_id: str | None) -> str:
    return (
        f"{str(error).rstrip('.')}. It must be 'name' or 'user/name', of letters, digits, '-', '_' and '.'; a folder "
        "of that name does not exist here either."
    )


def _unreachable(error: HTTPError, repo_id: str | None) -> str:
    return (
        f"The Hub at {constants.ENDPOINT} could not be reached ({str(error) or type(error).__name__}). Check the "
        "network, HF_ENDPOINT and the proxy settings."
    )


def _not_cached(error: LocalEntryNotFoundError, repo_id: str | None) -> str | None:
    if not constants.is_offline_mode():
        return None
    return (
        f"{_named(repo_id)} is not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE=1 forbids downloading "
        "it. Unset it once, or give a folder."
    )


def _network(error: ConnectionError, repo_id: str | None) -> str | None:
    if "xet" not in str(error):
        return None
    return f"{error}. A Hub without Xet storage is used with HF_HUB_DISABLE_XET=1."


# In this order: the special before the general.
_ADVICE = (
    (GatedRepoError, _gated),
    (RepositoryNotFoundError, _not_found),
    (RevisionNotFoundError, _revision),
    (LocalTokenNotFoundError, lambda error, repo_id: no_token_advice()),
    (OfflineModeIsEnabled, lambda error, repo_id: offline_advice(f"asking the Hub for {_named(repo_id)}")),
    (RemoteEntryNotFoundError, lambda error, repo_id: None),
    (HfHubHTTPError, _status),
    (HTTPError, _unreachable),
    (LocalEntryNotFoundError, _not_cached),
    (HFValidationError, _bad_id),
    (ConnectionError, _network),
)
