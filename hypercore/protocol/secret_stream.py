"""Frames, handshake, and the encryption of messages (wire spec, section 2).

Parts floor: bytes in, plaintext messages out, and the other way round. It knows nothing of what a message says.
"""

from __future__ import annotations

from typing import Final

from hypercore.crypto import (
    HASH_SIZE,
    SECRET_STREAM_HEADER_SIZE,
    SECRET_STREAM_OVERHEAD,
    KeyPair,
    SecretStreamReceiver,
    SecretStreamSender,
    blake2b,
    namespace,
)
from hypercore.errors import HandshakeError, ProtocolError, VerificationError
from hypercore.protocol.noise import Handshake

#: The longest frame body: the length field has three bytes.
MAX_FRAME_SIZE: Final = 2**24 - 1
#: The longest plaintext message.
MAX_MESSAGE_SIZE: Final = MAX_FRAME_SIZE - SECRET_STREAM_OVERHEAD

_NAMESPACE_INITIATOR: Final = namespace("hyperswarm/secret-stream", 0)
_NAMESPACE_RESPONDER: Final = namespace("hyperswarm/secret-stream", 1)

_LENGTH_SIZE: Final = 3
_HEADER_FRAME_SIZE: Final = HASH_SIZE + SECRET_STREAM_HEADER_SIZE
#: The sizes of what each role receives until the first message: Noise messages without payload, then the header
#: frame. Anything else is refused by its length alone, so that a stranger makes us buffer next to nothing.
_OPENING_SIZES_INITIATOR: Final = (96, _HEADER_FRAME_SIZE)
_OPENING_SIZES_RESPONDER: Final = (32, 64, _HEADER_FRAME_SIZE)


