# SPDX-License-Identifier: Apache-2.0
"""qmp.py SOCKET COMMAND: one QMP command, its result as JSON."""
import json
import socket
import sys

with socket.socket(socket.AF_UNIX) as sock:
    sock.settimeout(10)
    sock.connect(sys.argv[1])
    stream = sock.makefile("rw")
    json.loads(stream.readline())
    for command in ("qmp_capabilities", sys.argv[2]):
        stream.write(json.dumps({"execute": command}))
        stream.flush()
        while True:
            answer = json.loads(stream.readline())
            if "event" not in answer:
                break
    print(json.dumps(answer["return"]))
