# Sourced by every script here: where caches are, and how to say things. Keeps build products out of the checkout.
# shellcheck shell=bash

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

EDGELINK_CACHE=${EDGELINK_CACHE:-${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/edgelink}
if ! mkdir -p "$EDGELINK_CACHE/target" 2>/dev/null || [ ! -w "$EDGELINK_CACHE/target" ]; then
  EDGELINK_CACHE=$(git rev-parse --show-toplevel 2>/dev/null || pwd)/target/cache
  mkdir -p "$EDGELINK_CACHE"
  CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$(dirname "$EDGELINK_CACHE")}
fi
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$EDGELINK_CACHE/target}
export EDGELINK_CACHE CARGO_TARGET_DIR

# Tools that these scripts installed; sbin because an ordinary user's PATH often lacks `ip` and `nft`.
PATH=$EDGELINK_CACHE/tools/bin:${CARGO_HOME:-${HOME:-/nonexistent}/.cargo}/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

# apt_install PACKAGE…: installs Debian packages as root, or tells which are missing.
apt_install() {
  [ $# -gt 0 ] || return 0
  if ! have apt-get; then
    die "missing: $*. These are Debian package names; install their like with this system's package manager"
  elif [ "$(id -u)" -eq 0 ]; then
    say "installing $*"
    local quiet=(-o Dpkg::Use-Pty=0 -qq)
    DEBIAN_FRONTEND=noninteractive apt-get "${quiet[@]}" install -y --no-install-recommends "$@" >&2 2>/dev/null ||
      { apt-get "${quiet[@]}" update >&2 && DEBIAN_FRONTEND=noninteractive apt-get "${quiet[@]}" install -y --no-install-recommends "$@" >&2; } ||
      die "cannot install $*"
  else
    die "missing: $*. Run: sudo apt-get install $*"
  fi
}
