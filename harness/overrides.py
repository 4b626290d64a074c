"""Checks a command line before any work: every group, option and value, in every job of a sweep."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from harness.errors import GraftbenchError, suggestion, unknown_name
from harness.method_choice import RESERVED, Invocation, config_folder, register_methods

_FLAGS_WITH_VALUE = ("--config-dir", "-cd", "--cfg", "-c", "--package", "-p", "--info", "-i")
_FLAGS = (*_FLAGS_WITH_VALUE, "--multirun", "-m", "--resolve", "--hydra-help", "--version", "--help", "-h")
_OPEN_MAPPINGS = (
    "zoo.experts.",
    "zoo.references.",
    "zoo.second_moments.",
    "zoo.fisher.",
    "zoo.capabilities.",
    "zoo.stated.",
    "method.weights.",
    "suite.tasks.",
)
_NO_OPTIONS = [f"method.{key}" for key in RESERVED if key != "path"]


@dataclass(frozen=True)
class CommandLine:
    """A verb's arguments, taken apart."""

    flags: list[str]
    overrides: list[str]

    @property
    def multirun(self) -> bool:
        """Whether it is a sweep."""
        return "-m" in self.flags or "--multirun" in self.flags

    @property
    def inspects(self) -> bool:
        """Whether Hydra shall only show something, so that nothing is to be checked."""
        return bool({"--cfg", "-c", "--info", "-i", "--hydra-help"} & set(self.flags))


def read_command_line(arguments: Sequence[str]) -> CommandLine:
    """Flags and overrides; `method.path=FILE` makes the file's method known and chooses it.

    Raises:
        GraftbenchError: an argument is neither.
    """
    flags: list[str] = []
    overrides: list[str] = []
    pending = iter(arguments)
    for argument in pending:
        if argument.startswith("-"):
            name = argument.partition("=")[0]
            if name not in _FLAGS:
                written = argument.lstrip("-").replace("-", "_")
                raise GraftbenchError(f"unknown flag '{argument}'; options are written name=value, such as {written}=…")
            flags.append(argument)
            if name in _FLAGS_WITH_VALUE and "=" not in argument:
                flags += [value for value in [next(pending, None)] if value is not None]
        elif argument.lstrip("+~").partition("=")[0] in _NO_OPTIONS:
            raise GraftbenchError(
                f"'{argument.partition('=')[0]}' is no option: method=NAME chooses the method, label=… names the row"
            )
        elif re.match(r"\+{0,2}[\w@/.:-]+=", argument) or argument.startswith("~"):
            overrides.append(_quoted(_opened(argument)))
        else:
            raise GraftbenchError(f"'{argument}' is no option; options are written name=value, such as method=ties")
    return CommandLine(flags, _with_method_files(overrides))


def config_name(verb: str) -> str:
    """The name of a verb's root configuration: that of `moments export` is `moments_export`."""
    return verb.replace(" ", "_")


def check(verb: str, line: CommandLine, read: Callable[[DictConfig, Invocation], Any]) -> list[Any]:
    """Compose every job of the command and read its settings; returns those of each job.

    Args:
        verb: the name of the root configuration.
        line: the command line.
        read: turns a composed configuration into settings; raises GraftbenchError.

    Raises:
        GraftbenchError: something on the command line does not exist or has a bad value; the nearest names are given.
    """
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        with _explained(verb, line.overrides):
            jobs = _jobs(verb, OverridesParser.create().parse_overrides(line.overrides), line)
        found = []
        for job in jobs:
            with _explained(verb, job):
                settings = composed(verb, job)
            found.append(read(*settings))
    return found


def composed(verb: str, overrides: Sequence[str]) -> tuple[DictConfig, Invocation]:
    """A configuration and what its command line says besides; Hydra must be initialised."""
    config = compose(verb, list(overrides), return_hydra_config=True)
    found = invocation(config.hydra.runtime.choices, overrides)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return config, found


def invocation(choices: Mapping[Any, Any], overrides: Sequence[str], sweep: str | None = None) -> Invocation:
    """What a command line says besides the configuration that it composes.

    Args:
        choices: what Hydra says was chosen in each group.
        overrides: the job's overrides.
        sweep: name of the sweep that the job belongs to.
    """
    chosen = {str(group): str(choice) for group, choice in choices.items()}
    named = frozenset(override.lstrip("+~").partition("=")[0] for override in overrides)
    return Invocation(chosen, given_for_method(overrides), sweep, named)


