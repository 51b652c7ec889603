#!/usr/bin/env python3
"""Opens WSS-Mesh frames from first principles: an implementation of its own, sharing no code with EdgeLink.

usage: open_frames.py INPUT.json          (- for standard input)
       open_frames.py --json INPUT.json   one JSON object per frame instead of hex

INPUT.json:

  {
    "nodes": [                            who can be impersonated: the private keys
      {"machine_seed": "<64 hex>",        Ed25519 seed; optional, checks that it signs the node's statements
       "node_private": "<64 hex>"}        X25519 private key; needed of one side of each session at least
    ],
    "statements": [                       every key statement that was in force
      {"statement": "<240 hex>", "signature": "<128 hex>"}
    ],
    "frames": ["<hex>", ...],             whole frames, header included; or several frames in one message
    "psk": "<64 hex>"                     optional pre-shared key
  }

Frames that are not sealed (DATA 0x10, P2P_PING 0x32, P2P_PONG 0x33) are skipped. For each sealed frame one line
goes to standard output: the plaintext in hex, or "-" and the reason when it does not open. The exit status is 0 when
every sealed frame opened, 1 when one did not, 2 for bad input.
"""

import argparse
import hashlib
import json
import struct
import sys

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

DOMAIN = b"edgelink-nodekey-v1\0"
SEALED = {0x10: "DATA", 0x32: "P2P_PING", 0x33: "P2P_PONG"}
LOCAL_ONLY = 0x10
AES_256_GCM = 0x2  # capability bit


class BadInput(Exception):
    """The input file is not what this program reads."""


class Statement:
    """domain 20, network u32, node u32, machine_pub 32, node_pub 32, seq u64, not_before u64, not_after u64, caps u32"""

    def __init__(self, raw, signature):
        if len(raw) != 120 or raw[:20] != DOMAIN:
            raise BadInput("a statement is not 120 bytes of a key statement")
        self.network, self.node = struct.unpack(">II", raw[20:28])
        self.machine_pub, self.node_pub = raw[28:60], raw[60:92]
        self.seq, self.not_before, self.not_after, self.capabilities = struct.unpack(">QQQI", raw[92:])
        self.hash = hashlib.sha256(raw).digest()
        try:
            Ed25519PublicKey.from_public_bytes(self.machine_pub).verify(signature, raw)
        except InvalidSignature:
            raise BadInput(f"the signature of node {self.node}'s statement {self.seq} does not verify") from None


def direction(shared, psk, src, dst):
    """(key, prefix) of the packets from the holder of statement src to that of dst."""
    info = struct.pack(">III", src.node, dst.node, src.network) + src.hash + dst.hash
    okm = HKDF(hashes.SHA256(), 36, b"wss-mesh-session", info).derive(shared + psk)
    return okm[:32], okm[32:]


def sessions(nodes, statements, psk):
    """{(src, dst, prefix): [cipher, ...]} of all pairs of statements of which one private key is known."""
    privates = {}
    for node in nodes:
        if node.get("node_private"):
            key = X25519PrivateKey.from_private_bytes(bytes.fromhex(node["node_private"]))
            privates[key.public_key().public_bytes_raw()] = key
        if node.get("machine_seed"):
            machine = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(node["machine_seed"]))
            public = machine.public_key().public_bytes_raw()
            if not any(s.machine_pub == public for s in statements):
                raise BadInput("a machine_seed has signed none of the statements")
    found = {}
    for mine in statements:
        private = privates.get(mine.node_pub)
        if private is None:
            continue
        for theirs in statements:
            if theirs.node == mine.node or theirs.network != mine.network:
                continue
            shared = private.exchange(X25519PublicKey.from_public_bytes(theirs.node_pub))
            for src, dst in ((mine, theirs), (theirs, mine)):
                key, prefix = direction(shared, psk, src, dst)
                ciphers = found.setdefault((src.node, dst.node, prefix), {})
                both = mine.capabilities & theirs.capabilities
                ciphers[key] = AESGCM(key) if both & AES_256_GCM else ChaCha20Poly1305(key)
    return {name: list(ciphers.values()) for name, ciphers in found.items()}


def split(message):
    """The frames of one message: version, type, flags, length u16, payload."""
    while message:
        if len(message) < 5 or message[0] != 1:
            raise BadInput("a frame does not begin with a version 1 header")
        end = 5 + int.from_bytes(message[3:5], "big")
        if len(message) < end:
            raise BadInput("a frame is shorter than its header says")
        yield message[:end]
        message = message[end:]


def open_frame(frame, known):
    """(what the clear part says, plaintext or None, reason)"""
    payload = frame[5:]
    if len(payload) < 4 + 4 + 12 + 16:
        return {"type": SEALED[frame[1]]}, None, "too short"
    src, dst = struct.unpack(">II", payload[:8])
    nonce, sealed = payload[8:20], payload[20:]
    clear = {
        "type": SEALED[frame[1]],
        "flags": frame[2],
        "src": src,
        "dst": dst,
        "prefix": nonce[:4].hex(),
        "counter": int.from_bytes(nonce[4:], "big"),
    }
    aad = bytes([frame[0], frame[1], frame[2] & ~LOCAL_ONLY & 0xFF]) + payload[:8]
    ciphers = known.get((src, dst, nonce[:4]))
    if not ciphers:
        return clear, None, "no key for its source, destination and prefix"
    for cipher in ciphers:
        try:
            return clear, cipher.decrypt(nonce, sealed, aad), ""
        except InvalidTag:
            pass
    return clear, None, "the tag does not verify"


def run(document, as_json, out):
    """Prints one line per sealed frame; returns how many did not open."""
    try:
        statements = [
            Statement(bytes.fromhex(s["statement"]), bytes.fromhex(s["signature"])) for s in document["statements"]
        ]
        known = sessions(document["nodes"], statements, bytes.fromhex(document.get("psk") or ""))
        frames = [frame for text in document["frames"] for frame in split(bytes.fromhex(text))]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadInput(f"{type(error).__name__}: {error}") from error
    failed = 0
    for frame in frames:
        if frame[1] not in SEALED:
            continue
        clear, plaintext, reason = open_frame(frame, known)
        failed += plaintext is None
        if as_json:
            clear["plaintext"] = None if plaintext is None else plaintext.hex()
            if plaintext is None:
                clear["error"] = reason
            print(json.dumps(clear), file=out)
        else:
            print(f"- {reason}" if plaintext is None else plaintext.hex(), file=out)
    return failed


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n", 2)[2],
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="JSON file, or - for standard input")
    parser.add_argument("--json", action="store_true", help="one JSON object per frame instead of hex")
    arguments = parser.parse_args()
    try:
        with (sys.stdin if arguments.input == "-" else open(arguments.input, encoding="utf-8")) as file:
            document = json.load(file)
        failed = run(document, arguments.json, sys.stdout)
    except (OSError, ValueError, BadInput) as error:
        print(f"open_frames.py: {error}", file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
