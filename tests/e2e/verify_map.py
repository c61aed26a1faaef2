# SPDX-License-Identifier: Apache-2.0
"""verify_map.py SOURCE_RAM MAIN_RAM MAP EXTENTS ARENA=LEASES ...

An independent reader: it finds every page of a stopped source's RAM through the page map alone, in the
main host's RAM file or in the sub-hosts' arenas, with none of the project's code, and compares it with the
source's RAM file. The files' formats are in docs/protocol.md. ARENA=LEASES comes once per sub-host, in the
order of the extent table: its arena file and the output of "smemvctl leases --json".
"""
import hashlib
import json
import mmap
import os
import struct
import sys

PAGE = 4096
EXTENT = 512
ZERO, LOCAL, COLD = 1, 2, 6


def mapped(path):
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), os.fstat(file.fileno()).st_size, prot=mmap.PROT_READ)


def digest(data):
    return hashlib.blake2b(data, digest_size=16).digest()


source, main = mapped(sys.argv[1]), mapped(sys.argv[2])
pagemap = mapped(sys.argv[3])
table = json.load(open(sys.argv[4]))
magic, version, page_size, nr_pages = struct.unpack_from("<QIIQ", pagemap, 0)
assert version == 3 and page_size == PAGE and nr_pages * PAGE == len(source), "not this VM's page map"

arenas = []
for host, argument in zip(table["sub_hosts"], sys.argv[5:]):
    path, leases = argument.split("=")
    lease = next(x for x in json.load(open(leases))["leases"] if x["id"] == host["lease"])
    arenas.append((mapped(path), [s["arena_offset"] for s in lease["segments"]]))

ZEROS = digest(bytes(PAGE))
count = {ZERO: 0, LOCAL: 0, COLD: 0}
wrong = 0
for page in range(nr_pages):
    word, = struct.unpack_from("<Q", pagemap, 4096 + 8 * page)
    state, slot = word & 15, word >> 8 & (1 << 36) - 1
    if state == ZERO:
        found = ZEROS
    elif state == LOCAL:
        found = digest(main[page * PAGE:(page + 1) * PAGE])
    elif state == COLD:
        host, segment, offset = table["extents"][slot // EXTENT]
        arena, segments = arenas[host]
        at = segments[segment] + offset + slot % EXTENT * PAGE
        found = digest(arena[at:at + PAGE])
    else:
        print(f"page {page}: state {state}")
        wrong += 1
        continue
    count[state] += 1
    if found != digest(source[page * PAGE:(page + 1) * PAGE]):
        if wrong < 10:
            print(f"page {page}: state {state} differs from the source")
        wrong += 1
print(json.dumps({"pages": nr_pages, "zero": count[ZERO], "hot": count[LOCAL], "cold": count[COLD],
                  "wrong": wrong}))
sys.exit(wrong != 0)
