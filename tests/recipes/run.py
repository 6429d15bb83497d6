#!/usr/bin/env python3
"""The recipes of docs/recipes.md, as they stand there: tests/recipes/run.py TRAQQ

TRAQQ is the program. A server of its own gets a few events; then every block of the document is run, with that server's
address for http://localhost:9877, and what it makes of the answer is compared with the events.

Needs the Python packages `duckdb`, `pandas` and `requests`, and curl.
"""

import contextlib
import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import duckdb
import pandas

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/recipes.md"
WRITTEN = "http://localhost:9877"
PATIENCE_S = 60
HOUR_S = 3600
# Labels that tools like to take for something else.
GEOS = ["NA", "007", "DE", "DE", "-5", "a,\"b\""]
FORMULA = "=1+1"


class Failed(Exception):
    pass


def check(condition, message):
    if not condition:
        raise Failed(message)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def until(what, ask):
    deadline = time.monotonic() + PATIENCE_S
    while not ask():
        check(time.monotonic() < deadline, f"waited {PATIENCE_S} s in vain: {what}")
        time.sleep(0.1)


class Server:
    def __init__(self, program, directory):
        self.url = f"http://127.0.0.1:{free_port()}"
        self.environment = {**os.environ, "TRAQQ_SERVER__HTTP": self.url.removeprefix("http://"), "TRAQQ_SERVER__TCP": "off",
                            "TRAQQ_DATA__DIRECTORY": f"{directory}/data"}
        self.log = open(f"{directory}/log", "w+")
        self.process = subprocess.Popen([program], cwd=directory, env=self.environment, stderr=self.log)
        until("the server answers", lambda: self.get("/readyz") is not None)

    def get(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as response:
                return response.read()
        except OSError:
            check(self.process.poll() is None, "the server has ended")
            return None

    def send(self, events):
        body = "\n".join(map(json.dumps, events)).encode()
        request = urllib.request.Request(self.url + "/api/v1/events", body, {"content-type": "application/x-ndjson"})
        urllib.request.urlopen(request, timeout=30).read()
        path = "/api/v1/find?q=add/event&from=now-6h&to=now&merge=true"
        until("the events are counted", lambda: json.loads(self.get(path))["results"][0]["data"]["count"] == len(events))

    def stop(self):
        self.process.terminate()
        self.process.wait()


def blocks():
    return re.findall(r"^```(\w+)\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S)


class Kitchen:
    """Where recipes are tried."""

    def __init__(self, server, directory, program, hour, events):
        self.server, self.directory, self.program, self.hour, self.events = server, directory, program, hour, events

    def python(self, text):
        names = {}
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(text, "docs/recipes.md", "exec"), names)  # noqa: S102  it is our document
        check(printed.getvalue().strip(), f"nothing is printed by\n{text}")
        df = names["df"]
        check(str(df["time"].dtype).startswith("datetime64") and df["time"].dt.tz is not None, f"no times: {df.dtypes}")
        check(len(set(df["time"])) in (6, 7), f"the buckets are {sorted(set(df['time']))}")
        if "metric" in df:
            df = df[(df["metric"] == "add") & (df["pattern"] == "event~geo")]
        of_hour = df[df["time"] == pandas.Timestamp(self.hour, unit="s", tz="UTC")]
        found = {(row["event"], row["geo"]): int(row["count"]) for _, row in of_hour.iterrows()}
        expected = {("buy", geo): GEOS.count(geo) for geo in GEOS}
        check(found == expected, f"{found} is not {expected}")
        empty = df[df["time"] != pandas.Timestamp(self.hour, unit="s", tz="UTC")]
        check(len(empty) and (empty["count"] == 0).all() and empty["geo"].isna().all(), f"hours without events are\n{empty}")

    def sh(self, text):
        path = f"{self.program.parent}:{os.environ['PATH']}"
        environment = {**self.server.environment, "PATH": path}
        run = subprocess.run(["sh", "-e", "-c", text], cwd=self.directory, env=environment, capture_output=True, text=True)
        check(run.returncode == 0, f"{text} ended with {run.returncode}: {run.stderr}")
        for name in re.findall(r"> (\S+)", text):
            data = (self.directory / name).read_bytes()
            check(data, f"{name} is empty")
            if name.endswith(".csv"):
                rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
                check(len(rows) > 1 and len(set(map(len, rows))) == 1 and rows[0][0] == "time", f"{name}: {rows}")
        if "spreadsheet" in text:
            check(data.startswith(b"\xef\xbb\xbf") and f",'{FORMULA},".encode() in data, f"a formula: {data}")

    def sql(self, text):
        os.chdir(self.directory)
        try:
            rows = duckdb.connect().execute(text).fetchall()
        finally:
            os.chdir("/")
        check(rows, f"no rows: {text}")
        times = {at.timestamp() for at, label, _ in rows if label is not None}
        check(times == {self.hour}, f"{times} is not {self.hour}")
        found = [(label, number) for _, label, number in rows if label is not None]
        expected = [(FORMULA, len(GEOS))] if "top.csv" in text else sorted((geo, GEOS.count(geo)) for geo in set(GEOS))
        check(found == expected, f"{found} is not {expected}")

    def json(self, text):
        """As the data source does it: variables, the request, the root selector, the columns by their types."""
        query = json.loads(text)
        now_ms = int(time.time() * 1000)
        variables = {"${__from}": str(now_ms - 6 * HOUR_S * 1000), "${__to}": str(now_ms)}
        pairs = [(each["key"], variables.get(each["value"], each["value"])) for each in query["url_options"]["params"]]
        url = query["url"].removeprefix(self.server.url) + "?" + urllib.parse.urlencode(pairs)
        rows = json.loads(self.server.get(url))[query["root_selector"]]
        types = {"timestamp_epoch": int, "string": (str, type(None)), "number": (int, float)}
        for row in rows:
            for column in query["columns"]:
                value = row[column["selector"]]
                check(isinstance(value, types[column["type"]]), f"{column}: {value!r}")
        check(len({row["time_ms"] for row in rows}) in (6, 7), f"the buckets are {rows}")
        counts = [(row["time_ms"], row["event"], row["count"]) for row in rows if row["count"]]
        check(counts == [(self.hour * 1000, "buy", len(self.events))], f"{counts}")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    program = Path(sys.argv[1]).resolve()
    failures = 0
    with tempfile.TemporaryDirectory() as directory:
        server = Server(program, directory)
        # Two hours ago: that hour is over, and in the range whichever minute it is.
        hour = int(time.time()) // HOUR_S * HOUR_S - 2 * HOUR_S
        events = [{"event": "buy", "geo": geo, "url": FORMULA, "amount": 1.5, "ts": hour + 60} for geo in GEOS]
        try:
            server.send(events)
            kitchen = Kitchen(server, Path(directory), program, hour, events)
            tried = set()
            for language, text in blocks():
                tried.add(language)
                name = f"{language}: {text.strip().splitlines()[0 if language == 'sh' else -1]}"
                try:
                    getattr(kitchen, language)(text.replace(WRITTEN, server.url))
                except Exception as error:  # whatever it is, the recipe has failed, and the others say more
                    failures += 1
                    print(f"FAILED {name}\n       {type(error).__name__}: {error}", flush=True)
                else:
                    print(f"ok     {name}", flush=True)
            if tried != {"json", "python", "sh", "sql"}:
                failures += 1
                print(f"FAILED only {sorted(tried)} were tried")
        finally:
            server.stop()
            if failures:
                server.log.seek(0)
                print(server.log.read())
    if failures:
        sys.exit(f"tests/recipes: {failures} failed")


if __name__ == "__main__":
    main()
