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

from harness import __version__, config, verbs
from harness.errors import GraftbenchError, unknown_name
from harness.files import digests_kept_in
from harness.help import print_overview, print_verb_help
from harness.overrides import CommandLine, check, given_for_method, read_command_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verb:
    """One word of the command line: how its settings are read, and what it does with them."""

    read: Callable[[DictConfig, config.Invocation], Any]
    act: Callable[[Any], Any]


VERBS: dict[str, Verb] = {
    "run": Verb(config.run_settings, verbs.run),
    "merge": Verb(config.merge_settings, verbs.merge),
    "leaderboard": Verb(config.board_settings, verbs.leaderboard),
    "zoo": Verb(config.zoo_settings, verbs.zoo),
    "tune": Verb(config.tune_settings, verbs.tune),
}


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
        _dispatch(arguments[0], arguments[1:])
    except GraftbenchError as error:
        _fail(str(error))
    except (HydraException, OmegaConfBaseException, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted; what was finished is kept, and the same command goes on from there", status=130)


def _dispatch(name: str, arguments: list[str]) -> None:
    if name not in VERBS:
        raise unknown_name("verb", name, VERBS)
    if name == "zoo" and arguments and arguments[0] in config.ZOO_ACTIONS:
        arguments[0] = f"action={arguments[0]}"
    elif name == "zoo" and arguments and "=" not in arguments[0] and not arguments[0].startswith("-"):
        raise unknown_name("action of zoo", arguments[0], config.ZOO_ACTIONS)
    if {"-h", "--help"} & set(arguments):
        print_verb_help(name, [a for a in arguments if a not in ("-h", "--help")])
        return
    line = read_command_line(arguments)
    if not line.inspects:
        check(name, line, VERBS[name].read)
    _hand_to_hydra(name, line)


def _hand_to_hydra(name: str, line: CommandLine) -> None:
    verb = VERBS[name]
    failures: list[str] = []
    raised: list[Exception] = []

    @hydra.main(config_path=str(config.config_folder()), config_name=name, version_base="1.3")
    def job(cfg: DictConfig) -> Any:
        runtime = HydraConfig.get()
        overrides = list(runtime.overrides.task)
        try:
            sweep = Path(runtime.sweep.dir).name if runtime.mode == RunMode.MULTIRUN else None
            invocation = config.Invocation(dict(runtime.runtime.choices), given_for_method(overrides), sweep)
            settings = verb.read(cfg, invocation)
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
