"""A second implementation of docs/semantics.md, written from that document alone; shares no code with traqq.

    fold = Fold(config)                      # config: traqq's own TOML as a dict
    reason = fold.record(topic, partition, offset, timestamp_ms, key, headers, value)
    fold.metrics()                           # {"add:d:1699920000:event": ("hash", {...}), ...}, nothing capped
    fold.capped()                            # the same with the limits applied (exact order only with ordered=True)

A reason is None for an event, "tombstone" for a null value, else why the record is a dead letter. For a record that holds several
events it is a list of a reason and the bytes of each.

No limit on cardinality is applied while folding. A value that a capped key admits is admitted at its first occurrence, so it
has its complete count; the rest is the sum of all others. Hence whatever a store admitted can be checked to the last unit,
whatever the order of arrival was, and folds of different partitions can simply be added (Fold.absorb).
"""

import datetime
import json
import re
import sys
import unicodedata
import zoneinfo

OTHER = "__other__"
DAY = 86_400
YEAR_2000_MS = 946_684_800_000
# Years 1 to 9999, UTC.
SECOND_MIN, SECOND_END = -62_135_596_800, 253_402_300_800
REGISTERS = 1 << 14
TOMBSTONE = "tombstone"
CACHE_MAX = 1_000_000
# White_Space that is not Cc; Cc itself is asked of the Unicode database.
WHITE_SPACE = frozenset("\u0020\u00a0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))))

NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?)([0-9]+))?")
DATE_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:[.,][0-9]+)?"
    r"(?: ?(?:([Zz]|UTC|GMT)|([+-])([0-9]{2})(?::?([0-9]{2}))?))?"
)
STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
NOT_BRACKETS = re.compile(r"[^][{}]+")
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
# Escapes one after the other, so that an escaped backslash is not taken for the beginning of
# another.
ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
FAKE_OTHER = re.compile(r"\\*" + OTHER)


class Dead(Exception):
    """A record that cannot be counted, with its reason."""


class Num(str):
    """A JSON number, as it is written."""

    __slots__ = ()


def refuse(constant):
    raise ValueError(constant)


# Of members of one name the decoder keeps the last.
DECODER = json.JSONDecoder(parse_float=Num, parse_int=Num, parse_constant=refuse, strict=True)
BLANK = re.compile(r"[ \t\n\r]*")


# JSON
# --------------------------------------------------------------------------------------------------


def deeper_than(text, limit):
    """Whether brackets outside strings nest deeper, however broken the text is."""
    if text.count("{") + text.count("[") <= limit:
        return False
    depth = 0
    for bracket in NOT_BRACKETS.sub("", STRING.sub("", text)):
        if bracket in "{[":
            depth += 1
            if depth > limit:
                return True
        elif depth:
            depth -= 1
    return False


def readable(value, depth_max):
    """The text of a record's bytes that are not too many."""
    if len(value) > 5 and value[0] == 0:
        value = value[5:]
    try:
        text = value.decode("utf-8", "strict")
    except UnicodeDecodeError:
        raise Dead("invalid_utf8") from None
    if deeper_than(text, depth_max):
        raise Dead("too_deep")
    return text


def skip(text, at):
    return BLANK.match(text, at).end()


def value_at(text, at):
    """The value that begins there, behind white space, its own text, and where what follows it begins."""
    at = skip(text, at)
    value, end = DECODER.raw_decode(text, at)
    return value, text[at:end], skip(text, end)


def values(text):
    """One JSON value, or objects in a row, each with its text."""
    found, at = [], 0
    try:
        while at < len(text) or not found:
            value, own, at = value_at(text, at)
            found.append((value, own))
    except ValueError:
        raise Dead("invalid_json") from None
    if len(found) > 1 and any(type(value) is not dict for value, _ in found):
        raise Dead("invalid_json")
    if SURROGATE_ESCAPE.search(text) and any(escape.group(1) for escape in ESCAPE.finditer(text)):
        raise Dead("invalid_json")
    return found


def elements(text):
    """The elements of an array that is JSON, each with its text."""
    found, at = [], skip(text, 1)
    while text[at] != "]":
        value, own, at = value_at(text, at + (text[at] == ","))
        found.append((value, own))
    return found


