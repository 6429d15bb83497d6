#!/usr/bin/env python3
"""Folds a log with the oracle and compares every metric in Redis with the result.

    check.py CONFIG.toml --kafka BROKERS [--dead-letters TOPIC]
    check.py CONFIG.toml --records FILE.ndjson
"""

import argparse
import base64
import json
import re
import sys
import time
import tomllib

import redis

from fold import OTHER, REGISTERS, Fold

SHOWN = 20


def kafka_records(brokers, topics):
    """Every committed record, partition by partition in turn, up to where each partition ends now."""
    from confluent_kafka import Consumer, KafkaError, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": "oracle",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
        }
    )
    metadata = consumer.list_topics(timeout=20)
    left = set()
    for topic in topics:
        left |= {(topic, partition) for partition in metadata.topics[topic].partitions}
    starts = []
    for topic, partition in left:
        low, _ = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=20)
        starts.append(TopicPartition(topic, partition, low))
    consumer.assign(starts)
    while left:
        messages = consumer.consume(5000, timeout=1)
        for message in messages:
            if message.error():
                if message.error().code() == KafkaError._PARTITION_EOF:
                    left.discard((message.topic(), message.partition()))
                    continue
                raise SystemExit(f"oracle: {message.error()}")
            yield (
                message.topic(),
                message.partition(),
                message.offset(),
                message.timestamp()[1],
                message.key(),
                message.headers() or [],
                message.value(),
            )
    consumer.close()


def file_records(path):
    decode = lambda text: None if text is None else base64.b64decode(text)
    with open(path) as lines:
        for line in lines:
            record = json.loads(line)
            headers = [(name, decode(value)) for name, value in record.get("headers", [])]
            yield (
                record["topic"],
                record["partition"],
                record["offset"],
                record["timestamp_ms"],
                decode(record.get("key_b64")),
                headers,
                decode(record.get("value_b64")),
            )


