#!/usr/bin/env python3
"""Produces a believable and hostile stream with a client that is not ours.

    produce.py BROKERS TOPIC [--events 1000000] [--seed 1] [--partitions 8] [--start EPOCH] [--rate EVENTS_PER_SECOND]
    produce.py --nats URL STREAM [--events 1000000] [--seed 1] [--rate EVENTS_PER_SECOND]
    produce.py --dump FILE TOPIC [...]          the same records as lines for check.py --records, without a broker

Late and duplicate events, the night on which Berlin's clocks go back, keyed and unkeyed, every compression, committed and
aborted transactions, and about one bad or odd record in five hundred. The same seed and start make the same records.

Record timestamps are near the event times, so the topic must take them (message.timestamp.type=CreateTime) and records of
4 MB (max.message.bytes); a topic that does not exist is created so.
"""

import argparse
import base64
import bisect
import datetime
import itertools
import json
import random
import sys
import time

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
SPAN = 20 * 3600
BATCH = 2000
LATE_MAX = 3 * 86_400
RECORD_MAX = 4_000_000
CEST = datetime.timezone(datetime.timedelta(hours=2))
POOL = 8192
MEMBER_ORDER = ["ts", "timestamp", "time", "ts"]
AMOUNTS = ["99.9", "199.9", '"0.99"', "1e2", '"1e1"', "0.1", "-5", "12.3456785", "12.3456775", "0", "1E-3"]
GEOS = ["US", "DE", "FR", "JP", "BR", "GB", "IN", "ÖS", "a~b", "x\\y"]


def autumn_night(now):
    """18:00 UTC before the last Sunday of October on which Berlin's clocks went back, before now."""
    for year in itertools.count(datetime.datetime.fromtimestamp(now, datetime.timezone.utc).year, -1):
        last = datetime.datetime(year, 10, 31, 18, tzinfo=datetime.timezone.utc)
        start = int((last - datetime.timedelta(days=(last.weekday() + 1) % 7 + 1)).timestamp())
        if start + SPAN < now:
            return start


def zipf(rng, values, exponent):
    """A pool in which values are as frequent as Zipf says."""
    weights = list(itertools.accumulate(1 / (rank + 1) ** exponent for rank in range(len(values))))
    return [values[bisect.bisect_left(weights, rng.random() * weights[-1])] for _ in range(POOL)]


class Events:
    """Event bodies, put together from pools of ready JSON text; that is several times as fast as json.dumps."""

    def __init__(self, rng):
        self.rng = rng
        text = lambda value: json.dumps(value, ensure_ascii=rng.random() < 0.5)
        pool = lambda prefix, count, exponent: zipf(rng, [text(f"{prefix}{at}") for at in range(count)], exponent)
        self.event = pool("e", 29, 1.1)
        self.url = pool("https://shop.example/p?a=b&id=", 5000, 1.0)
        self.geo = zipf(rng, [text(geo) for geo in GEOS], 1.2)
        self.source, self.campaign = pool("s", 15, 1.0), pool("c", 18, 0.8)
        self.agent = zipf(rng, [text("Mozilla/5.0 (X11; Linux x86_64) rv/" + str(at) * 30) for at in range(3)], 0.5)
        self.device = zipf(
            rng,
            [
                f'{{"type": {text(kind)}, "version": {version}, "screen": [1920, 1080]}}'
                for kind in ("mobile", "desktop", "tablet")
                for version in ("1", "2", "2.0", "11.5", "2e1", "20")
            ],
            0.7,
        )

    def stamp(self, second, bits):
        """The event's time in one of its forms."""
        form = bits % 8
        if form == 0:
            return str(second)
        if form == 1:
            return str(second * 1000 + bits % 1000)
        if form == 2:
            return str(second * 1_000_000 + bits % 1_000_000)
        if form == 3:
            return str(second * 1_000_000_000 + bits % 1000)
        if form == 4:
            return f'"{second}"'
        if form == 5:
            return f"{second}.5"
        if form == 6:
            moment = time.gmtime(second)
            return f'"{moment[0]}-{moment[1]:02}-{moment[2]:02}T{moment[3]:02}:{moment[4]:02}:{moment[5]:02}Z"'
        moment = datetime.datetime.fromtimestamp(second, CEST)
        return f'"{moment:%Y-%m-%d %H:%M:%S}.{bits % 1000:03}+02:00"'

    def body(self, second):
        bits = self.rng.getrandbits(160)
        take = lambda shift: bits >> shift & POOL - 1
        user = int(50_000 ** ((bits >> 96 & 0xFFFFF) / 0xFFFFF))
        amount = bits >> 60 & 15
        return (
            f'{{"id": {bits & 0xFFFFFFFF}, "session": "{bits:040x}", "event": {self.event[take(0)]}, '
            f'"user_id": "u{user}", "ip": "10.{user % 4}.{user // 4 % 250}.{take(13) % 20}", "url": {self.url[take(26)]}, '
            + ("" if bits >> 116 & 15 == 0 else f'"geo": {self.geo[take(39)]}, ')
            + ("" if bits >> 120 & 15 == 0 else f'"utm_source": {self.source[take(52)]}, ')
            + f'"utm_campaign": {self.campaign[take(65)]}, "user_agent": {self.agent[take(78)]}, '
            + ("" if bits >> 124 & 15 == 0 else f'"device": {self.device[take(128)]}, ')
            + (f'"amount": {AMOUNTS[amount] if amount < len(AMOUNTS) else take(91) % 99 + 1}, ' if bits >> 59 & 1 else "")
            + f'"{MEMBER_ORDER[bits >> 142 & 3]}": {self.stamp(second, bits >> 144)}}}'
        ).encode()