def member_text(text, name):
    """The text of the last member of this name of an object that is JSON."""
    found, at = None, skip(text, 1)
    while text[at] != "}":
        key, _, at = value_at(text, at + (text[at] == ","))
        _, own, at = value_at(text, at + 1)
        found = own if key == name else found
    return found


# Values
# --------------------------------------------------------------------------------------------------


def is_stripped(c):
    return c in WHITE_SPACE or unicodedata.category(c) == "Cc"


def trim(text):
    # Nearly every string begins and ends with a printable ASCII character.
    if text and "!" <= text[0] <= "~" and "!" <= text[-1] <= "~":
        return text
    start, end = 0, len(text)
    while start < end and is_stripped(text[start]):
        start += 1
    while start < end and is_stripped(text[end - 1]):
        end -= 1
    return text[start:end]


def number_parts(text):
    """Sign, digits without zeros at either end, exponent: value = sign * digits * 10^exponent. None: not a number."""
    match = NUMBER.fullmatch(text)
    if not match:
        return None
    sign, whole, fraction, exponent_sign, exponent = match.groups()
    fraction = fraction or ""
    exponent = (exponent or "0").lstrip("0") or "0"
    # No record has so many digits that they could make up for such an exponent.
    power = int(exponent) if len(exponent) < 18 else 10**18
    power = (-power if exponent_sign == "-" else power) - len(fraction)
    digits = (whole + fraction).lstrip("0")
    short = digits.rstrip("0")
    power += len(digits) - len(short)
    return (-1 if sign else 1), short, (power if short else 0)


def number_label(text):
    """Rule 10; None when the number's double is infinite."""
    sign, digits, power = number_parts(text)
    if not digits:
        return "0"
    point = len(digits) + power  # 10^(point-1) <= |value| < 10^point
    if power >= 0 and point <= 20:
        value = sign * int(digits) * 10**power
        if -(1 << 63) <= value < 1 << 64:
            return str(value)
    if point > 400:
        return None
    if point < -400:
        return "0"
    # 800 digits and whether there are more decide every rounding to a double.
    if len(digits) > 800:
        power += len(digits) - 801
        digits = digits[:800] + "1"
    double = float(f"{digits}e{power}")
    if double == float("inf"):
        return None
    if double == 0.0:
        return "0"
    _, short, power = number_parts(re.sub(r"e\+", "e", repr(double)))
    if power >= 0:
        label = short + "0" * power
    elif len(short) > -power:
        label = short[:power] + "." + short[power:]
    else:
        label = "0." + "0" * (-power - len(short)) + short
    return "-" + label if sign < 0 else label


def micros(text):
    """Units of 10^-6, rounded half to even; None from 10^12 on."""
    sign, digits, power = number_parts(text)
    if len(digits) + power > 12 and digits:
        return None
    power += 6
    if power >= 0 or not digits:
        return sign * int(digits or "0") * 10 ** max(power, 0)
    kept = len(digits) + power
    if kept < 0:
        return 0
    whole, rest = int(digits[:kept] or "0"), digits[kept:]
    # The last digit of rest is not zero.
    if rest[0] > "5" or (rest[0] == "5" and (len(rest) > 1 or whole & 1)):
        whole += 1
    return sign * whole


# Time
# --------------------------------------------------------------------------------------------------


def epoch_second(text):
    """The second of an epoch number in its unit; None when it is far out of range."""
    sign, digits, power = number_parts(text)
    if not digits:
        return 0
    point = len(digits) + power
    if point > 30:
        return None
    power -= 0 if point <= 11 else 3 if point <= 14 else 6 if point <= 17 else 9
    if power >= 0:
        return sign * int(digits) * 10**power
    kept = len(digits) + power
    whole = int(digits[:kept]) if kept > 0 else 0
    # Something is cut off, as the last digit is not zero: down is away from zero for a negative
    # number.
    return whole if sign > 0 else -whole - 1


