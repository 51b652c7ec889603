#!/bin/bash
# limits/prototype, tls + relay: TUN TSO, super-packets sealed end to end, masked frames in TLS 1.3 through R
PEER=proto-tls-relay; . "$(dirname "$0")/../lib.sh"
peer_version() { echo "proto tls"; }
peer_start() {
  need proto; certs
  local s
  spawn r R proto relay $PUB_R:443 "$RUN/host.pem" "$RUN/host.key"
  wait_for 5 inns R bash -c 'ss -ltn | grep -q :443' || return 1
  spawn a A proto tls pr0 a $PUB_R:443 "$RUN/ca.pem"
  spawn b B proto tls pr0 b $PUB_R:443 "$RUN/ca.pem"
  for s in A B; do
    wait_for 5 inns $s ip link show pr0 || return 1
    [ $s = A ] && inns A ip addr add $TUN_A/24 dev pr0 || inns B ip addr add $TUN_B/24 dev pr0
    inns $s ip link set pr0 mtu "${MB_MTU:-1400}" up
  done
}
peer_main "$@"
