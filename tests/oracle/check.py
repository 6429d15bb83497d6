#!/usr/bin/env python3
"""Folds a log with the oracle and compares every metric in Redis with the result.

    check.py CONFIG.toml --kafka BROKERS [--dead-letters TOPIC] [--redis URL] [--capped-ok] [--ordered] [--jobs 2]
    check.py CONFIG.toml --nats URL [--dead-letters SUBJECT] [...]
    check.py CONFIG.toml --records FILE.ndjson [...]

Kafka is read read-committed, every partition from its first record to where it ends now. A line of a file is
{"topic", "partition", "offset", "timestamp_ms", "key_b64", "value_b64" or null, "headers": [[name, base64], ...]}.

A capped key must hold exactly the limit of values, each with its complete count (a value is admitted at its first occurrence or
never), and the rest under `__other__`. With --ordered, for a log of one partition, also the first ones. With --capped-ok there
may be fewer than the limit. With several lanes only their sum is compared, so a capped value may have less than its count.

Exits with 1 if anything differs.
"""

import argparse
import base64
import hashlib
import itertools
import json
import multiprocessing
import re
import sys
import time
import tomllib

import redis
import redis_at

import jetstream
from fold import OTHER, REGISTERS, TOMBSTONE, Fold, by_value, cap, raise_registers

SHOWN = 20
TTL_SLACK = 5  # where Redis does not tell the expiry itself, or keys move from node to node
BEGINNING = 64 << 10


# Records
# --------------------------------------------------------------------------------------------------


def consumer_of(brokers):
    from confluent_kafka import Consumer

    return Consumer(
        {
            "bootstrap.servers": brokers,
            # Required by the client; it neither joins nor commits.
            "group.id": "oracle",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "queued.max.messages.kbytes": 131_072,
        }
    )


def kafka_partitions(brokers, topics):
    consumer = consumer_of(brokers)
    metadata = consumer.list_topics(timeout=30).topics
    consumer.close()
    for topic in topics:
        if topic not in metadata or not metadata[topic].partitions:
            sys.exit(f"oracle: there is no topic {topic}")
    return [(topic, partition) for topic in topics for partition in sorted(metadata[topic].partitions)]


def kafka_records(brokers, partitions):
    """Every committed record of the partitions, up to where each of them ends now."""
    from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, KafkaError, TopicPartition

    consumer = consumer_of(brokers)
    starts = []
    for topic, partition in partitions:
        low, _ = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=30)
        starts.append(TopicPartition(topic, partition, low))
    consumer.assign(starts)
    left = set(partitions)
    while left:
        for message in consumer.consume(5000, timeout=1):
            place = message.topic(), message.partition()
            error = message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    left.discard(place)
                elif not error.retriable():
                    sys.exit(f"oracle: {error}")
            elif place in left:
                kind, timestamp_ms = message.timestamp()
                timestamp_ms = None if kind == TIMESTAMP_NOT_AVAILABLE else timestamp_ms
                yield *place, message.offset(), timestamp_ms, message.key(), message.headers() or [], message.value()
    consumer.close()


def file_records(path, part, parts):
    decode = lambda text: None if text is None else base64.b64decode(text)
    with open(path) as lines:
        for line in itertools.islice(lines, part, None, parts):
            record = json.loads(line)
            headers = [(name, decode(value)) for name, value in record.get("headers") or []]
            place = record["topic"], record["partition"], record["offset"]
            yield *place, record["timestamp_ms"], decode(record.get("key_b64")), headers, decode(record["value_b64"])


class Original:
    """What is kept of a record that must become a dead letter."""

    def __init__(self, reason, key, headers, value):
        self.reason, self.key, self.headers = reason, key, list(map(tuple, headers))
        self.size = len(value or b"")
        self.digest, self.beginning = hashlib.sha256(value or b"").digest(), (value or b"")[:BEGINNING]


def fold_records(config, ordered, records):
    fold, counts, dead = Fold(config, ordered), {"records": 0, "events": 0}, {}
    for topic, partition, offset, timestamp_ms, key, headers, value in records:
        counts["records"] += 1
        reason = fold.record(topic, partition, offset, timestamp_ms, key, headers, value)
        if type(reason) is list:
            for index, (reason, event) in enumerate(reason):
                counts["events"] += reason is None
                if reason is not None:
                    dead[topic, partition, offset, index] = Original(reason, None, (), event)
        elif reason is None:
            counts["events"] += 1
        elif reason != TOMBSTONE:
            dead[topic, partition, offset] = Original(reason, key, headers, value)
    return fold, counts, dead


