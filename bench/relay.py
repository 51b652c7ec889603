#!/usr/bin/env python3
"""Relays alone: frames forwarded per second of the relay's CPU, EdgeLink beside iroh-relay, on loopback.

    relay.py [--rounds N] [--secs N] [--pairs N] [--bytes N]

EdgeLink is `edgelink-load relay` (a real controller and `edgelink-server`), iroh the server of crates.io driven by
limits/iroh-relay-drive. Both relays end TLS on both legs and get whole messages of BYTES bytes from as many senders, each with
the same number under way. Programs are sought in $EDGELINK_BIN_DIR, $MB_BIN and $PATH. Rounds alternate; medians as Markdown.
"""
import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

PATH = os.pathsep.join(filter(None, [os.environ.get("EDGELINK_BIN_DIR"), os.environ.get("MB_BIN"), os.environ.get("PATH")]))
PORT = 8443


def find(program):
    return shutil.which(program, path=PATH) or sys.exit(f"missing: {program}; see bench/README.md")


def cpu(pid):
    """CPU seconds of a process, user and system (proc_pid_stat(5))."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def edgelink(args):
    """((senders, frames under way of each), (frames per CPU second, a second)) of one sender and of many, with few and with many frames each."""
    command = [find("edgelink-load"), "relay", "--json", "--stalled", "0", "--connections", str(2 * args.pairs), "--senders",
               str(args.pairs), "--payload", str(args.bytes), "--seconds", str(args.secs)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "PATH": PATH})
    measured = json.loads(out.stdout)["forwarding"]
    # edgelink-load has four messages under way of a single sender, one of each of many.
    cases = [(one["senders"], one["per_message"] * (4 if one["senders"] == 1 else 1)) for one in measured]
    return cases, [(1e6 / one["cpu_us_per_frame"], one["frames_per_s"]) for one in measured]


def certificates(folder):
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], check=True, cwd=folder, capture_output=True)

    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=bench")
    openssl("req", *new, "-keyout", "host.key", "-out", "host.csr", "-subj", "/CN=localhost")
    with open(f"{folder}/host.ext", "w") as extensions:
        extensions.write("subjectAltName=IP:127.0.0.1\n")
    openssl("x509", "-req", "-in", "host.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "host.pem", "-days", "2",
            "-extfile", "host.ext")


def iroh(args, cases):
    """The same with iroh-relay and the same cases."""
    with tempfile.TemporaryDirectory() as folder:
        certificates(folder)
        with open(f"{folder}/relay.toml", "w") as config:
            config.write(f"""http_bind_addr = "127.0.0.1:{PORT + 1}"
enable_metrics = false
enable_quic_addr_discovery = false
[tls]
https_bind_addr = "127.0.0.1:{PORT}"
hostname = "localhost"
cert_mode = "Manual"
manual_cert_path = "{folder}/host.pem"
manual_key_path = "{folder}/host.key"
""")
        with open(f"{folder}/log", "w") as log:
            server = subprocess.Popen([find("iroh-relay"), "-c", f"{folder}/relay.toml"], stdout=log, stderr=log)
        try:
            until = time.monotonic() + 10
            while True:
                try:
                    socket.create_connection(("127.0.0.1", PORT), 1).close()
                    break
                except OSError:
                    if time.monotonic() > until or server.poll() is not None:
                        sys.exit(f"iroh-relay does not listen: {open(f'{folder}/log').read()[-2000:]}")
                    time.sleep(0.05)
            out = []
            for pairs, window in cases:
                command = [find("iroh-relay-drive"), f"https://127.0.0.1:{PORT}/", f"{folder}/ca.pem", args.secs, pairs, args.bytes, window]
                driver = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
                before = cpu(server.pid)
                result = driver.communicate()[0]
                if driver.returncode:
                    sys.exit("iroh-relay-drive failed")
                result = json.loads(result)
                out.append((result["messages"] / (cpu(server.pid) - before), result["messages"] / result["seconds"]))
            return out
        finally:
            server.terminate()
            server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--secs", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--bytes", type=int, default=1200)
    args = parser.parse_args()
    rounds = []
    for n in range(args.rounds):
        cases, ours = edgelink(args)
        rounds.append((ours, iroh(args, cases)))
        print(f"round {n + 1}: {rounds[-1]}", file=sys.stderr)
    print("| senders | under way of each | EdgeLink: frames per CPU s | a second | iroh-relay: messages per CPU s | a second | per CPU s |")
    print("|---|---|---|---|---|---|---|")
    for case, (senders, window) in enumerate(cases):
        ours, theirs = ([statistics.median(one[who][case][what] for one in rounds) for what in (0, 1)] for who in (0, 1))
        print(f"| {senders} | {window} | {ours[0]:,.0f} | {ours[1]:,.0f} | {theirs[0]:,.0f} | {theirs[1]:,.0f} | {ours[0] / theirs[0]:.1f} × |")


if __name__ == "__main__":
    main()
