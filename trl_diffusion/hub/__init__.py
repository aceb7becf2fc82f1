# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""The Hugging Face Hub: what is uploaded, what its errors mean, and model cards."""

from .access import check_can_push, prepare_repo
from .errors import HubError, hub_advice, hub_errors
from .figures import MeasuredFigure, read_eval_results
from .files import (
    DLLM_FOLDER,
    check_base,
    check_folder,
    check_kind,
    check_one_kind,
    check_weights,
    folder_kind,
    hub_contents,
    hub_files,
    push_folder,
    tiny_name,
)
from .licence import Licence, base_licence
from .model_card import CardContent, card_with_figures, diffusion_model_card, merged_card
from .settings import own_command, read_training_args, without_secrets, write_json, write_training_args


__all__ = [
    "DLLM_FOLDER",
    "CardContent",
    "HubError",
    "Licence",
    "MeasuredFigure",
    "base_licence",
    "card_with_figures",
    "check_base",
    "check_can_push",
    "check_folder",
    "check_kind",
    "check_one_kind",
    "check_weights",
    "diffusion_model_card",
    "folder_kind",
    "hub_advice",
    "hub_errors",
    "hub_contents",
    "hub_files",
    "merged_card",
    "own_command",
    "prepare_repo",
    "push_folder",
    "read_eval_results",
    "read_training_args",
    "tiny_name",
    "without_secrets",
    "write_json",
    "write_training_args",
]
