"""The oracle against examples of docs/semantics.md, rule by rule, so that a mistake of its own does not pass for one of traqq.

    python3 -m unittest        (in this directory)
"""

import json
import unittest

from fold import (
    OTHER,
    SECOND_END,
    SECOND_MIN,
    TOMBSTONE,
    Dead,
    Fold,
    Num,
    Zone,
    micros,
    murmur64a,
    number_label,
    observation,
    read_time,
    trim,
)

AT = 1_700_000_000
AT_MS = AT * 1000
DAY = "d:1699920000"
REDIS = {
    b"1.2.3.4": (13312, 2),
    b"": (5938, 2),
    b"hello": (9216, 1),
    b"eight888": (1834, 2),
    b"sixteen bytes. \xc3\xa9": (766, 2),
}
BINARY = [("ce_specversion", b"1.0"), ("ce_type", b"made")]


def config(**mapping):
    return {"mapping": {"auto_pairs": False} | mapping}


def fold(value, settings=None, headers=(), broker_ms=AT_MS):
    """Reason and metrics of one record."""
    if isinstance(value, dict):
        value = json.dumps(value)
    folded = Fold(settings or config(add=["event"]))
    value = value.encode() if isinstance(value, str) else value
    return folded.record("t", 0, 0, broker_ms, None, list(headers), value), folded.metrics()


def reason(value, settings=None, headers=(), broker_ms=AT_MS):
    return fold(value, settings, headers, broker_ms)[0]


def label(members, pattern="f"):
    """The label that an event's members have under a pattern of `add`; None if it does not count there."""
    members = members if isinstance(members, str) else json.dumps(members)[1:-1]
    why, keys = fold(f'{{"event":"x",{members}}}', config(add=[pattern]))
    assert why is None, why
    values = [values for key, (_, values) in keys.items()]
    return next(iter(values[0])) if values else None


def time_of(json_text):
    text = json.loads(json_text, parse_int=Num, parse_float=Num)
    try:
        return read_time(text)
    except Dead:
        return "unreadable"


class Example(unittest.TestCase):
    def test_the_worked_example(self):
        settings = config(
            bitmap=["ip"],
            add=["event", "event~geo"],
            add_value=[{"key": "event~geo", "add_key": "amount"}],
            top=["geo"],
        )
        event = '{"event":"purchase","ip":"1.2.3.4","geo":"US","amount":99.99,"ts":"2023-11-14T22:13:20Z"}'
        why, keys = fold(event, settings)
        register, rank = observation(b"1.2.3.4")
        amount = 99_990_000
        self.assertIsNone(why)
        self.assertEqual(
            keys,
            {
                f"bmp:{DAY}:ip": ("hll", {register: rank}),
                f"add:{DAY}:event": ("hash", {"purchase": 1}),
                f"add:{DAY}:event~geo": ("hash", {"purchase~US": 1}),
                f"adv:{DAY}:amount:event~geo": ("hash", {"purchase~US": amount}),
                f"adv:{DAY}:amount:event~geo:n": ("hash", {"purchase~US": 1}),
                f"adv:{DAY}:amount:event~geo:i": ("hash", {"sum": amount, "count": 1, "min": amount, "max": amount}),
                f"top:{DAY}:geo": ("zset", {"US": 1}),
            },
        )

    def test_murmur_hash(self):
        self.assertEqual(murmur64a(b"", 0), 0)
        # What PFADD did to an empty key in Redis 7.0.15.
        for element, register in REDIS.items():
            self.assertEqual(observation(element), register)


