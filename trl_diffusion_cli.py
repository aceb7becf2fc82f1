# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""Where the console command `trl-diffusion` begins.

Importing `trl_diffusion` registers the model families, which takes seconds. The package leaves that to the command
when this module was imported first, so that `trl-diffusion --help` and a misspelt option need not wait for torch.
"""

from trl_diffusion.scripts.cli import main


__all__ = ["main"]
