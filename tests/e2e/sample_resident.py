# SPDX-License-Identifier: Apache-2.0
"""sample_resident.py FILE OUT: every 50 ms the bytes that FILE holds, until it is gone or we are killed.

OUT always holds the greatest value seen and the number of samples."""
import os
import sys
import time

greatest = samples = 0
while True:
    try:
        now = os.stat(sys.argv[1]).st_blocks * 512
    except FileNotFoundError:
        break
    samples += 1
    greatest = max(greatest, now)
    with open(sys.argv[2] + ".new", "w") as out:
        out.write(f"{greatest} {samples}\n")
    os.rename(sys.argv[2] + ".new", sys.argv[2])
    time.sleep(0.05)
