"""A second implementation of docs/semantics.md, written from it alone, single-threaded and slow on purpose.

It shares no code with traqq: the standard library's JSON, decimals and zone data, and a HyperLogLog of its own.
"""

import datetime
import fractions
import json
import re
import sys
import unicodedata
import zoneinfo

# Numbers of any length are read.
sys.set_int_max_str_digits(0)

OTHER = "__other__"
DAY = 86_400
MASK = (1 << 64) - 1
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
RFC3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
LONE = re.compile("[\ud800-\udfff]")
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
REGISTERS = 1 << 14


class Dead(Exception):
    """A record that cannot be counted, with its reason."""


class Number:
    """A JSON number, by its text."""

    __slots__ = ("text",)

    def __init__(self, text):
        self.text = text


class Container:
    """An array, or an object that nobody looks into."""


def refuse_constant(text):
    raise ValueError(text)


def last_wins(pairs):
    return dict(pairs)


DECODER = json.JSONDecoder(
    object_pairs_hook=last_wins, parse_float=Number, parse_int=Number, parse_constant=refuse_constant, strict=True
)
JSON_SPACE = " \t\r\n"


def depth_of(text):
    depth = deepest = 0
    in_string = escaped = False
    for c in text:
        if in_string:
            if escaped:
                escaped = False
            elif c == "\\":
                escaped = True
            elif c == '"':
                in_string = False
        elif c == '"':
            in_string = True
        elif c in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif c in "}]":
            depth = max(0, depth - 1)
    return deepest


def parse_json(text):
    """RFC 8259, and no lone surrogates anywhere."""
    stripped = text.strip(JSON_SPACE)
    try:
        value, end = DECODER.raw_decode(stripped)
    except (ValueError, RecursionError):
        raise Dead("invalid_json") from None
    if end != len(stripped):
        raise Dead("invalid_json")
    if "\\u" in text and has_lone_surrogate(value):
        raise Dead("invalid_json")
    if "\\u" in text and overwritten_lone(stripped):
        raise Dead("invalid_json")
    return value


def overwritten_lone(text):
    """Members that a later one of the same name replaced are part of the record too."""
    found = []

    def keep(pairs):
        found.extend(pairs)
        return dict(pairs)

    json.JSONDecoder(object_pairs_hook=keep, parse_float=Number, parse_int=Number).decode(text)
    return any(LONE.search(key) or has_lone_surrogate(value) for key, value in found)


def has_lone_surrogate(value):
    if isinstance(value, str):
        return LONE.search(value) is not None
    if isinstance(value, list):
        return any(map(has_lone_surrogate, value))
    if isinstance(value, dict):
        return any(LONE.search(key) or has_lone_surrogate(member) for key, member in value.items())
    return False


def is_stripped(c):
    return c.isspace() or unicodedata.category(c) == "Cc"


def trim(text):
    start, end = 0, len(text)
    while start < end and is_stripped(text[start]):
        start += 1
    while end > start and is_stripped(text[end - 1]):
        end -= 1
    return text[start:end]


def exact(text):
    """The value of a JSON number as a fraction; None when its exponent makes that absurd."""
    mantissa, _, exponent = text.lower().partition("e")
    digits = mantissa.replace("-", "").replace(".", "").strip("0")
    if not digits:
        return fractions.Fraction(0)
    if exponent and (len(exponent) > 8 or abs(int(exponent)) > 5000):
        return None
    return fractions.Fraction(text)


def number_label(text):
    value = exact(text)
    if value is None:
        return "0" if "-" in text.lower().partition("e")[2] else None
    if value.denominator == 1 and -(1 << 63) <= value < (1 << 64):
        return str(int(value))
    double = float(text)
    if double in (float("inf"), float("-inf")):
        return None
    if double == 0:
        return "0"
    return plain(repr(double))


