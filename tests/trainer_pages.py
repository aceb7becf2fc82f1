# Copyright 2026 The trl_diffusion authors.
# SPDX-License-Identifier: Apache-2.0

"""What the tests of the trainers' pages read off a page: its tables, its printed line, its commands."""

import ast
import dataclasses
import importlib
import inspect
import re
import shlex
from collections.abc import Callable

from doc_blocks import ROOT, Block, blocks


# What the Trainer itself logs.
STANDARD = {"loss", "grad_norm", "learning_rate", "epoch", "step", "total_flos", "train_loss"}
STANDARD |= {f"{mode}{name}" for mode in ("train_", "") for name in ("runtime", "samples_per_second")}
STANDARD |= {"train_steps_per_second", "steps_per_second", "model_preparation_time"}


def text_of(page: str) -> str:
    """The page."""
    return (ROOT / page).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """What stands below a heading of second order."""
    return re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text_of(page), re.DOTALL | re.MULTILINE)[1]


def shorten(block: Block, *changes: tuple[str, str]) -> str:
    """The code of a block with texts replaced, each of which stands there once."""
    code = block.code
    for old, new in changes:
        assert code.count(old) == 1, (
            f"{block.page}:{block.line} has {old!r} {code.count(old)} times: change the test too"
        )
        code = code.replace(old, new)
    return code


def printed_line(page: str) -> str:
    """What the quick start is said to print."""
    (line,) = re.findall(r"^It prints about\n\n    (.*)$", section(page, "Quick start"), re.MULTILINE)
    return line


def check_printed(page: str, printed: str):
    """The quick start printed the page's line, with numbers of its own; those before the training are the page's."""
    line = printed_line(page)
    number = r"(\d+\.\d+)"
    found = re.search(re.sub(r"\d+\\\.\d+", lambda _: number, re.escape(line)), printed)
    assert found, f"{page} promises {line!r}, and the quick start printed {printed[-500:]!r}"
    numbers = re.findall(number, line)
    before = line.split(" before")[0]
    for said, got in list(zip(numbers, found.groups(), strict=True))[: len(re.findall(number, before))]:
        assert abs(float(said) - float(got)) <= 0.03, f"{page} says {said} before the training, it is {got}"


# Metrics


def documented_metrics(page: str) -> dict[str, str]:
    """Metric of the page's table -> when it is logged; `<name>` stands for any."""
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \| .* \|$", section(page, "Logged metrics"), re.MULTILINE)
    found = [(name, when) for names, when in rows for name in re.findall(r"`(.*?)`", names)]
    assert len(found) == len(dict(found)), "a metric stands in the table twice"
    return dict(found)


def logged_metrics(trainer) -> set[str]:
    """What a run has logged in training, without what every Trainer logs; of evaluations see `check_metrics`."""
    return {name for log in trainer.state.log_history for name in log if not name.startswith("eval_")} - STANDARD


def check_metrics(page: str, trainer, others: list):
    """The page's table is what is logged: all of it, in the quick start and with the settings it names, and no more.

    Args:
        trainer: That of the quick start.
        others: Trainers with those settings on.
    """
    documented = documented_metrics(page)
    patterns = {name: re.compile(re.sub(r"<\w+>", "[^/]+", re.escape(name))) for name in documented}

    def matching(name: str) -> list[str]:
        exact = [pattern for pattern in documented if pattern == name]
        return exact or [pattern for pattern, regex in patterns.items() if regex.fullmatch(name)]

    quick = logged_metrics(trainer)
    everything = quick.union(*map(logged_metrics, others))
    evaluated = {name[5:] for log in trainer.state.log_history for name in log if name.startswith("eval_")} - STANDARD
    assert evaluated, "the quick start evaluates"
    for name in everything | evaluated:
        assert matching(name), f"{page} does not name the metric {name!r}"
    seen = {pattern for name in quick for pattern in matching(name)}
    missing = {name for name, when in documented.items() if when == "always"} - seen
    assert not missing, f"{page}: always logged, and not by the quick start: {missing}"
    missing = documented.keys() - {pattern for name in everything for pattern in matching(name)}
    assert not missing, f"{page}: never logged: {missing}"


# Fields


def documented_fields(page: str) -> dict[str, object]:
    """Field of the reference's table -> default."""
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| .* \|$", section(page, "Reference"), re.MULTILINE)
    return {name: ast.literal_eval(default) for name, default in rows}


def own_fields(config_class: type, parent: type) -> dict[str, object]:
    """Field that a config, or a class between it and its parent, declares -> default."""
    own = [base for base in config_class.__mro__ if dataclasses.is_dataclass(base) and not issubclass(parent, base)]
    names = {name for base in own for name in base.__annotations__}
    found = {}
    for field in dataclasses.fields(config_class):
        if field.name in names:
            made = field.default_factory is not dataclasses.MISSING
            found[field.name] = field.default_factory() if made else field.default
    return found


# Blocks that no test can run


def check_names(block: Block):
    """Every name that a block imports is there, and every keyword that it gives to one of them is a parameter."""
    tree, imported = ast.parse(block.code), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module = importlib.import_module(node.module)
                assert hasattr(module, alias.name), f"{block.page}:{block.line}: {node.module} has no {alias.name}"
                imported[alias.asname or alias.name] = getattr(module, alias.name)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    for call in calls:
        if call.func.id in imported:
            known = parameters(imported[call.func.id])
            for keyword in call.keywords:
                assert keyword.arg in known, f"{block.page}:{block.line}: {call.func.id} takes no {keyword.arg!r}"


def parameters(called: Callable) -> set[str]:
    """Names that a function, or a class and what its `**kwargs` go to, takes."""
    functions = [base.__init__ for base in called.__mro__] if inspect.isclass(called) else [called]
    names = set()
    for function in functions:
        found = inspect.signature(function).parameters.values()
        names |= {parameter.name for parameter in found}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in found):
            break
    return names


def commands(page: str) -> list[list[str]]:
    """The commands of a page's shell blocks, as lists of arguments."""
    lines = [line for block in blocks(page, "bash") for line in block.code.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line.strip()]
