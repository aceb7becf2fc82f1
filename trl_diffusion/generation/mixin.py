# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""`model.generate()` for diffusion language models."""

import copy
import reprlib
from dataclasses import dataclass

import torch
from transformers import GenerationMixin
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from .checks import check_inputs, check_settings
from .configuration import DiffusionGenerationConfig, names_policy
from .policy import UnmaskingPolicy
from .rollout import Rollout
from .sampler import denoise


@dataclass
class DiffusionGenerateOutput(ModelOutput):
    """Output of `model.generate(..., return_dict_in_generate=True)`.

    Args:
        sequences (`torch.LongTensor` of shape (B, P + C)):
            Prompts and completions; after the first EOS the padding token.
        rollout ([`Rollout`]):
            The terminal canvas and how it came about.
    """

    sequences: torch.Tensor = None
    rollout: Rollout = None


class DiffusionGenerationMixin(GenerationMixin):
    """Gives a model transformers' `generate` and `generation_config`, by denoising instead of left to right."""

    generation_config_class = DiffusionGenerationConfig

    def adjust_generation_fn(
        self,
        generation_config,
        from_auto_class,
        from_pipeline,
        pretrained_model_name_or_path,
        cache_dir,
        force_download,
        proxies,
        local_files_only,
        token,
        revision,
        subfolder,
        trust_remote_code,
        **kwargs,
    ):
        """Load `generation_config.json` as a [`DiffusionGenerationConfig`] (the parent hard-codes its own class)."""
        if isinstance(generation_config, DiffusionGenerationConfig):
            self.generation_config = copy.copy(generation_config)  # with its live rule, if it has one
            return
        if generation_config is not None:
            self.generation_config = DiffusionGenerationConfig.from_dict(generation_config.to_dict())
            return
        if pretrained_model_name_or_path is None:
            return
        try:
            self.generation_config = DiffusionGenerationConfig.from_pretrained(
                pretrained_model_name_or_path,
                cache_dir=cache_dir,
                force_download=force_download,
                proxies=proxies,
                local_files_only=local_files_only,
                token=token,
                revision=revision,
                subfolder=subfolder,
                **kwargs,
            )
        except OSError as error:
            if "valid JSON" in str(error):
                raise
            # The checkpoint has no generation_config.json: the special tokens of its config are all there is.
            self.generation_config = DiffusionGenerationConfig.from_model_config(self.config)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        generation_config: DiffusionGenerationConfig | None = None,
        streamer: BaseStreamer | None = None,
        infill_mask: torch.Tensor | None = None,
        hint_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> torch.LongTensor | DiffusionGenerateOutput:
        """Generate completions by denoising a canvas of masks behind each prompt, or masks inside the prompt.

        Args:
            input_ids (`torch.LongTensor` of shape (B, P)):
                Prompts, padded on the left.
            attention_mask (`torch.Tensor` of shape (B, P), *optional*):
                1 on real tokens. Needed where a prompt is padded.
            generation_config ([`DiffusionGenerationConfig`], *optional*):
                Defaults to the model's own, loaded from `generation_config.json`.
            streamer ([`~transformers.generation.streamers.BaseStreamer`], *optional*):
                [`CanvasStreamer`] shows the canvas filling up. Streamers of transformers (`TextStreamer`,
                `TextIteratorStreamer`; one row) get text as soon as nothing before it can change.
            infill_mask (`torch.BoolTensor` of shape (B, P), *optional*):
                Positions of the input to fill, whatever tokens stand there; the others are never changed, be they the
                mask token. Then nothing is appended, unless `max_new_tokens` or `generation_config` is given here. For
                a full-attention model blocks are counted from a row's first such position.
            hint_ids (`torch.LongTensor` of shape (B, C), *optional*):
                Tokens of the canvas that are given and never changed; −100 where the model fills. Those behind an EOS
                are cut off with it in the returned sequences.
            kwargs:
                Fields of the config that replace its values (`max_new_tokens`, `temperature`, …).

        Returns:
            `torch.LongTensor` of shape (B · `num_return_sequences`, P + C), or a [`DiffusionGenerateOutput`] with
            `return_dict_in_generate=True`.

        Raises:
            ValueError: an unknown keyword, a padding on the right, a config of another class, a field out of range or
                one that the model cannot serve, or tensors whose shapes do not fit.
        """
        given_config = generation_config is not None
        config = self._generation_settings(generation_config, kwargs, infill_mask is not None)
        if infill_mask is not None and not given_config and "max_new_tokens" not in kwargs:
            config.max_new_tokens = 0
        check_settings(self, config)
        if not isinstance(input_ids, torch.Tensor):
            raise ValueError(f"input_ids is a {type(input_ids).__name__}; it must be a tensor of shape (B, P).")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if isinstance(config.unmasking, str) and names_policy(config.unmasking):
            config.unmasking = self.unmasking_policy(config.unmasking)
        check_inputs(self, config, input_ids, attention_mask, infill_mask, hint_ids, streamer)
        input_ids, attention_mask = input_ids.long(), attention_mask.long()
        copies = config.num_return_sequences or 1
        if copies > 1:
            tensors = (input_ids, attention_mask, infill_mask, hint_ids)
            input_ids, attention_mask, infill_mask, hint_ids = (
                None if tensor is None else tensor.repeat_interleave(copies, dim=0) for tensor in tensors
            )
        in_training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            rollout = denoise(self, input_ids, attention_mask, config, infill_mask, hint_ids, streamer)
        finally:
            for module in in_training:
                module.training = True
        pad = config.pad_token_id
        if pad is None and config.eos_token_ids:
            pad = config.eos_token_ids[0]
        sequences = torch.cat([rollout.prompt_ids, rollout.canvas_ids], dim=1)
        if pad is not None:
            width = input_ids.size(1)
            behind = rollout.completion_mask[:, rollout.completion_mask.size(1) - config.max_new_tokens :] == 0
            sequences[:, width:] = sequences[:, width:].masked_fill(behind, pad)
        if config.return_dict_in_generate:
            return DiffusionGenerateOutput(sequences=sequences, rollout=rollout)
        return sequences

    def unmasking_policy(self, name_or_path: str) -> UnmaskingPolicy:
        """The policy of a folder or of the Hub, on the model's device.

        Raises:
            ValueError: there is no policy.
        """
        raise NotImplementedError(f"{type(self).__name__} does not load policies.")

    def _generation_settings(
        self, generation_config: DiffusionGenerationConfig | None, kwargs: dict, infills: bool
    ) -> DiffusionGenerationConfig:
        """The config with the call's keywords in it."""
        config = self.generation_config if generation_config is None else generation_config
        if not isinstance(config, DiffusionGenerationConfig):
            raise ValueError(
                f"generation_config is a {type(config).__name__}; a diffusion model takes a DiffusionGenerationConfig."
            )
        # A live unmasking rule is shared, not copied: it may be a network.
        config = copy.copy(config)
        unknown = sorted(set(kwargs) - set(vars(config)))
        if unknown:
            value = reprlib.repr(kwargs[unknown[0]])
            raise ValueError(
                f"generate() got {unknown[0]}={value}, which is not a field of DiffusionGenerationConfig. Leave it "
                "out."
            )
        # All at once: a canvas and a block length that fit each other may not fit the values they replace.
        for name, value in kwargs.items():
            setattr(config, name, value)
        checked = config
        if infills and isinstance(config.max_new_tokens, int) and config.max_new_tokens > 0:
            # The canvas reaches back into the input: its length limits neither blocks nor steps.
            checked = copy.copy(config)
            checked.max_new_tokens = 0
        checked.validate()
        for name in ("eos_token_id", "pad_token_id"):
            if getattr(config, name) is None and name not in kwargs:
                setattr(config, name, getattr(self.generation_config, name, None))
        return config
