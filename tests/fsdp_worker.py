# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Rollouts and a backward pass of a model that accelerate shares out over two processes with FSDP2."""

import os
import sys
from types import SimpleNamespace

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from conftest import random_model
from peft import LoraConfig, get_peft_model
from processes import leave
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from trl_diffusion.likelihood import fully_masked_view, score_view
from trl_diffusion.models import diffusion_model
from trl_diffusion.tasks import character_tokenizer
from trl_diffusion.trainer.sharding import gathered_weights


def prepared(model):
    """What `Accelerator.prepare` does with TRL's fsdp2.yaml; on a CPU it would take DDP."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
        state_dict_type="FULL_STATE_DICT",
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh=init_device_mesh("cpu", (2,), mesh_dim_names=("dp_shard",)),
        parallelism_config=SimpleNamespace(fsdp_dim_names=("dp_shard",)),
        device=torch.device("cpu"),
        mixed_precision="no",
    )
    return fsdp2_prepare_model(accelerator, model)


def check(family: str, adapter: bool):
    torch.manual_seed(0)
    model = random_model(family, character_tokenizer("01234")).eval()
    torch.manual_seed(0)
    whole = random_model(family, character_tokenizer("01234")).eval()
    if adapter:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    model = prepared(model)
    ids = torch.randint(3, 8, (2, 5))
    mask = torch.ones_like(ids)
    # The processes are done after different numbers of passes.
    settings = {"max_new_tokens": 8, "num_denoising_steps": 4 + 4 * torch.distributed.get_rank()}
    for _ in range(2):
        with gathered_weights(model):
            found = diffusion_model(model).generate(ids, mask, **settings)
        assert torch.equal(found, whole.generate(ids, mask, **settings))
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        view = fully_masked_view(torch.ones(2, 8, dtype=torch.long))
        score_view(model, ids, mask, torch.randint(3, 8, (2, 8)), view).logprobs.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    try:
        for family in ("llada", "sdar"):
            for adapter in (False, True):
                check(family, adapter)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(1)  # the other process may wait for this one
    leave()