class Reading(unittest.TestCase):
    def test_1_size_utf8_depth_json_shape(self):
        nested = lambda levels: '{"event":"x","z":' + "[" * (levels - 1) + "]" * (levels - 1) + "}"
        for value, why in [
            (b"\xff" * 1_048_577, "too_large"),
            (b" " * 1_048_576, "invalid_json"),
            (b"\xff" + b"[" * 100, "invalid_utf8"),
            (nested(64), None),
            (nested(65), "too_deep"),
            ("[" * 100_000, "too_deep"),
            ("nonsense } " + "{[" * 33, "too_deep"),
            ("{} " + "[" * 65, "too_deep"),
            ('"\\"' + "[" * 100, "invalid_json"),
            ('{"event":"x","z":"' + "[" * 100 + '\\""}', None),
            ("[" * 64, "invalid_json"),
            ("", "invalid_json"),
            ("[]", "not_an_object"),
            ('"x"', "not_an_object"),
            (None, TOMBSTONE),
            (b"\0\0\0\0\7" + b'{"event":"x"}', None),
            (b"\0\0\0\0\7", "invalid_json"),
            (b"\0\0\0\0\7 ", "invalid_json"),
            (b"\0" * 5 + b" " * 1_048_572, "too_large"),
        ]:
            self.assertEqual(reason(value), why, value and value[:40])

    def test_2_strict_json(self):
        bad = ["NaN", "-Infinity", "01", "1.", ".5", "+1", "0x1", '"a\nb"', '"\t"', '"\\x"', '"\\u12"', "[1,]", "{1:2}", "'x'", "1/**/"]
        bad += ['"\\ud800"', '"\\udc00\\ud800"', '["\\ud83dx"]', '{"\\udfff":1}', '"\\ud800","z":1', "tru", "nul", ""]
        for text in bad:
            self.assertEqual(reason(f'{{"event":"x","z":{text}}}'), "invalid_json", text)
        for text in ["1E+2", "-0", '"\x7f"', '"\\ud83d\\ude00"', '"\\\\ud800"', '"\\u0000"', " [ ] ", "9" * 5000, "1e" + "9" * 5000]:
            self.assertIsNone(reason(f'{{"event":"x","z":{text}}}'), text[:40])
        for text in ['{"event":"x",}', '{"event":"x"} x', '{"event":"x"}[]', '[]{"event":"x"}', '{},{}', "\ufeff{}", "\u00a0{}", "{}\0", '{"event" "x"}']:
            self.assertEqual(reason(text), "invalid_json", text)
        self.assertIsNone(reason(' \t\r\n{"event":"x"}\n'))

    def test_3_event(self):
        for text in ["{}", '{"event":null}', '{"event":5}', '{"event":["x"]}', '{"event":" \\u0000\\u00a0"}', '{"event":"x","event":1}']:
            self.assertEqual(reason(text), "no_event", text)
        _, keys = fold({"event": " " + "x" * 600})
        self.assertEqual(keys[f"add:{DAY}:event"][1], {"x" * 512: 1})

    def test_3_the_name_is_the_first_string_of_its_fields(self):
        named = lambda text, headers=(), **events: fold(text, config(add=["event"]) | {"events": events}, headers)
        name = lambda *arguments, **events: next(iter(named(*arguments, **events)[1].values()))[1]
        for text, event in [
            ('{"event_name":"purchase"}', "purchase"),
            ('{"type":"page","name":"Home"}', "page"),
            ('{"object":"event","type":"charge.succeeded"}', "charge.succeeded"),
            ('{"name":"pageview","domain":"d"}', "pageview"),
            ('{"event":{"type":"message"},"type":"event_callback"}', "event_callback"),
            ('{"event":" ","type":7,"name":"n"}', "n"),
            ('{"name":"n","event":"e"}', "e"),
        ]:
            self.assertEqual(name(text), {event: 1}, text)
        self.assertEqual(name('{"payload":{"op":"c"}}', name_fields=["payload.op"]), {"c": 1})
        self.assertEqual(name('{"status":200}', name_default="request"), {"request": 1})
        topic = [("X-Shopify-Topic", b"orders/create")]
        self.assertEqual(name('{"name":"#1001"}', topic, name_header="X-Shopify-Topic"), {"orders/create": 1})
        self.assertEqual(name('{"name":"#1001"}', topic, name_header="x-shopify-topic"), {"#1001": 1})
        self.assertEqual(name('{"name":"#1001"}', [("T", b"\xff")], name_header="T"), {"#1001": 1})
        self.assertEqual(named('{"type":"x"}', name_fields=["event"])[0], "no_event")

    def test_21_a_record_of_several_events(self):
        for text, reasons in [
            ('[{"event":"a"}, {"x":1} ,3]', [None, "no_event", "not_an_object"]),
            ('{"event":"a"}\n{"event":"b"}\n', [None, None]),
            ('{"event":"x"}{}', [None, "no_event"]),
            ('{"sentAt":1,"batch":[{"type":"track"},{"batch":[{"event":"a"}]}]}', [None, "no_event"]),
            ('{"events":[{"event":"a","ts":"soon"}]}', ["time_unreadable"]),
            ('[{"specversion":"1.0","type":"t"}]', [None]),
        ]:
            why = reason(text)
            self.assertEqual([one for one, _ in why], reasons, text)
            self.assertTrue(all(event.decode() in text for _, event in why))
        self.assertEqual(reason('[{"event":"a"}, {"x":1} ,3]')[1][1], b'{"x":1}')
        self.assertIsNone(reason('{"event":"a","batch":[{"event":"b"}]}'))
        self.assertEqual(reason('{"batch":[]}'), "no_event")
        self.assertEqual(reason('[{"event":"a"},{"event":"a"}x]'), "invalid_json")
        few = config(add=["event"]) | {"events": {"max_events_per_record": 2}}
        self.assertEqual(reason('[{"event":"a"}' + ',{"event":"a"}' * 2 + "]", few), "too_many_events")
        one = [("ce_specversion", b"1.0"), ("ce_type", b"t")]
        self.assertIsNone(reason('[{"event":"a"}]', headers=one))
        self.assertEqual(reason('{"a":1}{"b":1}', headers=one), "invalid_json")

    def test_4_names(self):
        self.assertEqual(label({"a": {"b": {"c": "v"}}}, "a.b.c"), "v")
        self.assertEqual(label({"a": {"b": "path"}, "a.b": "literal"}, "a.b"), "literal")
        self.assertIsNone(label({"a": {"b": "path"}, "a.b": None}, "a.b"))
        self.assertIsNone(label({"a": {"b.c": "v"}}, "a.b.c"))
        self.assertIsNone(label('"a":{"b":1},"a":{"c":2}', "a.b"))
        self.assertEqual(label('"f":"first","f":"last"'), "last")

    def test_5_order_of_judgement(self):
        self.assertEqual(reason('{"ts":"soon","z":NaN}'), "invalid_json")
        self.assertEqual(reason('{"ts":"soon"}'), "no_event")
        self.assertEqual(reason('{"event":"x","ts":"soon"}'), "time_unreadable")


