"""duckdb_medium.py CORPUS.ndjson [--passes N]: DuckDB on one thread answers MEDIUM from the file, load and queries.

A pass opens an in-memory database, loads MEDIUM's eight columns, and leaves every answer in a table, by day. Amounts
are decimals of six places, as traqq sums them. The median pass is printed.
"""

import argparse
import json
import statistics
import time

import duckdb

LOAD = """
create table events as
select ts // 86400000 as day, * exclude (ts, amount), try_cast(amount as decimal(18, 6)) as amount
from read_json(?, format = 'newline_delimited', columns = {
    ip: 'varchar', event: 'varchar', utm_source: 'varchar', geo: 'varchar',
    utm_campaign: 'varchar', amount: 'varchar', url: 'varchar', ts: 'bigint'})
"""

COUNTED = [
    "event",
    "event, utm_source",
    "event, geo",
    "utm_campaign, utm_source",
    "geo",
    "url",
]
SUMMED = ["event", "event, utm_campaign"]


def answers():
    yield "unique_ip", "select day, approx_count_distinct(ip) as uniques from events group by day"
    for fields in COUNTED:
        present = " and ".join(f"{field} is not null" for field in fields.split(", "))
        yield (
            f"count {fields}",
            f"select day, {fields}, count(*) as n from events where {present} group by day, {fields}",
        )
    for fields in SUMMED:
        present = " and ".join(f"{field} is not null" for field in fields.split(", "))
        yield (
            f"sum {fields}",
            f"select day, {fields}, sum(amount) as total, count(amount) as n from events"
            f" where {present} group by day, {fields}",
        )


def fold(path):
    """Returns seconds, events, and the number of rows of every answer."""
    database = duckdb.connect(":memory:", config={"threads": 1})
    database.execute("set preserve_insertion_order = false")
    began = time.perf_counter()
    database.execute(LOAD, [path])
    for name, query in answers():
        database.execute(f'create table "{name}" as {query}')
    seconds = time.perf_counter() - began
    events = database.execute("select count(*) from events").fetchone()[0]
    rows = {name: database.execute(f'select count(*) from "{name}"').fetchone()[0] for name, _ in answers()}
    database.close()
    return seconds, events, rows


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("corpus")
    arguments.add_argument("--passes", type=int, default=5)
    arguments = arguments.parse_args()

    _, events, rows = fold(arguments.corpus)
    assert all(rows.values()), f"an answer is empty: {rows}"
    seconds = statistics.median(fold(arguments.corpus)[0] for _ in range(arguments.passes))
    print(
        json.dumps(
            {
                "events": events,
                "seconds": round(seconds, 4),
                "events_per_second": round(events / seconds),
                "duckdb": duckdb.__version__,
                "answer_rows": sum(rows.values()),
            }
        )
    )


if __name__ == "__main__":
    main()