def given_for_method(overrides: Iterable[str]) -> dict[str, str]:
    """The hyper-parameters that were given by hand, as they were written."""
    given = {}
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key.startswith("method.") and key not in ("method.path", "method.model", "method.role"):
            given[key.removeprefix("method.")] = value
    return given


def group_options(group: str) -> list[str]:
    """The names that a configuration group offers; Hydra must be initialised."""
    return sorted(GlobalHydra.instance().config_loader().get_group_options(group, ObjectType.CONFIG))


def _jobs(verb: str, overrides: Sequence[Override], line: CommandLine) -> list[list[str]]:
    """The overrides of each job: one, or every combination of a sweep's values."""
    if not line.multirun:
        swept = next((o for o in overrides if o.is_sweep_override()), None)
        if swept is not None:
            raise GraftbenchError(f"'{swept.input_line}' names several values; add -m to run one job for each")
        if compose(verb, line.overrides, return_hydra_config=True).hydra.sweeper.get("params"):
            raise GraftbenchError("a sweep has several jobs; add -m to run them")
        return [line.overrides]
    fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
    sweeper = compose(verb, fixed, return_hydra_config=True).hydra.sweeper
    if not str(sweeper.get("_target_", "")).endswith("BasicSweeper"):
        return [fixed]
    keys = {o.key_or_group for o in overrides}
    declared = [
        f"{key!s}={value!s}" for key, value in dict(sweeper.get("params") or {}).items() if str(key) not in keys
    ]
    parsed = OverridesParser.create().parse_overrides([*line.overrides, *declared])
    return [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]


def _opened(argument: str) -> str:
    """Entries of open mappings need no plus sign: any expert's name is as good as another."""
    whole = tuple(f"{mapping[:-1]}=" for mapping in _OPEN_MAPPINGS)
    return f"++{argument}" if argument.startswith(_OPEN_MAPPINGS + whole) else argument


def _quoted(argument: str) -> str:
    """A value that Hydra's grammar cannot read as it stands, such as ~/models or a(1), in quotes."""
    key, _, value = argument.partition("=")
    for written in (argument, f"{key}='{value}'"):
        try:
            OverridesParser.create().parse_override(written)
        except HydraException:
            continue
        return written
    if not key.isascii():
        raise GraftbenchError(f"'{key}': names on the command line consist of ASCII letters, digits, '_' and '-'")
    return argument


def _with_method_files(overrides: list[str]) -> list[str]:
    key = "method.path="
    paths = [path for o in overrides if o.lstrip("+").startswith(key) for path in o.partition("=")[2].split(",")]
    names = register_methods([Path(path) for path in paths])
    rest = [o for o in overrides if not o.lstrip("+").startswith(key)]
    chosen = [name for o in rest if o.startswith("method=") for name in o.partition("=")[2].split(",")]
    if names and not chosen:
        rest.append(f"method={','.join(names)}")
    for name in names:
        if chosen and name not in chosen:
            raise GraftbenchError(f"method.path names the method '{name}', but method={','.join(chosen)} leaves it out")
    return rest


@contextmanager
def _explained(verb: str, overrides: Sequence[str]) -> Iterator[None]:
    """Turn Hydra's complaint into one that names the nearest valid names."""
    try:
        yield
    except HydraException as error:
        _diagnose(verb, overrides)
        raise GraftbenchError(_first_line(error)) from error


def _diagnose(verb: str, overrides: Sequence[str]) -> None:
    """Name the first override that does not fit, and what would."""
    groups = GlobalHydra.instance().config_loader().list_groups("")
    for index, override in enumerate(overrides):
        key, _, value = override.lstrip("+~").partition("=")
        rest = [*overrides[:index], *overrides[index + 1 :]]
        if key in groups:
            options = group_options(key)
            for name in value.split(","):
                if name not in options:
                    raise unknown_name(key, name, options)
            continue
        if override.startswith(("+", "~")) or key.startswith("hydra."):
            continue
        try:
            config, invocation = composed(verb, [o for o in rest if "," not in o])
        except HydraException:
            continue
        node: Any = config
        seen = ""
        for part in key.split("."):
            if not isinstance(node, DictConfig) or part not in node:
                names = [seen + str(name) for name in node] if isinstance(node, DictConfig) else []
                valid = [name for name in names if name not in _NO_OPTIONS]
                group = seen.rstrip(".")
                chosen = invocation.choices.get(group)
                owner = f" of {group}={chosen}" if chosen else ""
                raise GraftbenchError(f"unknown option '{key}'{owner}; {suggestion(seen + part, valid)}")
            node = OmegaConf.select(node, part) if not OmegaConf.is_missing(node, part) else None
            seen += f"{part}."


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
