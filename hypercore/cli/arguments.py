"""What the command line understands. It imports no more than it needs to say so, because help should be quick."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from typing import Any, Final

from hypercore.errors import AddressError, OptionError
from hypercore.keys import decode_key
from hypercore.urls import parse_address

#: Without --lines and --chunk: large enough that a proof costs little beside it, small enough to fetch a part.
DEFAULT_CHUNK_SIZE: Final = 64 * 1024
#: Long enough for a slow network, short enough for a person.
DEFAULT_TIMEOUT_SECONDS: Final = 30.0

_SIZE: Final = re.compile(
    r"(?P<number>\d{1,15}(\.\d{1,6})?) ?(?P<unit>[kmgt]?)(?P<binary>i?)b?", re.IGNORECASE | re.ASCII
)

_DESCRIPTION: Final = """\
A secure append-only log: one writer signs it, any number of readers fetch and verify it.

A STORAGE is a folder (./log, /srv/log) or the address of another backend, scheme:place; an ADDRESS of a peer is
tcp://host:port, a storage that holds the log, or lan: (--lan for short) for whoever is found on the local network.
`hypercore plugins` lists what is installed."""

_EPILOG: Final = """\
examples:
  hypercore create ./log
  hypercore append ./log access.log --lines
  hypercore serve ./log --listen tcp://0.0.0.0:4977
  hypercore clone KEY ./copy --from tcp://host:4977
  hypercore serve ./log --lan
  hypercore follow KEY ./copy --lan

exit codes: 0 done, 1 the job failed and one line says why, 2 not understood"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `command` of its result names the subcommand."""
    parser = _Parser(
        prog="hypercore",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="the version of this program")
    commands = _Commands(parser)

    create = commands.add(
        "create",
        "make a new log and print its key",
        "Refuses a storage that already holds a log, or anything else. The secret key stays in the storage.",
        "hypercore create ./log",
        "hypercore create ./log --json",
        "hypercore create ./log --hash blake3   # faster for large blocks; Node cannot read it",
    )
    _add_storage(create)
    kind = create.add_mutually_exclusive_group()
    kind.add_argument("--compat", action="store_true", help="the key is the signer's public key, as in hypercore 9")
    kind.add_argument("--hash", choices=("blake2b", "blake3"), default="blake2b", help="of the tree (blake2b)")

    append = commands.add(
        "append",
        "append a file or standard input",
        "With --lines each line is a block, without its newline; whatever has arrived is appended as one batch, so "
        "that a pipe's lines are there at once. Otherwise the input is cut into blocks of --chunk bytes. With --listen "
        "or --lan the log is served meanwhile, so that readers have each block as it is appended, and after the end of "
        "the input until interrupted; the first line of output is then that of serve.",
        "hypercore append ./log access.log --lines",
        "tail -f access.log | hypercore append ./log - --lines",
        "tail -f access.log | hypercore append ./log - --lines --listen tcp://0.0.0.0:4977",
        "tail -f access.log | hypercore append ./log - --lines --lan",
        "hypercore append ./log film.mp4 --chunk 1048576",
    )
    _add_storage(append)
    append.add_argument("file", metavar="FILE", nargs="?", default="-", help="- is standard input, the default")
    shape = append.add_mutually_exclusive_group()
    shape.add_argument("--lines", action="store_true", help="one block a line, without its newline")
    shape.add_argument(
        "--chunk",
        metavar="BYTES",
        type=_chunk_size,
        default=DEFAULT_CHUNK_SIZE,
        help=f"one block each so many bytes ({DEFAULT_CHUNK_SIZE})",
    )
    _add_durability(append)
    _add_listen(append)

    cat = commands.add(
        "cat",
        "print blocks as they are, one after the other",
        "Nothing is put between the blocks, unless --lines puts a newline after each: the counterpart of append "
        "--lines. Fails at the first block that is not stored here, and names it. With "
        '--json one object a block: {"index":0,"size":5,"hex":"68656c6c6f"}, size in bytes.',
        "hypercore cat ./log > copy",
        "hypercore cat ./log --start 100 --end 200",
    )
    _add_storage(cat)
    cat.add_argument("--start", metavar="N", type=_index, default=0, help="the first block (0)")
    cat.add_argument("--end", metavar="N", type=_index, help="the block after the last one (the length)")
    cat.add_argument("--lines", action="store_true", help="a newline after each block")

    get = commands.add(
        "get",
        "print one block",
        'The bytes of the block and nothing else. With --json {"index":0,"size":5,"hex":"68656c6c6f"}.',
        "hypercore get ./log 0",
        "hypercore get ./log 17 --json",
    )
    _add_storage(get)
    get.add_argument("index", metavar="INDEX", type=_index, help="0 is the first block")

    info = commands.add(
        "info",
        "say what a storage holds",
        "Reads only, also while another process writes.",
        "hypercore info ./log",
        "hypercore info ./log --json",
    )
    _add_storage(info)

    verify = commands.add(
        "verify",
        "check every hash, the signature and every stored block",
        "Prints a line for each problem and exits with 1 when there are any. Changes nothing.",
        "hypercore verify ./log",
        "hypercore verify ./log --json",
    )
    _add_storage(verify)

    _add_network_commands(commands)
    _add_mirror(commands)

    copy = commands.add(
        "copy",
        "copy a log from one storage to another, verified",
        "Copies the blocks that SRC holds; each is verified on its way. The copy is a reader's: it can be served and "
        "read, and not appended to; its user data is copied, too. Interrupted, the same command goes on where it was. "
        "--with-secret-key makes DST a writer; then only one of the two may ever append again, or readers will see two "
        "histories and stop.",
        "hypercore copy ./log /mnt/backup/log",
        "hypercore copy ./log s3://bucket/log",
        "hypercore copy ./log ./moved --with-secret-key",
    )
    copy.add_argument("source", metavar="SRC", type=_address, help="the storage that holds the log")
    copy.add_argument("destination", metavar="DST", type=_address, help="an empty one, or an older copy")
    copy.add_argument("--with-secret-key", action="store_true", help="DST can be appended to")

    _add_lan_commands(commands)

    commands.add(
        "plugins",
        "list the storage backends and transports that are installed",
        "Also those that are broken or switched off (HYPERCORE_DISABLE_PLUGINS=name,name), and why.",
        "hypercore plugins",
        "hypercore plugins --json",
    )
    return parser


