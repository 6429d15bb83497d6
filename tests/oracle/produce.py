#!/usr/bin/env python3
"""Produces a believable and hostile stream with a client that is not ours.

    produce.py BROKERS TOPIC [--events 1000000] [--seed 1] [--partitions 8] [--start EPOCH] [--rate EVENTS_PER_SECOND]

Late and duplicate events, the night on which Berlin's clocks go back, keyed and unkeyed, every compression, committed and
aborted transactions, and about one bad or odd record in five hundred. The same seed makes the same records.
"""

import argparse
import datetime
import json
import random
import time

from confluent_kafka import Producer

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
# 2026-10-24T18:00:00Z: the clocks in Berlin go back at 2026-10-25T01:00:00Z.
START = 1_792_864_800
SPAN = 20 * 3600
TRANSACTION = 2000


def timestamp(rng, second):
    """The event's time in one of its forms."""
    form = rng.randrange(8)
    if form == 0:
        return second
    if form == 1:
        return second * 1000 + rng.randrange(1000)
    if form == 2:
        return second * 1_000_000 + rng.randrange(1_000_000)
    if form == 3:
        return second * 1_000_000_000
    if form == 4:
        return str(second)
    moment = datetime.datetime.fromtimestamp(second, datetime.timezone.utc)
    if form == 5:
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    if form == 6:
        berlin = moment.astimezone(datetime.timezone(datetime.timedelta(hours=2)))
        return berlin.strftime("%Y-%m-%d %H:%M:%S.") + f"{rng.randrange(1000):03}+02:00"
    return second + 0.5


def amount(rng):
    return rng.choice([99.9, 199.9, "0.99", rng.randrange(1, 100), 1e2, "1e1", 0.1, -5, "12.3456785"])


def skewed(rng, bound):
    return int(bound ** rng.random()) - 1


def event(rng, second):
    body = {
        "event": f"e{skewed(rng, 30)}",
        "user_id": f"u{skewed(rng, 50_000)}",
        "ip": f"10.{rng.randrange(4)}.{rng.randrange(250)}.{rng.randrange(50)}",
        "url": f"https://shop.example/p/{skewed(rng, 5000)}?a=b",
        "geo": rng.choice(["US", "DE", "FR", "JP", "BR", "ÖS", "a~b", "x\\y"]),
        "utm_source": f"s{skewed(rng, 15)}",
        "utm_campaign": f"c{skewed(rng, 18)}",
        "device": {"type": rng.choice(["mobile", "desktop", "tablet"]), "version": rng.randrange(20)},
        rng.choice(["ts", "timestamp", "time"]): timestamp(rng, second),
    }
    if rng.random() < 0.6:
        body["amount"] = amount(rng)
    if rng.random() < 0.05:
        del body[rng.choice(["geo", "ip", "utm_source", "device", "url"])]
    return json.dumps(body, ensure_ascii=rng.random() < 0.3).encode()


def odd(rng, second):
    """Value and headers of a record that tests a rule."""
    t = f'"ts":{second}'
    cloud = [("ce_specversion", b"1.0"), ("ce_type", b"cloud"), ("ce_source", b"/s"), ("ce_id", b"7")]
    cases = [
        (b"not json", []),
        (b"", []),
        (b'{"event":"x",', []),
        (b"[1,2]", []),
        (b'"text"', []),
        (b"null", []),
        (b'{"ts":1}', []),
        (b'{"event":null,"ts":1}', []),
        (b'{"event":5}', []),
        (b'{"event":"  "}', []),
        (b'{"event":"bad \xff utf8"}', []),
        (b'{"event":"x","z":NaN}', []),
        (b'{"event":"x","z":01}', []),
        (b'{"event":"x","z":"\\ud800"}', []),
        (b'{"event":"x","z":"a\nb"}', []),
        (b"\xef\xbb\xbf" + b'{"event":"x"}', []),
        (b"[" * 100_000, []),
        (b'{"event":"deep","z":' + b"[" * 70 + b"]" * 70 + b"}", []),
        (b'{"event":"shallow",' + t.encode() + b',"z":' + b"[" * 60 + b"]" * 60 + b"}", []),
        (b'{"event":"big",' + t.encode() + b',"z":"' + b"x" * 1_100_000 + b'"}', []),
        (f'{{"event":"first","event":"last","geo":"A","geo":"B",{t}}}'.encode(), []),
        (f'{{"event":"numbers","geo":1e999,"amount":1e999,{t}}}'.encode(), []),
        (f'{{"event":"numbers","geo":9223372036854775808,"amount":9223372036854775808,{t}}}'.encode(), []),
        (f'{{"event":"numbers","geo":18446744073709551616,"amount":"1e11",{t}}}'.encode(), []),
        (f'{{"event":"numbers","geo":100.0,"ip":1e2,"amount":true,{t}}}'.encode(), []),
        (f'{{"event":"numbers","geo":-0.0,"url":0.000001,"amount":0.0000005,{t}}}'.encode(), []),
        (f'{{"event":"tilde~","geo":"~","utm_source":"\\\\","utm_campaign":"a\\\\~b",{t}}}'.encode(), []),
        (f'{{"event":"a:b%","geo":"{{}}","url":"\\n","utm_source":"nul\\u0000in","a:b{{}}\\n\\u0000~":1,{t}}}'.encode(), []),
        (f'{{"event":"__other__","geo":"__other__","url":"\\\\__other__",{t}}}'.encode(), []),
        (f'{{"event":"\\u00a0 trimmed\\u0000\\t","geo":" ","ip":"","url":"{"long" * 200}",{t}}}'.encode(), []),
        (f'{{"event":"literal","device.type":"lit","device":{{"type":"path"}},{t}}}'.encode(), []),
        (f'{{"event":"types","geo":true,"ip":["x"],"url":{{"a":1}},"amount":"x",{t}}}'.encode(), []),
        (f'{{"event":"future","ts":{second + 3 * 86_400}}}'.encode(), []),
        (f'{{"event":"old","ts":{second - 500 * 86_400}}}'.encode(), []),
        (b'{"event":"unreadable","ts":"yesterday"}', []),
        (b'{"event":"unreadable","ts":true}', []),
        (b'{"event":"unreadable","ts":1e40}', []),
        (f'{{"event":"second","ts":null,"timestamp":" ","time":{second}}}'.encode(), []),
        (b'{"event":"broker time"}', []),
        (None, []),
        (b"\x00\x00\x00\x00\x07" + f'{{"event":"registry",{t}}}'.encode(), []),
        (
            f'{{"specversion":"1.0","type":"structured","source":"/x","id":"1","subject":"s","data":{{"geo":"CE",{t}}}}}'.encode(),
            [],
        ),
        (f'{{"specversion":"1.0","type":"","source":"/x","id":"1"}}'.encode(), []),
        (f'{{"event":"data","geo":"CB",{t}}}'.encode(), cloud),
        (b"plain text", cloud + [("content-type", b"text/plain")]),
        (b"not json", cloud + [("content-type", b"application/json")]),
        (None, cloud + [("ce_time", b"2026-10-24T20:00:00Z")]),
        (b"[1]", [("some", b"header"), ("empty", None)]),
    ]
    return rng.choice(cases)


