# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""One module per family. Importing one registers it; every module of this folder is imported."""

import pkgutil
from importlib import import_module


for _module in pkgutil.iter_modules(__path__):
    import_module(f".{_module.name}", __name__)
