# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The licence that a trained model inherits."""

import os
from dataclasses import dataclass

from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HTTPError, OfflineModeIsEnabled
from yaml import YAMLError


@dataclass(frozen=True)
class Licence:
    """A licence as the metadata of a card names it.

    Args:
        id (`str`):
            Its identifier on the Hub, e.g. `"apache-2.0"`, `"mit"`, or `"other"`.
        name (`str`, *optional*), link (`str`, *optional*):
            Where the identifier is `"other"`.
    """

    id: str
    name: str | None = None
    link: str | None = None


def base_licence(source: str | None, token: str | None = None) -> Licence | None:
    """The licence of a model according to the metadata of its card; `None` where that says none or cannot be read.

    Args:
        source (`str`, *optional*):
            Folder or Hub id of the model.
        token (`str`, *optional*):
            For the Hub.
    """
    if not source:
        return None
    if os.path.isdir(source):
        path = os.path.join(source, "README.md")
        if not os.path.isfile(path):
            return None
    else:
        try:
            path = hf_hub_download(source, "README.md", token=token)
        except (EntryNotFoundError, HTTPError, OfflineModeIsEnabled, ValueError, OSError):
            return None  # the card says so; a run must not stop for it
    try:
        data = ModelCard.load(path, ignore_metadata_errors=True).data
    except (YAMLError, ValueError, OSError):
        return None  # a card that cannot be read says nothing
    licence = data.license[0] if isinstance(data.license, list) and data.license else data.license
    if not isinstance(licence, str) or licence == "unknown":
        return None
    return Licence(licence, data.license_name, data.license_link)
