#!/bin/bash
# EdgeLink, all data A -> R -> B over WSS: the controller with its built-in relay on R, embedded defaults.
# MB_BIN: folder with the release binaries.
PEER=edgelink-relay; . "$(dirname "$0")/../lib.sh"
peer_version() { edgelink --version; }
peer_start() {
  need edgelink edgelink-controller edgelink-ctl
  local d=$RUN/edgelink s i key pin
  rm -rf "$d"; mkdir -p "$d"
  spawn r R edgelink-controller --state-dir "$d/controller"
  wait_for 10 grep -q ^ready "$RUN/$PEER.r.log" || return 1
  edgelink-ctl --db "$d/controller/mesh.db" network create --name bench --subnet 10.99.0.0/24 >/dev/null
  key=$(edgelink-ctl --db "$d/controller/mesh.db" --json token generate --type auth-key --network bench --reusable --preauthorize |
    sed -n 's/.*"key": *"\([^"]*\)".*/\1/p')
  pin=$(grep -o 'sha256:[^ ]*' "$RUN/$PEER.r.log" | head -1)
  # One after the other: addresses are handed out in order, and A is 10.99.0.1.
  for s in A B; do
    printf '{"controller": "wss://%s", "auth_key": "%s", "pin": "%s", "hostname": "%s", "state_dir": "%s"}\n' \
      "$PUB_R" "$key" "$pin" "$s" "$d/$s" >"$d/$s.json"
    spawn ${s,} $s edgelink run --config "$d/$s.json" --socket "$d/$s.sock"
    wait_for 10 grep -q ^ready "$RUN/$PEER.${s,}.log" || return 1
  done
}
peer_main "$@"