def records(rng, events, start):
    """Timestamp in milliseconds, key, value, headers."""
    previous = None
    for index in range(events):
        second = start + index * SPAN // events
        if rng.random() < 0.03:
            second -= rng.randrange(3 * 86_400)
        broker_ms = (start + index * SPAN // events) * 1000 + rng.randrange(1000)
        key = f"k{rng.randrange(1000)}".encode() if rng.random() < 0.5 else None
        if previous is not None and rng.random() < 0.01:
            value, headers = previous
        elif rng.random() < 0.002:
            value, headers = odd(rng, second)
        else:
            value, headers = event(rng, second), []
            previous = value, headers
        yield broker_ms, key, value, headers


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("brokers")
    parser.add_argument("topic")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--start", type=int, default=START)
    parser.add_argument("--rate", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    common = {"bootstrap.servers": options.brokers, "linger.ms": 20, "message.max.bytes": 4_000_000}
    common["queue.buffering.max.messages"] = 500_000
    plain = [Producer(common | {"compression.codec": codec}) for codec in CODECS]
    transactional = Producer(common | {"compression.codec": "lz4", "transactional.id": f"oracle-{options.seed}-{time.time()}"})
    transactional.init_transactions(30)
    failures, sent, aborted, begun = [], 0, 0, time.monotonic()
    chunk = []

    def report(error, _):
        if error is not None:
            failures.append(str(error))

    def send(producer, record):
        broker_ms, key, value, headers = record
        partition = rng.randrange(options.partitions) if key is None else hash_of(key) % options.partitions
        while True:
            try:
                producer.produce(
                    options.topic, value, key, partition, timestamp=broker_ms, headers=headers, on_delivery=report
                )
                return
            except BufferError:
                producer.poll(0.1)

    def flush(chunk):
        nonlocal aborted
        kind = rng.randrange(len(CODECS) + 2)
        if kind < len(CODECS):
            for record in chunk:
                send(plain[kind], record)
            plain[kind].poll(0)
            return
        transactional.begin_transaction()
        for record in chunk:
            send(transactional, record)
        if kind == len(CODECS):
            transactional.commit_transaction(60)
            return
        transactional.flush(60)
        transactional.abort_transaction(60)
        aborted += len(chunk)
        # What was aborted is sent again, as a producer would.
        for record in chunk:
            send(plain[1], record)

    for record in records(rng, options.events, options.start):
        chunk.append(record)
        sent += 1
        if len(chunk) == TRANSACTION:
            flush(chunk)
            chunk = []
            if options.rate:
                time.sleep(max(0, begun + sent / options.rate - time.monotonic()))
    flush(chunk)
    left = sum(producer.flush(120) for producer in [*plain, transactional])
    failures = [failure for failure in failures if "purge" not in failure.lower()]
    if failures or left:
        raise SystemExit(f"produce: {len(failures)} failed, {left} left: {failures[:1]}")
    print(f"produce: {sent} records, {aborted} of them aborted first, {sent / (time.monotonic() - begun):.0f} a second")


def hash_of(key):
    return int.from_bytes(key[1:], "big")


if __name__ == "__main__":
    main()
