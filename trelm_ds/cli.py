"""The `trelm` command: parser, exit codes and error messages. The sub-commands are in `commands`."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from trelm_ds import __version__, log
from trelm_ds.commands import compare, convert, datasets, evaluate, jobs, mentions, models, planning, runs, vectors
from trelm_ds.errors import MAY_PASS, RankError, UserError
from trelm_ds.launched import is_launched, leave_exit_code

_DESCRIPTION = "Pre-train TRELM, a knowledge-enhanced BERT/RoBERTa, with DeepSpeed."
# Before they have met, ranks cannot wait for rank 0 to report an error; its launcher ends it once another has failed.
_RANK_0_FIRST_S = 5.0


class _Parser(argparse.ArgumentParser):
    """A parser that reports a wrong argument in one line, without the usage, and accepts no abbreviations."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False} | more)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the `trelm` command and exit.

    Exit codes: 0 done, 1 a check failed or a file server is away, 2 user error, 75 out of time (`trainer.max_minutes`),
    128 + n by signal n.
    """
    _open_standard_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    log.setup(distributed=arguments[:1] == ["pretrain"] and is_launched())
    try:
        code = _run(arguments)
    except UserError as error:
        # All ranks of a launcher raise the same error; report it once.
        if not error.reported:
            if log.rank() == 0 or isinstance(error, RankError):
                log.error(str(error))
            else:
                time.sleep(_RANK_0_FIRST_S)
        code = 1 if error.passes else 2
    except BrokenPipeError:  # `trelm ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        if error.filename is None and error.errno not in (*MAY_PASS, errno.ENOSPC, errno.EDQUOT):
            raise
        # A file cannot be read or written: no bug. What may pass, such as a file server that restarts, must not end
        # with the code of a mistake, after which no job is started again.
        log.error(f"{os.fsdecode(error.filename or 'a file')}: {error.strerror}")
        code = 1 if error.errno in MAY_PASS else 2
    except KeyboardInterrupt:
        code = 130
    if code == 2:
        leave_exit_code(code)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.exit(code)


def _open_standard_streams() -> None:
    """Open what the caller has closed (`2>&-`): otherwise a file takes its number, and libraries print into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _run(arguments: list[str]) -> int:
    parser = _Parser(prog="trelm", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"trelm-ds {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    datasets.add_prepare(commands)
    datasets.add_verify(commands)
    commands.add_parser("pretrain", help="train on a prepared dataset", add_help=False)
    commands.add_parser("plan", help="plan a run's memory and speed before it is started", add_help=False)
    commands.add_parser("tune", help="measure the plan's best choices in short runs", add_help=False)
    commands.add_parser("submit", help="submit a pre-training job to Slurm", add_help=False)
    jobs.add_status(commands)
    runs.add_checkpoints(commands)
    runs.add_sync(commands)
    runs.add_export(commands)
    convert.add_convert(commands)
    evaluate.add_evaluate(commands)
    compare.add_compare(commands)
    mentions.add_importance(commands)
    mentions.add_strategies(commands)
    models.add_neurons(commands)
    vectors.add_vectors(commands)
    if arguments[:1] == ["pretrain"]:  # its options are the settings, parsed by jsonargparse
        return runs.pretrain_command(arguments[1:])
    if arguments[:1] == ["submit"]:
        return jobs.submit_command(arguments[1:])
    if arguments[:1] == ["plan"]:
        return planning.plan_command(arguments[1:])
    if arguments[:1] == ["tune"]:
        return planning.tune_command(arguments[1:])
    namespace = parser.parse_args(arguments)
    action: Callable[[argparse.Namespace], int] = namespace.action
    return action(namespace)
