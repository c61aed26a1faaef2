#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""compare.py [--markdown] DIR: tables of what compare.sh measured, from the logs in DIR.

A log is what the programs printed, each run after a line "== MEASURE PAIR PROGRAM". Writes
DIR/compare.svg, and with --markdown DIR/compare.md.
"""
import argparse
import collections
import json
import pathlib
import re
import statistics
import sys
from xml.sax.saxutils import escape

MIB = 1 << 20

# The ratio of smemv to the sum of the references, which is wanted so; no relation: only to know.
Goal = collections.namedtuple("Goal", "measure title unit references relation goal")
GOALS = [
    Goal("tcp-latency-events", "tcp, 4 KiB round trip, sleeping", "usec", ("sockperf",), "<=", 1.25),
    Goal("tcp-latency-poll", "tcp, 4 KiB round trip, polling", "usec", ("sockperf",), "<=", 1.25),
    Goal("tcp-latency-bytes", "tcp, the same to 2 KiB each way", "usec", ("sockperf",), None, None),
    Goal("tcp-write", "tcp, 64 KiB writes", "MB/s", ("iperf3",), ">=", 0.9),
    Goal("tcp-read", "tcp, 64 KiB reads", "MB/s", ("iperf3",), ">=", 0.9),
    Goal("verbs-read-latency-poll", "verbs, 4 KiB read, polling", "usec", ("perftest",), "<=", 1.10),
    Goal("verbs-read-latency-events", "verbs, 4 KiB read, events", "usec", ("perftest",), "<=", 1.10),
    Goal("verbs-write-poll", "verbs, 4 KiB writes, polling", "MB/s", ("perftest",), ">=", 0.95),
    Goal("verbs-read-poll", "verbs, 64 KiB reads, polling", "MB/s", ("perftest",), ">=", 0.95),
    Goal("verbs-read-events", "verbs, 64 KiB reads, events", "MB/s", ("perftest",), ">=", 0.95),
    Goal("fault", "fault to read + local fault", "usec", ("ib_read_lat-poll", "local-fault"), "<=", 1.3),
    Goal("fault", "the same, read by events", "usec", ("ib_read_lat-events", "local-fault"), None, None),
    Goal("fault", "fault to swap over NVMe-oF", "usec", ("nvme-swap",), "<=", 0.7),
    Goal("fault", "fault to swap over NBD", "usec", ("nbd-swap",), None, None),
]

# What one run gave: the value that is compared, and by name what else is worth knowing.
Sample = collections.namedtuple("Sample", "value details")


class BadLog(Exception):
    pass


# --- what the programs print --------------------------------------------------------------------


def json_in(text):
    """The first JSON object; programs may print warnings before it."""
    start = re.search(r"^\{", text, flags=re.M)
    if not start:
        raise BadLog("there is no JSON in it")
    return json.JSONDecoder().raw_decode(text, start.start())[0]


def smemv(text):
    results = json_in(text)["results"]
    if "stages" in results:
        stages = {name: times["t_typical_us"] for name, times in results["stages"].items()}
        stages["a fault without the server"] = results["local"]["t_typical_us"]
        return Sample(results["remote"]["t_typical_us"], {"stages": stages})
    return Sample(results.get("bw_avg_mb_s") or results["t_typical_us"], {})


def iperf3(text):
    return Sample(json_in(text)["end"]["sum_received"]["bits_per_second"] / 8 / MIB, {})


def number_after(pattern, text):
    found = re.search(pattern + r"\s*([0-9.]+)", text)
    if not found:
        raise BadLog(f"'{pattern}' is not in it")
    return float(found.group(1))


def sockperf(text):
    return Sample(number_after(r"percentile 50\.000 =", text), {})


def perftest(text):
    """The line after the heading: of latencies the typical one, of bandwidths the average. A t_stdev
    of "-nan" is perftest's own."""
    found = re.search(r"^ *#bytes +#iterations +(.*)\n\s*(\d.*)$", text, flags=re.M)
    if not found:
        raise BadLog("there is no result in it")
    names = re.split(r"\s{2,}|(?<=\])\s+", "#bytes  #iterations  " + found.group(1).strip())
    values = dict(zip(names, map(float, found.group(2).split())))
    for name in ("t_typical[usec]", "BW average[MB/sec]"):
        if name in values:
            return Sample(values[name], {})
    raise BadLog(f"there is neither a typical time nor an average bandwidth among {names}")


