"""The oracle against examples of docs/semantics.md, so that a mistake of its own does not pass for one of traqq."""

import json
import unittest

from fold import Fold, micros, murmur64a, number_label, observation

AT = 1_700_000_000
AT_MS = AT * 1000


def fold(value, config=None, headers=None, broker_ms=AT_MS):
    value = value if isinstance(value, bytes) else json.dumps(value).encode()
    folded = Fold(config or {"mapping": {"add": ["event", "geo"]}})
    return folded.record("t", 0, 0, broker_ms, None, headers, value), folded.keys()


class Example(unittest.TestCase):
    def test_the_worked_example(self):
        mapping = {
            "bitmap": ["ip"],
            "add": ["event", "event~geo"],
            "add_value": [{"key": "event~geo", "add_key": "amount"}],
            "top": ["geo"],
        }
        event = {"event": "purchase", "ip": "1.2.3.4", "geo": "US", "amount": 99.99, "ts": AT}
        _, keys = fold(event, {"mapping": mapping})
        day = "1699920000"
        register, rank = observation(b"1.2.3.4")
        self.assertEqual(keys[f"bmp:d:{day}:ip"], ("hll", {register: rank}))
        self.assertEqual(keys[f"add:d:{day}:event~geo"], ("hash", {"purchase~US": 1}))
        self.assertEqual(keys[f"adv:d:{day}:amount:event~geo"], ("hash", {"purchase~US": 99_990_000}))
        totals = {"sum": 99_990_000, "count": 1, "min": 99_990_000, "max": 99_990_000}
        self.assertEqual(keys[f"adv:d:{day}:amount:event~geo:i"], ("hash", totals))
        self.assertEqual(keys[f"top:d:{day}:geo"], ("zset", {"US": 1}))


class Rules(unittest.TestCase):
    def test_murmur_is_the_published_one(self):
        self.assertEqual(murmur64a(b"", 0), 0)
        self.assertEqual(murmur64a(b"hello", 0xADC83B19) & 0x3FFF, observation(b"hello")[0])

    def test_reasons(self):
        for value, reason in [
            (b"x", "invalid_json"),
            (b"", "invalid_json"),
            (b"[]", "not_an_object"),
            (b"{}", "no_event"),
            (b'{"event":"x","z":NaN}', "invalid_json"),
            (b'{"event":"x","z":"\\ud800","z":1}', "invalid_json"),
            (b"\xff", "invalid_utf8"),
            (b"[" * 100_000, "too_deep"),
            (b" " * 1_048_577, "too_large"),
            (b'{"event":"x","ts":"soon"}', "time_unreadable"),
            (b'{"event":"x","ts":1700090000}', "time_in_future"),
            (b'{"event":"x","ts":1600000000}', "too_old"),
            (b'{"event":"x","ts":1700000000}', None),
        ]:
            self.assertEqual(fold(value)[0], reason, value[:40])
        self.assertEqual(fold(b'{"event":"x"}', broker_ms=-1)[0], "no_time")

    def test_numbers(self):
        for text, label in [("100.0", "100"), ("1e2", "100"), ("99.90", "99.9"), ("-0", "0"), ("1e21", "1" + "0" * 21)]:
            self.assertEqual(number_label(text), label)
        self.assertEqual(number_label("18446744073709551616"), "18446744073709552000")
        self.assertIsNone(number_label("1e999"))
        self.assertEqual([micros(text) for text in ("0.0000005", "0.0000015", "-99.99")], [0, 2, -99_990_000])
        self.assertIsNone(micros("1e12"))

    def test_labels(self):
        _, keys = fold({"event": "a~b", "geo": "__other__", "ts": AT})
        self.assertEqual(keys["add:d:1699920000:event"][1], {"a~b": 1})
        self.assertEqual(keys["add:d:1699920000:geo"][1], {"\\__other__": 1})
        self.assertEqual(keys["add:d:1699920000:event~geo"][1], {"a\\~b~__other__": 1})

    def test_the_night_the_clocks_go_back(self):
        config = {"mapping": {"add": ["event"]}, "buckets": {"time_zone": "Europe/Berlin", "hour": True}}
        for second, day, hour in [
            (1_792_888_200, 1_792_879_200, 1_792_886_400),  # 02:30 summer time
            (1_792_891_800, 1_792_879_200, 1_792_890_000),  # 02:30 winter time
        ]:
            _, keys = fold({"event": "x", "ts": second}, config, broker_ms=second * 1000)
            self.assertEqual(set(keys), {f"add:d:{day}:event", f"add:h:{hour}:event"})

    def test_cloud_events(self):
        binary = [("ce_specversion", b"1.0"), ("ce_type", b"made"), ("ce_time", b"2023-11-14T22:13:20Z")]
        _, keys = fold({"geo": "US", "event": "hidden"}, headers=binary)
        self.assertEqual(keys["add:d:1699920000:event~geo"][1], {"made~US": 1})
        event = {"specversion": "1.0", "type": "made", "data": {"geo": "DE", "ts": AT}}
        _, keys = fold(event)
        self.assertEqual(keys["add:d:1699920000:event~geo"][1], {"made~DE": 1})


if __name__ == "__main__":
    unittest.main()