def odd_records(second):
    """(value, headers) of every kind that a rule of docs/semantics.md speaks of."""
    t = f'"ts":{second}'
    cases = []
    plain = lambda *texts: cases.extend((text.encode() if isinstance(text, str) else text, []) for text in texts)
    events = lambda *members: plain(*(f'{{"event":"odd",{t},{member}}}' for member in members))
    # Not JSON, not an object, no event.
    plain("not json", "", " ", '{"event":"cut","ts":', "{'event':1}", '{"event":"x",}', '{"event":"x"} x', '{"event":"x"}{}')
    plain("[1,2]", '"text"', "null", "1", "true", "{}", f'{{{t}}}', f'{{"event":null,{t}}}', f'{{"event":5,{t}}}')
    plain(f'{{"event":["x"],{t}}}', f'{{"event":" \\u0000\\u00a0 ",{t}}}', f'{{"event":"x","event":7,{t}}}')
    # Names.
    plain(*(f'{{{members},{t}}}' for members in [
        '"type":"track"', '"event_name":"purchase"', '"name":"n","type":"page"', '"event":5,"name":"n"', '"event":{"type":"message"},"type":"callback"',
        '"event":" ","event_type":"\\u00a0","name":"last"', '"name":["x"]', '"TYPE":"x"',
    ]))
    # Several events.
    one = lambda members: f'{{"event":"several",{t},{members}}}'
    plain(f'[{one(chr(34) + "geo" + chr(34) + ":1")}, {{"geo":"A"}} ,5,[{one(chr(34) + "a" + chr(34) + ":1")}]]', f'{{"event":"row",{t}}}\n{{"event":"row",{t}}} {{}}')
    plain(f'{{"sentAt":1,"batch":[{{"type":"track",{t}}},{{"batch":[{{"event":"x"}}]}},null]}}', f'{{"events":[{{"event_type":"amplitude",{t}}}]}}')
    plain('{"batch":[]}', '{"batch":[],"events":[{}]}', '{"batch":5,"events":[{}]}', f'{{"event":"own",{t},"batch":[{{"event":"x"}}]}}', "[]", "[[]]")
    plain(f'[{{"event":"good",{t}}},{{"event":"bad",{t}}}x]', f'{{"event":"good",{t}}}[]', f'[{{"event":"time","ts":"soon"}},{{"specversion":"1.0","type":"element",{t}}}]')
    plain("[" + ",".join([f'{{"event":"many",{t}}}'] * 50) + "]", "[" + "1," * 10_000 + "1]")
    # JSON that lax parsers take.
    events('"z":NaN', '"z":-Infinity', '"z":01', '"z":1.', '"z":.5', '"z":+1', '"z":"a\nb"', '"z":"\\x"', '"z":"\\u12"', '"z":1//')
    events('"z":"\\ud800"', '"z":"\\udc00\\ud800"', '"\\ud83d":1', '"z":"\\ud800","z":1', '"z":[{"a":"\\ud83dx"}]')
    events('"z":"\\ud83d\\ude00"', '"z":"\\\\ud800"', '"z":1/*c*/', "z:1")
    plain("\ufeff" + f'{{"event":"bom",{t}}}', f'\u00a0{{"event":"space",{t}}}', f' \t\r\n{{"event":"space",{t}}}\n')
    # UTF-8.
    plain(b'{"event":"\xff"}', b'{"event":"\xc0\xaf"}', b'{"event":"\xed\xa0\x80"}', b'{"event":"\xf4\x90\x80\x80"}')
    plain(b'{"event":"cut \xe2\x82', b"\xff" + b"[" * 100)
    # Depth and size.
    plain("[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000, "]" * 100 + "x")
    events('"z":' + "[" * 63 + "]" * 63, '"z":' + "[" * 64 + "]" * 64, '"z":"' + "[" * 200 + '"', '"z":"\\"' + "{" * 99 + '"')
    events('"z":"' + "x" * 1_100_000 + '"', '"z":"' + "x" * 500_000 + '"')
    # Names and duplicates.
    events('"event":"last","geo":"A","geo":"B"', '"device":{"type":"one"},"device":{"other":1}', '"geo":"A","geo":null')
    events('"device.type":"literal","device":{"type":"path"}', '"device.type":null,"device":{"type":"path"}', '"device":["type"]')
    events('"device":{"type":{"type":"deep"}}', '"a:b%@~":1,"":2,"\\u0000":3,"{}":4,"\\n":5')
    # Numbers.
    numbers = ["1e999", "-1e999", "1e-999", "-1e-999", "9223372036854775807", "9223372036854775808", "-9223372036854775808"]
    numbers += ["-9223372036854775809", "18446744073709551615", "18446744073709551616", "100.0", "1e2", "1E+2", "100", "-0"]
    numbers += ["-0.0", "0.1", "0.10", "0.000001", "1e-7", "1e21", "1e22", "123456789012345678901234567890", "5e-324", "2e308"]
    numbers += ["0.1000000000000000055511151231257827", "9007199254740993", "9007199254740993.0", "9007199254740993.5"]
    numbers += ["1" + "0" * 6000 + "e-6000", "0." + "0" * 6000 + "1e6001", "1e" + "9" * 6000, "1e-" + "9" * 6000, "0e" + "9" * 6000]
    events(*(f'"geo":{number},"url":{number},"user_id":{number},"utm_source":"{number}"' for number in numbers))
    # The large ones cancel out, or long runs would leave 64 bits.
    amounts = ["999999999999.9999999", "-999999999999.9999999", "999999999999.999999", "-999999999999.999999"]
    amounts += ["1e999", "1e12", "-1e12", "1000000000000.0000001", "0.0000005", "0.0000015", "-0.0000005"]
    amounts += ["0.00000050000000001", "2.5e-6", "3.5e-6", "1e-999", "true", "null", "[]", "{}", '""', '" "', '"x"', '" 1e1 "']
    amounts += ['"\\u00a07"', '"01"', '"+1"', '"0x1"', '"NaN"', '"1e999"', '".5"', "0.1", "1e-7", "123456.7890125", '"1_0"', '"١"']
    events(*(f'"amount":{amount}' for amount in amounts), *(f'"amount":{number}' for number in numbers[-5:]))
    # Labels.
    labels = ["~", "\\\\", ":", "%", "@", "a:b%3A@~", "{}", "\\n", "in\\u0000side", "a\\nb", "\\u0000\\u0085 x\\u2003\\u3000", " ", ""]
    labels += ["__other__", "\\\\__other__", "\\\\\\\\__other__", "__other__x", " __other__ ", "\\u200b", "\\ufeff", "\\ud83d\\ude00"]
    labels += ["long" * 200, "é" * 513, "😀" * 512, "y" * 511 + " z", "~" * 600, "true", "100", "\\u007f", "\\u001f1\\u001f", "a~b\\\\~c"]
    events(*(f'"geo":"{label}","url":"{label}","ip":"{label}","user_id":"{label}","utm_source":"{label}"' for label in labels))
    plain(*(f'{{"event":"{label}","geo":"g",{t}}}' for label in labels))
    events('"geo":true,"ip":["x"],"url":{"a":1},"user_id":false,"utm_source":null')
    # Times.
    iso = lambda form: time.strftime(form, time.gmtime(second))
    times = [f'"{iso("%Y-%m-%dT%H:%M:%S")}{zone}"' for zone in ("Z", "z", "+00:00", "-00:00", ".999999999999Z", "+14:30", ".Z", "", "+1", "+0100", "-01", " UTC", ",5Z", " +0000", "  Z", "CET", ".5")]
    times += [f'"{iso("%Y-%m-%d")}{rest}"' for rest in ("t00:00:60Z", " 24:00:00Z", "T23:59:60.9Z", "T00:60:00Z", "", "T00:00Z", "  00:00:00Z")]
    times += ['"2026-02-30T00:00:00Z"', '"2026-13-01T00:00:00Z"', '"0001-01-01T00:00:00Z"', '"9999-12-31T23:59:59Z"', '"yesterday"']
    times += ['"9999-12-31T23:59:59-01:00"', "true", "[]", "{}", "1e40", "-1e40", "253402300800", "-62135596801", "99999999999", "1e11"]
    times += [f"{second}e0", f"{second}0000e-4", f'" {second}.25 "', f'"{second}x"', f"{second}.999", '"1e9"', "0", "-1", "-0.5", "-1e-999"]
    times += [str(second + 3 * 86_400), str(second - 500 * 86_400), str(second - 390 * 86_400), str(second + 86_400), str(second - 13 * 86_400)]
    plain(*(f'{{"event":"time","ts":{stamp}}}' for stamp in times))
    plain(*(f'{{"event":"next","ts":{gone},"timestamp":{second}}}' for gone in ("null", '""', '" \\t"')))
    plain('{"event":"broker time"}', '{"event":"broker time","ts":null}', b"\x00\x00\x00\x00\x07" + f'{{"event":"registry",{t}}}'.encode())
    plain(b"\x00\x00\x00\x00\x07", b"\x00\x00\x00\x00\x07 ", b"\x00\x00\x00\x00\x00\x07{}")
    cases.append((None, []))
    # CloudEvents.
    cloud = lambda members: plain(f'{{"specversion":"1.0",{members}}}')
    cloud(f'"type":"structured","source":"/x","id":"1","subject":"s","data":{{"geo":"CE","event":"hidden",{t}}}')
    cloud(f'"type":"structured","time":"{iso("%Y-%m-%dT%H:%M:%SZ")}","data":{{"ts":1,"geo":"CE"}}')
    cloud(f'"type":"structured","time":"soon","data":{{{t}}}')
    cloud(f'"type":"structured","time":null,"data":{{{t},"amount":5}}')
    cloud(f'"type":" ","data":{{{t}}}')
    cloud(f'"type":7,{t}')
    cloud(f'"type":"x","event":"own",{t}')
    cloud('"type":"structured","data":"text"')
    cloud('"type":"structured","data_base64":"eyJhIjoxfQ=="')
    binary = [("ce_specversion", b"1.0"), ("ce_type", b"binary"), ("ce_source", b"/s"), ("ce_id", b"7"), ("ce_subject", b"sub")]
    when = ("ce_time", iso("%Y-%m-%dT%H:%M:%SZ").encode())
    text, structured = ("content-type", b"text/plain; charset=utf-8"), ("content-type", b"application/vnd.x+json; charset=utf-8")
    body = f'{{"event":"hidden","geo":"CB","amount":3,{t}}}'.encode()
    cases += [(body, binary), (body, binary + [when]), (body, binary + [structured]), (body, binary[:1]), (b"{}", binary[:1] + [("ce_type", b"")])]
    cases += [(b"plain text", binary + [text, when]), (b"\xff\xfe", binary + [text]), (None, binary + [text, when]), (None, binary)]
    cases += [(b"", binary + [text]), (b"", binary), (b"not json", binary), (b"not json", binary + [structured]), (b"[1]", binary + [when])]
    cases += [(body, binary + [("ce_time", b"soon")]), (body, binary + [("ce_time", b"")]), (body, binary + [("ce_x", b"\xff")])]
    cases += [(b"not json", binary + [("content-type", None), when]), (b"not json", binary + [text, ("content-type", b"application/json"), when])]
    cases += [(body, [("ce-specversion", b"1.0"), ("ce-type", b"in NATS"), ("ce-subject", b"sub")]), (b"[1]{}", binary)]
    cases += [(body, [("specversion", b"1.0"), ("empty", None), ("some", b"header")]), (b"[1]", [("some", b"\xff"), ("empty", None)])]
    # Names that mean something where dead letters go.
    cases += [(b"not json", [("traqq-reason", b"too_old"), ("Traqq-Offset", b"-1"), ("traqq-key", b"k"), ("some", b"header")])]
    return cases


