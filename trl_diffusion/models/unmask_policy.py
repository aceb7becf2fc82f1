# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""A learned unmasking policy: a small network that says which masks a step reveals."""

import math

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention, silu
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from ..generation.actions import bernoulli_log_prob, ordered_log_prob, sample_bernoulli, sample_ordered
from ..generation.policy import PolicyInputs, UnmaskingPolicy
from ..generation.unmasking import UnmaskingState


ACTIONS = ("bernoulli", "ordered")
# The time in [0, 1] is stretched to this before it becomes sines and cosines.
_TIME_SCALE = 1000.0


@strict
class UnmaskPolicyModelConfig(PreTrainedConfig):
    """Config of an [`UnmaskPolicyModel`]. The defaults are the paper's network, 0.33 M parameters.

    Args:
        hidden_size (`int`, *optional*, defaults to 128):
            Width.
        intermediate_size (`int`, *optional*, defaults to 512):
            Width of the feed-forward layer.
        num_attention_heads (`int`, *optional*, defaults to 2):
            Attention heads.
        num_confidences (`int`, *optional*, defaults to 1):
            How many of the largest probabilities of a position's distribution are seen.
        entropy (`bool`, *optional*, defaults to `False`):
            Whether its entropy is seen too.
        dllm_hidden_size (`int`, *optional*, defaults to 0):
            Size of the diffusion language model's hidden states, which are then seen too; the policy serves models of
            this size alone. 0: they are not.
        action (`str`, *optional*, defaults to `"bernoulli"`):
            `"bernoulli"`: each mask is revealed or not, independently. `"ordered"`: masks are picked one after the
            other until STOP (DPLS).
        policy_temperature (`float`, *optional*, defaults to 1.0):
            τ_π that `generate` takes unless it is told another one.
        initial_bias (`float`, *optional*, defaults to -2.0):
            The logit that an untrained policy begins around.
        rope_theta (`float`, *optional*, defaults to 10000.0):
            Base of the rotary embedding.

    Raises:
        ValueError: a field is out of range.
    """

    model_type = "unmask_policy"

    hidden_size: int = 128
    intermediate_size: int = 512
    num_attention_heads: int = 2
    num_confidences: int = 1
    entropy: bool = False
    dllm_hidden_size: int = 0
    action: str = "bernoulli"
    policy_temperature: float | int = 1.0
    initial_bias: float | int = -2.0
    rope_theta: float | int = 10000.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_confidences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.dllm_hidden_size < 0:
            raise ValueError(f"dllm_hidden_size={self.dllm_hidden_size} must be 0 (no hidden states) or their size.")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of 2 · num_attention_heads="
                f"{2 * self.num_attention_heads}: each head turns pairs of numbers."
            )
        if self.action not in ACTIONS:
            raise ValueError(f"action={self.action!r} must be one of {', '.join(ACTIONS)}.")
        if not 0 <= self.policy_temperature < math.inf:
            raise ValueError(f"policy_temperature={self.policy_temperature} must be a number that is not negative.")


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time at geometrically spaced frequencies, and two layers.

    (The released code takes 1 as the longest period, so that all of its frequencies are 1.)
    """

    def __init__(self, size: int):
        super().__init__()
        self.half = size // 2
        self.first = nn.Linear(2 * self.half, size)
        self.second = nn.Linear(size, size)

    def forward(self, time: torch.Tensor) -> torch.Tensor:
        """(n,) in [0, 1] → (n, D)."""
        steps = torch.arange(self.half, device=time.device, dtype=time.dtype) / self.half
        angles = _TIME_SCALE * time[:, None] * torch.exp(-math.log(10_000.0) * steps)
        return self.second(silu(self.first(torch.cat([angles.cos(), angles.sin()], dim=1))))


class PolicyBlock(nn.Module):
    """A transformer block with rotary attention, whose norms and residuals are modulated per position:

        x ← x + (1 + α_1) · Attention((1 + γ_1) · LN(x) + δ_1)
        x ← x + (1 + α_2) · FFN((1 + γ_2) · LN(x) + δ_2)

    with (γ, δ, α)_{1,2} a linear function of SiLU(condition), zero at the start.
    """

    def __init__(self, config: UnmaskPolicyModelConfig):
        super().__init__()
        size = config.hidden_size
        self.num_heads, self.theta = config.num_attention_heads, config.rope_theta
        self.modulation = nn.Linear(size, 6 * size)
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.up = nn.Linear(size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, size)

    def forward(self, hidden: torch.Tensor, condition: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
        """(n, C, D), (n, C, D) and (n, C) bool → (n, C, D)."""
        shape = hidden.shape[-1:]
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = self.modulation(silu(condition)).chunk(6, dim=-1)
        hidden = hidden + (1 + gate_1) * self._attend((1 + scale_1) * layer_norm(hidden, shape) + shift_1, inside)
        inner = (1 + scale_2) * layer_norm(hidden, shape) + shift_2
        return hidden + (1 + gate_2) * self.down(gelu(self.up(inner)))

    def _attend(self, hidden: torch.Tensor, inside: torch.Tensor | None) -> torch.Tensor:
        n, length, size = hidden.shape
        queries, keys, values = self.qkv(hidden).view(n, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        half = queries.size(-1) // 2
        frequencies = self.theta ** (-torch.arange(half, device=hidden.device, dtype=hidden.dtype) / half)
        angles = torch.arange(length, device=hidden.device, dtype=hidden.dtype)[:, None] * frequencies  # (C, D/2H)
        queries, keys = _rotate(queries, angles), _rotate(keys, angles)
        mask = None if inside is None else inside[:, None, None, :]
        mixed = scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(n, length, size))


def _rotate(values: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    first, second = values.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class UnmaskPolicyModel(PreTrainedModel, UnmaskingPolicy):
    """A network that decides which masks a denoising step reveals (arXiv 2512.09106): an unmasking rule for
    `model.generate(..., unmasking=policy)`, in the generation settings of any model by its folder or Hub id, and what
    an [`UnmaskPolicyTrainer`] trains.

    It sees, of each place of the canvas, how sure the diffusion language model is and whether it is masked, and the
    time; a single transformer block makes a logit of each. It knows no token and no vocabulary, so that it can be used
    with another model. It computes in fp32, within autocast too.

    A step that would reveal nothing reveals the position with the largest logit.
    """

    config_class = UnmaskPolicyModelConfig
    main_input_name = "features"
    _no_split_modules = ["PolicyBlock"]

    def __init__(self, config: UnmaskPolicyModelConfig):
        super().__init__(config)
        self.embed_features = nn.Linear(self.inputs.size, config.hidden_size)
        self.embed_mask = nn.Embedding(2, config.hidden_size)
        self.embed_time = TimeEmbedding(config.hidden_size)
        self.block = PolicyBlock(config)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Linear):
            # Not zero biases: a norm of c · w would forget the confidence c.
            bound = module.in_features**-0.5
            if module is self.block.modulation:
                bound = 0.0
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
            if module is self.head:
                init.constant_(module.bias, self.config.initial_bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=1.0)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs
    ) -> "UnmaskPolicyModel":
        """Load a policy, whole or not at all; as [`~transformers.PreTrainedModel.from_pretrained`].

        Raises:
            ValueError: the folder or repository holds another model, or not all weights of this one.
        """
        hub_names = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
        hub_kwargs = {name: kwargs[name] for name in hub_names if name in kwargs}
        found = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_kwargs)[0].get("model_type")
        if found != cls.config_class.model_type:
            raise ValueError(
                f"{str(pretrained_model_name_or_path)!r} has model_type={found!r} and is no unmasking policy, whose "
                f"model_type is {cls.config_class.model_type!r}."
            )
        kwargs.setdefault("dtype", torch.float32)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
            if info[problem]:
                names = ", ".join(sorted(map(str, info[problem]))[:3])
                raise ValueError(
                    f"{str(pretrained_model_name_or_path)!r}: its weights are not those of its config "
                    f"({problem.replace('_', ' ')}: {names})."
                )
        return (model, info) if output_loading_info else model

    @property
    def inputs(self) -> PolicyInputs:
        """What it is told of each position."""
        config = self.config
        return PolicyInputs(config.num_confidences, config.entropy, config.dllm_hidden_size)

    def forward(
        self,
        features: torch.Tensor,
        masked: torch.Tensor,
        time: torch.Tensor,
        inside: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """A logit for each place of n canvases.

        Args:
            features (`torch.FloatTensor` of shape (n, C, F)), masked (`torch.BoolTensor` of shape (n, C)):
                As in [`CanvasState`].
            time (`torch.FloatTensor` of shape (n,)):
                Steps taken over C.
            inside (`torch.BoolTensor` of shape (n, C), *optional*):
                False behind the end of a canvas.

        Returns:
            `torch.FloatTensor` of shape (n, C), fp32 (fp64 of an fp64 policy): b. It means nothing where there is no
            mask.
        """
        with torch.autocast(features.device.type, enabled=False):
            dtype = self.head.weight.dtype
            features = features.to(dtype)
            if self.config.dllm_hidden_size:
                plain, hidden_states = features.split(
                    [self.inputs.size - self.config.dllm_hidden_size, self.config.dllm_hidden_size], dim=-1
                )
                features = torch.cat([plain, layer_norm(hidden_states, hidden_states.shape[-1:])], dim=-1)
            hidden = self.embed_features(features)
            condition = self.embed_mask(masked.long()) + self.embed_time(time.to(dtype))[:, None]
            logits = self.head(self.norm(self.block(hidden, condition, inside))).squeeze(-1)
            return logits if dtype == torch.float64 else logits.float()

    def log_prob(
        self, logits: torch.Tensor, rank: torch.Tensor, candidates: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """Exact log-probability of what steps revealed, (n,).

        Args:
            logits (`torch.FloatTensor` of shape (n, C)):
                As [`forward`] gives them.
            rank (`torch.LongTensor` of shape (n, C)):
                What was revealed: of an ordered policy 1, 2, … in the order of the picks, else 1; 0 where nothing was.
            candidates (`torch.BoolTensor` of shape (n, C)):
                What could be revealed.
            temperature (`float`):
                τ_π.
        """
        if self.config.action == "ordered":
            return ordered_log_prob(logits, rank, candidates, temperature)
        return bernoulli_log_prob(logits, rank > 0, candidates, temperature)

    def draw(self, state: UnmaskingState, temperature: float, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
        """What it reveals of the current block: the rank of each position, as in [`log_prob`], and the logits, both
        (R, K). A Bernoulli policy may reveal nothing.

        Raises:
            ValueError: the policy is on another device than the model.
        """
        canvas = state.canvas
        if canvas.features.device != self.device:
            raise ValueError(
                f"unmasking is a policy on {self.device}, the model is on {canvas.features.device}. Move the policy: "
                f"`policy.to({str(canvas.features.device)!r})`."
            )
        logits = canvas.in_block(self(canvas.features, canvas.masked, canvas.time, canvas.inside))  # (R, K)
        arguments = (logits, state.candidates, state.noise)
        if self.config.action == "ordered":
            return sample_ordered(*arguments, canvas.row_noise, temperature, beta), logits
        return sample_bernoulli(*arguments, temperature, beta).long(), logits

    def choose(self, state: UnmaskingState, config) -> tuple[torch.Tensor, torch.Tensor]:
        """See [`UnmaskingPolicy.choose`]; `policy_temperature` and `policy_beta` are those of the generation
        config."""
        temperature = config.policy_temperature
        temperature = self.config.policy_temperature if temperature is None else temperature
        rank, logits = self.draw(state, temperature, 1.0 if config.policy_beta is None else config.policy_beta)
        return with_fallback(rank > 0, logits, state.candidates)


def with_fallback(
    chosen: torch.Tensor, logits: torch.Tensor, candidates: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a row chose nothing, its candidate with the largest logit.

    Args:
        chosen, candidates (`torch.BoolTensor` of shape (R, K)), logits (`torch.FloatTensor` of shape (R, K)):
            What was chosen of what, and the policy's logits.

    Returns:
        Two `torch.BoolTensor` of shape (R, K): the positions to commit, and those of them that the fallback chose.
    """
    best = logits.masked_fill(~candidates, float("-inf")).argmax(dim=1, keepdim=True)
    fallback = torch.zeros_like(chosen).scatter(1, best, True) & candidates & ~chosen.any(dim=1, keepdim=True)
    return chosen | fallback, fallback


AutoConfig.register(UnmaskPolicyModelConfig.model_type, UnmaskPolicyModelConfig, exist_ok=True)
AutoModel.register(UnmaskPolicyModelConfig, UnmaskPolicyModel, exist_ok=True)