def days_before(year, month, day):
    """Days from 1970-01-01 in the Gregorian calendar, the year 0 included."""
    year -= month <= 2
    era, of_era = divmod(year, 400)
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def date_second(text, zone):
    """The second of a date and time; `zone` is that of one without any, if there is one."""
    match = DATE_TIME.fullmatch(text)
    if not match:
        return None
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    utc, sign, hours, minutes = match.groups()[6:]
    is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not 1 <= month <= 12 or not 1 <= day <= [31, 28 + is_leap, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month - 1]:
        return None
    if hour > 23 or minute > 59 or second > 60:
        return None
    second, offset = min(second, 59), 0
    if sign:
        if int(hours) > 23 or int(minutes or 0) > 59:
            return None
        offset = (int(hours) * 3600 + int(minutes or 0) * 60) * (-1 if sign == "-" else 1)
    elif not utc:
        if zone is None:
            return None
        # fold=0: the first of two, and of none the offset before the clock was put forward. Python
        # has no year 0, in which every zone is as in the year 4.
        delta = datetime.datetime(year or 4, month, day, hour, minute, second, tzinfo=zone, fold=0).utcoffset()
        offset = delta.days * DAY + delta.seconds
    return days_before(year, month, day) * DAY + hour * 3600 + minute * 60 + second - offset


def read_time(value, zone=datetime.timezone.utc):
    """Rule 6: the second, or None when not present; raises when unreadable."""
    if value is None:
        return None
    second = None
    if type(value) is Num:
        second = epoch_second(value)
    elif type(value) is str:
        text = trim(value)
        if not text:
            return None
        second = epoch_second(text) if NUMBER.fullmatch(text) else date_second(text, zone)
    if second is None or not SECOND_MIN <= second < SECOND_END:
        raise Dead("time_unreadable")
    return second


class Zone:
    """Buckets of local time: the instants with one latest local date so far, or with one date, hour (minute) and offset."""

    STRIDE = 30  # no zone has changed twice within half a minute

    def __init__(self, name):
        self.zone = zoneinfo.ZoneInfo(name)
        self.offsets = {}
        self.buckets = {}

    def offset(self, second):
        offset = self.offsets.get(second)
        if offset is None:
            # Local time must stay within Python's years; nothing changes in the two days at either
            # end.
            inside = min(max(second, SECOND_MIN + 2 * DAY), SECOND_END - 2 * DAY)
            moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc) + datetime.timedelta(seconds=inside)
            delta = moment.astimezone(self.zone).utcoffset()
            offset = self.offsets[second] = delta.days * DAY + delta.seconds
            if len(self.offsets) > CACHE_MAX:
                self.offsets.clear()
        return offset

    def label(self, kind, second):
        offset = self.offset(second)
        local = second + offset
        if kind == "d":
            # A clock that went back over midnight did not go back to the day before.
            before, at = second - DAY, second
            while self.offset(before) > offset and at - before > 1:
                middle = (before + at) // 2
                before, at = (middle, at) if self.offset(middle) > offset else (before, middle)
            return max(local, before + self.offset(before)) // DAY
        return local // (3600 if kind == "h" else 60), offset

    def bucket(self, kind, second):
        """Its first instant, and the first instant of the next."""
        place = kind, second // 60
        found = self.buckets.get(place)
        if found is None or not found[0] <= second < found[1]:
            found = self.buckets[place] = self.search(kind, second)
        return found

    def search(self, kind, second):
        label = self.label(kind, second)
        edges = []
        for step in (-1, 1):
            at, stride = second, self.STRIDE
            while self.label(kind, at + step * stride) == label:
                at += step * stride
            inside, outside = 0, stride
            while outside - inside > 1:
                middle = (inside + outside) // 2
                if self.label(kind, at + step * middle) == label:
                    inside = middle
                else:
                    outside = middle
            edges.append(at + step * inside)
        return edges[0], edges[1] + 1


def retention_seconds(text):
    if text == "forever":
        return None
    return int(text[:-1]) * {"d": DAY, "h": 3600, "m": 60}[text[-1]]


# HyperLogLog
# --------------------------------------------------------------------------------------------------