class Time(unittest.TestCase):
    def test_6_numbers(self):
        for text, second in [
            ("null", None),
            ('" \\t"', None),
            ("true", "unreadable"),
            ("[]", "unreadable"),
            ("99999999999", 99_999_999_999),
            ("1e11", 100_000_000),
            ("99999999999999", 99_999_999_999),
            ("100000000000000", 100_000_000),
            ("99999999999999999", 99_999_999_999),
            ("1e17", 100_000_000),
            ("1700000000.999", AT),
            ("-0.5", -1),
            ("-1e-999", -1),
            ("-1001e-3", -2),
            ("-100000000001", -100_000_001),
            ('" 1.7e9 "', AT),
            ('"1700000000x"', "unreadable"),
            ('"+1"', "unreadable"),
            ('"01"', "unreadable"),
            ("1e40", "unreadable"),
            ("1e" + "9" * 5000, "unreadable"),
            ("-62135596801", "unreadable"),
            ("-62135596800", SECOND_MIN),
        ]:
            self.assertEqual(time_of(text), second, text[:40])

    def test_6_rfc3339(self):
        for text, second in [
            ("2023-11-14T22:13:20Z", AT),
            ("2023-11-14t22:13:20z", AT),
            (" 2023-11-14 22:13:20.99999999999999+00:00", AT),
            ("2023-11-14T23:43:20+01:30", AT),
            ("2023-11-14T20:43:20-01:30", AT),
            ("2016-12-31T23:59:60Z", 1_483_228_799),
            ("2024-02-29T00:00:00Z", 1_709_164_800),
            ("1969-12-31T23:59:59.5Z", -1),
            ("0001-01-01T00:00:00Z", SECOND_MIN),
            ("0000-12-31T23:00:00-01:00", SECOND_MIN),
            ("9999-12-31T23:59:59Z", SECOND_END - 1),
        ]:
            self.assertEqual(time_of(json.dumps(text)), second, text)
        for text in ["2023-02-29T00:00:00Z", "2023-11-14T24:00:00Z", "2023-11-14T22:13", "2023-11-14T22:13Z", "2023-11-14", "soon"]:
            self.assertEqual(time_of(json.dumps(text)), "unreadable", text)
        for text in ["2023-11-14T22:13:61Z", "2023-11-14T22:13:20.Z", "2023-11-14T22:13:20+1", "2023-11-14T22:13:20 CET", "9999-12-31T23:59:59-01:00"]:
            self.assertEqual(time_of(json.dumps(text)), "unreadable", text)

    def test_6_what_databases_write(self):
        for text in ["23:13:20+0100", "23:13:20.003+01", "22:13:20,5Z", "22:13:20.003 UTC", "22:13:20 +0000", "22:13:20 GMT", "22:13:20.003"]:
            self.assertEqual(time_of(json.dumps("2023-11-14 " + text)), AT, text)
        berlin = config(add=["event"]) | {"events": {"time_zone_default": "Europe/Berlin"}, "buckets": {"minute": True}}
        for text, minute in [
            ("2026-07-01 12:00:00", 1_782_900_000),
            ("2026-10-25 02:30:00", 1_792_888_200),
            ("2026-03-29 02:30:00", 1_774_747_800),
        ]:
            _, keys = fold({"event": "x", "ts": text}, berlin, broker_ms=1_792_900_000_000 if "10" in text else minute * 1000)
            self.assertIn(f"add:m:{minute}:event", keys)
        none = config(add=["event"]) | {"events": {"time_zone_default": ""}}
        self.assertEqual(reason({"event": "x", "ts": "2023-11-14 22:13:20"}, none), "time_unreadable")

    def test_6_the_first_present_field_counts(self):
        _, keys = fold('{"event":"x","ts":null,"timestamp":" ","time":1699900000}')
        self.assertEqual(list(keys), ["add:d:1699833600:event"])
        self.assertEqual(reason('{"event":"x","ts":true,"time":1700000000}'), "time_unreadable")

    def test_7_future_and_past(self):
        at = lambda second: f'{{"event":"x","ts":{second}}}'
        self.assertIsNone(reason(at(AT + 86_400)))
        self.assertEqual(reason(at(AT + 86_401), broker_ms=AT_MS + 999), "time_in_future")
        self.assertIsNone(reason(at(AT + 86_401), broker_ms=AT_MS + 1000))
        end = 1_699_920_000 + 86_400
        gone = (end + 400 * 86_400) * 1000
        self.assertIsNone(reason(at(AT), broker_ms=gone - 1))
        self.assertEqual(reason(at(AT), broker_ms=gone), "too_old")
        for broker_ms in (0, -1, None, 946_684_799_999):
            self.assertIsNone(reason(at(AT), broker_ms=broker_ms))
        self.assertEqual(reason(at(AT), broker_ms=946_684_800_000), "time_in_future")
        self.assertEqual(reason('{"event":"x"}', broker_ms=None), "no_time")
        for broker_ms in (-1, 0, 1, 946_684_799_999):
            self.assertEqual(reason('{"event":"x"}', broker_ms=broker_ms), "no_time")
        required = config(add=["event"]) | {"events": {"require_time": True}}
        self.assertEqual(reason('{"event":"x"}', required), "no_time")
        self.assertIsNone(reason(at(AT), required))
        hours = config(add=["event"]) | {"buckets": {"hour": True}}
        _, keys = fold(at(AT), hours, broker_ms=AT_MS + 20 * 86_400_000)
        self.assertEqual(list(keys), [f"add:{DAY}:event"])

    def test_buckets_on_the_nights_when_clocks_change(self):
        berlin, howe, cairo, apia = map(Zone, ("Europe/Berlin", "Australia/Lord_Howe", "Africa/Cairo", "Pacific/Apia"))
        back = 1_792_890_000  # 2026-10-25T01:00:00Z
        day = 1_792_879_200, 1_792_879_200 + 25 * 3600
        for second, hour in [(back - 1, (back - 3600, back)), (back, (back, back + 3600))]:
            self.assertEqual(berlin.bucket("h", second), hour)
            self.assertEqual(berlin.bucket("d", second), day)
        # Half an hour back at 02:00: half an hour more of 01:30 to 02:00, at another offset.
        back = 1_775_314_800  # 2026-04-04T15:00:00Z
        self.assertEqual(howe.bucket("h", back - 1), (back - 3600, back))
        self.assertEqual(howe.bucket("h", back), (back, back + 1800))
        self.assertEqual(howe.bucket("m", back + 61), (back + 60, back + 120))
        # No midnight: the day begins at 01:00.
        begin = 1_776_981_600  # 2026-04-23T22:00:00Z
        self.assertEqual(cairo.bucket("d", begin), (begin, begin + 23 * 3600))
        # A day that did not exist.
        skip = 1_325_239_200  # 2011-12-30T10:00:00Z
        self.assertEqual(apia.bucket("d", skip - 1)[1], skip)
        self.assertEqual(apia.bucket("d", skip)[0], skip)
        # Back over midnight: one minute of the new day, an hour at the name of the old one, and
        # then the new day again.
        begin = 1_162_089_000  # 2006-10-29T02:30:00Z
        newfoundland = Zone("America/St_Johns")
        for second in (begin, begin + 59, begin + 60, begin + 3659, begin + 3660):
            self.assertEqual(newfoundland.bucket("d", second), (begin, begin + 25 * 3600))
        self.assertEqual(newfoundland.bucket("d", begin - 1)[1], begin)
        # Offsets that are no whole hours, and the ends of time.
        self.assertEqual(Zone("Asia/Kathmandu").bucket("h", AT), (1_699_996_500, 1_700_000_100))
        for second in (SECOND_MIN, SECOND_END - 1):
            for kind in "dhm":
                start, end = Zone("America/New_York").bucket(kind, second)
                self.assertTrue(start <= second < end)


