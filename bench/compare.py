#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""compare.py DIR: a table and DIR/compare.svg from DIR/*.log, which compare.sh wrote.

A log is what the programs printed, each run after a line "== MEASURE PAIR PROGRAM".
"""
import json
import pathlib
import re
import statistics
import sys
from xml.sax.saxutils import escape

MIB = 1 << 20
# measure: title, unit, and which ratio to the reference is wanted
MEASURES = {
    "latency-events": ("tcp, 4 KiB round trip, sleeping", "usec", "<=", 1.25),
    "latency-poll": ("tcp, 4 KiB round trip, polling", "usec", "<=", 1.25),
    "write-bandwidth": ("tcp, 64 KiB writes", "MB/s", ">=", 0.9),
    "read-bandwidth": ("tcp, 64 KiB reads", "MB/s", ">=", 0.9),
}


def smemv(text):
    results = json.loads(text)["results"]
    return results.get("bw_avg_mb_s") or results["t_typical_us"]


def iperf3(text):
    return json.loads(text)["end"]["sum_received"]["bits_per_second"] / 8 / MIB


def sockperf(text):
    return float(re.search(r"percentile 50\.000 =\s*([0-9.]+)", text).group(1))


PARSERS = {"smemv": smemv, "iperf3": iperf3, "sockperf": sockperf}


def read_logs(directory):
    """{measure: {program: {pair: value}}}"""
    values = {}
    for path in sorted(directory.glob("*.log")):
        blocks = re.split(r"^== (\S+) (\d+) (\S+)\n", path.read_text(), flags=re.M)[1:]
        for measure, pair, program, text in zip(*[iter(blocks)] * 4):
            by_program = values.setdefault(measure, {})
            by_program.setdefault(program, {})[int(pair)] = PARSERS[program](text)
    return values


class Comparison:
    def __init__(self, measure, by_program):
        self.title, self.unit, self.relation, self.goal = MEASURES[measure]
        (self.reference,) = set(by_program) - {"smemv"}
        ours, theirs = by_program["smemv"], by_program[self.reference]
        pairs = sorted(set(ours) & set(theirs))
        self.ours = [ours[pair] for pair in pairs]
        self.theirs = [theirs[pair] for pair in pairs]
        self.ratios = [a / b for a, b in zip(self.ours, self.theirs)]
        self.ratio = statistics.median(self.ours) / statistics.median(self.theirs)

    def verdict(self):
        met = self.ratio <= self.goal if self.relation == "<=" else self.ratio >= self.goal
        return f"{self.relation} {self.goal:.2f} {'met' if met else 'missed'}"


def spread(values):
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (f"{statistics.median(values):.2f}",
            f"{min(values):.2f}..{max(values):.2f}", f"{high - low:.2f}")


def print_table(comparisons):
    rows = [("measure", "unit", "program", "median", "min..max", "IQR", "ratio", "goal")]
    for c in comparisons:
        rows.append((c.title, c.unit, "smemv", *spread(c.ours), f"{c.ratio:.3f}", c.verdict()))
        rows.append(("", "", c.reference, *spread(c.theirs), "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def svg(comparisons):
    """One row per measure: the ratio of each pair as a dot, the ratio of the medians as a bar."""
    left, width, row = 300, 460, 46
    height = row * len(comparisons) + 70
    top = max(2.0, *(max(c.ratios) for c in comparisons)) * 1.05

    def x(ratio):
        return left + width * ratio / top

    def text(at, y, what, anchor="end"):
        return f'<text x="{at:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(what)}</text>'

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 40}" '
           f'height="{height}" font-family="sans-serif" font-size="13">',
           '<rect width="100%" height="100%" fill="white"/>',
           text(left, 22, "smemv / reference, per pair and of the medians", "start")]
    for tick in range(int(top * 4) + 1):
        at, strong = x(tick / 4), tick == 4
        out.append(f'<line x1="{at:.1f}" y1="34" x2="{at:.1f}" y2="{height - 30}" '
                   f'stroke="{"#333" if strong else "#ddd"}"/>')
        if tick % 2 == 0 and top < 5 or tick % 4 == 0:
            out.append(text(at, height - 12, f"{tick / 4:g}", "middle"))
    for i, c in enumerate(comparisons):
        y = 34 + row * i + row / 2
        out.append(text(left - 12, y - 2, c.title))
        out.append(text(left - 12, y + 14, f"to {c.reference}: {c.ratio:.2f}, goal {c.verdict()}"))
        out.append(f'<line x1="{x(min(c.ratios)):.1f}" y1="{y}" x2="{x(max(c.ratios)):.1f}" '
                   f'y2="{y}" stroke="#4477aa"/>')
        out += [f'<circle cx="{x(r):.1f}" cy="{y}" r="3.5" fill="#4477aa" fill-opacity="0.6"/>'
                for r in c.ratios]
        out.append(f'<line x1="{x(c.ratio):.1f}" y1="{y - 10}" x2="{x(c.ratio):.1f}" '
                   f'y2="{y + 10}" stroke="#cc3311" stroke-width="3"/>')
    return "\n".join(out + ["</svg>", ""])


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    directory = pathlib.Path(sys.argv[1])
    values = read_logs(directory)
    comparisons = [Comparison(m, values[m]) for m in MEASURES if m in values]
    if not comparisons:
        sys.exit(f"compare: no measurements in {directory}")
    print_table(comparisons)
    (directory / "compare.svg").write_text(svg(comparisons))


main()