def murmur64a(data, seed):
    m, mask = 0xC6A4A7935BD1E995, 0xFFFFFFFFFFFFFFFF
    h = seed ^ (len(data) * m & mask)
    tail = len(data) & ~7
    for at in range(0, tail, 8):
        k = int.from_bytes(data[at : at + 8], "little") * m & mask
        h = (h ^ ((k ^ k >> 47) * m & mask)) * m & mask
    if len(data) > tail:
        h = (h ^ int.from_bytes(data[tail:], "little")) * m & mask
    h = (h ^ h >> 47) * m & mask
    return h ^ h >> 47


def observation(data):
    """Register and rank of an element."""
    h = murmur64a(data, 0xADC83B19)
    rest = h >> 14 | 1 << 50
    return h & REGISTERS - 1, (rest & -rest).bit_length()


def raise_registers(have, more):
    for register, rank in more.items():
        if rank > have.get(register, 0):
            have[register] = rank


# The mapping
# --------------------------------------------------------------------------------------------------


def normal(pattern):
    names = tuple(sorted(pattern.split("~"), key=str.encode))
    if not 1 <= len(names) <= 4 or "" in names:
        raise ValueError(f"pattern {pattern!r}")
    return names


def escape(value):
    return value.replace("\\", "\\\\").replace("~", "\\~")


def join(values):
    """A compound value; of a single field as it is."""
    return values if type(values) is str else "~".join(map(escape, values))


def label_of(values):
    if type(values) is str:
        return "\\" + values if values.endswith(OTHER) and FAKE_OTHER.fullmatch(values) else values
    return "~".join(map(escape, values))


def in_key(text):
    return text.replace("%", "%25").replace(":", "%3A")


def in_by_key(names):
    return in_key("~".join(names)).replace("@", "%40")


class Group:
    """What the events of the same buckets became. Compound values are tuples here."""

    def __init__(self, fold):
        self.counts = [{} for _ in fold.counted]
        self.uniques = [{} for _ in fold.bitmap]
        self.uniques_by = [{} for _ in fold.bitmap_by]
        # value -> [sum, count, min, max]
        self.sums = [{} for _ in fold.add_value]

    def absorb(self, other):
        for have, more in zip(self.counts, other.counts):
            for values, count in more.items():
                have[values] = have.get(values, 0) + count
        for have, more in zip(self.uniques, other.uniques):
            raise_registers(have, more)
        for have, more in zip(self.uniques_by, other.uniques_by):
            for values, registers in more.items():
                raise_registers(have.setdefault(values, {}), registers)
        for have, more in zip(self.sums, other.sums):
            for values, (total, count, low, high) in more.items():
                if values in have:
                    entry = have[values]
                    have[values] = [entry[0] + total, entry[1] + count, min(entry[2], low), max(entry[3], high)]
                else:
                    have[values] = [total, count, low, high]