def local_fault(text):
    return Sample(number_after("p50", text), {})


def fio(text):
    """The median of those touches that read from the device, which are the slowest."""
    job = json_in(text)["jobs"][0]
    times = job["read"]["clat_ns"]
    touches = times["N"]
    swapped = min(job["majf"], touches)
    if not swapped:
        raise BadLog("nothing was swapped in")
    rank = touches - swapped / 2
    for ns, count in sorted((int(ns), count) for ns, count in times["bins"].items()):
        touches -= count
        if times["N"] - touches >= rank:
            return Sample(ns / 1e3, {"swapped": swapped / times["N"]})
    raise BadLog("its bins have fewer touches than it says")


PARSERS = {
    "smemv": smemv,
    "iperf3": iperf3,
    "sockperf": sockperf,
    "perftest": perftest,
    "ib_read_lat-events": perftest,
    "ib_read_lat-poll": perftest,
    "local-fault": local_fault,
    "nvme-swap": fio,
    "nbd-swap": fio,
}


def cpu_seconds(text):
    found = re.search(r"^-- cpu: ([0-9.]+) user ([0-9.]+) system ([0-9.]+) elapsed", text, flags=re.M)
    return tuple(map(float, found.groups())) if found else None


def resent(text):
    found = re.search(r"^-- resent: (\d+)", text, flags=re.M)
    return int(found.group(1)) if found else 0


def parse(program, text):
    sample = PARSERS[program](text)
    return Sample(sample.value, dict(sample.details, cpu=cpu_seconds(text), resent=resent(text)))


def read_logs(directory):
    """{measure: {program: {pair: sample}}}; of runs that were tried again the last one."""
    texts = {}
    for path in sorted(directory.rglob("*.log")):
        log = path.read_text(errors="replace")
        blocks = re.split(r"^== (\S+) (\d+) (\S+)\n", log, flags=re.M)[1:]
        for measure, pair, program, text in zip(*[iter(blocks)] * 4):
            texts[measure, program, int(pair)] = path, text
    values = {}
    for (measure, program, pair), (path, text) in texts.items():
        try:
            sample = parse(program, text)
        except (BadLog, LookupError, ValueError) as e:
            sys.exit(f"compare: {path}: after '== {measure} {pair} {program}': {e!s}")
        values.setdefault(measure, {}).setdefault(program, {})[pair] = sample
    return values


# --- comparing ----------------------------------------------------------------------------------


class Comparison:
    def __init__(self, goal, by_program):
        self.goal = goal
        pairs = set.intersection(*(set(by_program[p]) for p in ("smemv", *goal.references)))
        self.samples = {p: [by_program[p][pair] for pair in sorted(pairs)]
                        for p in ("smemv", *goal.references)}
        self.ours = self.values("smemv")
        self.theirs = [sum(v) for v in zip(*(self.values(p) for p in goal.references))]
        self.ratios = [a / b for a, b in zip(self.ours, self.theirs)]
        self.ratio = statistics.median(self.ratios)
        self.reference = " + ".join(goal.references)

    def values(self, program):
        return [sample.value for sample in self.samples[program]]

    def missed(self):
        g = self.goal
        return bool(g.relation) and not (
            self.ratio <= g.goal if g.relation == "<=" else self.ratio >= g.goal)

    def verdict(self):
        g = self.goal
        if not g.relation:
            return "for information"
        return f"{g.relation} {g.goal:.2f} {'missed' if self.missed() else 'met'}"


def compare(values):
    return [Comparison(g, values[g.measure]) for g in GOALS
            if {"smemv", *g.references} <= set(values.get(g.measure, ()))]


def spread(values):
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (f"{statistics.median(values):.2f}",
            f"{min(values):.2f}..{max(values):.2f}", f"{high - low:.2f}")


def table(comparisons):
    rows = [("measure", "unit", "program", "median", "min..max", "IQR", "ratio", "goal")]
    for c in comparisons:
        low, high = min(c.ratios), max(c.ratios)
        rows.append((c.goal.title, c.goal.unit, "smemv", *spread(c.ours),
                     f"{c.ratio:.3f} ({low:.2f}..{high:.2f})", c.verdict()))
        rows.append(("", "", c.reference, *spread(c.theirs), "", ""))
    return rows


def medians(dicts):
    return {name: statistics.median(d[name] for d in dicts) for name in dicts[0]}


