# SPDX-License-Identifier: Apache-2.0
"""stalls.py CONSOLE: how long the guest stood still, as its stamped heartbeats show: those over 100 ms."""
import re
import statistics
import sys

with open(sys.argv[1], "rb") as console:
    times = [float(line.split(b" ", 1)[0]) for line in console if re.match(rb"[\d.]+ .*HB n=", line)]
gaps = sorted(b - a for a, b in zip(times, times[1:]) if b - a > 100)
if len(gaps) < 2:
    print(f"     {len(gaps)} stalls over 100 ms")
else:
    p99 = statistics.quantiles(gaps, n=100, method="inclusive")[98]
    print(f"     {len(gaps)} stalls over 100 ms: p50 {statistics.median(gaps):.0f} ms, p99 {p99:.0f} ms, max {gaps[-1]:.0f} ms")
