#!/bin/bash
# limits/prototype, udp-naive: one packet a system call, ChaCha20-Poly1305
: "${PEER:=proto-naive}" "${PROTO_MODE:=udp-naive}"; . "$(dirname "$0")/../lib.sh"
peer_version() { echo "proto $PROTO_MODE"; }
peer_start() {
  need proto
  spawn a A proto $PROTO_MODE pr0 0.0.0.0:7000 "$PUB_B:7000"
  spawn b B proto $PROTO_MODE pr0 0.0.0.0:7000 "$PUB_A:7000"
  tun_up pr0
}
peer_main "$@"
