#!/bin/bash
# EdgeLink, direct by UDP, with ChaCha20-Poly1305 in place of AES-256-GCM.
PEER=edgelink-chacha EDGELINK_P2P=true EDGELINK_CIPHER=chacha20-poly1305; . "$(dirname "$0")/edgelink-relay.sh"