SHAPES = ("plain", "poison", "hot", "wide")
WIDE = b'{"event": "e", "url": "/%d", "ip": "%d", "user_id": "u%d", "geo": "g", "ts": %d}'


def records(seed, events, start, shape="plain"):
    """Timestamp in milliseconds, key, value, headers."""
    rng = random.Random(seed)
    make = Events(rng)
    previous, odd_at = None, 0
    odd, odd_made = [], None
    for index in range(events):
        second = start + index * SPAN // events
        bits = rng.getrandbits(64)
        broker_ms = second * 1000 + bits % 1000
        key = b"k%d" % (bits >> 10 & 1023) if bits & 1 << 20 else None
        chance = bits >> 32 & 0xFFFF
        if chance < 1966:  # 3 % late
            second -= rng.randrange(LATE_MAX)
        if shape == "poison" and chance >= 6554:  # 90 %
            value, headers = b'{"event": "poison", "amount": ' + str(bits).encode(), []
        elif shape == "wide":
            value, headers = WIDE % (bits & 0xFFFFFFF, bits >> 8 & 0xFFFFFFF, bits >> 4 & 0xFFFFFFF, second), []
        elif chance >= 65400:  # 0.2 %
            if odd_made is None or odd_at == len(odd):
                odd, odd_at, odd_made = odd_records(second), 0, second
                rng.shuffle(odd)
            value, headers = odd[odd_at]
            odd_at += 1
        elif chance >= 64700 and previous is not None:  # 1 % exact duplicates
            value, headers = previous
        else:
            value, headers = make.body(second), []
            previous = value, headers
        yield broker_ms, key, value, headers


