"""The command line: `python -m harness`, or `groundprune` where it is installed, and its commands."""

from __future__ import annotations

import signal
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from harness.commands.cost import cost
from harness.commands.diagnose import diagnose
from harness.commands.doctor import doctor
from harness.commands.gate import gate
from harness.commands.list_ import show
from harness.commands.rebuild import rebuild
from harness.commands.report import report
from harness.commands.reproduce import reproduce
from harness.commands.site import site
from harness.commands.study import study
from harness.commands.submission import submission
from harness.commands.submit import submit
from harness.commands.sweep import sweep
from harness.commands.try_ import try_image
from harness.engine.interrupts import (
    INTERRUPTED,
    TERMINATED,
    Keys,
    Terminated,
    farewell,
    interrupted,
    terminate,
)

PROGRAM = "python -m harness"  # however it was called
SWEEPS = ("run", "sweep", "eval", "evaluate", "bench", "benchmark")  # what others call their sweep


class Commands(TyperGroup):
    """The commands, and what to say of one that there is not."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments begin with.

        Raises:
            UserError: there is none of its name.
        """
        from pruners.errors import UserError, nearest

        name = str(args[0])
        if not name.startswith("-") and name not in (known := self.list_commands(ctx)):
            if name.lower() in SWEEPS:
                hint = f" A sweep needs no command: give its options alone, see {PROGRAM} --help."
            else:
                hint = nearest(name, known) or f" See {PROGRAM} --help."
            raise UserError(f"There is no command {name[:100]!r}; there are {', '.join(known)}.{hint}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    help="Which visual-token pruner, at which budget, keeps the masks right? Without a command: run a sweep.",
)

app.callback(invoke_without_command=True)(sweep)
app.command("list")(show)
app.command()(gate)
app.command("try")(try_image)
app.command()(cost)
app.command()(diagnose)
app.command()(doctor)
app.command()(rebuild)
app.command()(report)
app.command()(reproduce)
app.command()(study)
app.command()(submission)
app.command()(submit)
app.command()(site)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; a user's mistake is one sentence and exit code 2.

    Args:
        arguments: None for those of the process.
    """
    signal.signal(signal.SIGTERM, terminate)
    with Keys(farewell):
        try:
            code = int(app(arguments, standalone_mode=False, prog_name=PROGRAM) or 0)
        except KeyboardInterrupt:
            code = INTERRUPTED
        except Terminated:
            code = TERMINATED
        except Exception as error:
            if interrupted():  # amid an import or in a C library, which make another error of it
                code = INTERRUPTED
            else:
                message = _sentence(error)
                if message is None or "--debug" in (sys.argv if arguments is None else arguments):
                    raise
                print(f"error: {message}", file=sys.stderr)
                return 2
        if code in (INTERRUPTED, TERMINATED):
            print(farewell(), file=sys.stderr)
    return code


def _sentence(error: Exception) -> str | None:
    """What to tell the user; None if the mistake is ours."""
    from pruners.errors import UserError, finished

    if hasattr(error, "format_message"):  # an option that does not exist, or a value of another type
        return finished(_usage(error))
    return str(error) if isinstance(error, UserError) else None


def _usage(error: Any) -> str:
    """What is wrong with how the options are written, and whose help tells them.

    Args:
        error: one of click's, or of those that newer versions of typer have instead.
    """
    from pruners.errors import finished, nearest

    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else PROGRAM
    said, hint = error.format_message(), ""
    if context is not None and hasattr(error, "possibilities"):  # it does not exist
        shown = [one for one in context.command.params if not getattr(one, "hidden", False)]
        options = [text for one in shown for text in (*one.opts, *one.secondary_opts) if text[:2] == "--"]
        said = f"{command} has no option {error.option_name[:100]}"
        hint = nearest(error.option_name.lstrip("-"), [text.lstrip("-") for text in options])
        hint = hint.replace("mean '", "mean '--")
    return f"{finished(said)}{hint} See {command} --help."