def registers_of(data):
    """Register -> rank of a Redis HyperLogLog, those above zero."""
    assert data[:4] == b"HYLL", data[:4]
    body = data[16:]
    if data[4] == 0:
        raw = body + b"\0"
        found = {}
        for register in range(REGISTERS):
            at = register * 6
            rank = (raw[at // 8] | raw[at // 8 + 1] << 8) >> at % 8 & 63
            if rank:
                found[register] = rank
        return found
    found, register, at = {}, 0, 0
    while at < len(body):
        byte = body[at]
        if byte & 0x80:
            rank, run = (byte >> 2 & 31) + 1, (byte & 3) + 1
            found.update((register + index, rank) for index in range(run))
            register += run
        elif byte & 0x40:
            register += ((byte & 63) << 8 | body[at + 1]) + 1
            at += 1
        else:
            register += (byte & 63) + 1
        at += 1
    assert register == REGISTERS, register
    return found


def load_store(client, prefix):
    """Key without prefix -> content merged over the lanes; tracking sets; times to live."""
    own = re.compile(re.escape(prefix) + r"(\{[^}]*\})?:(.*)", re.DOTALL)
    merged, problems, now = {}, [], time.time()
    names = [name for pattern in (f"{prefix}:*", f"{prefix}{{*}}:*") for name in client.scan_iter(pattern, count=5000)]
    tracked, seen, expiries = {}, {}, {}
    for raw in names:
        match = own.fullmatch(raw.decode())
        lane, key = match.group(1) or "", match.group(2)
        if key in ("ckpt", "meta", "quarantine"):
            continue
        ttl = client.ttl(raw)
        if key.startswith("k:"):
            _, kind, start = key.split(":")
            tracked[lane, kind, int(start)] = {name.decode() for name in client.smembers(raw)}
            continue
        if ttl == -2:
            continue
        expiries.setdefault(key, set()).add(None if ttl == -1 else round(now + ttl))
        kind = client.type(raw)
        if kind == b"string":
            content = "hll", registers_of(client.get(raw))
        elif kind == b"hash":
            content = "hash", {label.decode(): int(value) for label, value in client.hgetall(raw).items()}
        elif kind == b"set":
            content = "set", {label.decode() for label in client.smembers(raw)}
        elif kind == b"zset":
            content = "zset", {label.decode(): int(score) for label, score in client.zrange(raw, 0, -1, withscores=True)}
        else:
            problems.append(f"{raw}: unexpected type {kind}")
            continue
        merge(merged, key, content)
        bucket_kind, start = key.split(":")[1:3]
        seen.setdefault((lane, bucket_kind, int(start)), set()).add(raw.decode())
    for place, names in seen.items():
        problems += [f"{name}: not in its tracking set" for name in sorted(names - tracked.get(place, set()))]
        problems += [f"{name}: tracked and not there" for name in sorted(tracked.get(place, set()) - names)]
    return merged, expiries, problems


def merge(merged, key, content):
    if key not in merged:
        merged[key] = content
        return
    kind, have = merged[key]
    more = content[1]
    if kind == "hll":
        for register, rank in more.items():
            have[register] = max(rank, have.get(register, 0))
    elif kind == "set":
        have |= more
    elif key.endswith(":i"):
        for name, value in more.items():
            combine = {"min": min, "max": max}.get(name, lambda a, b: a + b)
            have[name] = combine(have[name], value) if name in have else value
    else:
        for label, value in more.items():
            have[label] = have.get(label, 0) + value


def join_capped(expected, found):
    """Which values of a capped `bitmap_by` have a HyperLogLog of their own depends on the order of arrival; the union of all does not."""
    for key in [key for key, (kind, want) in expected.items() if kind == "set" and OTHER in want]:
        prefix = "bmp" + key[3:] + ":"
        for keys in (expected, found):
            union = {}
            for name in [name for name in keys if name.startswith(prefix)]:
                for register, rank in keys.pop(name)[1].items():
                    union[register] = max(rank, union.get(register, 0))
            keys[prefix + "<union>"] = "hll", union


def compare(expected, found):
    """One line for each key that differs, and how many values were compared."""
    lines, compared = [], 0
    join_capped(expected, found)
    for key in sorted(expected.keys() | found.keys()):
        if key not in found:
            lines.append(f"{key}: missing")
            continue
        if key not in expected:
            lines.append(f"{key}: unexpected, {len(found[key][1])} values")
            continue
        (kind, want), (have_kind, have) = expected[key], found[key]
        compared += max(1, len(want))
        if kind != have_kind:
            lines.append(f"{key}: is a {have_kind}, should be a {kind}")
        elif kind == "hash" and OTHER in want or kind == "zset" and OTHER in want:
            lines += compare_capped(key, want, have)
        elif kind == "set" and OTHER in want:
            if len(want) != len(have):
                lines.append(f"{key}: {len(have)} values, should be {len(want)}")
        elif want != have:
            lines.append(f"{key}: {describe(kind, want, have)}")
    return lines, compared


def compare_capped(key, want, have):
    if OTHER not in have or len(have) != len(want):
        return [f"{key}: capped at {len(have) - 1} values, should be {len(want) - 1}"]
    if sum(want.values()) != sum(have.values()):
        return [f"{key}: the total is {sum(have.values())}, should be {sum(want.values())}"]
    return []


def describe(kind, want, have):
    if kind == "set":
        return f"missing {sorted(want - have)[:3]}, unexpected {sorted(have - want)[:3]}"
    differing = [name for name in want.keys() | have.keys() if want.get(name) != have.get(name)]
    first = sorted(differing, key=str)[0]
    return f"{len(differing)} of {len(want)} differ, {first!r} is {have.get(first)}, should be {want.get(first)}"


def compare_expiries(fold, found, expiries):
    lines = []
    for key, seen in expiries.items():
        _, kind, start = key.split(":")[:3]
        if (kind, int(start)) not in fold.ends:
            continue
        want = fold.expiry(kind, int(start))
        for have in seen:
            if (want is None) != (have is None) or (want is not None and abs(want - have) > 60):
                lines.append(f"{key}: expires at {have}, should at {want}")
    return lines


def expected_keys(fold):
    now = time.time()
    keys = {}
    for key, content in fold.keys().items():
        _, kind, start = key.split(":")[:3]
        expiry = fold.expiry(kind, int(start))
        if expiry is None or expiry > now:
            keys[key] = content
    return keys


def compare_dead_letters(brokers, topic, want):
    """Coordinates, reasons and bytes of the dead letters; they may come twice."""
    have, lines = {}, []
    for _, _, _, _, key, headers, value in kafka_records(brokers, [topic]):
        named = dict(headers)
        place = named["traqq-topic"].decode(), int(named["traqq-partition"]), int(named["traqq-offset"])
        original = [(name, text) for name, text in headers if not name.startswith("traqq-")]
        is_envelope = "traqq-value-bytes" in named
        have[place] = named["traqq-reason"].decode(), key, original, value, is_envelope
    for place in sorted(want.keys() | have.keys()):
        if place not in have:
            lines.append(f"dead letter {place}: missing, {want[place][0]}")
        elif place not in want:
            lines.append(f"dead letter {place}: unexpected, {have[place][0]}")
        else:
            reason, key, original, value, is_envelope = have[place]
            if reason != want[place][0]:
                lines.append(f"dead letter {place}: {reason}, should be {want[place][0]}")
            elif not is_envelope and (key, original, value) != want[place][1:]:
                lines.append(f"dead letter {place}: key, headers or bytes changed")
            elif is_envelope and not want[place][3].startswith(value):
                lines.append(f"dead letter {place}: the envelope does not hold the record's beginning")
    return lines


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--kafka")
    parser.add_argument("--records")
    parser.add_argument("--redis")
    parser.add_argument("--dead-letters")
    options = parser.parse_args()
    with open(options.config, "rb") as file:
        config = tomllib.load(file)
    fold = Fold(config)
    topics = config["broker"]["kafka"]["topics"]
    records = kafka_records(options.kafka, topics) if options.kafka else file_records(options.records)
    counts = {"records": 0, "events": 0, "dead": 0}
    dead = {}
    for topic, partition, offset, timestamp_ms, key, headers, value in records:
        counts["records"] += 1
        reason = fold.record(topic, partition, offset, timestamp_ms, key, headers, value)
        if reason is None:
            counts["events"] += 1
        elif reason != "tombstone":
            counts["dead"] += 1
            dead[topic, partition, offset] = reason, key, [tuple(header) for header in headers], value
    store = config.get("store", {}).get("redis", {})
    client = redis.Redis.from_url(options.redis or store.get("url", "redis://127.0.0.1:6379/0"))
    found, expiries, lines = load_store(client, store.get("prefix", "traqq"))
    differences, compared = compare(expected_keys(fold), found)
    lines += differences + compare_expiries(fold, found, expiries)
    if options.dead_letters:
        lines += compare_dead_letters(options.kafka, options.dead_letters, dead)
    print(
        f"oracle: {counts['records']} records, {counts['events']} events, {counts['dead']} dead letters, "
        f"{compared} values compared, {len(lines)} differences"
    )
    for line in lines[:SHOWN]:
        print(f"  {line}")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
