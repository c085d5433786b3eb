"""Our transports keep the promises of `hypercore.transport`, on both event loops."""

from __future__ import annotations

import uvloop

from hypercore.testing import TransportContract
from hypercore.transport import Transport
from hypercore_pipe import PipeTransport
from hypercore_tcp import TcpTransport


class TestPipe(TransportContract):
    def make_transport(self) -> Transport:
        return PipeTransport()

    def listen_address(self) -> str:
        return "pipe:"


class TestPipeOnUvloop(TestPipe):
    loop_factory = staticmethod(uvloop.new_event_loop)


class TestTcp(TransportContract):
    def make_transport(self) -> Transport:
        return TcpTransport()

    def listen_address(self) -> str:
        return "tcp://127.0.0.1:0"


class TestTcpOnUvloop(TestTcp):
    loop_factory = staticmethod(uvloop.new_event_loop)


class TestTcpOverIpv6(TestTcp):
    def listen_address(self) -> str:
        return "tcp://[::1]:0"
