# SPDX-License-Identifier: Apache-2.0
"""What a daemon tells Prometheus.

usage: metrics.py PORT                        the whole text
       metrics.py PORT NAME [LABEL=VALUE...]  the sum of the samples that fit; nothing if none does
       metrics.py PORT /PATH                  the status of another path
"""
import re
import sys
import urllib.error
import urllib.request

port, rest = sys.argv[1], sys.argv[2:]
path = rest[0] if rest and rest[0].startswith("/") else "/metrics"
try:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        status, text = answer.status, answer.read().decode()
        kind = answer.headers["Content-Type"]
except urllib.error.HTTPError as error:
    status, text, kind = error.code, "", ""

if not rest:
    assert kind == "text/plain; version=0.0.4; charset=utf-8", kind
    print(text, end="")
elif path == rest[0]:
    print(status)
else:
    want = dict(word.split("=", 1) for word in rest[1:])
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r'(\w+)(?:\{(.*)\})? (\S+)', line)
        if not match or match[1] != rest[0]:
            continue
        labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
        if want.items() <= labels.items():
            found.append(float(match[3]))
    if found:
        print(f"{sum(found):.3f}")