def plain(text):
    """A repr without its exponent and trailing zeros."""
    sign = "-" if text.startswith("-") else ""
    mantissa, _, exponent = text.lstrip("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    shift = int(exponent or 0)
    digits = whole + fraction
    point = len(whole) + shift
    if point <= 0:
        digits, point = "0" * (1 - point) + digits, 1
    if point > len(digits):
        digits += "0" * (point - len(digits))
    fraction = digits[point:].rstrip("0")
    whole = digits[:point].lstrip("0") or "0"
    return sign + whole + ("." + fraction if fraction else "")


def micros(text):
    """Units of 10^-6, rounded half to even; None from 10^12 on."""
    value = exact(text)
    if value is None:
        return 0 if "-" in text.lower().partition("e")[2] else None
    if abs(value) >= 10**12:
        return None
    return round(value * 10**6)


def epoch_second(text):
    value = exact(text)
    if value is None:
        value = fractions.Fraction(0) if "-" in text.lower().partition("e")[2] else None
    if value is None:
        return None
    magnitude = abs(value)
    unit = 1 if magnitude < 10**11 else 10**3 if magnitude < 10**14 else 10**6 if magnitude < 10**17 else 10**9
    return (value / unit).__floor__()


def rfc3339_second(text):
    match = RFC3339.fullmatch(text)
    if not match:
        return None
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    offset = 0
    zone = match.group(8)
    if zone not in "Zz":
        hours, minutes = int(zone[1:3]), int(zone[4:6])
        if hours > 23 or minutes > 59:
            return None
        offset = (hours * 3600 + minutes * 60) * (-1 if zone[0] == "-" else 1)
    if second > 60 or year == 0:
        return None
    try:
        local = datetime.datetime(year, month, day, hour, minute, min(second, 59), tzinfo=datetime.timezone.utc)
    except ValueError:
        return None
    return int((local - EPOCH).total_seconds()) - offset


SECOND_MIN = int((datetime.datetime(1, 1, 1, tzinfo=datetime.timezone.utc) - EPOCH).total_seconds())
SECOND_END = int((datetime.datetime(9999, 12, 31, tzinfo=datetime.timezone.utc) - EPOCH).total_seconds()) + DAY


def read_time(value):
    """The second, None when not present; raises when unreadable."""
    if value is None:
        return None
    second = None
    if isinstance(value, Number):
        second = epoch_second(value.text)
    elif isinstance(value, str):
        text = trim(value)
        if not text:
            return None
        second = epoch_second(text) if NUMBER.fullmatch(text) else rfc3339_second(text)
    if second is None or not SECOND_MIN <= second < SECOND_END:
        raise Dead("time_unreadable")
    return second


def murmur64a(data, seed):
    m, r = 0xC6A4A7935BD1E995, 47
    h = seed ^ (len(data) * m & MASK)
    full = len(data) & ~7
    for at in range(0, full, 8):
        k = int.from_bytes(data[at : at + 8], "little") * m & MASK
        k = (k ^ k >> r) * m & MASK
        h = (h ^ k) * m & MASK
    if len(data) & 7:
        h = (h ^ int.from_bytes(data[full:], "little")) * m & MASK
    h = (h ^ h >> r) * m & MASK
    return h ^ h >> r


def observation(data):
    """Register and rank, as Redis has them."""
    h = murmur64a(data, 0xADC83B19)
    rest = h >> 14 | 1 << 50
    return h & REGISTERS - 1, (rest & -rest).bit_length()


class Zone:
    """Buckets of local time."""

    def __init__(self, name):
        self.zone = zoneinfo.ZoneInfo(name)
        self.known = {"d": [], "h": [], "m": []}

    def local(self, second):
        return (EPOCH + datetime.timedelta(seconds=second)).astimezone(self.zone)

    def label(self, kind, second):
        local = self.local(second)
        if kind == "d":
            return local.date()
        unit = (local.date(), local.hour, local.utcoffset())
        return unit if kind == "h" else unit + (local.minute,)

    def bucket(self, kind, second):
        """First instant and first instant of the next bucket."""
        recent = self.known[kind]
        for start, end in recent:
            if start <= second < end:
                return start, end
        label = self.label(kind, second)
        same = lambda at: self.label(kind, at) == label
        span = self.edge(second, -1, same, kind), self.edge(second, 1, same, kind)
        recent.insert(0, span)
        del recent[500:]
        return span

    def edge(self, second, step, same, kind):
        """Where the run of instants with one label ends, going down or up: in quarters of an hour, then seconds."""
        at = second
        stride = 900 if kind != "m" else 10
        while same(at + step * stride):
            at += step * stride
        low, high = 0, stride
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if same(at + step * middle) else (low, middle)
        return at - low if step < 0 else at + high


def retention_seconds(text):
    if text == "forever":
        return None
    return int(text[:-1]) * {"d": DAY, "h": 3600, "m": 60}[text[-1]]


def normal(pattern):
    return tuple(sorted(part.strip() for part in pattern.split("~")))


class Fold:
    """All metrics a log should have become."""

    def __init__(self, config):
        mapping = config.get("mapping", {})
        events = config.get("events", {})
        buckets = config.get("buckets", {})
        self.time_fields = events.get("time_fields", ["ts", "timestamp", "time"])
        self.label_max = events.get("max_value_length", 512)
        self.bytes_max = events.get("max_event_bytes", 1 << 20)
        self.depth_max = events.get("max_depth", 64)
        self.metrics_max = events.get("max_metrics_per_event", 1000)
        self.values_max = events.get("max_values_per_key", 100_000)
        self.by_max = events.get("max_values_per_key_bitmap_by", 1000)
        self.zone = Zone(buckets.get("time_zone", "UTC"))
        self.kinds = ["d"] + ["h"] * buckets.get("hour", False) + ["m"] * buckets.get("minute", False)
        retention = {"d": "400d", "h": "14d", "m": "2d"} | buckets.get("retention", {})
        self.retention = {kind: retention_seconds(retention[kind]) for kind in self.kinds}
        self.bitmap = [normal(pattern) for pattern in mapping.get("bitmap", [])]
        self.bitmap_by = [(normal(by["key"]), normal(by["of"])) for by in mapping.get("bitmap_by", [])]
        self.add = [normal(pattern) for pattern in mapping.get("add", [])]
        if mapping.get("auto_pairs", True):
            singles = [pattern for pattern in self.add if len(pattern) == 1]
            for index, left in enumerate(singles):
                for right in singles[index + 1 :]:
                    pair = tuple(sorted(left + right))
                    if pair not in self.add:
                        self.add.append(pair)
        self.add_value = [(normal(sum_["key"]), sum_["add_key"]) for sum_ in mapping.get("add_value", [])]
        self.top = [normal(pattern) for pattern in mapping.get("top", [])]
        # (bucket kind, start) -> kind, names... -> what the key holds
        self.unique = {}
        self.unique_by = {}
        self.count = {}
        self.sum = {}
        self.leaders = {}
        self.ends = {}
        self.observed = {}
        self.labels = {}

    # reading ---------------------------------------------------------------------------------------------------------

    def decode(self, headers, value):
        """The members, the cloud attributes or None, the event name's value."""
        headers = headers or []
        if any(name == "ce_specversion" for name, _ in headers):
            return self.decode_binary(headers, value)
        members = self.parse(value)
        if not isinstance(members, dict):
            raise Dead("not_an_object")
        is_cloud = (
            "event" not in members
            and isinstance(members.get("specversion"), str)
            and isinstance(members.get("type"), str)
        )
        if not is_cloud:
            return members, None, members.get("event")
        data = members.get("data")
        return data if isinstance(data, dict) else {}, members, members["type"]

    def decode_binary(self, headers, value):
        value = value or b""
        if len(value) > self.bytes_max:
            raise Dead("too_large")
        content_type = next((text for name, text in headers if name == "content-type"), None)
        is_json = content_type is None and not any(name == "content-type" for name, _ in headers)
        is_json = is_json or b"json" in (content_type or b"").lower().split(b";")[0]
        data = self.parse(value) if is_json and value else {}
        attributes = {}
        for name, text in headers:
            if name.startswith("ce_"):
                try:
                    attributes[name[3:]] = None if text is None else text.decode()
                except UnicodeDecodeError:
                    raise Dead("invalid_utf8") from None
        return data if isinstance(data, dict) else {}, attributes, attributes.get("type")

    def parse(self, value):
        if len(value) > self.bytes_max:
            raise Dead("too_large")
        if len(value) > 5 and value[0] == 0:
            value = value[5:]
        try:
            text = value.decode()
        except UnicodeDecodeError:
            raise Dead("invalid_utf8") from None
        if text.count("{") + text.count("[") > self.depth_max and depth_of(text) > self.depth_max:
            raise Dead("too_deep")
        return parse_json(text)

    @staticmethod
    def lookup(members, cloud, name):
        if cloud is not None:
            if name == "event":
                return cloud.get("type")
            if name.startswith("ce."):
                return cloud.get(name[3:])
        if name in members:
            return members[name]
        at = members
        for part in name.split("."):
            if not isinstance(at, dict) or part not in at:
                return None
            at = at[part]
        return at if "." in name else None

    def text(self, value):
        if isinstance(value, str):
            return trim(value) or None
        if isinstance(value, Number):
            label = self.labels.get(value.text, 0)
            if label == 0:
                label = self.labels[value.text] = number_label(value.text)
            return label
        if value is True:
            return "true"
        if value is False:
            return "false"
        return None

    # folding ---------------------------------------------------------------------------------------------------------

    def record(self, topic, partition, offset, timestamp_ms, key, headers, value):
        """None, "tombstone", or why the record is a dead letter."""
        is_binary = any(name == "ce_specversion" for name, _ in headers or [])
        if value is None and not is_binary:
            return "tombstone"
        try:
            members, cloud, event = self.decode(headers, value)
            if not isinstance(event, str) or not trim(event):
                raise Dead("no_event")
            second = self.second(members, cloud, timestamp_ms)
            self.apply(members, cloud, second, timestamp_ms)
        except Dead as dead:
            return str(dead)
        return None

    def second(self, members, cloud, timestamp_ms):
        names = (["ce.time"] if cloud is not None else []) + self.time_fields
        for name in names:
            second = read_time(self.lookup(members, cloud, name))
            if second is not None:
                return second
        if timestamp_ms < 0:
            raise Dead("no_time")
        return timestamp_ms // 1000

    def live_buckets(self, second, timestamp_ms):
        is_believable = timestamp_ms >= 946_684_800_000
        if is_believable and second * 1000 > timestamp_ms + DAY * 1000:
            raise Dead("time_in_future")
        live = []
        for kind in self.kinds:
            start, end = self.zone.bucket(kind, second)
            retention = self.retention[kind]
            if not (is_believable and retention is not None and (end + retention) * 1000 <= timestamp_ms):
                live.append((kind, start))
                self.ends[kind, start] = end
        if not live:
            raise Dead("too_old")
        return live

    def apply(self, members, cloud, second, timestamp_ms):
        live = self.live_buckets(second, timestamp_ms)
        texts = {}

        def text(name):
            if name not in texts:
                texts[name] = self.text(self.lookup(members, cloud, name))
            return texts[name]

        def element(pattern):
            values = [text(name) for name in pattern]
            return None if None in values else join(values)

        def label(pattern):
            values = [text(name) for name in pattern]
            if None in values:
                return None
            values = [value[: self.label_max] for value in values]
            if len(values) == 1:
                return "\\" + values[0] if re.fullmatch(r"\\*" + OTHER, values[0], re.DOTALL) else values[0]
            return join(values)

        operations = []
        for pattern in self.bitmap:
            if (value := element(pattern)) is not None:
                operations.append((self.put_unique, (pattern,), value))
        for by, of in self.bitmap_by:
            value, shown = element(of), label(by)
            if value is not None and shown is not None:
                operations.append((self.put_unique_by, (of, by), (shown, value)))
        for pattern in self.add:
            if (shown := label(pattern)) is not None:
                operations.append((self.put_count, (self.count, pattern), shown))
        for pattern, add_key in self.add_value:
            amount = self.amount(self.lookup(members, cloud, add_key))
            shown = label(pattern)
            if amount is not None and shown is not None:
                operations.append((self.put_sum, (add_key, pattern), (shown, amount)))
        for pattern in self.top:
            if (shown := label(pattern)) is not None:
                operations.append((self.put_count, (self.leaders, pattern), shown))
        if len(operations) * len(live) > self.metrics_max:
            raise Dead("too_many_metrics")
        for bucket in live:
            for put, place, value in operations:
                put(bucket, place, value)

    @staticmethod
    def amount(value):
        if isinstance(value, Number):
            return micros(value.text)
        if isinstance(value, str):
            text = trim(value)
            return micros(text) if NUMBER.fullmatch(text) else None
        return None

    def observe(self, registers, value):
        seen = self.observed.get(value)
        if seen is None:
            seen = self.observed[value] = observation(value.encode())
            if len(self.observed) > 2_000_000:
                self.observed.clear()
        register, rank = seen
        if rank > registers.get(register, 0):
            registers[register] = rank

    def put_unique(self, bucket, place, value):
        self.observe(self.unique.setdefault((bucket, place[0]), {}), value)

    def put_unique_by(self, bucket, place, value):
        shown, value = value
        values = self.unique_by.setdefault((bucket, place), {})
        shown = admit(values, shown, self.by_max)
        self.observe(values.setdefault(shown, {}), value)

    def put_count(self, bucket, place, shown):
        table, pattern = place
        values = table.setdefault((bucket, pattern), {})
        shown = admit(values, shown, self.values_max)
        values[shown] = values.get(shown, 0) + 1

    def put_sum(self, bucket, place, value):
        shown, amount = value
        values, totals = self.sum.setdefault((bucket, place), ({}, {}))
        shown = admit(values, shown, self.values_max)
        total, count = values.get(shown, (0, 0))
        values[shown] = total + amount, count + 1
        totals["sum"] = totals.get("sum", 0) + amount
        totals["count"] = totals.get("count", 0) + 1
        totals["min"] = min(totals.get("min", amount), amount)
        totals["max"] = max(totals.get("max", amount), amount)

    # the result ------------------------------------------------------------------------------------------------------

    def keys(self):
        """Key without its prefix -> (type, content)."""
        keys = {}

        def name(kind, bucket, rest):
            return f"{kind}:{bucket[0]}:{bucket[1]}:{rest}"

        for (bucket, pattern), registers in self.unique.items():
            keys[name("bmp", bucket, encode("~".join(pattern)))] = "hll", registers
        for (bucket, (of, by)), values in self.unique_by.items():
            names = f"{encode('~'.join(of), '@')}@{encode('~'.join(by), '@')}"
            keys[name("bmv", bucket, names)] = "set", set(values)
            for shown, registers in values.items():
                keys[name("bmp", bucket, f"{names}:{encode(shown)}")] = "hll", registers
        for (bucket, pattern), values in self.count.items():
            keys[name("add", bucket, encode("~".join(pattern)))] = "hash", values
        for (bucket, (add_key, pattern)), (values, totals) in self.sum.items():
            key = name("adv", bucket, f"{encode(add_key)}:{encode('~'.join(pattern))}")
            keys[key] = "hash", {shown: total for shown, (total, _) in values.items()}
            keys[key + ":n"] = "hash", {shown: count for shown, (_, count) in values.items()}
            keys[key + ":i"] = "hash", totals
        for (bucket, pattern), values in self.leaders.items():
            keys[name("top", bucket, encode("~".join(pattern)))] = "zset", values
        return keys

    def expiry(self, kind, start):
        """Epoch second at which the keys of a bucket expire; None for never."""
        retention = self.retention[kind]
        return None if retention is None else self.ends[kind, start] + retention + DAY


def join(values):
    if len(values) == 1:
        return values[0]
    return "~".join(value.replace("\\", "\\\\").replace("~", "\\~") for value in values)


def admit(values, shown, limit):
    if shown in values or len(values) - (OTHER in values) < limit:
        return shown
    return OTHER


def encode(text, more=""):
    text = text.replace("%", "%25").replace(":", "%3A")
    return text.replace("@", "%40") if more else text