class Fold:
    """All metrics a log should have become. `ordered` keeps values in their order of first occurrence (slower)."""

    def __init__(self, config, ordered=False):
        mapping = config.get("mapping", {})
        events = config.get("events", {})
        buckets = config.get("buckets", {})
        self.name_fields = [
            name_of(name) for name in events.get("name_fields", ["event", "event_type", "type", "event_name", "name"])
        ]
        self.name_header, self.name_default = events.get("name_header", ""), events.get("name_default", "")
        self.batch_fields = events.get("batch_fields", ["batch", "events"])
        self.events_max = events.get("max_events_per_record", 10_000)
        self.time_fields = [name_of(name) for name in events.get("time_fields", ["ts", "timestamp", "time"])]
        self.time_required = events.get("require_time", False)
        zone_default = events.get("time_zone_default", "UTC")
        self.zone_default = zoneinfo.ZoneInfo(zone_default) if zone_default else None
        self.length_max = events.get("max_value_length", 512)
        self.bytes_max = events.get("max_event_bytes", 1 << 20)
        self.depth_max = events.get("max_depth", 64)
        self.metrics_max = events.get("max_metrics_per_event", 1000)
        self.values_max = events.get("max_values_per_key", 100_000)
        self.by_max = events.get("max_values_per_key_bitmap_by", 1000)
        sys.setrecursionlimit(max(sys.getrecursionlimit(), 4 * self.depth_max + 1000))
        self.zone = Zone(buckets.get("time_zone", "UTC"))
        self.kinds = "d" + "h" * bool(buckets.get("hour")) + "m" * bool(buckets.get("minute"))
        retention = {"d": "400d", "h": "14d", "m": "2d"} | buckets.get("retention", {})
        self.retention = {kind: retention_seconds(retention[kind]) for kind in self.kinds}
        self.ordered = ordered

        self.bitmap = [normal(pattern) for pattern in mapping.get("bitmap", [])]
        self.bitmap_by = [(normal(by["key"]), normal(by["of"])) for by in mapping.get("bitmap_by", [])]
        self.add = [normal(pattern) for pattern in mapping.get("add", [])]
        if mapping.get("auto_pairs", True):
            singles = [pattern[0] for pattern in self.add if len(pattern) == 1]
            pairs = [normal(f"{one}~{two}") for at, one in enumerate(singles) for two in singles[at + 1 :]]
            self.add += [pair for pair in pairs if pair not in self.add]
        self.add_value = [(normal(entry["key"]), entry["add_key"]) for entry in mapping.get("add_value", [])]
        self.top = [normal(pattern) for pattern in mapping.get("top", [])]
        kinds = [self.bitmap, self.bitmap_by, self.add, self.add_value, self.top]
        for patterns in kinds:
            if len(set(patterns)) != len(patterns):
                raise ValueError(f"a pattern twice in {patterns}")
        if sum(map(len, kinds)) > events.get("max_combinations", 1000):
            raise ValueError("too many patterns")

        # Fields are read once per event, patterns name them by their number.
        self.fields = []
        number = lambda pattern: tuple(self.field(name) for name in pattern)
        # The same pattern under `add` and under `top` has the same counts.
        self.counted = list(dict.fromkeys(self.add + self.top))
        self.count_plan = [(number(pattern), (pattern in self.add) + (pattern in self.top)) for pattern in self.counted]
        self.unique_plan = [number(pattern) for pattern in self.bitmap]
        self.unique_by_plan = [(number(key), number(of)) for key, of in self.bitmap_by]
        self.amounts = list(dict.fromkeys(add_key for _, add_key in self.add_value))
        self.sum_plan = [(number(key), self.amounts.index(add_key)) for key, add_key in self.add_value]
        self.amount_names = [name_of(add_key) for add_key in self.amounts]
        self.operations_max = sum(map(len, kinds)) * len(self.kinds)

        self.groups = {}
        self.ends = {}
        self.skipped = self.cut = self.buckets_past = 0
        self.labels, self.amount_of, self.observed = {}, {}, {}

    def field(self, name):
        field = name_of(name)
        if field not in self.fields:
            self.fields.append(field)
        return self.fields.index(field)

    # Reading a record
    # ----------------------------------------------------------------------------------------------

    def record(self, topic, partition, offset, timestamp_ms, key, headers, value):
        try:
            return self.fold(timestamp_ms, headers or (), value)
        except Dead as dead:
            return dead.args[0]

    def fold(self, timestamp_ms, headers, value):
        if headers and any(name in ("ce_specversion", "ce-specversion") for name, _ in headers):
            self.cloud_event(*self.binary(headers, value), timestamp_ms)
            return None
        if value is None:
            return TOMBSTONE
        if len(value) > self.bytes_max:
            raise Dead("too_large")
        found = values(readable(value, self.depth_max))
        if len(found) > 1:
            return self.several(found, headers, timestamp_ms)
        record, text = found[0]
        if type(record) is list and record:
            return self.several(elements(text), headers, timestamp_ms)
        if type(record) is not dict:
            raise Dead("not_an_object")
        if not is_cloud_event(record) and self.name(record, headers) is None:
            for field in self.batch_fields:
                if type(record.get(field)) is list:
                    if not record[field]:
                        raise Dead("no_event")
                    return self.several(elements(member_text(text, field)), headers, timestamp_ms)
        self.single(record, headers, timestamp_ms)
        return None

    def several(self, found, headers, timestamp_ms):
        """The events of one record: why each is a dead letter, and its bytes."""
        if len(found) > self.events_max:
            raise Dead("too_many_events")
        results = []
        for record, text in found:
            reason = None
            try:
                if type(record) is not dict:
                    raise Dead("not_an_object")
                self.single(record, headers, timestamp_ms)
            except Dead as dead:
                reason = dead.args[0]
            results.append((reason, text.encode()))
        return results

    def single(self, record, headers, timestamp_ms):
        if is_cloud_event(record):
            data = record.get("data")
            attributes = {name: member for name, member in record.items() if name not in ("data", "data_base64")}
            self.cloud_event(data if type(data) is dict else {}, attributes, timestamp_ms)
            return
        event = self.name(record, headers) or self.name_default
        if not event:
            raise Dead("no_event")
        self.count(record, None, event, self.time(record, None, event, timestamp_ms), timestamp_ms)

    def cloud_event(self, members, attributes, timestamp_ms):
        event = attributes.get("type")
        if type(event) is not str or not trim(event):
            raise Dead("no_event")
        members = {name: member for name, member in members.items() if name != "event"}
        self.count(members, attributes, event, self.time(members, attributes, event, timestamp_ms), timestamp_ms)

    def name(self, record, headers):
        """Rule 3, the default left out."""
        for name, value in headers if self.name_header else ():
            if name == self.name_header:
                try:
                    event = (value or b"").decode()
                except UnicodeDecodeError:
                    event = ""
                if trim(event):
                    return event
                break
        for field in self.name_fields:
            event = lookup(record, None, None, field)
            if type(event) is str and trim(event):
                return event
        return None

    def binary(self, headers, value):
        """Rule 20, binary mode."""
        content_type, attributes = None, {}
        for name, text in headers:
            if name == "content-type" and content_type is None:
                content_type = text or b""
            elif name.startswith(("ce_", "ce-")):
                attributes[name[3:]] = text
        if value is not None and len(value) > self.bytes_max:
            raise Dead("too_large")
        try:
            attributes = {name: text.decode() for name, text in attributes.items() if text is not None}
        except UnicodeDecodeError:
            raise Dead("invalid_utf8") from None
        is_data = value and (content_type is None or names_json(content_type))
        data = only(values(readable(value, self.depth_max))) if is_data else None
        return data if type(data) is dict else {}, attributes

    def time(self, members, cloud, event, timestamp_ms):
        if cloud is not None:
            second = read_time(cloud.get("time"), self.zone_default)
            if second is not None:
                return second
        for field in self.time_fields:
            second = read_time(lookup(members, cloud, event, field), self.zone_default)
            if second is not None:
                return second
        if self.time_required or timestamp_ms is None or timestamp_ms < YEAR_2000_MS:
            raise Dead("no_time")
        second = timestamp_ms // 1000
        if second >= SECOND_END:
            raise Dead("time_unreadable")
        return second

    def text(self, value):
        """A value's text before it is cut; None when it is absent."""
        kind = type(value)
        if kind is str:
            return trim(value) or None
        if kind is Num:
            label = self.labels.get(value, self)
            if label is self:
                if len(self.labels) > CACHE_MAX:
                    self.labels.clear()
                label = self.labels[value] = number_label(value)
            if label is None:
                self.skipped += 1
            return label
        if kind is bool:
            return "true" if value else "false"
        return None

    def amount(self, value):
        """Units of 10^-6; None when absent, False when skipped."""
        kind = type(value)
        if kind is str:
            value = trim(value)
            if not value:
                return None
        elif kind is not Num:
            return None if value is None else False
        amount = self.amount_of.get(value, self)
        if amount is self:
            if len(self.amount_of) > CACHE_MAX:
                self.amount_of.clear()
            amount = micros(value) if NUMBER.fullmatch(value) else None
            amount = self.amount_of[value] = False if amount is None else amount
        return amount

    # Counting
    # ----------------------------------------------------------------------------------------------

    def live(self, second, timestamp_ms):
        """The buckets that are written."""
        is_checked = timestamp_ms is not None and timestamp_ms >= YEAR_2000_MS
        if is_checked and second * 1000 > timestamp_ms + DAY * 1000:
            raise Dead("time_in_future")
        live = []
        for kind in self.kinds:
            start, end = self.zone.bucket(kind, second)
            retention = self.retention[kind]
            if is_checked and retention is not None and (end + retention) * 1000 <= timestamp_ms:
                self.buckets_past += 1
                continue
            live.append((kind, start))
            self.ends[kind, start] = end
        if not live:
            raise Dead("too_old")
        return tuple(live)

    def count(self, members, cloud, event, second, timestamp_ms):
        live = self.live(second, timestamp_ms)
        whole = [self.text(lookup(members, cloud, event, field)) for field in self.fields]
        length = self.length_max
        shown = [text if text is None or len(text) <= length else text[:length] for text in whole]
        amounts = [self.amount(lookup(members, cloud, event, field)) for field in self.amount_names]
        if self.operations_max > self.metrics_max and self.operations(whole, amounts) * len(live) > self.metrics_max:
            raise Dead("too_many_metrics")
        self.skipped += sum(
            amounts[at] is False and None not in [whole[field] for field in fields] for fields, at in self.sum_plan
        ) if False in amounts else 0
        if self.ordered:
            for bucket in live:
                self.into((bucket,), whole, shown, amounts)
        else:
            self.into(live, whole, shown, amounts)

    def operations(self, texts, amounts):
        """How many an event becomes in one bucket."""
        is_complete = lambda fields: all(texts[field] is not None for field in fields)
        return (
            sum(weight for fields, weight in self.count_plan if is_complete(fields))
            + sum(map(is_complete, self.unique_plan))
            + sum(is_complete(key) and is_complete(of) for key, of in self.unique_by_plan)
            + sum(is_complete(key) and type(amounts[at]) is int for key, at in self.sum_plan)
        )

    def into(self, live, whole, shown, amounts):
        group = self.groups.get(live)
        if group is None:
            group = self.groups[live] = Group(self)
        for (fields, _), values in zip(self.count_plan, group.counts):
            value = pick(shown, fields)
            if value is not None:
                values[value] = values.get(value, 0) + 1
        for fields, registers in zip(self.unique_plan, group.uniques):
            value = pick(whole, fields)
            if value is not None:
                self.observe(registers, value)
        for (key, of), values in zip(self.unique_by_plan, group.uniques_by):
            value, element = pick(shown, key), pick(whole, of)
            if value is not None and element is not None:
                registers = values.get(value)
                if registers is None:
                    registers = values[value] = {}
                self.observe(registers, element)
        for (key, at), values in zip(self.sum_plan, group.sums):
            amount = amounts[at]
            if type(amount) is not int:
                continue
            value = pick(shown, key)
            if value is None:
                continue
            entry = values.get(value)
            if entry is None:
                values[value] = [amount, 1, amount, amount]
                continue
            entry[0] += amount
            entry[1] += 1
            if amount < entry[2]:
                entry[2] = amount
            elif amount > entry[3]:
                entry[3] = amount

    def observe(self, registers, element):
        seen = self.observed.get(element)
        if seen is None:
            if len(self.observed) > 2 * CACHE_MAX:
                self.observed.clear()
            seen = self.observed[element] = observation(join(element).encode())
        register, rank = seen
        if rank > registers.get(register, 0):
            registers[register] = rank

    # The result
    # ----------------------------------------------------------------------------------------------

    def absorb(self, other):
        """Adds what another fold of the same configuration found."""
        for live, group in other.groups.items():
            if live in self.groups:
                self.groups[live].absorb(group)
            else:
                self.groups[live] = group
        self.ends |= other.ends
        self.skipped += other.skipped
        self.buckets_past += other.buckets_past

    def __getstate__(self):
        return self.__dict__ | {"labels": {}, "amount_of": {}, "observed": {}, "zone": None}

    def by_bucket(self):
        buckets = {}
        for live, group in self.groups.items():
            for bucket in live:
                buckets.setdefault(bucket, Group(self)).absorb(group)
        return buckets

    def metrics(self):
        """Key without the prefix -> (type, content); "hll" is register -> rank, nothing is capped."""
        keys = {}
        for (kind, start), group in self.by_bucket().items():
            at = f"{kind}:{start}"
            for pattern, values in zip(self.counted, group.counts):
                if not values:
                    continue
                values = {label_of(value): count for value, count in values.items()}
                name = in_key("~".join(pattern))
                if pattern in self.add:
                    keys[f"add:{at}:{name}"] = "hash", values
                if pattern in self.top:
                    keys[f"top:{at}:{name}"] = "zset", values
            for pattern, registers in zip(self.bitmap, group.uniques):
                if registers:
                    keys[f"bmp:{at}:{in_key('~'.join(pattern))}"] = "hll", registers
            for (key, of), values in zip(self.bitmap_by, group.uniques_by):
                if not values:
                    continue
                name = f"{at}:{in_by_key(of)}@{in_by_key(key)}"
                keys[f"bmv:{name}"] = "set", {label_of(value): None for value in values}
                for value, registers in values.items():
                    keys[f"bmp:{name}:{in_key(label_of(value))}"] = "hll", registers
            for (key, add_key), values in zip(self.add_value, group.sums):
                if not values:
                    continue
                name = f"adv:{at}:{in_key(add_key)}:{in_key('~'.join(key))}"
                entries = {label_of(value): entry for value, entry in values.items()}
                keys[name] = "hash", {label: entry[0] for label, entry in entries.items()}
                keys[name + ":n"] = "hash", {label: entry[1] for label, entry in entries.items()}
                columns = list(zip(*entries.values()))
                keys[name + ":i"] = "hash", {
                    "sum": sum(columns[0]), "count": sum(columns[1]), "min": min(columns[2]), "max": max(columns[3])
                }
        return keys

    def limit(self, key):
        """How many values a key holds; None if that is not limited."""
        kind = key[:3]
        if kind == "bmv":
            return self.by_max
        return None if kind == "bmp" or (kind == "adv" and key.endswith(":i")) else self.values_max

    def capped(self):
        """What a store that gets the records in this order holds."""
        keys = self.metrics()
        for key, (kind, values) in list(keys.items()):
            limit = self.limit(key)
            if limit is not None and len(values) > limit:
                keys.update(cap(key, kind, values, list(values)[:limit], keys))
                for value in list(values)[limit:] if kind == "set" else ():
                    del keys[by_value(key, value)]
        return keys

    def expiry(self, kind, start):
        """The second at which the keys of a bucket expire; None for never."""
        retention = self.retention[kind]
        return None if retention is None else self.ends[kind, start] + retention + DAY