class Values(unittest.TestCase):
    def test_8_trimming(self):
        self.assertEqual(trim("\u0000\u0085 a\u0000 b\u2003\u3000\u009f\u180e"), "a\u0000 b\u2003\u3000\u009f\u180e")
        self.assertEqual(trim("\u1680\u2028\u205f\u001fx\u007f"), "x")
        self.assertEqual(trim("\u200bx\ufeff"), "\u200bx\ufeff")
        self.assertIsNone(label({"f": " \t\u0000"}))

    def test_9_cut(self):
        self.assertEqual(label({"f": "é" * 513}), "é" * 512)
        self.assertEqual(label({"f": "😀" * 600}), "😀" * 512)
        self.assertEqual(label({"f": "y" * 511 + " z"}), "y" * 511 + " ")
        self.assertEqual(label({"f": "~" * 600, "g": 1}, "f~g"), "\\~" * 512 + "~1")

    def test_10_numbers(self):
        for text, shown in [
            ("100", "100"),
            ("100.0", "100"),
            ("1e2", "100"),
            ("99.90", "99.9"),
            ("-0", "0"),
            ("-0.0", "0"),
            ("0.000001", "0.000001"),
            ("1e21", "1" + "0" * 21),
            ("18446744073709551615", "18446744073709551615"),
            ("18446744073709551616", "18446744073709552000"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("-9223372036854775809", "-9223372036854776000"),
            ("9007199254740993.0", "9007199254740993"),
            ("9007199254740993.5", "9007199254740994"),
            ("1e-999", "0"),
            ("-1e-" + "9" * 5000, "0"),
            ("1e999", None),
            ("1e" + "9" * 5000, None),
            ("0e" + "9" * 5000, "0"),
            ("1" + "0" * 6000 + "e-6000", "1"),
            ("0.1" + "0" * 2000 + "1", "0.1"),
            ("5e-324", "0." + "0" * 323 + "5"),
        ]:
            self.assertEqual(number_label(text), shown, text[:40])
            self.assertEqual(label(f'"f":{text}'), shown, text[:40])
        self.assertEqual(label({"f": "100"}), "100")
        self.assertEqual(label({"f": "1e2"}), "1e2")
        self.assertEqual([label({"f": value}) for value in (True, False, None, [1], {"a": 1})], ["true", "false", None, None, None])

    def test_11_escapes(self):
        self.assertEqual(label({"f": "a~b\\"}), "a~b\\")
        self.assertEqual(label({"f": "a~b\\", "g": "c"}, "f~g"), "a\\~b\\\\~c")
        for value in (OTHER, "\\" + OTHER, "\\\\" + OTHER):
            self.assertEqual(label({"f": value}), "\\" + value)
        self.assertEqual(label({"f": OTHER, "g": "x"}, "f~g"), OTHER + "~x")
        self.assertEqual(label({"f": "x" + OTHER}), "x" + OTHER)

    def test_12_unique_counts(self):
        _, keys = fold({"event": "x", "ip": " " + "v" * 600, "n": 1.0, "t": "a~"}, config(bitmap=["ip", "n", "t", "t~n"]))
        for pattern, element in [("ip", "v" * 600), ("n", "1"), ("t", "a~"), ("n~t", "1~a\\~")]:
            register, rank = observation(element.encode())
            self.assertEqual(keys[f"bmp:{DAY}:{pattern}"][1], {register: rank})


class Sums(unittest.TestCase):
    def test_13_and_14_amounts(self):
        for text, amount in [
            ("99.99", 99_990_000),
            ("0.0000005", 0),
            ("0.0000015", 2),
            ("-0.0000015", -2),
            ("0.00000050000000001", 1),
            ("2.5e-6", 2),
            ("1e-999", 0),
            ("999999999999.9999999", 10**18),
            ("1e12", None),
            ("-1000000000000.0000001", None),
            ("1e" + "9" * 5000, None),
            ("0e999", 0),
        ]:
            self.assertEqual(micros(text), amount, text[:40])

    def test_13_what_is_skipped(self):
        settings = config(add_value=[{"key": "event", "add_key": "v"}, {"key": "event~g", "add_key": "v"}])
        for text, skipped in [("null", 0), ('" "', 0), ("true", 1), ("[]", 1), ("{}", 1), ('"x"', 1), ('"01"', 1), ("1e999", 1)]:
            folded = Fold(settings)
            self.assertIsNone(folded.record("t", 0, 0, AT_MS, None, [], f'{{"event":"x","v":{text}}}'.encode()))
            self.assertEqual((folded.skipped, folded.metrics()), (skipped, {}), text)
        _, keys = fold({"event": "x", "v": " 1e1 "}, settings)
        self.assertEqual(keys[f"adv:{DAY}:v:event"][1], {"x": 10_000_000})


class Keys(unittest.TestCase):
    def test_15_encoding(self):
        settings = config(add=["a:b%@"], bitmap_by=[{"key": "a:b%@", "of": "o@"}], add_value=[{"key": "event", "add_key": "v:"}])
        _, keys = fold({"event": "e:%", "a:b%@": "x:%@~{}", "o@": 1, "v:": 2}, settings)
        names = f"{DAY}:o%40@a%3Ab%25%40"
        self.assertEqual(
            set(keys),
            {
                f"add:{DAY}:a%3Ab%25@",
                f"bmv:{names}",
                f"bmp:{names}:x%3A%25@~{{}}",
                f"adv:{DAY}:v%3A:event",
                f"adv:{DAY}:v%3A:event:n",
                f"adv:{DAY}:v%3A:event:i",
            },
        )
        self.assertEqual(keys[f"add:{DAY}:a%3Ab%25@"][1], {"x:%@~{}": 1})
        self.assertEqual(keys[f"bmv:{names}"][1], {"x:%@~{}": None})

    def test_16_and_19_limits(self):
        settings = config(
            add=["f"], top=["f"], add_value=[{"key": "f", "add_key": "v"}], bitmap_by=[{"key": "f", "of": "u"}]
        ) | {"events": {"max_values_per_key": 2, "max_values_per_key_bitmap_by": 1}}
        folded = Fold(settings, ordered=True)
        for offset, (value, user) in enumerate([("b", 1), ("a", 2), ("c", 3), ("b", 4), (OTHER, 5), ("c", 6)]):
            event = {"event": "x", "f": value, "u": user, "v": offset}
            self.assertIsNone(folded.record("t", 0, offset, AT_MS, None, [], json.dumps(event).encode()))
        keys = folded.capped()
        counts = {"b": 2, "a": 1, OTHER: 3}
        self.assertEqual(keys[f"add:{DAY}:f"], ("hash", counts))
        self.assertEqual(keys[f"top:{DAY}:f"], ("zset", counts))
        self.assertEqual(keys[f"adv:{DAY}:v:f"][1], {"b": 3_000_000, "a": 1_000_000, OTHER: 11_000_000})
        self.assertEqual(keys[f"adv:{DAY}:v:f:n"][1], counts)
        self.assertEqual(keys[f"adv:{DAY}:v:f:i"][1]["count"], 6)
        self.assertEqual(set(keys[f"bmv:{DAY}:u@f"][1]), {"b", OTHER})
        self.assertEqual({key for key in keys if key.startswith("bmp")}, {f"bmp:{DAY}:u@f:b", f"bmp:{DAY}:u@f:{OTHER}"})
        self.assertEqual(keys[f"bmp:{DAY}:u@f:{OTHER}"][1], dict(observation(user) for user in (b"2", b"3", b"5", b"6")))

    def test_17_patterns(self):
        folded = Fold({"mapping": {"add": ["geo", "event", "geo~event", "ip", "b~a~Z"], "top": ["geo~event"]}})
        self.assertEqual([("geo",), ("event",), ("event", "geo"), ("ip",), ("Z", "a", "b")], folded.add[:5])
        self.assertEqual([("geo", "ip"), ("event", "ip")], folded.add[5:])
        for patterns in (["a~b", "b~a"], ["a~"], [""], ["a~b~c~d~e"]):
            with self.assertRaises(ValueError):
                Fold(config(add=patterns))

    def test_18_too_many_metrics(self):
        settings = config(add=["event", "f"], top=["event"], bitmap=["event"]) | {"buckets": {"hour": True}}
        for limit, value, why in [(6, {"event": "x"}, None), (5, {"event": "x"}, "too_many_metrics"), (7, {"event": "x", "f": 1}, "too_many_metrics")]:
            self.assertEqual(reason(value, settings | {"events": {"max_metrics_per_event": limit}}), why)

    def test_folds_of_parts_add_up(self):
        settings = config(add=["f"], bitmap=["f"], bitmap_by=[{"key": "f", "of": "v"}], add_value=[{"key": "f", "add_key": "v"}])
        whole, parts = Fold(settings), [Fold(settings), Fold(settings)]
        for offset in range(50):
            value = json.dumps({"event": "x", "f": offset % 7, "v": offset * 31 % 11}).encode()
            for folded in (whole, parts[offset % 2]):
                folded.record("t", 0, offset, AT_MS, None, [], value)
        parts[0].absorb(parts[1])
        self.assertEqual(parts[0].metrics(), whole.metrics())


class CloudEvents(unittest.TestCase):
    SETTINGS = config(add=["event~geo", "ce.subject", "ce.x"])

    def labels(self, value, headers=(), broker_ms=AT_MS):
        why, keys = fold(value, self.SETTINGS, headers, broker_ms)
        self.assertIsNone(why)
        return {key: next(iter(values)) for key, (_, values) in keys.items()}

    def test_20_structured(self):
        event = {"specversion": "1.0", "type": "made", "subject": "s", "x": 5, "data": {"geo": "DE", "event": "hidden"}}
        want = {f"add:{DAY}:event~geo": "made~DE", f"add:{DAY}:ce.subject": "s", f"add:{DAY}:ce.x": "5"}
        self.assertEqual(self.labels(event), want)
        earlier = {"time": "2023-11-12T00:00:00Z"}
        self.assertIn("add:d:1699747200:event~geo", self.labels(event | earlier))
        self.assertIn("add:d:1699747200:event~geo", self.labels(event | {"data": {"geo": 1, "ts": 1_699_747_200}, "time": " "}))
        self.assertEqual(reason(event | {"time": "soon"}), "time_unreadable")
        self.assertEqual(reason(event | {"type": " "}), "no_event")
        self.assertEqual(reason(event | {"type": 5}), "no_event")
        self.assertIsNone(reason(event | {"event": None}))
        self.assertEqual(fold(event | {"event": "own"})[1][f"add:{DAY}:event"][1], {"own": 1})
        self.assertEqual(self.labels({"specversion": "1.0", "type": "t", "data": "text", "data_base64": "e30="}), {})

    def test_20_binary(self):
        headers = [*BINARY, ("ce_subject", b"s"), ("ce_x", b"5")]
        want = {f"add:{DAY}:event~geo": "made~DE", f"add:{DAY}:ce.subject": "s", f"add:{DAY}:ce.x": "5"}
        self.assertEqual(self.labels({"geo": "DE", "event": "hidden"}, headers), want)
        self.assertIn("add:d:1699747200:ce.x", self.labels({"ts": 1}, [*headers, ("ce_time", b"2023-11-12T00:00:00Z")]))
        plain, special = ("content-type", b"text/plain; a=json"), ("content-type", b"application/vnd.x+JSON; charset=utf-8")
        for value, more, why in [
            (b"text", [], "invalid_json"),
            (b"text", [special], "invalid_json"),
            (b"text", [plain], None),
            (b"\xff", [plain], None),
            (b"", [plain], None),
            (None, [plain], None),
            (b"", [], None),
            (None, [], None),
            (b'{"ts":"soon"}', [plain], None),
            (b'{"ts":"soon"}', [], "time_unreadable"),
            (b"[1]", [], None),
            (b"x" * 1_048_577, [plain], "too_large"),
        ]:
            self.assertEqual(reason(value, headers=[*BINARY, *more]), why, (value and value[:20], more))
        self.assertEqual(reason("{}", headers=BINARY[:1]), "no_event")
        self.assertEqual(reason('{"event":"x"}', headers=BINARY[:1]), "no_event")
        self.assertEqual(reason("{}", headers=[*BINARY[:1], ("ce_type", b" ")]), "no_event")
        self.assertEqual(reason("{}", headers=[*BINARY, ("ce_time", b"soon")]), "time_unreadable")


if __name__ == "__main__":
    unittest.main()
