# SPDX-License-Identifier: Apache-2.0
"""gaps.py CONSOLE...: the greatest time between two heartbeats, in ms, over all stamped consoles."""
import re
import sys

times = []
for path in sys.argv[1:]:
    with open(path, "rb") as console:
        times += [float(line.split(b" ", 1)[0]) for line in console if re.match(rb"[\d.]+ .*HB n=", line)]
times.sort()
print(round(max(b - a for a, b in zip(times, times[1:])), 1))
