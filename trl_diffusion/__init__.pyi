# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

# The public names, for editors, type checkers and the documentation, which read the source and do not run it:
# __init__.py imports them on first use.

from .evaluation.traces import collect_traces as collect_traces
from .generation import DiffusionGenerationConfig as DiffusionGenerationConfig
from .generation import Rollout as Rollout
from .likelihood import MaskedView as MaskedView
from .models import AutoModelForDiffusionLM as AutoModelForDiffusionLM
from .models import DiffusionValueModel as DiffusionValueModel
from .models import UnmaskPolicyModel as UnmaskPolicyModel
from .models import UnmaskPolicyModelConfig as UnmaskPolicyModelConfig
from .tasks import align_lengths as align_lengths
from .trainer import BGPOConfig as BGPOConfig
from .trainer import BGPOTrainer as BGPOTrainer
from .trainer import DiffusionGRPOConfig as DiffusionGRPOConfig
from .trainer import DiffusionGRPOTrainer as DiffusionGRPOTrainer
from .trainer import DiffusionSFTConfig as DiffusionSFTConfig
from .trainer import DiffusionSFTTrainer as DiffusionSFTTrainer
from .trainer import IGPOConfig as IGPOConfig
from .trainer import IGPOTrainer as IGPOTrainer
from .trainer import TraceRLConfig as TraceRLConfig
from .trainer import TraceRLTrainer as TraceRLTrainer
from .trainer import UnmaskPolicyConfig as UnmaskPolicyConfig
from .trainer import UnmaskPolicyTrainer as UnmaskPolicyTrainer

__version__: str
