"""Whole trees, writers and readers in memory, for the tests of the log's pure parts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypercore.crypto import BLAKE2B, KeyPair, TreeHash
from hypercore.encoding import Reader as Cursor
from hypercore.encoding import encode_buffer, encode_uint
from hypercore.log import flat_tree
from hypercore.log.manifest import Authority, default_manifest, encode_manifest, manifest_key
from hypercore.log.merkle import append_blocks
from hypercore.log.proof import Verified, build_proof, missing_nodes, settle, verify_proof
from hypercore.proofs import (
    BlockProof,
    BlockRequest,
    HashProof,
    HashRequest,
    Node,
    Proof,
    ProofRequest,
    SeekProof,
    SeekRequest,
    UpgradeProof,
    UpgradeRequest,
)

VECTORS = Path(__file__).parent.parent / "vectors"
KEY_PAIR = KeyPair.from_seed(b"\x01" * 32)


def vectors(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text())


class Nodes(dict[int, Node]):
    """A `NodeSource` that counts its look-ups."""

    lookups = 0

    async def nodes(self, indexes: Sequence[int]) -> list[Node | None]:
        self.lookups += 1
        return [self.get(index) for index in indexes]


class Writer:
    """All of a log, with proofs of any earlier length."""

    def __init__(
        self,
        blocks: Sequence[bytes],
        *,
        authority: Authority | None = None,
        fork: int = 0,
        key_pair: KeyPair = KEY_PAIR,
        tree_hash: TreeHash = BLAKE2B,
    ) -> None:
        manifest = default_manifest(key_pair.public_key, hash=tree_hash.name)
        self.authority = authority or Authority.of(manifest_key(manifest), manifest)
        self.manifest = self.authority.manifest
        self.key_pair = key_pair
        self.fork = fork
        self.blocks = list(blocks)
        _, created = append_blocks([], 0, blocks, self.authority.tree_hash)
        self.tree = Nodes((node.index, node) for node in created)
        self.signatures: dict[int, bytes] = {}

    def roots(self, length: int) -> list[Node]:
        return [self.tree[index] for index in flat_tree.full_roots(length)]

    def signature(self, length: int) -> bytes:
        if length not in self.signatures:
            tree_hash = self.authority.tree_hash.tree(self.roots(length))
            self.signatures[length] = self.authority.sign(tree_hash, length, self.fork, self.key_pair)
        return self.signatures[length]

    async def answer(self, request: ProofRequest, *, length: int | None = None) -> Proof:
        length = len(self.blocks) if length is None else length
        block = request.block
        return await build_proof(
            self.tree,
            request,
            length=length,
            fork=self.fork,
            signature=self.signature(length) if request.upgrade is not None and length else b"",
            block=self.blocks[block.index] if block is not None and block.index < len(self.blocks) else None,
            manifest=encode_manifest(self.manifest) if self.manifest is not None else None,
        )


class Reader:
    """A sparse copy: nodes and blocks, changed by nothing but what `verify_proof` and `settle` let through."""

    def __init__(self, key: bytes) -> None:
        self.authority = Authority.of(key, None)
        self.tree = Nodes()
        self.blocks: dict[int, bytes] = {}
        self.fork = 0
        self.length = 0
        self.roots: tuple[Node, ...] = ()
        self.signature = b""

    def verify(self, proof: Proof) -> Verified:
        return verify_proof(proof, length=self.length, fork=self.fork, roots=self.roots, authority=self.authority)

    async def apply(self, proof: Proof) -> Verified:
        verified = self.verify(proof)
        for node in await settle(self.tree, verified):
            self.tree[node.index] = node
        if verified.upgrade is not None:
            self.roots = verified.upgrade.roots
            self.length = verified.upgrade.length
            self.signature = verified.upgrade.signature
        if proof.block is not None:
            self.blocks[proof.block.index] = proof.block.value
        self.authority = verified.authority
        return verified

    async def upgrade(self, writer: Writer, length: int) -> None:
        request = ProofRequest(self.fork, upgrade=UpgradeRequest(self.length, length - self.length), manifest=True)
        await self.apply(await writer.answer(request, length=length))

    async def fetch(self, writer: Writer, index: int) -> None:
        request = ProofRequest(self.fork, block=await self.block_request(index))
        await self.apply(await writer.answer(request))

    async def block_request(self, index: int) -> BlockRequest:
        return BlockRequest(index, await missing_nodes(self.tree, 2 * index, self.length))

    def copy(self) -> Reader:
        other = Reader(self.authority.key)
        other.authority, other.fork, other.length = self.authority, self.fork, self.length
        other.roots, other.signature = self.roots, self.signature
        other.tree, other.blocks = Nodes(self.tree), dict(self.blocks)
        return other


async def reader_of(writer: Writer, length: int, held: Sequence[int] = ()) -> Reader:
    reader = Reader(writer.authority.key)
    if length:
        await reader.upgrade(writer, length)
    for index in held:
        await reader.fetch(writer, index)
    return reader


# ---- the `data` message, so that recorded answers can be compared byte for byte ------------------------


def encode_data(proof: Proof, *, request: int = 1) -> bytes:
    flags = 0
    parts = []
    if proof.block is not None:
        flags |= 1
        parts += [encode_uint(proof.block.index), encode_buffer(proof.block.value), _encode_nodes(proof.block.nodes)]
    if proof.hash is not None:
        flags |= 2
        parts += [encode_uint(proof.hash.index), _encode_nodes(proof.hash.nodes)]
    if proof.seek is not None:
        flags |= 4
        parts += [encode_uint(proof.seek.byte_offset), _encode_nodes(proof.seek.nodes)]
    if (upgrade := proof.upgrade) is not None:
        flags |= 8
        parts += [encode_uint(upgrade.start), encode_uint(upgrade.length), _encode_nodes(upgrade.nodes)]
        parts += [_encode_nodes(upgrade.additional), encode_buffer(upgrade.signature)]
    if proof.manifest is not None:
        flags |= 16
        parts.append(proof.manifest)
    return encode_uint(flags) + encode_uint(request) + encode_uint(proof.fork) + b"".join(parts)


def decode_data(payload: bytes) -> Proof:
    cursor = Cursor(payload)
    flags, _request, fork = cursor.uint(), cursor.uint(), cursor.uint()
    block = BlockProof(cursor.uint(), cursor.buffer(), _decode_nodes(cursor)) if flags & 1 else None
    hash_part = HashProof(cursor.uint(), _decode_nodes(cursor)) if flags & 2 else None
    seek = SeekProof(cursor.uint(), _decode_nodes(cursor)) if flags & 4 else None
    upgrade = None
    if flags & 8:
        start, length = cursor.uint(), cursor.uint()
        upgrade = UpgradeProof(start, length, _decode_nodes(cursor), _decode_nodes(cursor), cursor.buffer())
    return Proof(fork, block, hash_part, seek, upgrade, cursor.rest() if flags & 16 else None)


def _encode_nodes(nodes: Sequence[Node]) -> bytes:
    return encode_uint(len(nodes)) + b"".join(encode_uint(n.index) + encode_uint(n.size) + n.hash for n in nodes)


def _decode_nodes(cursor: Cursor) -> tuple[Node, ...]:
    return tuple(Node(cursor.uint(), cursor.uint(), cursor.fixed(32)) for _ in range(cursor.uint()))


def request_of(recorded: dict[str, Any]) -> ProofRequest:
    """A request as the vectors write it."""

    def part(name: str, make: Callable[..., Any]) -> Any:
        return make(*recorded[name].values()) if name in recorded else None

    return ProofRequest(
        0,
        part("block", BlockRequest),
        part("hash", HashRequest),
        part("seek", SeekRequest),
        part("upgrade", UpgradeRequest),
        bool(recorded.get("manifest")),
    )


def node_of(recorded: dict[str, Any]) -> Node:
    return Node(recorded["index"], recorded["size"], bytes.fromhex(recorded["hash"]))