def fold_part(config, options, partitions, part, parts):
    if options.nats:
        stream = config["broker"]["nats"]["stream"]
        each = [jetstream.records_of(options.nats, stream, subject) for subject in partitions[part::parts]]
        records = itertools.chain.from_iterable(each)
    elif options.records:
        records = file_records(options.records, part, parts)
    else:
        records = kafka_records(options.kafka, partitions[part::parts])
    return fold_records(config, options.ordered, records)


def fold_all(config, options):
    partitions = []
    if options.kafka:
        partitions = kafka_partitions(options.kafka, config["broker"]["kafka"]["topics"])
    elif options.nats:
        partitions = jetstream.partitions_of(options.nats, config["broker"]["nats"]["stream"])
    parts = 1 if options.ordered else min(options.jobs, len(partitions) or options.jobs)
    if options.ordered and len(partitions) > 1:
        sys.exit("oracle: --ordered needs a log of one partition")
    if parts == 1:
        return fold_part(config, options, partitions, 0, 1)
    # Not fork: a Kafka client has threads.
    with multiprocessing.get_context("spawn").Pool(parts) as pool:
        work = [(config, options, partitions, part, parts) for part in range(parts)]
        (fold, counts, dead), *rest = pool.starmap(fold_part, work, chunksize=1)
    for other, more_counts, more_dead in rest:
        fold.absorb(other)
        dead |= more_dead
        counts = {name: count + more_counts[name] for name, count in counts.items()}
    return fold, counts, dead


# Redis
# --------------------------------------------------------------------------------------------------


