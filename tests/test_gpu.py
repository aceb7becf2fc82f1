# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What only a GPU can show: `pytest -m gpu`."""

import pytest
import torch
from conftest import golden_model
from test_caches import same

from trl_diffusion.generation.block import Block


CASES = {
    "plain": ("llada", {}),
    "dual": ("llada", {"cache": "dual", "temperature": 0.8}),
    "threshold": ("llada", {"unmasking": "threshold", "threshold": 0.3}),
    "block": ("sdar", {"cache": "block", "temperature": 0.8}),
    "compiled": ("sdar", {"cache": "block", "torch_compile": True}),
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_a_step_does_not_synchronise_and_gives_the_cpus_rollout(case, monkeypatch):
    family, settings = CASES[case]
    step = Block._step

    def without_waiting(self, number):
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(self, number)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    model = golden_model(family)
    ids, mask = torch.full((3, 12), 5), torch.ones(3, 12, dtype=torch.long)
    mask[1, :4] = 0
    kwargs = {"max_new_tokens": 16, "block_length": 8, "seed": 3, "return_dict_in_generate": True, **settings}
    expected = model.generate(ids, attention_mask=mask, **{**kwargs, "torch_compile": False}).rollout
    if case != "compiled":  # compiling looks at shapes and waits
        monkeypatch.setattr(Block, "_step", without_waiting)
    found = model.cuda().generate(ids.cuda(), attention_mask=mask.cuda(), **kwargs).rollout.to("cpu")
    same(found, expected)
