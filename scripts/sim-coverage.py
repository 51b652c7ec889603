"""Adds up the lines that `cov show` prints, for the crates that the simulator is about."""

import re
import sys
from collections import defaultdict
from pathlib import Path

CORES = ["session", "path", "node", "relay", "control", "wire", "auth", "model"]

root, reached, lines, name = Path(sys.argv[1]), defaultdict(int), defaultdict(int), None
for text in sys.stdin:
    if text.startswith("/"):
        path = Path(text.strip())
        name = str(path.relative_to(root)) if path.is_relative_to(root) else None
        in_tests = False
    elif name and (found := re.match(r" *\d+\| *([0-9]*)\|(.*)", text)):
        # Unit tests stand at the end of a file and are not what is asked about.
        in_tests = in_tests or found[2].strip() == "#[cfg(test)]"
        if found[1] and not in_tests:
            lines[name] += 1
            reached[name] += found[1] != "0"

if not lines:
    sys.exit("no line of this workspace is in the profile")
for core in CORES:
    files = sorted(file for file in lines if file.startswith(f"crates/edgelink-{core}/src/"))
    total, hit = sum(lines[f] for f in files), sum(reached[f] for f in files)
    if total:
        print(f"edgelink-{core:<8} {100 * hit / total:5.1f} %  {hit:5} of {total:5} lines")
        for file in files:
            print(f"    {Path(file).name:<24} {100 * reached[file] / lines[file]:5.1f} %  {reached[file]:5} of {lines[file]:5}")
