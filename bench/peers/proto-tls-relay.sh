#!/bin/bash
# limits/prototype, tls + relay: TUN TSO, super-packets sealed end to end, masked frames in TLS 1.3 through R
PEER=proto-tls-relay; . "$(dirname "$0")/../lib.sh"
peer_version() { echo "proto tls"; }
peer_start() {
  need proto; certs
  spawn r R proto relay $PUB_R:443 "$RUN/host.pem" "$RUN/host.key"
  wait_for 5 inns R bash -c 'ss -ltn | grep -q :443' || return 1
  spawn a A proto tls pr0 a $PUB_R:443 "$RUN/ca.pem"
  spawn b B proto tls pr0 b $PUB_R:443 "$RUN/ca.pem"
  tun_up pr0
}
peer_main "$@"