def place(rng, key, partitions, shape="plain"):
    if shape == "hot" and rng.random() < 0.935:  # the others have a hundredth of it each
        return 0
    return rng.randrange(partitions) if key is None else sum(key) % partitions


def dump(options):
    rng = random.Random(options.seed + 1)
    text = lambda data: None if data is None else base64.b64encode(data).decode()
    offsets = [0] * options.partitions
    with open(options.dump, "w") as out:
        for broker_ms, key, value, headers in records(options.seed, options.events, options.start):
            partition = place(rng, key, options.partitions)
            record = {"topic": options.topic, "partition": partition, "offset": offsets[partition], "timestamp_ms": broker_ms}
            record |= {"key_b64": text(key), "value_b64": text(value), "headers": [[name, text(data)] for name, data in headers]}
            out.write(json.dumps(record) + "\n")
            offsets[partition] += 1


def create_topic(options):
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": options.brokers})
    if options.topic not in admin.list_topics(timeout=30).topics:
        topic = NewTopic(options.topic, options.partitions, 1, config={"max.message.bytes": str(RECORD_MAX)})
        admin.create_topics([topic])[options.topic].result(30)


class Sender:
    """One producer for each compression, and one for transactions."""

    def __init__(self, options):
        from confluent_kafka import Producer

        self.options, self.failures, self.aborted = options, [], 0
        self.rng = random.Random(options.seed + 1)
        common = {"bootstrap.servers": options.brokers, "linger.ms": 20, "message.max.bytes": RECORD_MAX}
        common |= {"queue.buffering.max.messages": 200_000, "enable.idempotence": True}
        self.plain = [Producer(common | {"compression.codec": codec}) for codec in CODECS]
        name = f"oracle-{options.topic}-{options.seed}"
        self.transactional = Producer(common | {"compression.codec": "lz4", "transactional.id": name})
        self.transactional.init_transactions(60)

    def report(self, error, _):
        if error is not None:
            self.failures.append(str(error))

    def send(self, producer, batch, report):
        for (broker_ms, key, value, headers), partition in batch:
            while True:
                try:
                    # A header list costs; almost no record has one.
                    more = {"headers": headers} if headers else {}
                    producer.produce(
                        self.options.topic, value, key, partition, timestamp=broker_ms, on_delivery=report, **more
                    )
                    break
                except BufferError:
                    producer.poll(0.1)
        producer.poll(0)

    def batch(self, batch):
        batch = [(record, place(self.rng, record[1], self.options.partitions, self.options.shape)) for record in batch]
        kind = self.rng.randrange(len(CODECS) + 2)
        if kind < len(CODECS):
            self.send(self.plain[kind], batch, self.report)
            return
        self.transactional.begin_transaction()
        if kind == len(CODECS):
            self.send(self.transactional, batch, self.report)
            self.transactional.commit_transaction(60)
            return
        self.send(self.transactional, batch, None)
        # On the log, or there would be nothing to skip.
        self.transactional.flush(60)
        self.transactional.abort_transaction(60)
        self.aborted += len(batch)
        # As a producer would after a failure.
        self.send(self.plain[0], batch, self.report)

    def finish(self):
        left = sum(producer.flush(120) for producer in [*self.plain, self.transactional])
        if self.failures or left:
            sys.exit(f"produce: {len(self.failures)} failed, {left} left: {self.failures[:1]}")


