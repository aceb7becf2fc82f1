# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Whole weights of a model that FSDP2 shares out, for as long as a rollout takes."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule


@contextmanager
def gathered_weights(model: nn.Module) -> Iterator[None]:
    """Give every process all weights, and let forward passes be its own affair.

    FSDP2 gathers the weights of a layer in front of each of its forward passes. Rollouts cannot live with that:
    processes whose rows are done sooner make fewer passes, and the others would wait for ever; and generation calls
    the model inside a PEFT wrapper, not the module that was sharded last. As `ds3_gather_for_generation` for ZeRO-3.

    Args:
        model (`torch.nn.Module`):
            As the trainer prepared it. Without FSDP2 nothing is done.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not sharded:
        yield
        return
    sharded[0]._get_fsdp_state()._lazy_init()  # the outermost: streams are made where a forward pass would come first
    hooks = [(module, module._forward_pre_hooks, module._forward_hooks) for module in sharded]
    try:
        for module in sharded:
            module.unshard()
            # FSDP2's own: they would share the weights out again behind each layer.
            module._forward_pre_hooks, module._forward_hooks = OrderedDict(), OrderedDict()
        yield
    finally:
        for module, before, behind in hooks:
            module._forward_pre_hooks, module._forward_hooks = before, behind
            module.reshard()
