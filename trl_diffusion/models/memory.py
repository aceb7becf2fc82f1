# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What a training step of a model takes in memory, computed from its config alone: no weights are made or loaded."""

import copy
import math
from collections import Counter
from dataclasses import dataclass, fields

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig


METHODS = ("full", "lora", "qlora")

# Bytes per scored token and entry of the vocabulary at the peak of scoring: logits in bf16 (2), and in fp32 the
# log-probabilities, their exponentials, and two more of the entropy (16).
LOGIT_BYTES = 18
# NF4: four bits, and an fp32 scale for 64 weights.
NF4_BYTES = 0.5 + 4 / 64


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device.

    Args:
        weights: The model's, with adapters.
        gradients: Of what is trained, fp32.
        optimizer: AdamW's two moments, fp32.
        copies: Weights in bf16 beside those in fp32 (autocast); of a sharded model those of two layers, or of the
            embeddings, gathered from the other devices.
        activations: What backward needs of the layers.
        logits: Scoring, at its peak.
    """

    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def training_length(prompt_length: int, completion_length: int, block_length: int | None) -> int:
    """Tokens of a row in a training pass: [prompt | canvas]; in blocks [prompt | canvas | noisy copy], where the copy
    reaches back over the piece of the prompt that can share a block with the canvas."""
    if block_length is None:
        return prompt_length + completion_length
    return prompt_length + 2 * completion_length + min(prompt_length, block_length - 1)


def parameter_count(config: PreTrainedConfig) -> int:
    """Parameters of a model with this config; a tied matrix counts once."""
    return _numel(_meta_model(config, "full", 0))


def estimate_memory(
    config: PreTrainedConfig,
    method: str = "full",
    *,
    prompt_length: int = 256,
    completion_length: int = 512,
    batch_size: int = 1,
    num_targets: int | None = None,
    lora_rank: int = 32,
    gradient_checkpointing: bool = True,
    num_shards: int = 1,
) -> MemoryEstimate:
    """Memory of one masked view's forward and backward pass and of AdamW's step, on one device.

    Training is as the trainers do it with `bf16=True`: `"full"` has fp32 weights under autocast, or, sharded, fp32
    shards and bf16 copies of what is computed with; `"lora"` and `"qlora"` have a frozen base in bf16 or NF4 and fp32
    adapters on all linear layers but the head. Activations are counted, not fitted: the model runs on tensors without
    storage, and what autograd keeps is added up. Not in it: the CUDA context (about 0.5 GB), fragmentation, a
    reference or value model, and rollouts in the same process (their keys and values, and 8 bytes per mask of a block
    and entry of the vocabulary).

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            A family's config.
        method (`str`):
            `"full"`, `"lora"` or `"qlora"`.
        prompt_length, completion_length (`int`):
            P and C.
        batch_size (`int`):
            Rows of a device's micro-batch.
        num_targets (`int`, *optional*):
            Tokens that a view scores, over the batch. `None`: every token of the canvas, the most there can be.
        lora_rank (`int`):
            Rank of the adapters.
        gradient_checkpointing (`bool`):
            Whether a layer's activations are computed again in the backward pass.
        num_shards (`int`):
            Devices over which weights, gradients and optimizer are shared out (FSDP2, ZeRO-3); 1: none of that.

    Returns:
        [`MemoryEstimate`].

    Raises:
        ValueError: `method` is unknown, or `"qlora"` is to be sharded.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} must be one of {', '.join(METHODS)}.")
    if method == "qlora" and num_shards > 1:
        raise ValueError(
            f"method='qlora' with num_shards={num_shards}: 4-bit weights are not sharded here; every device holds all "
            "of them. Leave num_shards at 1, or take method='lora'."
        )
    model = _meta_model(config, method, lora_rank)
    count = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    size = 4 if method == "full" else 2
    weights = size * (count - trained) + 4 * trained
    if method == "qlora":
        quantized = _quantized(model)
        weights += math.ceil((NF4_BYTES - 2) * quantized)

    copies = 0
    if num_shards > 1:
        blocks = [_numel(layer) for layer in _layers(model)]
        copies = 2 * max(2 * max(blocks), _numel(model.get_input_embeddings()))
    elif method == "full":
        copies = 2 * sum(_numel(module) for module in model.modules() if isinstance(module, nn.Linear))
        copies += 2 * sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 3)

    length = training_length(prompt_length, completion_length, getattr(config, "block_length", None))
    autocast_weights = method == "full" and num_shards == 1
    activations = _activations(config, method, lora_rank, batch_size, length, gradient_checkpointing, autocast_weights)
    targets = batch_size * completion_length if num_targets is None else num_targets
    return MemoryEstimate(
        weights=math.ceil(weights / num_shards),
        gradients=math.ceil(4 * trained / num_shards),
        optimizer=math.ceil(8 * trained / num_shards),
        copies=copies,
        activations=activations,
        logits=LOGIT_BYTES * targets * config.vocab_size,
    )