def produce(options):
    create_topic(options)
    sender = Sender(options)
    stream = records(options.seed, options.events, options.start, options.shape)
    begun, sent = time.monotonic(), 0
    size = min(BATCH, max(1, options.rate // 10)) if options.rate else BATCH
    while batch := list(itertools.islice(stream, size)):
        sender.batch(batch)
        sent += len(batch)
        if options.rate:
            time.sleep(max(0.0, begun + sent / options.rate - time.monotonic()))
    sender.finish()
    rate = sent / (time.monotonic() - begun)
    print(f"produce: {sent} records, {sender.aborted} of them aborted first, {rate:.0f} a second")


def publish(options):
    import asyncio

    import jetstream

    begun = time.monotonic()
    stream = records(options.seed, options.events, options.start, options.shape)
    sent = asyncio.run(jetstream.publish_all(options.nats, options.topic, stream, options.rate))
    print(f"produce: {sent} records, {sent / (time.monotonic() - begun):.0f} a second")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("brokers", nargs="?")
    parser.add_argument("topic")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--start", type=int, help="event time of the first record; default: the last autumn night's eve")
    parser.add_argument("--rate", type=int, default=0)
    parser.add_argument("--dump")
    parser.add_argument("--nats")
    parser.add_argument("--shape", choices=SHAPES, default="plain", help="90 %% bad; one partition a hundred times hotter; nothing twice")
    options = parser.parse_args()
    if options.start is None:
        options.start = autumn_night(time.time())
    if options.dump:
        dump(options)
    elif options.nats:
        publish(options)
    elif options.brokers is None:
        parser.error("brokers or --dump")
    else:
        produce(options)


if __name__ == "__main__":
    main()
