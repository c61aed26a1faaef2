# SPDX-License-Identifier: Apache-2.0
"""qmp.py SOCKET COMMAND [ARGUMENTS]: one QMP command, its arguments and its result as JSON."""
import json
import socket
import sys

with socket.socket(socket.AF_UNIX) as sock:
    sock.settimeout(10)
    sock.connect(sys.argv[1])
    stream = sock.makefile("rw")
    json.loads(stream.readline())
    arguments = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    for command, with_arguments in (("qmp_capabilities", {}), (sys.argv[2], arguments)):
        stream.write(json.dumps({"execute": command, "arguments": with_arguments}))
        stream.flush()
        while True:
            answer = json.loads(stream.readline())
            if "event" not in answer:
                break
    if "error" in answer:
        sys.exit(f"{sys.argv[2]}: {answer['error']['desc']}")
    print(json.dumps(answer["return"]))
