# SPDX-License-Identifier: Apache-2.0
"""resume.py SOCKET: waits for QEMU's QMP socket, then until the VM is loaded and paused, and lets it run."""
import json
import os
import socket
import sys
import time

while not os.path.exists(sys.argv[1]):
    time.sleep(0.2)
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    stream = sock.makefile("rw")
    json.loads(stream.readline())

    def execute(command):
        stream.write(json.dumps({"execute": command}))
        stream.flush()
        while True:
            answer = json.loads(stream.readline())
            if "event" not in answer:
                return answer["return"]

    execute("qmp_capabilities")
    while execute("query-status")["status"] != "paused":
        time.sleep(0.2)
    execute("cont")