def registers_of(data):
    """Register -> rank of a Redis HyperLogLog, those above zero."""
    if data[:4] != b"HYLL" or data[4] > 1:
        raise ValueError("is no HyperLogLog")
    body, found, register, at = data[16:], {}, 0, 0
    if data[4] == 0:
        if len(body) != REGISTERS * 6 // 8:
            raise ValueError("is a HyperLogLog of a wrong size")
        for group in range(0, len(body), 3):
            four = int.from_bytes(body[group : group + 3], "little")
            for index in range(4 if four else 0):
                if rank := four >> 6 * index & 63:
                    found[group // 3 * 4 + index] = rank
        return found
    while at < len(body):
        byte = body[at]
        if byte & 0x80:  # VAL
            rank, run = (byte >> 2 & 31) + 1, (byte & 3) + 1
            found.update((register + index, rank) for index in range(run))
        elif byte & 0x40:  # XZERO
            at += 1
            run = ((byte & 63) << 8 | body[at]) + 1
        else:  # ZERO
            run = (byte & 63) + 1
        register += run
        at += 1
    if register != REGISTERS:
        raise ValueError(f"is a HyperLogLog of {register} registers")
    return found


def in_chunks(items, size):
    return (items[at : at + size] for at in range(0, len(items), size))


def ask(client, commands):
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return pipeline.execute()


class Store:
    """What is in Redis under a prefix: by lane, keys without their prefix."""

    READ = {b"string": ("GET",), b"hash": ("HGETALL",), b"set": ("SMEMBERS",), b"zset": ("ZRANGE", 0, -1, "WITHSCORES")}

    def __init__(self, client, prefix):
        # Lane ("" or "{tag}") -> key -> (type, content); lane, key -> second of expiry, or None
        self.lanes, self.tracked, self.expiries, self.problems = {}, {}, {}, []
        own = re.compile(re.escape(prefix) + r"(\{[^{}]*\})?:(.*)", re.DOTALL)
        literal = re.sub(r"([][*?\\^-])", r"\\\1", prefix)
        patterns = f"{literal}:*", f"{literal}{{*}}:*"
        names = sorted({name for pattern in patterns for name in client.scan_iter(pattern, count=5000)})
        self.has_expiretime = self.can_tell_expiry(client)
        for chunk in in_chunks(names, 500):
            parsed = []
            for name in chunk:
                match = own.fullmatch(name.decode("utf-8", "surrogateescape"))
                if match and match.group(2) not in ("ckpt", "meta", "quarantine"):
                    parsed.append((name, match.group(1) or "", match.group(2)))
            self.load(client, parsed)

    @staticmethod
    def can_tell_expiry(client):
        try:
            client.execute_command("EXPIRETIME", "traqq-oracle-no-such-key")
            return True
        except redis.ResponseError:
            return False

    def load(self, client, chunk):
        kinds = ask(client, (("TYPE", name) for name, _, _ in chunk))
        ends = ask(client, (("EXPIRETIME" if self.has_expiretime else "TTL", name) for name, _, _ in chunk))
        now = time.time()
        known = [(*entry, kind, end) for entry, kind, end in zip(chunk, kinds, ends) if kind in self.READ and end != -2]
        self.problems += [
            f"{lane}{key}: is of type {kind.decode()}"
            for (_, lane, key), kind in zip(chunk, kinds)
            if kind not in self.READ and kind != b"none"
        ]
        values = ask(client, ((self.READ[kind][0], name, *self.READ[kind][1:]) for name, _, _, kind, _ in known))
        for (_, lane, key, kind, end), value in zip(known, values):
            if not value:
                continue  # expired meanwhile
            self.expiries[lane, key] = None if end == -1 else end if self.has_expiretime else round(now + end)
            try:
                content = self.decode(kind, value)
            except (ValueError, IndexError) as error:
                self.problems.append(f"{lane}{key}: {error}")
                continue
            if key.startswith("k:"):
                self.tracked[lane, key] = content
            else:
                self.lanes.setdefault(lane, {})[key] = content

    @staticmethod
    def decode(kind, value):
        if kind == b"string":
            return "hll", registers_of(value)
        if kind == b"hash":
            pairs = value.items() if isinstance(value, dict) else zip(value[::2], value[1::2])
            return "hash", {label.decode(): int(count) for label, count in pairs}
        if kind == b"set":
            return "set", dict.fromkeys(label.decode() for label in value)
        pairs = value if value and isinstance(value[0], (tuple, list)) else zip(value[::2], value[1::2])
        members = {label.decode(): float(score) for label, score in pairs}
        if not all(score.is_integer() for score in members.values()):
            raise ValueError("has a score that is no integer")
        return "zset", {label: int(score) for label, score in members.items()}

    def merged(self):
        """The sum of the lanes."""
        result = {}
        for keys in self.lanes.values():
            for key, (kind, content) in keys.items():
                if key not in result:
                    result[key] = kind, dict(content)
                    continue
                have = result[key][1]
                if kind == "hll":
                    raise_registers(have, content)
                elif kind == "set":
                    have |= content
                else:
                    is_totals = key.startswith("adv:") and key.endswith(":i")
                    for label, value in content.items():
                        combine = {"min": min, "max": max}.get(label) if is_totals else None
                        have[label] = combine(have.get(label, value), value) if combine else have.get(label, 0) + value
        return result


# Comparison
# --------------------------------------------------------------------------------------------------


def bucket_of(key):
    _, kind, start = key.split(":")[:3]
    return kind, int(start)


class Comparison:
    def __init__(self, fold, store, prefix, options):
        self.fold, self.store, self.prefix, self.options = fold, store, prefix, options
        self.lines, self.compared = list(store.problems), 0

    def differs(self, key, what):
        self.lines.append(f"{key}: {what}")

    def is_expired(self, key, now):
        bucket = bucket_of(key)
        expiry = self.fold.expiry(*bucket) if bucket in self.fold.ends else None
        return expiry is not None and expiry <= now

    def run(self):
        now = time.time()
        expected, found = self.fold.metrics(), self.store.merged()
        expected = {key: content for key, content in expected.items() if not self.is_expired(key, now)}
        found = {key: content for key, content in found.items() if not self.is_expired(key, now)}
        for key in list(expected):
            limit = self.fold.limit(key)
            if limit is not None and key in found and (len(expected[key][1]) > limit or self.is_capped(key)):
                self.capped(key, limit, expected, found)
        for key in sorted(expected.keys() | found.keys()):
            self.key(key, expected.get(key), found.get(key))
        self.tracking(now)
        return self.lines

    def key(self, key, expected, found):
        if found is None:
            self.differs(key, f"missing, should have {len(expected[1])} values")
            return
        if expected is None:
            self.differs(key, f"unexpected, a {found[0]} of {len(found[1])} values, e.g. {first(found[1])}")
            return
        (kind, want), (have_kind, have) = expected, found
        self.compared += len(want)
        if kind != have_kind:
            self.differs(key, f"is a {have_kind}, should be a {kind}")
        elif want != have:
            differing = sorted(label for label in want.keys() | have.keys() if want.get(label, self) != have.get(label, self))
            label = differing[0]
            if kind == "set":
                what = f"{label!r} is " + ("missing" if label in want else "too many")
            else:
                what = f"{label!r} is {have.get(label)}, should be {want.get(label)}"
            self.differs(key, f"{len(differing)} of {len(want)} differ; {what}")

    def is_capped(self, key):
        return any(OTHER in keys[key][1] for keys in self.store.lanes.values() if key in keys)

    def capped(self, key, limit, expected, found):
        """Checks what the order of arrival does not decide, and replaces what it does by what was found."""
        kind, want = expected[key]
        sizes_ok = True
        for lane, keys in self.store.lanes.items():
            have = keys.get(key, (kind, {}))[1]
            size = len(have) - (OTHER in have)
            is_full = size == limit or (self.options.capped_ok and size < limit)
            if size > limit or (OTHER in have and not is_full):
                sizes_ok = False
                self.differs(lane + key, f"capped at {size} values, the limit is {limit}")
        have = found[key][1]
        admitted = [label for label in have if label != OTHER]
        strange = [label for label in admitted if label not in want]
        if strange:
            self.differs(key, f"capped, and {len(strange)} values should not be there, e.g. {strange[0]!r}")
            return
        if not sizes_ok or (OTHER in have) != (len(admitted) < len(want)) and len(self.store.lanes) == 1:
            self.differs(key, f"{len(admitted)} of {len(want)} values admitted, {'with' if OTHER in have else 'without'} {OTHER}")
            return
        if self.options.ordered and set(admitted) != set(list(want)[:limit]):
            late = set(admitted) - set(list(want)[:limit])
            self.differs(key, f"{len(late)} values admitted that were not among the first {limit}, e.g. {first(late)}")
        if key.endswith(":n") and key.startswith("adv:"):
            for lane, keys in self.store.lanes.items():
                if key in keys and keys[key][1].keys() != keys.get(key[:-2], (kind, {}))[1].keys():
                    self.differs(lane + key, "has other values than its sum hash")
        if len(self.store.lanes) == 1:
            capped = cap(key, kind, want, admitted, expected)
            for label in want.keys() - set(admitted) if kind == "set" else ():
                del expected[by_value(key, label)]
            expected.update(capped)
        else:
            self.capped_lanes(key, kind, expected, found)

    def capped_lanes(self, key, kind, expected, found):
        """A value may be admitted in one lane and not in another."""
        want, have = expected.pop(key)[1], found.pop(key)[1]
        self.compared += len(want)
        if kind == "set":
            unions = []
            for keys in (expected, found):
                union = {}
                for label in [*want, OTHER]:
                    raise_registers(union, keys.pop(by_value(key, label), ("hll", {}))[1])
                unions.append(union)
            self.compared += len(unions[0])
            if unions[0] != unions[1]:
                self.differs(key, "the union of its HyperLogLogs differs")
            return
        if sum(want.values()) != sum(have.values()):
            self.differs(key, f"the total is {sum(have.values())}, should be {sum(want.values())}")
        is_sum = key.startswith("adv:") and not key.endswith(":n")
        for label, count in have.items():
            if not is_sum and label != OTHER and count > want[label]:
                self.differs(key, f"{label!r} is {count}, should be at most {want[label]}")
                return

    def tracking(self, now):
        """Every key in the tracking set of its bucket and lane, nothing else in there, and all of it expires in time."""
        names = {}
        for lane, keys in self.store.lanes.items():
            for key in keys:
                kind, start = bucket_of(key)
                names.setdefault((lane, f"k:{kind}:{start}"), set()).add(f"{self.prefix}{lane}:{key}")
        for lane, tracking in sorted(names.keys() | self.store.tracked.keys()):
            if self.is_expired(tracking, now):
                continue
            have = self.store.tracked.get((lane, tracking), ("set", {}))[1].keys()
            want = names.get((lane, tracking), set())
            if want - have:
                self.differs(lane + tracking, f"{len(want - have)} keys are not in it, e.g. {first(want - have)}")
            if have - want:
                self.differs(lane + tracking, f"{len(have - want)} keys in it do not exist, e.g. {first(have - want)}")
        for (lane, key), have in self.store.expiries.items():
            bucket = bucket_of(key)
            if bucket not in self.fold.ends or self.is_expired(key, now):
                continue
            want = self.fold.expiry(*bucket)
            # MIGRATE hands on how long a key has still to live, not until when: each move of its
            # slot adds what the journey took.
            is_exact = self.store.has_expiretime and len(self.store.lanes) == 1
            slack = 0 if is_exact else TTL_SLACK
            if (want is None) != (have is None) or (want is not None and abs(want - have) > slack):
                self.differs(lane + key, f"expires at {have}, should at {want}")


def first(values):
    return repr(min(values, key=str, default=None))


def dead_letters(options):
    if options.nats:
        return jetstream.records_of(options.nats, options.dead_letters)
    return kafka_records(options.kafka, kafka_partitions(options.kafka, [options.dead_letters]))


ORIGINAL = "traqq-original-"


def is_ours(name):
    return name.startswith("traqq-") and not name.startswith(ORIGINAL)


def name_kept(name):
    """What a header is called in the dead letter of its record."""
    return ORIGINAL + name if name.lower().startswith(("nats-", "traqq-")) else name


def compare_dead_letters(letters, want):
    """Coordinates, reasons and bytes. They may come twice, but then must be the same."""
    lines, seen = [], set()
    for _, _, offset, _, key, headers, value in letters:
        # An id belongs to one message, and a dead letter is another.
        headers = [(name, text) for name, text in headers if name != "Nats-Msg-Id"]
        named = {name: text for name, text in headers if is_ours(name)}
        try:
            place = named["traqq-topic"].decode(), int(named["traqq-partition"]), int(named["traqq-offset"])
            if "traqq-index" in named:
                place = *place, int(named["traqq-index"])
            reason = named["traqq-reason"].decode()
            detail = named["traqq-detail"].decode()
        except (KeyError, ValueError, AttributeError):
            lines.append(f"dead letter at offset {offset}: unreadable headers {sorted(named)}")
            continue
        seen.add(place)
        original = want.get(place)
        if original is None:
            lines.append(f"dead letter {place}: unexpected, {reason}, {(value or b'')[:60]!r}")
            continue
        if reason != original.reason:
            lines.append(f"dead letter {place}: {reason}, should be {original.reason}, {original.beginning[:60]!r}")
        value = value or b""
        is_envelope = "traqq-value-bytes" in named
        if is_envelope and original.size > len(value):
            is_same = original.beginning.startswith(value)
        else:
            is_same = hashlib.sha256(value).digest() == original.digest
        if not detail.isprintable():
            lines.append(f"dead letter {place}: {detail!r} is no line of text")
        rest = [(name, text) for name, text in headers if not is_ours(name) and name != jetstream.POISON]
        before = [(name_kept(name), text) for name, text in original.headers if name != jetstream.POISON]
        if not is_same or key != original.key or (not is_envelope and sorted(rest) != sorted(before)):
            lines.append(f"dead letter {place}: key, headers or bytes changed")
    return lines + [f"dead letter {place}: missing, {want[place].reason}" for place in sorted(want.keys() - seen)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--kafka")
    source.add_argument("--nats")
    source.add_argument("--records")
    parser.add_argument("--redis")
    parser.add_argument("--dead-letters")
    parser.add_argument("--capped-ok", action="store_true")
    parser.add_argument("--ordered", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if options.dead_letters and options.records:
        parser.error("--dead-letters needs --kafka or --nats")
    with open(options.config, "rb") as file:
        config = tomllib.load(file)
    fold, counts, dead = fold_all(config, options)
    settings = config.get("store", {}).get("redis", {})
    client = redis_at.connect(options.redis or settings.get("url", "redis://127.0.0.1:6379/0"))
    prefix = settings.get("prefix", "traqq")
    comparison = Comparison(fold, Store(client, prefix), prefix, options)
    lines = comparison.run()
    if options.dead_letters:
        lines += compare_dead_letters(dead_letters(options), dead)
    print(
        f"oracle: {counts['records']} records, {counts['events']} events, {len(dead)} dead letters, "
        f"{comparison.compared} metrics compared, {len(lines)} differences"
    )
    for line in lines[:SHOWN]:
        print(f"  {line}")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
