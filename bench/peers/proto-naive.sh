#!/bin/bash
# limits/prototype, udp-naive: one packet a system call, ChaCha20-Poly1305
: "${PEER:=proto-naive}" "${PROTO_MODE:=udp-naive}"; . "$(dirname "$0")/../lib.sh"
peer_version() { echo "proto $PROTO_MODE"; }
peer_start() {
  need proto
  local s
  spawn a A proto $PROTO_MODE pr0 0.0.0.0:7000 "$PUB_B:7000"
  spawn b B proto $PROTO_MODE pr0 0.0.0.0:7000 "$PUB_A:7000"
  for s in A B; do
    wait_for 5 inns $s ip link show pr0 || return 1
    [ $s = A ] && inns A ip addr add $TUN_A/24 dev pr0 || inns B ip addr add $TUN_B/24 dev pr0
    inns $s ip link set pr0 mtu "${MB_MTU:-1400}" up
  done
}
peer_main "$@"