class SecretStream:
    """One side of the stream.

    `ephemeral` is a fresh key pair and `header` 24 random bytes, both for this stream alone; `frame_size` bounds the
    body of a received frame. Every error is final.
    """

    def __init__(
        self, initiator: bool, key_pair: KeyPair, *, ephemeral: KeyPair, header: bytes, frame_size: int = MAX_FRAME_SIZE
    ) -> None:
        if len(header) != SECRET_STREAM_HEADER_SIZE:
            raise ValueError(f"the header must be {SECRET_STREAM_HEADER_SIZE} random bytes, not {len(header)}")
        self.initiator = initiator
        #: Of the handshake: 64 bytes, None until it is complete.
        self.handshake_hash: bytes | None = None
        #: The peer's static key, 32 bytes, None until the handshake is complete.
        self.remote_public_key: bytes | None = None
        self._handshake = Handshake(initiator, key_pair, ephemeral)
        self._header = header
        self._frame_size = frame_size
        self._opening_sizes = list(_OPENING_SIZES_INITIATOR if initiator else _OPENING_SIZES_RESPONDER)
        self._rx_key = b""
        self._sender: SecretStreamSender | None = None
        self._receiver: SecretStreamReceiver | None = None
        self._partial = bytearray()
        self._outgoing: list[bytes] = []
        #: Bytes that `data_to_send` would give.
        self.pending_size = 0
        if initiator:
            self._queue(_frame(self._handshake.send()))

    @property
    def can_send(self) -> bool:
        """Whether the handshake is complete on our side; the peer's header may still be under way."""
        return self._sender is not None

    @property
    def established(self) -> bool:
        """Whether the peer's header has come: messages flow both ways."""
        return self._receiver is not None

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """The messages that `data` completes, without keepalives.

        Raises `HandshakeError` until the peer's header has come, then `ProtocolError`.
        """
        source: bytes | bytearray | memoryview = data
        if self._partial:
            self._partial += data
            source = self._partial
        plaintexts: list[bytes] = []
        offset, end = 0, len(source)
        with memoryview(source) as view:
            while end - offset >= _LENGTH_SIZE:
                start = offset + _LENGTH_SIZE
                size = view[offset] | view[offset + 1] << 8 | view[offset + 2] << 16
                self._check_size(size)
                if start + size > end:
                    break
                offset = start + size
                body = bytes(view[start:offset])
                if self._receiver is None:
                    self._receive_opening(body)
                    continue
                try:
                    plaintext = self._receiver.decrypt(body)
                except VerificationError as error:
                    raise ProtocolError(str(error)) from error
                if plaintext:
                    plaintexts.append(plaintext)
            if source is data and offset < end:
                self._partial += view[offset:]
        if source is self._partial:
            del self._partial[:offset]
        return plaintexts

    def receive_eof(self) -> None:
        """The peer finished. Raises when that was inside a frame or before its header."""
        if self._receiver is None:
            raise HandshakeError("the peer finished before the handshake was done")
        if self._partial:
            raise ProtocolError("the peer's stream ended inside a frame")

    def send(self, plaintext: bytes) -> None:
        """Seal a message of at most `MAX_MESSAGE_SIZE` bytes; an empty one is a keepalive. Needs `can_send`."""
        if self._sender is None:
            raise ValueError("no message can be sent before the handshake is complete")
        if len(plaintext) > MAX_MESSAGE_SIZE:
            raise ValueError(f"a message of {len(plaintext)} bytes is too long for one frame")
        size = len(plaintext) + SECRET_STREAM_OVERHEAD
        self._queue(self._sender.encrypt(plaintext, size.to_bytes(_LENGTH_SIZE, "little")))

    def data_to_send(self) -> bytes:
        """The bytes to write now."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        self.pending_size = 0
        return data

    def _queue(self, frame: bytes) -> None:
        self._outgoing.append(frame)
        self.pending_size += len(frame)

    def _check_size(self, size: int) -> None:
        """Refuse a frame by its length, before a byte of it is kept."""
        if self._receiver is None:
            wanted = self._opening_sizes[0]
            if size == wanted:
                return
            if self.initiator and self.handshake_hash is None and size == 32:
                raise HandshakeError("the peer is an initiator too, or our own bytes came back")
            raise HandshakeError(f"a frame of {size} bytes came where the handshake has one of {wanted}")
        if not SECRET_STREAM_OVERHEAD <= size <= self._frame_size:
            raise ProtocolError(f"a frame of {size} bytes; {SECRET_STREAM_OVERHEAD} to {self._frame_size} are accepted")

    def _receive_opening(self, body: bytes) -> None:
        del self._opening_sizes[0]
        if self.handshake_hash is not None:
            self._receive_header(body)
            return
        self._handshake.receive(body)
        if not self._handshake.complete:
            self._queue(_frame(self._handshake.send()))
        if self._handshake.complete:
            self._send_header()

    def _send_header(self) -> None:
        tx_key, self._rx_key, self.handshake_hash, self.remote_public_key = self._handshake.result
        self._queue(_frame(stream_id(self.handshake_hash, initiator=self.initiator) + self._header))
        self._sender = SecretStreamSender(tx_key, self._header)

    def _receive_header(self, body: bytes) -> None:
        handshake_hash = self.handshake_hash or b""
        their_id, header = body[:HASH_SIZE], body[HASH_SIZE:]
        if their_id == stream_id(handshake_hash, initiator=self.initiator):
            raise HandshakeError("our own header came back: the stream is reflected")
        if their_id != stream_id(handshake_hash, initiator=not self.initiator):
            raise HandshakeError("the peer's header is not of this handshake")
        self._receiver = SecretStreamReceiver(self._rx_key, header)


def _frame(body: bytes) -> bytes:
    return len(body).to_bytes(_LENGTH_SIZE, "little") + body


def stream_id(handshake_hash: bytes, *, initiator: bool) -> bytes:
    """The 32 bytes by which a side names its direction of the stream (wire spec, section 2.3)."""
    return blake2b(_NAMESPACE_INITIATOR if initiator else _NAMESPACE_RESPONDER, key=handshake_hash)