def _add_network_commands(commands: _Commands) -> None:
    serve = commands.add(
        "serve",
        "offer a log to peers until interrupted",
        "Prints the addresses that peers may dial; port 0 means any free one. With --json the first line is "
        '{"key":...,"discovery_key":...,"addresses":[...]}. Nobody else can append to STORAGE '
        "meanwhile: `hypercore append --listen` does both.",
        "hypercore serve ./log --listen tcp://0.0.0.0:4977",
        "hypercore serve ./log --listen tcp://127.0.0.1:0 --json",
        "hypercore serve ./log --lan   # readers on the local network find it by its key",
        "hypercore serve ./log --listen 'lan:?interfaces=eth0,wlan*&port=4977'",
    )
    _add_storage(serve)
    _add_listen(serve)
    serve.needs = "listen", "--listen ADDRESS, or --lan for the local network"

    clone = commands.add(
        "clone",
        "fetch a whole log from peers, verified",
        "Fetches every block up to the length that the peers have now. A storage that holds the log, damaged as it may "
        "be, is a peer as well, and needs no server. Interrupted, the same command goes on where it was; STORAGE is "
        "made once somebody is met who knows the key. With --json it ends with "
        '{"key":...,"length":...,"byte_length":...,"fork":...,"seconds":...}.',
        "hypercore clone KEY ./copy --from tcp://host:4977",
        "hypercore clone KEY ./copy --from tcp://one:4977 --from tcp://two:4977",
        "hypercore clone KEY ./copy --lan",
        "hypercore clone KEY ./copy --from s3://bucket/log   # or /mnt/backup/log, https://host/bucket/log",
    )
    _add_peer_options(clone)

    follow = commands.add(
        "follow",
        "print every new block, live, until interrupted",
        "Begins behind the blocks that exist already, or at --start; prints a block a line and stores it. A lost peer "
        "is dialled again; a storage is looked at every 2 seconds, or every 10 when it is far away. With --json one "
        'object a block: {"index":3,"length":4,"size":5,"hex":"68656c6c6f"}, where '
        "length is the log's and size the block's in bytes. STORAGE may be memory: to keep nothing.",
        "hypercore follow KEY ./copy --from tcp://host:4977",
        "hypercore follow KEY memory: --from tcp://host:4977 --start 0 --json",
        "hypercore follow KEY ./copy --lan   # or --from 'lan:?interfaces=eth0'",
        "hypercore follow KEY ./copy --from s3://bucket/log",
    )
    _add_peer_options(follow)
    follow.add_argument("--start", metavar="N", type=_index, help="the first block to print (the length at the start)")


