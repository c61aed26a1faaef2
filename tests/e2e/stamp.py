# SPDX-License-Identifier: Apache-2.0
"""stamp.py FILE: copies lines from standard input to FILE, each with CLOCK_MONOTONIC in ms before it."""
import os
import sys
import time

out = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
rest = b""
while True:
    data = os.read(0, 65536)
    if not data:
        break
    now = b"%.1f " % (time.monotonic() * 1000)
    lines = (rest + data).split(b"\n")
    rest = lines.pop()
    if lines:
        os.write(out, b"".join(now + line.rstrip(b"\r") + b"\n" for line in lines))
