# SPDX-License-Identifier: Apache-2.0
"""exclusive.py WHERE START_MS SOURCE_CONSOLE MAIN_CONSOLE: since START_MS the guest never ran at both.

WHERE is source (then nothing may have run at the main host) or main (then its first heartbeat comes
after the source's last). Stamps are of when a line was read: SLACK_MS for lines on their way.
"""
import re
import sys

SLACK_MS = 500
HEARTBEAT = re.compile(rb"^(\d+\.\d) .*HB n=")


def heartbeats(path, start):
    with open(path, "rb") as console:
        stamps = (float(m[1]) for m in map(HEARTBEAT.match, console) if m)
        return [s for s in stamps if s >= start]


def main(where, start, source_path, main_path):
    source, dest = heartbeats(source_path, float(start)), heartbeats(main_path, float(start))
    if where == "source":
        if dest:
            sys.exit(f"{len(dest)} heartbeats at the main host, but the VM is at the source")
    elif not dest:
        sys.exit("no heartbeat at the main host")
    elif source and source[-1] > dest[0] + SLACK_MS:
        sys.exit(f"the source ran for {source[-1] - dest[0]:.0f} ms beside the main host")


main(*sys.argv[1:])