def by_value(key, label):
    """The HyperLogLog of one value of a `bmv` key."""
    return f"bmp{key[3:]}:{in_key(label)}"


def cap(key, kind, values, admitted, keys):
    """The keys to write when only some values were admitted."""
    if kind != "set":
        kept = {value: values[value] for value in admitted}
        return {key: (kind, kept | {OTHER: sum(values.values()) - sum(kept.values())})}
    rest = {}
    for value in values.keys() - set(admitted):
        raise_registers(rest, keys[by_value(key, value)][1])
    return {key: (kind, dict.fromkeys([*admitted, OTHER])), by_value(key, OTHER): ("hll", rest)}


def name_of(name):
    """A field's name, and the members on the way to it."""
    return name, tuple(name.split(".")) if "." in name else None


def pick(texts, fields):
    """The value of a pattern: a string of one field, a tuple of several, None when one is absent."""
    if len(fields) == 1:
        return texts[fields[0]]
    values = tuple([texts[field] for field in fields])
    return None if None in values else values


def lookup(members, cloud, event, field):
    """Rule 4, and rule 20 for the attributes of a CloudEvent."""
    name, path = field
    if name == "event" and event is not None:
        return event
    if cloud is not None:
        if path is not None and path[0] == "ce":
            found = lookup(cloud, None, None, name_of(name[3:]))
            if found is not None:
                return found
    if path is None or name in members:
        return members.get(name)
    for part in path:
        if type(members) is not dict:
            return None
        members = members.get(part)
    return members


def is_cloud_event(record):
    return type(record.get("specversion")) is str and type(record.get("type")) is str and "event" not in record


def only(found):
    if len(found) > 1:
        raise Dead("invalid_json")
    return found[0][0]


def names_json(content_type):
    return b"json" in content_type.split(b";")[0].lower()