def _add_mirror(commands: _Commands) -> None:
    mirror = commands.add(
        "mirror",
        "keep a copy of one or many logs, and serve it",
        "Downloads what the sources have, follows them live, and serves readers meanwhile; after an interruption it "
        "goes on where it was. Several mirrors of one STORAGE agree by its lease: one writes, the others serve what it "
        "writes and take over when it ends. With --json every change is told by an object with "
        '"have", "want", "blocks_per_second", "synced", "cores", "sources", "problems" and more.',
        "hypercore mirror KEY ./copy --from tcp://host:4977 --listen tcp://0.0.0.0:4978",
        "hypercore mirror KEY ./copy --lan",
        "hypercore mirror KEY 's3://bucket/{key}' --from tcp://host:4977 --health 127.0.0.1:9100",
        "hypercore mirror '/srv/logs/{key}' --keys keys.txt --from tcp://host:4977 --most-bytes 500GiB",
        "hypercore mirror KEY ./part --range 1000:2000 --from tcp://host:4977 --once",
    )
    mirror.add_argument(
        "key", metavar="KEY", nargs="?", type=_key, help="64 hex digits or 52 letters of z-base-32; or --keys"
    )
    mirror.add_argument(
        "storage",
        metavar="STORAGE",
        type=_address,
        help="a folder, or another backend's address; {key} or {discovery_key} in it stands for the log's, in hex",
    )
    mirror.add_argument(
        "--from", metavar="ADDRESS", dest="sources", action="append", default=[], type=_address, help="a source to dial"
    )
    mirror.add_argument(
        "--listen", metavar="ADDRESS", action="append", default=[], type=_address, help="where readers come in"
    )
    _add_lan(mirror, "sources", "find sources on the local network, and be found there by readers")
    mirror.add_argument(
        "--keys",
        metavar="FILE",
        help="many logs: a file with a key a line and # comments, or a folder of files that are named by a key or hold "
        "some; read again when it changes, and at SIGHUP",
    )
    mirror.add_argument(
        "--range",
        metavar="START:END",
        type=_range,
        default=(0, None),
        help="only blocks START up to END; without END what comes, too",
    )
    mirror.add_argument(
        "--most-bytes",
        metavar="SIZE",
        type=_size,
        help="download no more once so much is stored, and go on serving: 500GiB, 10MB, 4096",
    )
    _add_durability(mirror)
    mirror.add_argument("--once", action="store_true", help="stop when all is here that the sources have")
    mirror.add_argument("--metrics", metavar="HOST:PORT", help="serve /metrics for Prometheus")
    mirror.add_argument("--health", metavar="HOST:PORT", help="serve /health: 200, or 503 and why")


def _add_lan_commands(commands: _Commands) -> None:
    lan = commands.group(
        "lan",
        "see who is on the local network, or why peers do not find each other",
        "Peers are found there by --lan of serve, append, clone, follow and mirror.",
        "hypercore lan doctor KEY",
        "hypercore lan peers",
    )
    doctor = lan.add(
        "doctor",
        "say why peers on the local network do not find each other",
        "Looks at the network interfaces, sends itself multicast, listens who announces something, and dials who "
        "announces the log of KEY, as a reader would; without KEY it only sees whether peers can be reached. Prints a "
        "line for each problem, with what to do, and exits with 1 when no peer is connected because of it. The words "
        "are: no-interface, container-network, port-held, multicast-blocked, multicast-failed, nobody-heard, "
        "nobody-announces, no-shared-core, port-blocked, peer-refused, peer-gone, other-network, other-version. Run it "
        "on both machines. With --json one object with healthy, interfaces, peers, sharing, connected and causes.",
        "hypercore lan doctor KEY",
        "hypercore lan doctor KEY --address 'lan:?interfaces=eth0&port=4977'",
    )
    doctor.add_argument("key", metavar="KEY", nargs="?", type=_key, help="the log that somebody should have")
    peers = lan.add(
        "peers",
        "list who announces logs on the local network",
        'Addresses, and how many logs each one serves. With --json {"addresses":[...],"logs":3}.',
        "hypercore lan peers",
    )
    for command in (doctor, peers):
        command.add_argument(
            "--address",
            metavar="ADDRESS",
            default="lan:",
            type=_address,
            help="with the options that the program has which is asked about (lan:)",
        )


