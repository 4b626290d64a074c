"""The command `graftbench`: each verb is a Hydra application over `conf/`."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.logging import RichHandler

from harness import (
    __version__,
    board_verbs,
    config,
    moments_config,
    moments_verbs,
    training_config,
    training_verbs,
    verbs,
)
from harness.errors import GraftbenchError, unknown_name
from harness.evaluation.worker import end_shared_engine
from harness.files import digests_kept_in
from harness.help import print_overview, print_verb_help
from harness.method_choice import Invocation, config_folder
from harness.overrides import CommandLine, check, config_name, invocation, read_command_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verb:
    """What a command line begins with: how its settings are read, and what it does with them."""

    read: Callable[[DictConfig, Invocation], Any]
    act: Callable[[Any], Any]
    agree: Callable[[Sequence[Any]], None] | None = None
    """What refuses jobs of one sweep that cannot go together."""
    words: tuple[str, ...] = ()
    """The options that words without a name stand for, in their order: of `compare A B`, a and b."""


VERBS: dict[str, Verb] = {
    "run": Verb(config.run_settings, verbs.run),
    "merge": Verb(config.merge_settings, verbs.merge, config.check_outputs),
    "leaderboard": Verb(config.board_settings, board_verbs.leaderboard),
    "leaderboard check": Verb(config.board_check_settings, board_verbs.check, words=("path",)),
    "compare": Verb(config.compare_settings, board_verbs.compare, words=("a", "b")),
    "zoo": Verb(config.zoo_settings, verbs.zoo),
    "zoo train": Verb(training_config.train_settings, training_verbs.train),
    "zoo decontaminate": Verb(training_config.decontaminate_settings, training_verbs.decontaminate),
    "gate": Verb(config.gate_settings, verbs.gate),
    "tune": Verb(config.tune_settings, verbs.tune),
    "data": Verb(config.data_settings, verbs.data),
    "moments export": Verb(config.export_settings, moments_verbs.export),
    "moments estimate": Verb(moments_config.estimate_settings, moments_verbs.estimate),
    "moments compress": Verb(moments_config.compress_settings, moments_verbs.compress),
}
"""By name: one word, or two (`moments export`). Its options are in `conf/`, in the file of that name."""

ACTIONS = {"zoo": config.ZOO_ACTIONS, "data": config.DATA_ACTIONS}
"""Second words of verbs whose actions share their options."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exits with 1 on an error and 130 on an interruption."""
    _configure_logging()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: what is half done is removed
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print_overview(tuple(VERBS))
        return
    if arguments[0] == "--version":
        Console().print(f"graftbench {__version__}", highlight=False)
        return
    try:
        _dispatch(*find_verb(arguments))
    except GraftbenchError as error:
        _fail(str(error))
    except (HydraException, OmegaConfBaseException, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted; what was finished is kept, and the same command goes on from there", status=130)


def find_verb(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The verb, of one word or two, and its options; a second word that is an action becomes the option `action`.

    Raises:
        GraftbenchError: there is no such verb, or no such second word; the nearest are named.
    """
    name, rest = arguments[0], list(arguments[1:])
    second = rest[0] if rest and "=" not in rest[0] and not rest[0].startswith("-") else None
    if second is not None and f"{name} {second}" in VERBS:
        return f"{name} {second}", _named(VERBS[f"{name} {second}"], rest[1:])
    actions = [*ACTIONS.get(name, ()), *(verb.partition(" ")[2] for verb in VERBS if verb.startswith(f"{name} "))]
    if second in ACTIONS.get(name, ()):
        return name, [f"action={second}", *rest[1:]]
    if name in VERBS and VERBS[name].words:
        return name, _named(VERBS[name], rest)
    if second is not None and actions:
        raise unknown_name(f"action of {name}", second, actions)
    if name in VERBS:
        return name, rest
    if actions:
        raise GraftbenchError(f"graftbench {name} needs a second word: {', '.join(actions)}")
    raise unknown_name("verb", name, VERBS)


def _named(verb: Verb, arguments: Sequence[str]) -> list[str]:
    """The arguments with the names of the options that leading words stand for."""
    bare = [argument for argument in arguments[: len(verb.words)] if "=" not in argument and argument[:1] != "-"]
    leading = arguments[: len(bare)] == bare
    names = verb.words if leading else ()
    return [f"{name}={word}" for name, word in zip(names, bare, strict=False)] + list(
        arguments[len(bare) if leading else 0 :]
    )


def _dispatch(name: str, arguments: list[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print_verb_help(name, [a for a in arguments if a not in ("-h", "--help")])
        return
    line = read_command_line(arguments)
    if not line.inspects:
        jobs = check(config_name(name), line, VERBS[name].read)
        if (agree := VERBS[name].agree) is not None:
            agree(jobs)
    _hand_to_hydra(name, line)


def _hand_to_hydra(name: str, line: CommandLine) -> None:
    verb = VERBS[name]
    failures: list[str] = []
    raised: list[Exception] = []

    @hydra.main(config_path=str(config_folder()), config_name=config_name(name), version_base="1.3")
    def job(cfg: DictConfig) -> Any:
        runtime = HydraConfig.get()
        overrides = list(runtime.overrides.task)
        try:
            sweep = Path(runtime.sweep.dir).name if runtime.mode == RunMode.MULTIRUN else None
            settings = verb.read(cfg, invocation(runtime.runtime.choices, overrides, sweep))
            with digests_kept_in(settings.home / "digests.json"):
                return verb.act(settings)
        except Exception as error:
            if runtime.mode != RunMode.MULTIRUN:
                raised.append(error)
                return None
            failures.append(f"{' '.join(overrides)}: {error}")
            log.error("job %s failed, the sweep goes on: %s", runtime.job.num, error)
            if not isinstance(error, GraftbenchError):
                log.error("%s", traceback.format_exc())
            raise

    # Hydra must hand exceptions on as they are; they are shown here.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [f"graftbench {name}", *line.flags, *line.overrides]
    try:
        job()
    except Exception:
        if not failures:
            raise
        _fail(f"{len(failures)} jobs of the sweep failed, the others are finished:\n" + "\n".join(failures))
    finally:
        end_shared_engine()
    if raised:
        raise raised[0]


def _fail(message: str, status: int = 1) -> None:
    Console(stderr=True).print(
        f"[bold red]graftbench:[/] {message.replace('[', chr(92) + '[')}", highlight=False, soft_wrap=True
    )
    sys.exit(status)


def _configure_logging() -> None:
    """Colours for a person at a terminal; whole lines with the time for a file."""
    if sys.stderr.isatty():
        rich = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S", markup=False)
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[rich])
    else:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("harness").setLevel(logging.INFO)