def _meta_model(config: PreTrainedConfig, method: str, lora_rank: int, dtype: torch.dtype = torch.bfloat16):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
        if method != "full":
            model = get_peft_model(model, LoraConfig(r=lora_rank, target_modules="all-linear"))
    return model


def _numel(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _layers(model: nn.Module) -> nn.ModuleList:
    return _backbone(model).layers


def _backbone(model: nn.Module) -> nn.Module:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.model


def _quantized(model: nn.Module) -> int:
    """Weights that bitsandbytes packs: those of linear layers but the head; not those of stacked experts."""
    head = model.get_output_embeddings()
    linear = [
        module
        for name, module in _backbone(model).named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name and module is not head
    ]
    return sum(module.weight.numel() for module in linear)


# Activations


def _activations(config, method, lora_rank, batch_size, length, gradient_checkpointing, autocast_weights) -> int:
    # The last layers are alike: what one more of them adds is what each of them takes.
    first = getattr(config, "first_k_dense_replace", 0) or 0
    few = min(first + 1, config.num_hidden_layers)
    kept = []
    for layers in (few, few + 1):
        small = copy.deepcopy(config)
        small.num_hidden_layers = layers
        if getattr(small, "layer_types", None):
            small.layer_types = (list(small.layer_types) * (layers + 1))[:layers]
        if getattr(small, "mlp_layer_types", None):
            small.mlp_layer_types = ["dense"] * first + ["sparse"] * (layers - first)
        model = _meta_model(small, method, lora_rank, torch.float32 if autocast_weights else torch.bfloat16)
        kept.append(_saved_by_layers(model, batch_size, length))
    layer = kept[1] - kept[0]
    if not gradient_checkpointing:
        return kept[0] + (config.num_hidden_layers - few) * layer
    inputs = batch_size * length * config.hidden_size * (4 if autocast_weights else 2)
    return max(kept[0] - few * layer, 0) + layer + config.num_hidden_layers * inputs


def _saved_by_layers(model: nn.Module, batch_size: int, length: int) -> int:
    """Bytes that autograd keeps of a forward pass up to the last hidden state, on tensors without storage."""
    family = model.get_base_model() if hasattr(model, "get_base_model") else model
    with FakeTensorMode():
        made: dict[int, torch.Tensor] = {}
        for module in model.modules():
            for group in (module._parameters, module._buffers):
                for name, tensor in group.items():
                    if tensor is not None:
                        group[name] = made.setdefault(id(tensor), _without_storage(tensor))
            if getattr(module, "gate_up_proj", None) is not None and module.gate_up_proj.ndim == 3:
                module.forward = _RoutedRows(module)
        inputs = {"position_ids": torch.arange(length).expand(batch_size, length)}
        if family.attention == "block_causal":
            inputs["attention_mask"] = torch.ones(batch_size, 1, length, length, dtype=torch.bool)
        ids = torch.zeros(batch_size, length, dtype=torch.long)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return saved_bytes(lambda: family.model(input_ids=ids, **inputs), model)


def _without_storage(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty


class _RoutedRows:
    """The library's loop over experts with every row sent to one of them: where a row goes changes the pieces, and not
    their sum; and tensors without storage route nothing."""

    def __init__(self, experts: nn.Module):
        self.experts = experts

    def __call__(self, hidden_states, top_k_index, top_k_weights):
        final = torch.zeros_like(hidden_states)
        place, token = torch.zeros(top_k_index.numel(), 2, dtype=torch.long).unbind(dim=1)
        gate, up = nn.functional.linear(hidden_states[token], self.experts.gate_up_proj[0]).chunk(2, dim=-1)
        rows = nn.functional.linear(self.experts.act_fn(gate) * up, self.experts.down_proj[0])  # (T · k, d)
        rows = rows * top_k_weights[token, place, None]
        return final.index_add_(0, token, rows.to(final.dtype))


def saved_bytes(compute, model: nn.Module) -> int:
    """Bytes that autograd holds when `compute()` is through, without the model's weights and casts of them.

    Args:
        compute (`Callable[[], object]`):
            Makes a graph and returns what holds it.
        model (`torch.nn.Module`):
            Its weights are not counted.

    Returns:
        `int`; a storage counts once.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    held: dict[int, int] = {}
    uses: Counter = Counter()

    class Kept:
        def __init__(self, tensor: torch.Tensor):
            storage = tensor.untyped_storage()
            self.tensor, self.place = tensor.detach(), storage._cdata
            uses[self.place] += 1
            if self.place not in weights and not _is_weight_copy(tensor):
                held[self.place] = storage.nbytes()

        def __del__(self):
            uses[self.place] -= 1
            if uses[self.place] == 0:
                held.pop(self.place, None)

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        graph = compute()
    total = sum(held.values())
    del graph
    return total


def _is_weight_copy(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is a weight in another dtype, as autocast makes it, or a view of one."""
    node = tensor.grad_fn
    for _ in range(4):
        if node is None or len(node.next_functions) != 1:
            break
        node = node.next_functions[0][0]
    return type(node).__name__ == "AccumulateGrad"
