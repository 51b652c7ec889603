#!/bin/bash
# limits/prototype, udp-gso: TUN TSO/USO, UDP GSO + GRO, ChaCha20-Poly1305
PEER=proto-gso PROTO_MODE=udp-gso; . "$(dirname "$0")/proto-naive.sh"
