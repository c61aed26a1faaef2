#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench/compare.py against what the programs really printed: test_compare.py, by unittest."""
import contextlib
import importlib.util
import io
import pathlib
import tempfile
import unittest
import xml.etree.ElementTree

HERE = pathlib.Path(__file__).resolve().parent
SAMPLES = HERE / "compare_samples"
SPEC = importlib.util.spec_from_file_location("compare", HERE / "../../bench/compare.py")
compare = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(compare)


def sample(name):
    return (SAMPLES / name).read_text()


def block(measure, pair, program, name):
    return f"== {measure} {pair} {program}\n{sample(name)}"


class Parsers(unittest.TestCase):
    def check(self, program, name, value):
        self.assertAlmostEqual(compare.parse(program, sample(name)).value, value, places=3)

    def test_sockperf_is_the_full_round_trip(self):
        self.check("sockperf", "sockperf", 17.653)

    def test_iperf3_is_what_was_received_in_mib(self):
        self.check("iperf3", "iperf3", 3719897558.7803836 / 8 / (1 << 20))

    def test_read_latency_of_perftest_is_the_typical_one(self):
        self.check("perftest", "ib_read_lat", 1947.14)

    def test_read_latency_of_perftest_without_a_standard_deviation(self):
        self.check("perftest", "ib_read_lat-nan", 2120.22)

    def test_write_bandwidth_of_perftest_is_the_average(self):
        self.check("perftest", "ib_write_bw", 27.83)

    def test_read_bandwidth_of_perftest_is_the_average(self):
        self.check("perftest", "ib_read_bw", 47.35)

    def test_latency_of_smemv(self):
        self.check("smemv", "smemv-latency", 17.603)

    def test_bandwidth_of_smemv(self):
        self.check("smemv", "smemv-bandwidth", 211.215963)

    def test_fault_of_smemv_is_the_remote_one_and_has_stages(self):
        self.check("smemv", "smemv-fault", 2587.2445)
        stages = compare.smemv(sample("smemv-fault")).details["stages"]
        self.assertEqual(list(stages)[:5], ["wake_up", "queue", "wire", "copy", "resume"])

    def test_local_fault(self):
        self.check("local-fault", "local-fault", 118.836)

    def test_fio_where_every_touch_was_swapped_in(self):
        self.check("nvme-swap", "fio", 10027.008)
        self.assertEqual(compare.fio(sample("fio")).details["swapped"], 1)

    def test_fio_counts_only_touches_that_were_swapped_in(self):
        text = """{"jobs": [{"majf": 2, "read": {"clat_ns": {"N": 6,
            "bins": {"1000": 3, "2000": 1, "50000": 1, "60000": 1}}}}]}"""
        self.assertEqual(compare.fio(text), (50.0, {"swapped": 2 / 6}))

    def test_cpu_time(self):
        self.assertEqual(len(compare.cpu_seconds(sample("ib_write_bw"))), 3)
        self.assertIsNone(compare.cpu_seconds("nothing"))

    def test_losses(self):
        self.assertEqual(compare.resent("-- cpu: 1 user\n-- resent: 12\n"), 12)
        self.assertEqual(compare.resent(sample("ib_write_bw")), 0)

    def test_what_is_no_result_is_said_so(self):
        for program in compare.PARSERS:
            with self.assertRaises((compare.BadLog, LookupError, ValueError)):
                compare.parse(program, "Couldn't connect to 192.168.77.1:20001\n")


class Report(unittest.TestCase):
    def write(self, directory, smemv, perftest):
        log = ""
        for pair in range(1, 8):
            log += block("verbs-write-poll", pair, "smemv", smemv)
            log += block("verbs-write-poll", pair, "perftest", perftest)
            log += block("fault", pair, "smemv", "smemv-fault")
            log += block("fault", pair, "nvme-swap", "fio")
        (directory / "2.log").write_text(log)

    def test_the_last_of_equal_headings_counts(self):
        with tempfile.TemporaryDirectory() as name:
            directory = pathlib.Path(name)
            (directory / "a.log").write_text(
                "== verbs-write-poll 1 perftest\nCouldn't connect\n"
                + block("verbs-write-poll", 1, "perftest", "ib_write_bw"))
            values = compare.read_logs(directory)
        self.assertAlmostEqual(values["verbs-write-poll"]["perftest"][1].value, 27.83)

    def test_a_program_without_result_is_named(self):
        with tempfile.TemporaryDirectory() as name:
            directory = pathlib.Path(name)
            (directory / "a.log").write_text("== verbs-write-poll 3 perftest\nno such device\n")
            with self.assertRaisesRegex(SystemExit, "verbs-write-poll 3 perftest"):
                compare.read_logs(directory)

    def test_missed_goals_say_where_the_time_goes(self):
        with tempfile.TemporaryDirectory() as name:
            directory = pathlib.Path(name)
            self.write(directory, "smemv-bandwidth", "ib_write_bw")
            comparisons = compare.compare(compare.read_logs(directory))
        self.assertEqual([c.goal.title for c in comparisons],
                         ["verbs, 4 KiB writes, polling", "fault to swap over NVMe-oF"])
        for c in comparisons:
            c.ratio = 0.5 if c.goal.relation == ">=" else 5.0
        text = "\n".join(compare.notes(comparisons))
        self.assertIn("missed: verbs, 4 KiB writes, polling: 0.500, the goal is >= 0.95", text)
        self.assertIn("perftest used", text)
        self.assertIn("wake-up", text)
        self.assertIn("nvme-swap: 100 % of the touches", text)

    def test_goals_of_both_directions(self):
        for goal in compare.GOALS:
            if not goal.relation:
                continue
            one = compare.Sample(1.0, {"cpu": None, "resent": 0})
            programs = {p: dict.fromkeys(range(7), one) for p in ("smemv", *goal.references)}
            c = compare.Comparison(goal, programs)
            c.ratio = goal.goal
            self.assertFalse(c.missed(), goal.title)
            c.ratio = goal.goal + (0.01 if goal.relation == "<=" else -0.01)
            self.assertTrue(c.missed(), goal.title)

    def test_all_files_are_written(self):
        with tempfile.TemporaryDirectory() as name:
            directory = pathlib.Path(name)
            self.write(directory, "smemv-bandwidth", "ib_write_bw")
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                compare.main(["--markdown", name])
            self.assertIn("verbs, 4 KiB writes, polling", out.getvalue())
            self.assertIn("| verbs, 4 KiB writes, polling |", (directory / "compare.md").read_text())
            xml.etree.ElementTree.parse(directory / "compare.svg")


if __name__ == "__main__":
    unittest.main()
