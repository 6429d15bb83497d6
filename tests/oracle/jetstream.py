"""JetStream for the oracle, with a client that is not ours: publishing what `produce.py` makes, and reading a stream back."""

import asyncio
import queue
import re
import sys
import threading

PENDING_MAX = 4000
CHUNK = 2000
TIMEOUT_S = 30
# A header whose value, with a lone CR, ends the client of a worker for good; every so many
# messages.
POISON = "X-Poison"
POISON_EVERY = 9_973
# Every so many say which stream they are for, which is not that of their dead letters.
EXPECTED_EVERY = 7


class Raw(str):
    """A header value as it is: this client replaces what would break others."""

    def strip(self, *_):
        return self

    def translate(self, *_):
        return self


def header_text(name, value):
    """Headers of NATS are text; what is not is left out."""
    try:
        text = (value or b"").decode()
    except UnicodeDecodeError:
        return None
    plain = re.fullmatch(r"[!-9;-~]+", name) and text == text.strip() and text.isprintable()
    return text if plain and text else None


def token(key, number):
    """The key as a token of a subject."""
    return f"k{number % 997}" if not key else f"x{key.hex()[:60]}"


async def connect(url, **options):
    import nats

    async def ignored(_error):
        pass

    forever = {"max_reconnect_attempts": -1, "reconnect_time_wait": 0.2, "connect_timeout": 5, "error_cb": ignored}
    return await nats.connect(url.split(","), pending_size=64 << 20, **forever, **options)


async def asked(question, client):
    """What a server answers that may have no leader yet, and then loses the question."""
    for _ in range(10):
        try:
            return await question(client.jetstream(timeout=3))
        except Exception as error:  # no answer, or that there is nobody to answer
            last = error
            await asyncio.sleep(0.5)
    raise last


async def publish_all(url, stream, records, rate):
    """Every record once, whatever fails: with an id, sent again until it is acknowledged."""
    client = await connect(url)
    js = client.jetstream(timeout=10)
    room, begun, loop = asyncio.Semaphore(PENDING_MAX), asyncio.get_running_loop().time(), asyncio.get_running_loop()
    failures = []

    async def send(number, subject, value, headers):
        try:
            for _ in range(30):
                try:
                    await js.publish(subject, value, timeout=5, headers=headers)
                    return
                except Exception as error:  # no leader, no answer, no connection: all pass
                    last = error
                    await asyncio.sleep(0.5)
            failures.append(f"{number}: {last!r}")
        finally:
            room.release()

    tasks = set()
    for number, (_, key, value, headers) in enumerate(records):
        await room.acquire()
        texts = {name: header_text(name, data) for name, data in headers}
        texts = {name: text for name, text in texts.items() if text is not None} | {"Nats-Msg-Id": f"{stream}-{number}"}
        if number % EXPECTED_EVERY == 3:
            texts["Nats-Expected-Stream"] = stream
        if number % POISON_EVERY == 5_000:
            texts[POISON] = Raw("a\r b")
        task = loop.create_task(send(number, f"{stream}.{token(key, number)}", value or b"", texts))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if rate and number % 500 == 0:
            await asyncio.sleep(max(0.0, begun + number / rate - loop.time()))
    while tasks:
        await asyncio.wait(list(tasks))
    await client.close()
    if failures:
        sys.exit(f"produce: {len(failures)} failed: {failures[0]}")
    return number + 1


def partition_of(stream, subject):
    """Streams under test keep partition n under `<stream>.<n>.`, or are one partition."""
    match = re.match(re.escape(stream) + r"\.(\d+)\.", subject)
    return int(match.group(1)) if match else 0


def records_of(url, stream, subject=None):
    """Every message of a stream up to where it ends now: (stream, partition, sequence, ms, key, headers, value)."""
    chunks = queue.Queue(maxsize=20)

    async def read():
        from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

        client = await connect(url)
        config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE, inactive_threshold=60, num_replicas=1)
        more = await asked(lambda js: js.pull_subscribe(subject or ">", stream=stream, config=config), client)
        left = (await asked(lambda _: more.consumer_info(), client)).num_pending
        while left > 0:
            chunk = []
            for message in await more.fetch(min(CHUNK, left), timeout=TIMEOUT_S):
                # $JS.ACK, in the newer form domain and account, then stream, consumer, deliveries,
                # sequences, nanoseconds.
                parts = message.reply.split(".")
                sequence, _, nanoseconds = parts[5:8] if len(parts) == 9 else parts[7:10]
                headers = [(name, value.encode()) for name, value in (message.headers or {}).items()]
                place = stream, partition_of(stream, message.subject), int(sequence)
                chunk.append((*place, int(nanoseconds) // 1_000_000, None, headers, message.data))
            left -= len(chunk)
            chunks.put(chunk)
        await client.close()

    def run():
        try:
            asyncio.run(read())
            chunks.put(None)
        except BaseException as error:
            chunks.put(error)

    threading.Thread(target=run, daemon=True).start()
    while (chunk := chunks.get()) is not None:
        if isinstance(chunk, BaseException):
            raise chunk
        yield from chunk


def partitions_of(url, stream):
    """The subjects of each partition."""

    async def ask():
        client = await connect(url)
        config = (await asked(lambda js: js.stream_info(stream), client)).config
        await client.close()
        return config

    transform = asyncio.run(ask()).subject_transform
    match = re.search(r"partition\((\d+)", transform.dest) if transform else None
    return [f"{stream}.{n}.>" for n in range(int(match.group(1)))] if match else [None]
