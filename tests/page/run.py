#!/usr/bin/env python3
"""The dashboard in a real browser: tests/page/run.py URL [--screenshots DIR] [--token TOKEN]

URL is a running traqq that holds some events. The page is driven as a person would, by mouse and by keyboard, and
what it shows is compared with what the interface answers to the same question. States that a healthy server does not
have (stopped partitions, hostile names, no token) are put in its mouth between server and page.

Needs the Python package `playwright` and a Chromium: TRAQQ_CHROMIUM, or the system's.
"""

import argparse
import csv
import datetime
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

ARGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
ARGS += " --disable-component-update --disable-sync"
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
POLICY += "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
FILES = {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript", "/uplot.css": "text/css",
         "/uplot.js": "text/javascript"}
COMPRESSED_BYTES_MAX = 100 * 1024
PATIENCE_MS = 20_000
PATIENCE_S = PATIENCE_MS / 1000
CONTRAST_MIN = 4.5
HOSTILE = "<img src=x onerror='window.pwned=1'>\"&amp;"

# Every text that is visible, with its contrast against what is behind it. Colours are resolved by
# painting them.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas"); canvas.width = canvas.height = 1;
  const ctx = canvas.getContext("2d", { willReadFrequently: true });
  const over = (layers) => {
    ctx.fillStyle = "#fff"; ctx.fillRect(0, 0, 1, 1);
    for (const each of layers) { ctx.fillStyle = each; ctx.fillRect(0, 0, 1, 1); }
    return [...ctx.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const owner = node.parentElement;
    if (!node.textContent.trim() || owner.closest("script, noscript, .unseen, .skip, :has(> input:disabled)")) continue;
    if (!owner.checkVisibility() || !owner.getClientRects().length) continue;
    const layers = [];
    for (let up = owner; up; up = up.parentElement) layers.unshift(getComputedStyle(up).backgroundColor);
    const behind = light(over(layers)), text = light(over([...layers, getComputedStyle(owner).color]));
    const ratio = (Math.max(behind, text) + .05) / (Math.min(behind, text) + .05);
    found.push([node.textContent.trim().slice(0, 40), owner.className, Math.round(ratio * 100) / 100]);
  }
  return found;
}"""

# Pixels of the chart's plotting area: how many are colourful, and how many have the colour of the
# period before.
PIXELS = """() => {
  const canvas = document.querySelector("#chart canvas"), over = document.querySelector("#chart .u-over");
  const outer = canvas.getBoundingClientRect(), inner = over.getBoundingClientRect();
  const scale = canvas.width / outer.width;
  const area = [inner.left - outer.left, inner.top - outer.top, inner.width, inner.height].map((v) => Math.round(v * scale));
  const data = canvas.getContext("2d").getImageData(...area).data;
  const hex = getComputedStyle(document.documentElement).getPropertyValue("--previous").trim();
  const wanted = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  let colourful = 0, previous = 0;
  for (let at = 0; at < data.length; at += 4) {
    const [r, g, b, a] = data.slice(at, at + 4);
    if (a > 100 && Math.max(r, g, b) - Math.min(r, g, b) > 60) colourful += 1;
    if (a > 240 && [r, g, b].every((c, i) => Math.abs(c - wanted[i]) < 10)) previous += 1;
  }
  return { colourful, previous };
}"""


class Failed(Exception):
    pass


def check(condition, message):
    if not condition:
        raise Failed(message)


def until(what, ask, patience_s=PATIENCE_S):
    """Asks until the answer is true; returns it. What the browser tells by itself, as `page.url`, needs `until_page`."""
    deadline = time.monotonic() + patience_s
    while True:
        answer = ask()
        if answer:
            return answer
        check(time.monotonic() < deadline, f"waited {patience_s:.0f} s in vain: {what}")
        time.sleep(0.1)


def number(text):
    return float(re.sub(r"[^\d.\-]", "", text.split("±")[0]) or "nan")


class Scene:
    """A browser at a server."""

    def __init__(self, browser, url, token, screenshots):
        self.browser, self.url, self.token, self.screenshots = browser, url.rstrip("/"), token, screenshots
        self.contexts = []

    # -- the interface, asked directly
    # ---------------------------------------------------------------------------------

    def fetch(self, path, headers=None):
        own = {"authorization": f"Bearer {self.token}"} if self.token else {}
        request = urllib.request.Request(self.url + path, headers={**own, **(headers or {})})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def ask(self, path):
        status, _, body = self.fetch(path)
        check(status == 200, f"{path} answered {status}: {body[:200]!r}")
        return json.loads(body)

    # -- the page
    # ----------------------------------------------------------------------------------------------

    def open(self, fragment="", width=1280, height=900, scheme="light", prepare=None, tolerate=()):
        context = self.browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme,
                                           permissions=["clipboard-read", "clipboard-write"], locale="en-US")
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.faults, page.tolerate = [], list(tolerate)

        def console(message):
            is_fine = any(re.search(each, message.text) for each in page.tolerate)
            if message.type in ("error", "warning") and not is_fine:
                page.faults.append(f"console {message.type}: {message.text}")

        page.on("console", console)
        page.on("pageerror", lambda error: page.faults.append(f"uncaught: {error}"))
        page.add_init_script("window.violations = []; document.addEventListener('securitypolicyviolation', "
                             "(e) => window.violations.push(`${e.violatedDirective} ${e.blockedURI}`));")
        if self.token:
            page.add_init_script(f"sessionStorage.setItem('traqq-token', {json.dumps(self.token)});")
        if prepare:
            prepare(page)
        page.goto(f"{self.url}/{fragment}")
        self.contexts.append((context, page))
        return page

    def close(self):
        """Ends every page that is open; none may have complained."""
        for context, page in self.contexts:
            check(not page.faults, f"the console is not silent: {page.faults}")
            violations = page.evaluate("window.violations")
            check(not violations, f"the content security policy was violated: {violations}")
            context.close()
        self.contexts.clear()

    def shoot(self, page, name):
        if self.screenshots:
            page.screenshot(path=str(Path(self.screenshots) / f"{name}.png"), full_page=True)


def settle(page, title=None):
    """Until the chart shows the answer to the present question."""
    expect(page.locator("#board")).to_be_visible()
    if title:
        expect(page.locator("#title")).to_have_text(title)
    expect(page.locator("#chart canvas")).to_be_visible()
    expect(page.locator("#chart")).not_to_have_class(re.compile("busy"))
    expect(page.locator("#kpis dd.value").first).not_to_have_text("")


def shown_path(page, which):
    """The question as the page says it."""
    text = page.locator(f"#{which}-question").text_content()
    check(text.startswith("GET /api/v1/find?"), f"the page does not say its question: {text!r}")
    return urllib.parse.quote(text.removeprefix("GET "), safe="/?&=~:%,+")


def table(page, rows="#ranking-rows tr"):
    return page.locator(rows).evaluate_all("(rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent))")


def fresh(page):
    """Waits for one more refresh, so that what is shown was asked after now."""
    with page.expect_response(lambda r: "/api/v1/find" in r.url, timeout=PATIENCE_MS):
        pass
    page.wait_for_timeout(600)
    settle(page)


class Given:
    """What the store holds: a metric of each kind, and a range for which it has events and gets no new ones."""

    def __init__(self, scene):
        today = scene.ask("/api/v1/catalog?days=1")
        self.today = datetime.date.fromisoformat(today["from"][:10])
        self.kinds = {}
        for metric in scene.ask("/api/v1/catalog?days=7")["metrics"]:
            if metric["values"]:
                self.kinds.setdefault(metric["metric"], metric)
        check(self.kinds, "this traqq has counted nothing in 7 days: the test needs one with data")
        check("add" in self.kinds, "this traqq counts no `add`; the test needs one")
        self.range = "range=7&bucket=d"
        self.before = (self.today - datetime.timedelta(days=13), self.today - datetime.timedelta(days=6))
        # Days that are over do not change while they are looked at.
        past = self.today - datetime.timedelta(days=1)
        first = past - datetime.timedelta(days=2)
        answer = scene.ask(f"/api/v1/find?q={key(self.kinds['add'])}&from={first}&to={self.today}&merge=true")
        data = answer["results"][0]["data"]
        self.is_over = bool(data and data["count"])
        if self.is_over:
            self.range = f"range=custom&from={first}&to={past}&bucket=d"
            self.before = (first - datetime.timedelta(days=3), first)

    def had_before(self, scene, metric):
        """Whether the period before has anything: a line along zero is hardly to be seen."""
        answer = scene.ask(f"/api/v1/find?q={key(metric)}&from={self.before[0]}&to={self.before[1]}")
        found = [result["data"] or {} for result in answer["results"]]
        return any(data.get("unique") or data.get("values") for data in found)

    def fragment(self, kind, extra=""):
        return f"#q={key(self.kinds[kind])}&{self.range}{extra}"


def key(metric):
    names = [metric["metric"], metric["pattern"], metric.get("add_key") or metric.get("of")]
    return "/".join(name for name in names if name)


# -- what is checked
# --------------------------------------------------------------------------------------------------


def files_are_small_and_guarded(scene, _):
    sizes = {}
    for path, kind in FILES.items():
        # Without the token: the page holds no data.
        plain = urllib.request.urlopen(scene.url + path, timeout=30)
        body = plain.read()
        check(plain.headers["content-type"].startswith(kind), f"{path} is {plain.headers['content-type']}")
        check(plain.headers["x-content-type-options"] == "nosniff", f"{path} may be sniffed")
        check(plain.headers["referrer-policy"] == "no-referrer", f"{path} leaks the referrer")
        check(plain.headers["content-security-policy"] == POLICY or path != "/", "the page's policy is another")
        status, _, rest = scene.fetch(path, {"if-none-match": plain.headers["etag"]})
        check((status, rest) == (304, b""), f"{path} is sent again though it did not change: {status}")
        sizes[path] = len(gzip.compress(body))
    check(sum(sizes.values()) <= COMPRESSED_BYTES_MAX, f"the page is too large: {sizes}")
    return f"{sum(sizes.values())} bytes compressed"


def every_kind_shows_what_the_interface_answers(scene, given):
    for kind, metric in given.kinds.items():
        page = scene.open(given.fragment(kind))
        settle(page)
        pixels = until(f"{kind}: the chart is not blank", lambda: pixels_if(page, "colourful", 60))
        # Lines have a fainter one each, in their own colour; the cursor names both.
        if kind == "bitmap_by":
            page.locator("#chart").focus()
            page.keyboard.press("Home")
            expect(page.locator(".tip")).to_contain_text(re.compile(r"±.*, before \d"))
        elif given.had_before(scene, metric):
            check(pixels["previous"] > 5, f"{kind}: the period before is not drawn: {pixels}")
        expect(page.locator("#legend")).to_contain_text("period before")
        if kind == "bitmap":
            numbers_are_bracketed(scene, page, given, kind, metric, "#kpis")
        else:
            numbers_are_bracketed(scene, page, given, kind, metric, "#ranking")
        scene.shoot(page, f"kind-{kind}")
        scene.close()
    return ", ".join(given.kinds)


def pixels_if(page, name, least):
    pixels = page.evaluate(PIXELS)
    return pixels if pixels[name] >= least else None


def numbers_are_bracketed(scene, page, given, kind, metric, where):
    """Shown numbers are those of the interface: the same when nothing is added, else between before and after."""
    path = shown_path(page, "chart") + "&merge=true" if where == "#kpis" else shown_path(page, "ranking")
    column = {"bitmap_by": "unique", "add_value": "sum"}.get(kind, "count")

    def answer():
        data = scene.ask(path)["results"][0]["data"]
        if where == "#kpis":
            return {"Unique": data["unique"]}
        return {" · ".join(row["value"]) if isinstance(row["value"], list) else
                "all other values" if row.get("other") else row["value"]: row[column] for row in data["values"]}

    before = answer()
    if not given.is_over:
        fresh(page)
    if where == "#kpis":
        rows = [["Unique", page.locator("#kpis dd.value").first.text_content()]]
        check("±" in rows[0][1], f"a unique count without its error: {rows}")
    else:
        rows = table(page)
    after = answer()
    check(rows, f"{kind}: there are no rows")
    if given.is_over:
        check([row[0] for row in rows if row[0] in before] == [name for name in before if name != "all other values"]
              + ["all other values"] * ("all other values" in before), f"{kind}: rows {rows} for {before}")
    for name, text, *_ in rows:
        low, high = (side.get(name) for side in (before, after))
        if low is None or high is None:
            check(not given.is_over, f"{kind}: {name} is no value of {before}")
            continue
        check(round(min(low, high), 2) <= number(text) <= round(max(low, high), 2),
              f"{kind}: {name} is shown as {text}, and is {low} to {high}")


def the_previous_period_is_the_one_before(scene, given):
    page = scene.open(given.fragment("add"))
    settle(page)
    expect(page.locator("#legend")).to_contain_text("the period before")
    page.locator("#numbers summary").click()
    expect(page.locator("#numbers-rows tr").first).to_be_visible()
    heads = [head.strip() for head in page.locator("#numbers-head th").all_text_contents()]
    check(heads[-1] == "before" and "total" in heads, f"the numbers lack the period before: {heads}")
    question = urllib.parse.urlsplit(shown_path(page, "chart"))
    shown = scene.ask(f"{question.path}?{question.query}")
    days = (datetime.date.fromisoformat(shown["to"][:10]) - datetime.date.fromisoformat(shown["from"][:10])).days
    to = datetime.date.fromisoformat(shown["from"][:10])
    path = f"/api/v1/find?q={key(given.kinds['add'])}&from={to - datetime.timedelta(days=days)}&to={to}"
    wanted = [result["data"] and result["data"]["count"] for result in scene.ask(path)["results"]]
    rows = table(page, "#numbers-rows tr")
    check([None if row[-1] == "–" else number(row[-1]) for row in rows] == wanted,
          f"before: {[row[-1] for row in rows]}, and the interface says {wanted}")
    if given.is_over:
        own = [result["data"] and result["data"]["count"] for result in shown["results"]]
        check([number(row[-2]) for row in rows] == own, f"total: {[row[-2] for row in rows]}, not {own}")
    # The cursor says both.
    box = page.locator("#chart .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    expect(page.locator(".tip")).to_contain_text("before:")
    scene.close()


def the_picker_and_the_url_agree(scene, given):
    page = scene.open("")
    settle(page)
    expect(page.locator("#metrics .metric")).not_to_have_count(0)
    for kind, metric in given.kinds.items():
        button = page.locator(f"#metrics .metric[data-key='{key(metric)}']")
        button.click()
        expect(button).to_have_attribute("aria-current", "true")
        settle(page)
        until_page(page, f"the URL names {key(metric)}", lambda: f"q={key(metric)}" in urllib.parse.unquote(page.url))
        until("the question is that of the metric", lambda: f"q={key(metric)}&" in shown_path(page, "chart"))
    last = list(given.kinds.values())[-1]
    page.locator("#filter").fill("no such metric anywhere")
    expect(page.locator("#metrics .metric")).to_have_count(0)
    expect(page.locator("#metrics-none")).to_be_visible()
    page.locator("#filter").fill(last["pattern"].split("~")[0])
    expect(page.locator("#metrics .metric")).not_to_have_count(0)
    page.locator("#range input[value='30']").check()
    until_page(page, "the range is in the URL", lambda: "range=30" in page.url)
    until("the range is in the question", lambda: "days=30" in shown_path(page, "chart"))
    title = page.locator("#title").text_content()
    page.reload()
    settle(page, title)
    expect(page.locator("#range input[value='30']")).to_be_checked()
    check("days=30" in shown_path(page, "chart"), "a reload forgets the range")
    # Too many buckets are not asked for.
    page.locator("#range input[value='90']").check()
    expect(page.locator("#bucket input[value='m']")).to_be_disabled()
    # A link of somebody else, in a page that is open.
    page.evaluate(f"location.hash = {json.dumps(given.fragment('add'))}")
    until("the page follows the hash", lambda: f"q={key(given.kinds['add'])}&" in shown_path(page, "chart"))
    # Dates.
    page.locator("#range input[value='custom']").check()
    page.locator("#from").fill(str(given.today - datetime.timedelta(days=4)))
    page.locator("#to").fill(str(given.today - datetime.timedelta(days=1)))
    until("the dates are in the question", lambda: f"from={given.today - datetime.timedelta(days=4)}&to={given.today}"
          in shown_path(page, "chart"))
    scene.close()


def a_value_can_be_seen_alone(scene, given):
    page = scene.open(given.fragment("add"))
    settle(page)
    first = page.locator("#ranking-rows button").first
    name = first.text_content()
    first.click()
    expect(page.locator("#chip")).to_contain_text(name)
    expect(first).to_have_attribute("aria-pressed", "true")
    until("the question has the value", lambda: "value=" in shown_path(page, "chart"))
    settle(page)
    merged = scene.ask(shown_path(page, "chart") + "&merge=true")["results"][0]["data"]["count"]
    if given.is_over:
        shown = number(page.locator("#kpis dd.value").first.text_content())
        check(shown == merged, f"{name} alone is shown as {shown}, and is {merged}")
    page.reload()
    expect(page.locator("#chip")).to_contain_text(name)
    page.locator("#chip-clear").click()
    expect(page.locator("#chip")).to_be_hidden()
    until("the value is gone from the question", lambda: "value=" not in shown_path(page, "chart"))
    scene.close()


def a_keyboard_is_enough(scene, given):
    page = scene.open(given.fragment("add"))
    settle(page)
    page.keyboard.press("Tab")
    check(page.evaluate("document.activeElement.id") == "skip", "the first stop is not the skip link")
    page.wait_for_timeout(50)
    check(page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0, "the skip link does not appear")
    seen = []
    for _ in range(80):
        page.keyboard.press("Tab")
        stop = page.evaluate("""() => {
          const at = document.activeElement, shows = at.matches("input[type=radio]") ? at.nextElementSibling : at;
          const style = getComputedStyle(shows);
          return [at === document.body ? null : at.id || at.name || at.dataset.key || at.dataset.label || at.tagName,
                  style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1];
        }""")
        if stop[0] is None:
            break
        check(stop[1], f"{stop[0]} has the focus and does not show it")
        seen.append(stop[0])
    for wanted in ["theme", "filter", key(given.kinds["add"]), "range", "bucket", "chart", "copy-chart", "limit", "copy-ranking"]:
        check(wanted in seen, f"{wanted} cannot be reached by Tab: {seen}")

    page.locator("#filter").focus()
    wanted = list(given.kinds.values())[-1]
    page.keyboard.type(wanted["pattern"])
    page.keyboard.press("ArrowDown")
    until("an arrow goes from the filter to a metric", lambda: page.evaluate("document.activeElement.dataset.key"))
    keys = page.locator("#metrics .metric").evaluate_all("(all) => all.map((each) => each.dataset.key)")
    for _ in range(keys.index(key(wanted))):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    until("Enter chooses the metric", lambda: f"q={key(wanted)}&" in shown_path(page, "chart"))

    page.locator("#range input:checked").focus()
    page.keyboard.press("ArrowLeft" if given.is_over else "ArrowRight")
    until_page(page, "an arrow changes the range", lambda: given.range.split("&")[0] + "&" not in page.url)
    settle(page)
    page.locator("#chart").focus()
    page.keyboard.press("End")
    expect(page.locator(".tip")).to_be_visible()
    last = until("the chart is read aloud", lambda: page.locator("#reading").text_content())
    page.keyboard.press("ArrowLeft")
    until("the arrow goes to the bucket before", lambda: page.locator("#reading").text_content() != last)
    page.keyboard.press("Escape")
    expect(page.locator(".tip")).to_be_hidden()

    page.evaluate(f"location.hash = {json.dumps(given.fragment('add'))}")
    until("the page follows the hash", lambda: f"q={key(given.kinds['add'])}&" in shown_path(page, "chart"))
    settle(page)
    page.locator("#ranking-rows button").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#chip")).to_be_visible()
    page.locator("#chip-clear").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#chip")).to_be_hidden()
    scene.close()
    return f"{len(seen)} stops"


def what_is_copied_gives_the_same_answer(scene, given):
    kinds = [kind for kind in ("add", "add_value", "top") if kind in given.kinds]
    environment = {**os.environ, "TRAQQ_SERVER__TOKEN": scene.token or ""}
    for kind in kinds:
        page = scene.open(given.fragment(kind))
        settle(page)
        for which in ("chart", "ranking"):
            path = shown_path(page, which)

            def same():
                page.locator(f"#copy-{which}").click()
                expect(page.locator(f"#copy-{which}")).to_have_text("Copied")
                line = page.evaluate("navigator.clipboard.readText()")
                check(line.startswith("curl ") and scene.url in line, f"copied: {line!r}")
                check(not scene.token or scene.token not in line, "the token is in what was copied")
                run = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, env=environment)
                check(run.returncode == 0, f"{line} ended with {run.returncode}: {run.stderr}")
                copied, direct = json.loads(run.stdout), scene.ask(path)
                check({**copied, "results": 0} == {**direct, "results": 0}, f"{line} asks something else than {path}")
                return copied == direct

            # New events may come between two questions; then they are asked again.
            until(f"{kind}: what is copied from the {which} gives the same JSON", same, 30)
        scene.close()


def what_is_downloaded_is_the_question_as_csv(scene, given):
    for kind in given.kinds:
        page = scene.open(given.fragment(kind))
        settle(page)
        for which in ("chart", "ranking"):
            if not page.locator(f"#{which}-question").text_content():
                continue
            path = shown_path(page, which)

            def same():
                with page.expect_download() as waited:
                    page.locator(f"#download-{which}").click()
                name, data = waited.value.suggested_filename, Path(waited.value.path()).read_bytes()
                expect(page.locator(f"#download-{which}")).to_have_text("Downloaded")
                check(re.fullmatch(r"traqq-[\w-]+\.csv", name), f"the file is called {name!r}")
                rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
                check(rows[0][0] == "time" and len(rows) > 1 and {len(row) for row in rows} == {len(rows[0])}, f"{rows[:3]}")
                status, _, direct = scene.fetch(f"{path}&format=spreadsheet")
                check(status == 200 and direct.startswith(b"\xef\xbb\xbf"), f"{path} answered {status}: {direct[:80]!r}")
                return data == direct

            # New events may come between two questions; then they are asked again.
            until(f"{kind}: what is downloaded from the {which} is the same CSV", same, 30)
        scene.close()
    # What goes wrong is said.
    page = scene.open(given.fragment("add"), tolerate=[r"status of 422"])
    settle(page)
    page.route(re.compile("format=spreadsheet"), lambda route: problem(route, 422, "the answer would have too many rows"))
    page.locator("#download-chart").click()
    expect(page.locator("#download-chart")).to_have_text("Failed")
    expect(page.locator("#problem")).to_have_text("the answer would have too many rows")
    scene.close()


def both_themes_are_legible(scene, given):
    least = {}
    for scheme in ("light", "dark"):
        page = scene.open(given.fragment("add"), scheme=scheme)
        settle(page)
        check(page.evaluate("document.documentElement.dataset.theme") == scheme, f"the system says {scheme}")
        page.locator("#positions summary").click()
        page.locator("#numbers summary").click()
        page.wait_for_timeout(300)
        for name in ("add", "bitmap"):
            if name in given.kinds:
                page.evaluate(f"location.hash = {json.dumps(given.fragment(name))}")
                until("the page follows", lambda: f"q={key(given.kinds[name])}&" in shown_path(page, "chart"))
                settle(page)
                page.wait_for_timeout(400)
                contrasts = page.evaluate(CONTRASTS)
                check(len(contrasts) > 40, f"only {len(contrasts)} texts are visible")
                poor = [each for each in contrasts if each[2] < CONTRAST_MIN]
                check(not poor, f"{scheme}: too little contrast: {poor}")
                least[scheme] = min([each[2] for each in contrasts] + [least.get(scheme, 99)])
        scene.shoot(page, f"desktop-{scheme}")
        other = {"light": "dark", "dark": "light"}[scheme]
        page.locator("#theme").click()
        page.reload()
        settle(page)
        check(page.evaluate("document.documentElement.dataset.theme") == other, "the chosen theme is forgotten")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        is_dark = sum(int(part) for part in re.findall(r"\d+", ground)[:3]) < 128 * 3
        check(is_dark == (other == "dark"), f"the {other} theme has the ground {ground}")
        check(page.evaluate(PIXELS)["colourful"] > 60, f"the chart is blank in the {other} theme")
        scene.close()
    return f"least contrast {least}"


def a_phone_needs_no_sideways_scrolling(scene, given):
    for number_, (kind, metric) in enumerate(given.kinds.items()):
        page = scene.open(given.fragment(kind), width=360, height=740, scheme=("light", "dark")[number_ % 2])
        settle(page)

        def fits(what):
            width = page.evaluate("document.scrollingElement.scrollWidth")
            check(width <= 360, f"{kind}, {what}: the page is {width} pixels wide at 360")
            wide = page.evaluate("""() => [...document.querySelectorAll("button, input, select, canvas, h2, dd, p, code")]
              .filter((each) => each.checkVisibility() && !each.closest(".scroll, .unseen, .skip, .segments"))
              .map((each) => [each.tagName, each.id, Math.round(each.getBoundingClientRect().right)])
              .filter(([, , right]) => right > 360)""")
            check(not wide, f"{kind}, {what}: reaches beyond the screen: {wide}")

        fits("at first")
        scene.shoot(page, f"phone-{kind}")
        check(page.locator("#metrics").is_hidden(), "on a phone the picker begins closed")
        page.locator("#picker-toggle").click()
        expect(page.locator("#metrics")).to_be_visible()
        fits("with the picker open")
        page.locator(f"#metrics .metric[data-key='{key(metric)}']").click()
        expect(page.locator("#metrics")).to_be_hidden()
        page.locator("#numbers summary").click()
        page.locator("#positions summary").click()
        page.locator("#range input[value='custom']").check()
        fits("with everything open")
        scene.close()


def a_refresh_does_not_flicker(scene, given):
    page = scene.open(f"#q={key(given.kinds['add'])}&range=7&bucket=d")
    settle(page)
    page.evaluate("""() => {
      window.kept = ["#chart canvas", "#ranking-rows tr", "#metrics .metric"].map((each) => document.querySelector(each));
      window.removed = 0;
      new MutationObserver((all) => { for (const each of all) window.removed += [...each.removedNodes].filter(
        (node) => node.nodeType === 1 && node.matches("tr, canvas, button, .uplot")).length; })
        .observe(document.body, { childList: true, subtree: true });
    }""")
    fresh(page)
    fresh(page)
    check(page.evaluate("window.kept.every((each) => each.isConnected)"), "a refresh replaces what is on the screen")
    check(page.evaluate("window.removed") == 0, f"a refresh removed {page.evaluate('window.removed')} nodes")
    until("events per second are shown", lambda: re.match(r"[\d,.]+$", page.locator("#rate").text_content()))
    check(page.locator("#spark canvas").count() == 1, "there is no chart of events per second")
    total = scene.ask("/api/v1/stats")["totals"]["events"]
    until("the total is that of the interface", lambda: number(page.locator("#events").get_attribute("title")) >= total)

    # A tab that nobody sees asks nothing.
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true });"
                  "document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(1_500)
    asked.clear()
    page.wait_for_timeout(7_000)
    check(not asked, f"a hidden tab asks: {asked}")
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    until_page(page, "a tab that is seen again asks", lambda: len(asked) >= 2)
    scene.close()


def until_page(page, what, ask):
    """Like until, while the browser's events are seen."""
    deadline = time.monotonic() + PATIENCE_S
    while not ask():
        check(time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s in vain: {what}")
        page.wait_for_timeout(100)


def an_unreachable_server_is_said_and_comes_back(scene, given):
    page = scene.open(f"#q={key(given.kinds['add'])}&range=7&bucket=d", tolerate=[r"net::ERR_CONNECTION_REFUSED"])
    settle(page)
    page.wait_for_timeout(2_500)
    check(page.locator("#unreachable").is_hidden(), "a server that answers is called unreachable")
    rows = table(page)
    page.route("**/api/**", lambda route: route.abort("connectionrefused"))
    page.route("**/readyz", lambda route: route.abort("connectionrefused"))
    expect(page.locator("#unreachable")).to_be_visible()
    expect(page.locator("#unreachable")).to_contain_text(re.compile(r"does not answer.*last answer came \d+ s ago.*Trying again", re.S))
    expect(page.locator("#health")).to_have_text("Unreachable")
    check(len(table(page)) == len(rows), "what was known is gone")
    tries = []
    page.on("request", lambda request: tries.append(time.monotonic()))
    first = number(re.search(r"(\d+) s ago", page.locator("#unreachable-text").text_content())[1])
    until_page(page, "the time since the last answer grows", lambda: number(
        re.search(r"(\d+) s ago", page.locator("#unreachable-text").text_content())[1]) >= first + 2)
    page.wait_for_timeout(9_000)
    check(2 <= len(tries) <= 4, f"{len(tries)} tries in 11 s: retries do not back off, or are not made")
    scene.shoot(page, "unreachable")
    page.unroute("**/api/**")
    page.unroute("**/readyz")
    page.locator("#retry").click()
    expect(page.locator("#unreachable")).to_be_hidden()
    expect(page.locator("#health")).not_to_have_text("Unreachable")
    fresh(page)

    # And by itself.
    page.route("**/api/**", lambda route: route.abort("connectionrefused"))
    expect(page.locator("#unreachable")).to_be_visible()
    page.unroute("**/api/**")
    expect(page.locator("#unreachable")).to_be_hidden(timeout=PATIENCE_MS)
    fresh(page)
    scene.close()


def problem(route, status, detail):
    body = {"type": "urn:traqq:problem:x", "title": "x", "status": status, "detail": detail, "instance": "/"}
    route.fulfill(status=status, content_type="application/problem+json", body=json.dumps(body))


def a_bucket_that_is_not_counted_is_struck_out(scene, given):
    detail = "bucket=h is not counted under this prefix, only d is; set buckets.hour = true to count it from then on"
    page = scene.open(f"#q={key(given.kinds['add'])}&range=7&bucket=d", tolerate=[r"status of 400"],
                      prepare=lambda page: page.route(re.compile("/find.*bucket=h"), lambda route: problem(route, 400, detail)))
    settle(page)
    page.locator("#bucket input[value='h']").click()
    expect(page.locator("#bucket input[value='h']")).to_be_disabled()
    expect(page.locator("#bucket input[value='d']")).to_be_checked()
    expect(page.locator("#hint")).to_contain_text("buckets.hour = true")
    until("the view goes back to days", lambda: "bucket=d" in shown_path(page, "chart"))
    settle(page)
    scene.close()


def trouble_is_said_with_its_reason(scene, given):
    stats = {"ready": False, "not_ready_because": "store: no answer", "lag_records": 1234, "totals": {"records": 5, "events": 5, "batches": 1},
             "partitions": [{"topic": "events", "partition": 3, "state": "stopped", "position": 7, "end": 1241, "lag_records": 1234,
                             "lag_seconds": 75.0, "reason": "the log begins at 9"}]}
    page = scene.open(given.fragment("add"), prepare=lambda page: page.route("**/stats", lambda route: route.fulfill(json=stats)))
    expect(page.locator("#obstacle")).to_contain_text("store: no answer")
    expect(page.locator("#stopped-list")).to_have_text("events/3: the log begins at 9")
    expect(page.locator("#lag")).to_have_text("1,234")
    expect(page.locator("#lag-sub")).to_contain_text("75 s behind")
    scene.shoot(page, "trouble")
    scene.close()

    page = scene.open("#q=add/no_such_field_at_all&range=7&bucket=d", tolerate=[r"status of 404"])
    expect(page.locator("#problem")).to_contain_text("not in the mapping")
    scene.close()


def events_that_are_not_counted_are_said(scene, given):
    first, last = ({"topic": "events", "partition": 2, "offset": offset, "timestamp_ms": 0, "detail": None} for offset in (5, 9))
    letters = {"reason": "no_event", "explanation": "an event has a name", "records": 300, "first": first, "last": last, "last_found_ms": 0}
    refused = {"reason": "invalid_json", "explanation": "it is not JSON", "events": 2, "last_ms": 0, "last_detail": "it is not JSON: line 1, column 7"}
    stats = {"ready": True, "lag_records": 0, "totals": {"records": 301, "events": 1, "batches": 1, "dead_letters": 300}, "most_uncounted": True,
             "dead_letters": {"to": "discard", "reasons": [letters]}, "ingest": {"accepted": 5, "rejected": 2, "reasons": [refused]},
             "partitions": []}
    page = scene.open(given.fragment("add"), prepare=lambda page: page.route("**/stats", lambda route: route.fulfill(json=stats)))
    expect(page.locator("#health[data-state=bad]")).to_have_text("Most events are not counted")
    expect(page.locator("#uncounted-title")).to_contain_text("300 of 301 events could not be counted; 2 of 7 events sent here were refused")
    expect(page.locator("#uncounted-list li").nth(0)).to_have_text(
        "no_event, 300: an event has a name. First events/2 at offset 5, last events/2 at offset 9.")
    expect(page.locator("#uncounted-list li").nth(1)).to_have_text("invalid_json, 2: it is not JSON: line 1, column 7.")
    expect(page.locator("#uncounted-hint")).to_contain_text("discarded")
    expect(page.locator("#events-lost")).to_have_text("300 not counted")
    scene.shoot(page, "uncounted")
    # A few of many are said as well, and the light stays green.
    stats["most_uncounted"] = False
    expect(page.locator("#health[data-state=good]")).to_have_text("Ready")
    expect(page.locator("#uncounted.warn")).to_be_visible()
    stats["totals"] = {"records": 301, "events": 301, "batches": 1, "dead_letters": 0, "values_skipped": 1}
    stats["ingest"] = {"accepted": 5, "rejected": 0, "reasons": []}
    expect(page.locator("#uncounted-list")).to_have_text("1 value left out: no number where one was needed (amounts of add_value).")
    stats["totals"]["values_skipped"] = 0
    expect(page.locator("#uncounted")).to_be_hidden()
    scene.close()


def an_empty_store_says_how_to_begin(scene, _):
    def prepare(page):
        page.route(re.compile("/catalog[?]"), lambda route: problem(route, 404, "nothing has been counted yet"))
        page.route("**/stats", lambda route: route.fulfill(json={"ready": True, "totals": {"events": 0}, "partitions": []}))
    page = scene.open("", prepare=prepare, tolerate=[r"status of 404"], width=360)
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#first-event")).to_contain_text(f"curl -X POST '{scene.url}/api/v1/events'")
    expect(page.locator("#first-demo")).to_have_text("traqq demo")
    check(page.locator("#board").is_hidden(), "an empty store has a board")
    check(page.evaluate("document.scrollingElement.scrollWidth") <= 360, "too wide for a phone")
    page.locator("[data-copy=first-event]").click()
    check(page.evaluate("navigator.clipboard.readText()").startswith("curl -X POST"), "the line is not copied")
    scene.shoot(page, "empty")
    # The first event arrives.
    page.unroute_all()
    settle(page)
    expect(page.locator("#empty")).to_be_hidden()
    scene.close()


def a_token_is_asked_for_and_kept_in_the_tab(scene, given):
    sent = []

    def guard(route):
        sent.append(route.request.headers.get("authorization"))
        if sent[-1] != "Bearer s3cret":
            problem(route, 401, "send the header")
        else:
            own = {**route.request.headers, "authorization": f"Bearer {scene.token}"} if scene.token else route.request.headers
            route.continue_(headers=own)

    held, scene.token = scene.token, None
    page = scene.open(given.fragment("add"), prepare=lambda page: page.route("**/api/**", guard), tolerate=[r"status of 401"])
    scene.token = held
    expect(page.locator("#token-dialog")).to_be_visible()
    page.locator("#token").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#token-wrong")).to_be_visible()
    page.locator("#token").fill("s3cret")
    page.keyboard.press("Enter")
    settle(page)
    expect(page.locator("#token-dialog")).to_be_hidden()
    page.locator("#copy-chart").click()
    line = page.evaluate("navigator.clipboard.readText()")
    check("s3cret" not in line and "Authorization: Bearer $TRAQQ_SERVER__TOKEN" in line, f"copied: {line}")
    sent.clear()
    with page.expect_download() as waited:
        page.locator("#download-chart").click()
    check(Path(waited.value.path()).read_bytes().startswith(b"\xef\xbb\xbftime,"), "no CSV with a token")
    check(set(sent) == {"Bearer s3cret"}, f"the download sends {set(sent)}")
    sent.clear()
    page.reload()
    settle(page)
    check(set(sent) == {"Bearer s3cret"}, f"after a reload the page sends {set(sent)}")
    check(page.evaluate("JSON.stringify(localStorage)").count("s3cret") == 0, "the token is kept for ever")
    scene.close()


def names_are_text_and_nothing_else(scene, given):
    def hostile(route):
        answer = route.fetch().json()
        for result in answer["results"]:
            for row in (result["data"] or {}).get("values", [])[:1]:
                row["value"] = HOSTILE
        result = answer["results"][0]
        result["capped"] = True
        if answer["merged"]:
            result["data"]["values"].append({"value": "__other__", "other": True, "count": 7})
        route.fulfill(json=answer)

    def prepare(page):
        page.route(re.compile("/find[?]"), hostile)
        page.route(re.compile("/catalog[?]"), lambda route: route.fulfill(json=with_name(route.fetch().json())))

    def with_name(catalog):
        return {**catalog, "metrics": [*catalog["metrics"], {"metric": "top", "pattern": HOSTILE, "values": 3}]}

    page = scene.open(f"#q={key(given.kinds['add'])}&range=7&bucket=d", prepare=prepare)
    settle(page)
    for where in ("#ranking-rows", "#legend", "#metrics"):
        expect(page.locator(where)).to_contain_text(HOSTILE)
    expect(page.locator("#ranking-rows tr").last.locator("button")).to_have_text("all other values")
    expect(page.locator("#notes")).to_contain_text("max_values_per_key")
    box = page.locator("#chart .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
    expect(page.locator(".tip")).to_contain_text(HOSTILE)
    check(page.locator("img").count() == 0 and page.evaluate("window.pwned") is None, "a name became an element")
    scene.close()


def names_of_every_object_are_names(scene, given):
    """`#q=constructor/x` found the constructor of all objects where it looked for a kind of metric, and the page stood still."""
    def hostile(route):
        catalog = route.fetch().json()
        more = [{"metric": name, "pattern": name, "values": 1} for name in NAMES]
        more += [{"metric": "top", "pattern": name, "values": 1} for name in NAMES]
        route.fulfill(json={**catalog, "metrics": [*catalog["metrics"], *more]})

    def prepare(page):
        page.route(re.compile("/catalog[?]"), hostile)

    for name in NAMES:
        page = scene.open(f"#q={name}/{name}&range={name}&bucket={name}&measure={name}", prepare=prepare)
        settle(page)
        expect(page.locator("#metrics")).to_contain_text(name)
        scene.close()


NAMES = ["constructor", "__proto__", "toString", "hasOwnProperty"]

CHECKS = [
    files_are_small_and_guarded,
    every_kind_shows_what_the_interface_answers,
    the_previous_period_is_the_one_before,
    the_picker_and_the_url_agree,
    a_value_can_be_seen_alone,
    a_keyboard_is_enough,
    what_is_copied_gives_the_same_answer,
    what_is_downloaded_is_the_question_as_csv,
    both_themes_are_legible,
    a_phone_needs_no_sideways_scrolling,
    a_refresh_does_not_flicker,
    an_unreachable_server_is_said_and_comes_back,
    a_bucket_that_is_not_counted_is_struck_out,
    trouble_is_said_with_its_reason,
    events_that_are_not_counted_are_said,
    an_empty_store_says_how_to_begin,
    a_token_is_asked_for_and_kept_in_the_tab,
    names_are_text_and_nothing_else,
    names_of_every_object_are_names,
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--screenshots", metavar="DIR")
    parser.add_argument("--token", help="server.token, when it is set")
    parser.add_argument("--only", metavar="WORD", default="", help="checks that have it in their name")
    options = parser.parse_args()
    names = ["chromium", "chromium-browser", "google-chrome"]
    browser_path = os.environ.get("TRAQQ_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not browser_path:
        sys.exit("tests/page: install chromium, or set TRAQQ_CHROMIUM")
    if options.screenshots:
        Path(options.screenshots).mkdir(parents=True, exist_ok=True)
    chosen = [each for each in CHECKS if options.only in each.__name__]
    if not chosen:
        sys.exit(f"tests/page: no check has {options.only!r} in its name")
    failures = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=ARGS.split())
        try:
            given = Given(Scene(browser, options.url, options.token, None))
        except (Failed, OSError) as error:
            sys.exit(f"tests/page: {options.url}: {error}")
        for each in chosen:
            name = each.__name__.replace("_", " ")
            scene = Scene(browser, options.url, options.token, options.screenshots)
            begun = time.monotonic()
            try:
                said = each(scene, given)
            except Exception as error:  # whatever it is, the check has failed, and the others say more
                failures += 1
                print(f"FAILED {name}: {error if isinstance(error, Failed) else f'{type(error).__name__}: {error}'}", flush=True)
                for context, page in scene.contexts:
                    if page.faults:
                        print(f"       the console said: {page.faults}", flush=True)
                    scene.shoot(page, f"failed-{each.__name__}")
                    context.close()
            else:
                print(f"ok     {name} ({time.monotonic() - begun:.1f} s{f'; {said}' if said else ''})", flush=True)
        browser.close()
    if failures:
        sys.exit(f"tests/page: {failures} of {len(chosen)} checks failed")
    print(f"tests/page: {len(chosen)} checks passed")


if __name__ == "__main__":
    main()