def cpu_hint(c, program):
    times = [s.details["cpu"] for s in c.samples[program]]
    if None in times:
        return None
    user, system, elapsed = (statistics.median(t) for t in zip(*times))
    hint = (f"{program} used {user:.2f} s of CPU in user mode and {system:.2f} s in the kernel "
            f"in {elapsed:.2f} s")
    lost = statistics.median(s.details["resent"] for s in c.samples[program])
    return hint + f"; Soft-RoCE lost something {lost:g} times" if lost else hint


def hints(c):
    """Where the time goes, of a goal that was missed."""
    stages = [s.details["stages"] for s in c.samples["smemv"] if "stages" in s.details]
    if stages:
        parts = [f"{name.replace('_', '-')} {us:.1f}" for name, us in medians(stages).items()]
        yield "medians of our fault in usec: " + ", ".join(parts)
        for program in c.goal.references:
            yield f"the reference {program}: {statistics.median(c.values(program)):.1f} usec"
        return
    for program in c.samples:
        hint = cpu_hint(c, program)
        if hint:
            yield hint


def notes(comparisons):
    for c in comparisons:
        if c.missed():
            yield f"missed: {c.goal.title}: {c.ratio:.3f}, the goal is {c.goal.relation} {c.goal.goal:.2f}"
            yield from (f"    {hint}" for hint in hints(c))
        for program in c.goal.references:
            swapped = [s.details["swapped"] for s in c.samples[program] if "swapped" in s.details]
            if swapped:
                yield f"{program}: {100 * min(swapped):.0f} % of the touches or more were swapped in"


# --- output -------------------------------------------------------------------------------------


def print_table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def markdown(rows, lines):
    out = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    out += ["| " + " | ".join(row) + " |" for row in rows[1:]]
    return "\n".join(out + [""] + [f"- {line.strip()}" for line in lines] + [""])


def svg(comparisons):
    """One row per comparison: the ratio of each pair as a dot, their median as a bar, the goal as
    a broken line."""
    left, width, row = 330, 460, 46
    height = row * len(comparisons) + 70
    top = min(4.0, max([2.0] + [max(c.ratios) for c in comparisons]) * 1.05)

    def x(ratio):
        return left + width * min(ratio, top) / top

    def text(at, y, what, anchor="end"):
        return f'<text x="{at:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(what)}</text>'

    def line(x1, y1, x2, y2, style):
        return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 40}" '
           f'height="{height}" font-family="sans-serif" font-size="13">',
           '<rect width="100%" height="100%" fill="white"/>',
           text(left, 22, "smemv / reference: pairs (dots), median (red), goal (green)", "start")]
    for tick in range(int(top * 4) + 1):
        at = x(tick / 4)
        out.append(line(at, 34, at, height - 30, f'stroke="{"#333" if tick == 4 else "#ddd"}"'))
        if tick % 2 == 0:
            out.append(text(at, height - 12, f"{tick / 4:g}", "middle"))
    for i, c in enumerate(comparisons):
        y = 34 + row * i + row / 2
        out.append(text(left - 12, y - 2, c.goal.title))
        out.append(text(left - 12, y + 14, f"{c.ratio:.2f}, {c.verdict()}"))
        if c.goal.relation:
            out.append(line(x(c.goal.goal), y - 16, x(c.goal.goal), y + 16,
                            'stroke="#228833" stroke-width="2" stroke-dasharray="4 3"'))
        out.append(line(x(min(c.ratios)), y, x(max(c.ratios)), y, 'stroke="#4477aa"'))
        out += [f'<circle cx="{x(r):.1f}" cy="{y}" r="3.5" fill="#4477aa" fill-opacity="0.6"/>'
                for r in c.ratios]
        out.append(line(x(c.ratio), y - 10, x(c.ratio), y + 10, 'stroke="#cc3311" stroke-width="3"'))
    return "\n".join(out + ["</svg>", ""])


def main(argv=None):
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--markdown", action="store_true")
    arguments.add_argument("directory", type=pathlib.Path)
    a = arguments.parse_args(argv)
    comparisons = compare(read_logs(a.directory))
    if not comparisons:
        sys.exit(f"compare: no measurements in {a.directory}")
    rows, lines = table(comparisons), list(notes(comparisons))
    print_table(rows)
    print("\n".join(["", *lines]))
    (a.directory / "compare.svg").write_text(svg(comparisons))
    if a.markdown:
        (a.directory / "compare.md").write_text(markdown(rows, lines))


if __name__ == "__main__":
    main()
