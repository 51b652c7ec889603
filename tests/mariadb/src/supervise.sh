# Runs the server that the tests share, until nobody has used it for ten seconds; then nothing of it is left.
# Arguments: its directory, the lock that every user holds shared, the server's command line.
set -u
dir=$1 users=$2
shift 2
setpriv --pdeathsig KILL "$@" >"$dir/log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null' TERM INT HUP
exec 9>>"$users"
idle=0
while kill -0 "$server" 2>/dev/null; do
  if flock -n -x 9; then
    idle=$((idle + 1))
    # With the lock held: whoever comes now waits, and finds no server.
    [ "$idle" -lt 10 ] || break
    flock -u 9
  else
    idle=0
  fi
  sleep 1
done
kill "$server" 2>/dev/null
wait "$server" 2>/dev/null
rm -rf "$dir"
