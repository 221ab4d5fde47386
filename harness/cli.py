"""The command line: `python -m harness` and its commands."""

from __future__ import annotations

import signal
import sys

import typer

from harness.commands.cost import cost
from harness.commands.diagnose import diagnose
from harness.commands.doctor import doctor
from harness.commands.gate import gate
from harness.commands.list_ import show
from harness.commands.rebuild import rebuild
from harness.commands.study import study
from harness.commands.submission import submission
from harness.commands.sweep import sweep
from harness.commands.try_ import try_image
from harness.engine.interrupts import Terminated, terminate

app = typer.Typer(
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    help="Which visual-token pruner, at which budget, keeps the masks right? Without a command: run a sweep.",
)
INTERRUPTED, TERMINATED = 130, 143  # exit codes after Ctrl-C (typer's own) and SIGTERM

app.callback(invoke_without_command=True)(sweep)
app.command("list")(show)
app.command()(gate)
app.command("try")(try_image)
app.command()(cost)
app.command()(diagnose)
app.command()(doctor)
app.command()(rebuild)
app.command()(study)
app.command()(submission)


def main() -> int:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    signal.signal(signal.SIGTERM, terminate)
    try:
        code = int(app(standalone_mode=False) or 0)
    except Terminated:
        code = TERMINATED
    except Exception as error:
        message = _sentence(error)
        if message is None or "--debug" in sys.argv:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2
    if code in (INTERRUPTED, TERMINATED):
        print("stopped, nothing recorded is lost; give the same command again to go on", file=sys.stderr)
    return code


def _sentence(error: Exception) -> str | None:
    """What to tell the user; None if the mistake is ours."""
    if hasattr(error, "format_message"):  # an option that does not exist, or a value of another type
        return f"{error.format_message()} See python -m harness --help."
    from pruners.base import UserError

    return str(error) if isinstance(error, UserError) else None