class _Parser(argparse.ArgumentParser):
    """Of several options that lead to one value it may need any one."""

    #: The name of that value, and the options.
    needs: tuple[str, str] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        options, rest = super().parse_known_args(args, namespace)
        if self.needs is not None and not getattr(options, self.needs[0]):
            self.error(f"one of these is required: {self.needs[1]}")
        return options, rest


class _Commands:
    """Adds subcommands that all look alike."""

    def __init__(self, parser: _Parser, destination: str = "command") -> None:
        self._parsers = parser.add_subparsers(metavar="COMMAND", dest=destination, required=True)

    def group(self, name: str, summary: str, description: str, *examples: str) -> _Commands:
        """A command that has commands of its own; which one is in `<name>_command`."""
        return _Commands(self._add(name, summary, description, examples), f"{name}_command")

    def add(self, name: str, summary: str, description: str, *examples: str) -> _Parser:
        parser = self._add(name, summary, description, examples)
        parser.add_argument("--json", action="store_true", help="print one JSON object a line; keys are hex")
        return parser

    def _add(self, name: str, summary: str, description: str, examples: Sequence[str]) -> _Parser:
        return self._parsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}. {description}",
            epilog="\n  ".join(("examples:", *examples)),
            formatter_class=_Formatter,
            allow_abbrev=False,
        )


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Fills the description, and leaves the examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __init__(self, option_strings: list[str], dest: str, help: str) -> None:  # noqa: A002 - argparse's word
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import hypercore

        sys.stdout.write(f"hypercore {hypercore.__version__}\n")
        parser.exit()


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("storage", metavar="STORAGE", type=_address, help="a folder, or another backend's address")


def _add_durability(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--durability",
        choices=("none", "flush", "always"),
        default="flush",
        help="what a stored block survives (flush)",
    )


def _add_listen(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        action="append",
        default=[],
        type=_address,
        help="tcp://host:port to be dialled at; may be repeated",
    )
    _add_lan(parser, "listen", "be found by readers on the local network")


def _add_lan(parser: argparse.ArgumentParser, destination: str, summary: str) -> None:
    parser.add_argument(
        "--lan",
        dest=destination,
        action="append_const",
        const="lan:",
        help=f"{summary}; short for the ADDRESS lan: without options",
    )


def _add_peer_options(parser: _Parser) -> None:
    parser.add_argument("key", metavar="KEY", type=_key, help="64 hex digits or 52 letters of z-base-32")
    _add_storage(parser)
    parser.add_argument(
        "--from",
        metavar="ADDRESS",
        dest="peers",
        action="append",
        default=[],
        type=_address,
        help="tcp://host:port of a peer, or a storage that holds the log; may be repeated",
    )
    _add_lan(parser, "peers", "find peers on the local network")
    parser.needs = "peers", "--from ADDRESS, or --lan for the local network"
    _add_timeout(parser)


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=DEFAULT_TIMEOUT_SECONDS,
        help=f"give up when nothing comes for so long ({DEFAULT_TIMEOUT_SECONDS:g})",
    )


# ---- values: each says what it is in the message when it is not ------------------------------------


def _key(text: str) -> bytes:
    try:
        return decode_key(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _address(text: str) -> str:
    try:
        parse_address(text)
    except AddressError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _index(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no block number; the first block is 0")
    return int(text)


def _range(text: str) -> tuple[int, int | None]:
    start, colon, end = text.partition(":")
    if not colon or (start and not _is_number(start)) or (end and not _is_number(end)):
        raise argparse.ArgumentTypeError(f"{text!r} is no range; 1000:2000, 1000: and :2000 are")
    first, last = int(start or 0), int(end) if end else None
    if last is not None and last <= first:
        raise argparse.ArgumentTypeError(f"{text!r} is a range without blocks: it ends before it begins")
    return first, last


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _size(text: str) -> int:
    found = _SIZE.fullmatch(text)
    size = 0
    if found is not None:
        power = " kmgt".index(found["unit"].lower() or " ")
        size = int(float(found["number"]) * (1024 if found["binary"] else 1000) ** power)
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; 500GiB, 10MB and 4096 are")
    return size


def _chunk_size(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds
