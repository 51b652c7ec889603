#!/bin/bash
# EdgeLink, all data A -> R -> B over WSS: the controller with its built-in relay on R, embedded defaults.
# MB_BIN: folder with the release binaries.
PEER=${PEER:-edgelink-relay} EDGELINK_P2P=${EDGELINK_P2P:-false}; . "$(dirname "$0")/../lib.sh"
peer_version() { edgelink --version; }

# path_is KIND...: whether A's path to B is of one of these kinds
path_is() {
  local kinds
  kinds=$(IFS='|'; echo "$*")
  inns A ping -c 1 -W 1 "$TUN_B" >/dev/null 2>&1
  edgelink status --json --socket "$RUN/$PEER/A.sock" | tr -d ' \n' | grep -Eq "\"path\":\{\"kind\":\"($kinds)\""
}

peer_start() {
  need edgelink edgelink-controller edgelink-ctl
  local d=$RUN/$PEER s key pin
  # The daemons' first words are waited for: not those of the run before.
  rm -rf "$d" "$RUN/$PEER".*.log; mkdir -p "$d"
  spawn r R edgelink-controller --state-dir "$d/controller"
  wait_for 10 grep -q ^ready "$RUN/$PEER.r.log" || return 1
  edgelink-ctl --db "$d/controller/mesh.db" network create --name bench --subnet 10.99.0.0/24 >/dev/null
  key=$(edgelink-ctl --db "$d/controller/mesh.db" --json token generate --type auth-key --network bench --reusable --preauthorize |
    sed -n 's/.*"key": *"\([^"]*\)".*/\1/p')
  pin=$(grep -o 'sha256:[^ ]*' "$RUN/$PEER.r.log" | head -1)
  # One after the other: addresses are handed out in order, and A is 10.99.0.1.
  for s in A B; do
    printf '{"controller": "wss://%s", "auth_key": "%s", "pin": "%s", "hostname": "%s", "state_dir": "%s", "p2p": {"enabled": %s}, "session_cipher": "%s"}\n' \
      "$PUB_R" "$key" "$pin" "$s" "$d/$s" "$EDGELINK_P2P" "${EDGELINK_CIPHER:-auto}" >"$d/$s.json"
    spawn ${s,} $s edgelink run --config "$d/$s.json" --socket "$d/$s.sock"
    wait_for 10 grep -q ^ready "$RUN/$PEER.${s,}.log" || return 1
  done
  if [ "$EDGELINK_P2P" = true ]; then
    wait_for 30 path_is lan p2p
  else
    wait_for 30 path_is relay mesh
  fi
}
peer_main "$@"
