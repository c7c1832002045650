"""The dashboard's page in a browser, beside a feed that plays four machines with eight workers and 64 requests."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.dashboard.conftest import KEY
from tests.support.browser import NARROW

VIEWS = ("cluster", "timeline", "requests", "charts", "chat", "journal")
# The texts whose contrast with what is behind them is below WCAG's AA.
FAINT = """
    () => {
        const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
        const over = (...colours) => {
            for (const colour of colours) {
                canvas.fillStyle = colour;
                canvas.fillRect(0, 0, 1, 1);
            }
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
        };
        const luminance = (rgb) => rgb
            .map((part) => part / 255)
            .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
            .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
        const grounds = (element) => (element ? [...grounds(element.parentElement), getComputedStyle(element).backgroundColor] : []);
        const faint = [];
        for (const element of document.querySelectorAll("body *")) {
            const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
            if (!own || !element.checkVisibility({ visibilityProperty: true }) || element.closest("option, :disabled")) continue;
            const { color, fill, fontSize, fontWeight } = getComputedStyle(element);
            const behind = grounds(element);
            const ink = element instanceof SVGElement ? fill : color;
            const [one, other] = [luminance(over(...behind, ink)), luminance(over(...behind))].sort((a, b) => b - a);
            const size = parseFloat(fontSize);
            const least = size >= 24 || (size >= 18.66 && fontWeight >= 700) ? 3 : 4.5;
            const ratio = (one + 0.05) / (other + 0.05);
            if (ratio < least) faint.push(`${element.className} ${element.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
        }
        return [...new Set(faint)];
    }
"""
DRAWN = re.compile(r"^M")
BUSY = re.compile(r"[5-9]\d %")
TWO_FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
# How many pixels of the canvas have the colour of the swatch.
PAINTED = """
    ([canvas, swatch]) => {
        const colour = getComputedStyle(document.querySelector(swatch)).backgroundColor.match(/\\d+/g).map(Number);
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
        copy.drawImage(canvas, 0, 0);
        const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
        let found = 0;
        for (let at = 0; at < data.length; at += 4) {
            if (colour.every((each, index) => Math.abs(data[at + index] - each) < 3)) found += 1;
        }
        return found;
    }
"""


def painted(page: Page, kind: str) -> int:
    canvas = page.locator("canvas").element_handle()
    return page.evaluate(PAINTED, [canvas, f".kind-{kind}"])


def pause(page: Page) -> None:
    """The timeline stands still, full of steps that are wide enough to have a colour of their own."""
    for _ in range(4):
        page.get_by_role("button", name="Shorter span").click()
    expect(page.locator("#view-timeline tbody td").first).to_have_text(BUSY)
    page.get_by_role("button", name="Pause").click()
    page.evaluate(TWO_FRAMES)


def view(page: Page, name: str):
    page.get_by_role("navigation", name="Views").get_by_role("link", name=name).click()
    shown = page.get_by_role("region", name=name, exact=True).first
    expect(shown).to_be_visible()
    return shown


def test_cluster_shows_machines_cables_layers_and_memory(desk, visit):
    page = visit(desk.url)
    machines = page.get_by_role("list", name="Machines").locator("> li")
    expect(machines).to_have_count(4)
    expect(machines.nth(1)).to_contain_text("macbook")
    expect(machines.nth(1)).to_contain_text("Apple M4 Max · 64 GB · macOS 26.1")
    expect(page.locator(".cable-label", has_text="Thunderbolt").first).to_contain_text("GB/s")
    expect(page.locator(".warnings")).to_contain_text("Wi-Fi is in use")
    rows = page.get_by_role("table", name="Layers and memory of each worker").get_by_role("row")
    expect(rows).to_have_count(9)
    expect(rows.nth(1)).to_contain_text("0\N{EN DASH}15 and the whole model")
    expect(rows.nth(8)).to_contain_text("75\N{EN DASH}79")
    expect(rows.nth(8)).to_contain_text(re.compile(r"[\d.]+ GB of 12 GB"))


def test_cluster_says_what_each_route_promises_while_that_is_known(own_desk, visit):
    page = visit(own_desk.url)
    rows = page.get_by_role("table", name="Predicted figures of each route").get_by_role("row")
    expect(rows).to_have_count(4)
    expect(rows.nth(1)).to_contain_text(
        "studio-1 \N{RIGHTWARDS ARROW} \N{HORIZONTAL ELLIPSIS} \N{RIGHTWARDS ARROW} mini-2-2"
    )
    expect(rows.nth(1)).to_contain_text("4,120 tokens/s")
    expect(rows.nth(2)).to_contain_text("studio-1 + studio-2tensor-parallel")
    expect(rows.nth(3)).to_contain_text("14.2 tokens/s")
    own_desk.feed.desk.lose("mini-1-2", page.evaluate("Date.now() / 1000"))
    expect(page.get_by_text("Nothing was measured of this plan")).to_be_visible()
    expect(rows).to_have_count(0)


def test_cables_are_told_as_a_table_too(desk, visit):
    page = visit(desk.url)
    page.get_by_text("All links as a table").click()
    row = page.get_by_role("table", name="Links between workers").get_by_role("row", name="macbook-1 mini-2-1 Wi-Fi")
    expect(row).to_contain_text("60 MB/s")
    expect(row).to_contain_text("a cable between the two would be faster")


def test_cards_stand_beside_each_other_and_do_not_overlap(desk, visit):
    page = visit(desk.url)
    expect(page.locator(".machine")).to_have_count(4)
    boxes = [card.bounding_box() for card in page.locator(".machine").all()]
    for index, one in enumerate(boxes):
        for other in boxes[index + 1 :]:
            apart_x = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
            apart_y = one["y"] + one["height"] <= other["y"] or other["y"] + other["height"] <= one["y"]
            assert apart_x or apart_y


def test_lost_worker_is_seen_within_two_seconds(own_desk, visit):
    page = visit(own_desk.url)
    row = page.get_by_role("table", name="Layers and memory of each worker").get_by_role("row", name="mini-1-2")
    expect(row).to_contain_text("62\N{EN DASH}69")
    own_desk.feed.desk.lose("mini-1-2", page.evaluate("Date.now() / 1000"))
    expect(row).to_contain_text("its process ended", timeout=2000)
    expect(page.locator("#state")).to_have_text("degraded")
    expect(page.get_by_role("listitem").filter(has_text="Lost mini-1-2")).to_be_visible()


def test_cluster_that_nobody_has_joined_yet_is_shown(own_desk, visit):
    own_desk.feed.desk.is_starting = True
    page = visit(own_desk.url)
    expect(page.locator("#state")).to_have_text("starting")
    expect(page.get_by_text("No machine has joined yet.")).to_be_visible()
    expect(page.get_by_role("row", name="studio-1")).to_contain_text("its process ended")


def test_timeline_paints_steps_and_says_how_busy_workers_are(desk, visit):
    page = visit(f"{desk.url}/#timeline")
    pause(page)
    assert painted(page, "decode") > 1000
    assert painted(page, "prefill") > 0
    page.get_by_text("The span that is shown as a table").click()
    row = page.get_by_role("table", name="What each worker did").get_by_role("row", name="studio-1")
    expect(row).to_contain_text(re.compile(r"\d+ %"))


def test_timeline_is_moved_by_keys_and_says_what_is_picked(desk, visit):
    page = visit(f"{desk.url}/#timeline")
    pause(page)
    canvas = page.get_by_role("application")
    canvas.press(" ")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    canvas.press(" ")
    expect(page.get_by_role("button", name="Go on")).to_be_visible()
    canvas.press("+")
    expect(page.locator(".span")).to_contain_text("1.32 s to")
    canvas.press(",")
    canvas.press(",")
    said = page.locator(".detail")
    expect(said).to_contain_text(re.compile(r"Step \d+ on studio-1: \w+ of [\d,]+ tokens?"))
    number = re.search(r"Step (\d+)", said.inner_text())[1]
    canvas.press("ArrowDown")
    expect(said).to_contain_text(f"Step {number} on studio-2")
    canvas.press("Escape")
    expect(said).to_contain_text("Pick a step")


def test_timeline_is_picked_and_moved_by_pointer(desk, visit):
    page = visit(f"{desk.url}/#timeline")
    pause(page)
    canvas, said = page.get_by_role("application"), page.locator(".detail strong")
    for x in range(300, 600, 7):  # between two steps there is nothing to pick
        canvas.click(position={"x": x, "y": 17})
        if said.inner_text():
            break
    expect(said).to_contain_text("on studio-1")
    before = page.locator(".span").inner_text()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 900, box["y"] + 20, steps=3)
    page.mouse.up()
    expect(page.locator(".span")).not_to_have_text(before)
    expect(said).to_contain_text("on studio-1")


def test_request_stands_out_on_the_timeline(desk, visit):
    page = visit(f"{desk.url}/#timeline")
    pause(page)
    everything = painted(page, "decode")
    page.locator(".detail .chip").first.click()
    expect(page.locator(".detail")).to_contain_text("Request r")
    page.wait_for_function(
        "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
    )
    assert 0 < painted(page, "decode") < everything / 2


def test_request_leads_to_its_steps(desk, visit):
    page = visit(f"{desk.url}/#requests")
    link = page.get_by_role("table", name="Requests that run or wait").get_by_role("link").first
    name = link.inner_text()
    link.click()
    expect(page.locator(".detail")).to_contain_text(f"Request {name}")


def test_requests_show_route_reason_and_both_times(desk, visit):
    page = visit(f"{desk.url}/#requests")
    row = page.get_by_role("row").filter(has_text="distributed-cached").filter(has_text="running").first
    expect(row).to_contain_text("studio-1 → … → mini-2-2")
    expect(row).to_contain_text("Distributed-cached is predicted to take")
    expect(row).to_contain_text(re.compile(r"predicted [\d.]+ m?s"))
    ended = page.get_by_role("table", name="Requests that ended").get_by_role("row")
    assert ended.count() > 1


def test_request_is_cancelled(own_desk, visit):
    page = visit(f"{own_desk.url}/#requests")
    button = page.get_by_role("button", name="Cancel request").first
    name = button.get_attribute("aria-label").removeprefix("Cancel request ")
    button.click()
    ended = page.get_by_role("table", name="Requests that ended").get_by_role("row").filter(has_text=name)
    expect(ended).to_contain_text("cancelled")
    expect(page.get_by_role("button", name=f"Cancel request {name}", exact=True)).to_have_count(0)


def test_charts_are_read_by_keys_and_as_a_table(desk, visit):
    page = visit(f"{desk.url}/#charts")
    expect(page.locator("figure")).to_have_count(6)
    for line in page.locator(".plot path.line").all():
        expect(line).to_have_attribute("d", DRAWN)
    chart = page.get_by_role("slider", name="Time to the first token")
    chart.focus()
    last = chart.get_attribute("aria-valuetext")
    assert re.fullmatch(r"\d\d:\d\d:\d\d: p50 .+, p99 .+", last)
    chart.press("ArrowLeft")
    expect(chart).not_to_have_attribute("aria-valuetext", last)
    page.get_by_text("The same as a table").click()
    expect(page.get_by_role("table", name="The last hour").get_by_role("row").nth(60)).to_be_visible()


def test_chart_spans_are_chosen(desk, visit):
    page = visit(f"{desk.url}/#charts")
    line = page.locator(".plot path.line").first
    expect(line).to_have_attribute("d", DRAWN)
    hour = line.get_attribute("d").count("L")
    page.get_by_role("button", name="5 min", exact=True).click()
    assert 30 <= line.get_attribute("d").count("L") <= 61 < hour


def test_chat_shows_an_answer_its_route_and_speed(desk, visit):
    page = visit(f"{desk.url}/#chat")
    page.get_by_label("Strategy").select_option("single-device-cached")
    page.get_by_label("Message").fill("What is a KV cache?")
    page.get_by_label("Message").press("Enter")
    answer = page.get_by_role("article", name="Answer")
    expect(answer.locator("footer")).to_contain_text("single-device-cached")
    expect(answer.locator("footer")).to_contain_text("31.4 tokens/s")
    expect(answer.locator("strong").first).to_have_text("KV cache")
    expect(answer.locator("pre")).to_contain_text("keys, values = cache.update(keys, values)")
    expect(answer).to_contain_text("<b>bytes</b>")
    answer.get_by_role("button", name="Why this way?").click()
    expect(answer.get_by_role("row", name="tensor-parallel")).to_contain_text("no group of workers is configured")


def test_refused_question_is_told_as_a_sentence(desk, visit):
    page = visit(f"{desk.url}/#chat")
    page.get_by_label("Message").fill("fail")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert").filter(has_text="The queue is full; try again in 2 s.")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    visit.expect_problem("429")


def test_answer_is_stopped(own_desk, visit):
    own_desk.feed.pause_s = 0.2
    page = visit(f"{own_desk.url}/#chat")
    page.get_by_label("Message").fill("Hello")
    page.get_by_role("button", name="Send").click()
    answer = page.get_by_role("article", name="Answer")
    expect(answer).to_contain_text("KV cache")
    page.get_by_role("button", name="Stop").click()
    expect(answer).to_contain_text("Stopped.")
    assert "not time" not in answer.inner_text()


def test_journal_shows_events_findings_and_logs(desk, visit):
    page = visit(f"{desk.url}/#journal")
    expect(page.get_by_role("listitem").filter(has_text="Resumed 58 requests").last).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text="talk over Wi-Fi").last).to_contain_text("Join them by a cable")
    log = page.get_by_role("log", name="Log lines")
    expect(log.locator("p")).to_have_count(60)
    page.get_by_label("Show only lines with").fill("r4107")
    expect(log.locator("p")).to_have_count(1)


def test_visitor_without_a_key_looks_and_does_nothing(locked_desk, visit):
    page = visit(f"{locked_desk.url}/#requests")
    expect(page.get_by_role("link", name=re.compile(r"^r\d+")).first).to_be_visible()
    expect(page.get_by_role("button", name="Cancel request")).to_have_count(0)
    expect(view(page, "Chat")).to_contain_text("Enter the key of this cluster to chat with it.")
    expect(page.get_by_label("Message")).to_be_hidden()
    expect(view(page, "Journal")).to_contain_text("Logs are shown to those who have a key.")


def test_key_lets_a_visitor_act_for_as_long_as_the_tab_lives(locked_desk, visit):
    page = visit(f"{locked_desk.url}/#requests")
    page.get_by_role("button", name="Enter key").click()
    page.get_by_label("Key", exact=True).fill("wrong")
    page.get_by_role("button", name="Use key").click()
    expect(page.get_by_text("This key is not known here.")).to_be_visible()
    visit.expect_problem("401")
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Use key").click()
    expect(page.get_by_role("button", name="Cancel request").first).to_be_visible()
    page.reload()
    expect(page.get_by_role("button", name="Key in use")).to_be_visible()
    assert page.evaluate("Object.values(localStorage).join()") == ""


def test_lost_connection_is_told_and_found_again(own_desk, visit):
    page = visit(own_desk.url)
    expect(page.locator("#state")).to_have_text("ready")
    own_desk.feed.is_cut = True
    banner = page.locator("#link")
    expect(banner).to_contain_text("The connection to the cluster is lost")
    expect(page.locator("#state")).to_have_text("unknown")
    own_desk.feed.is_cut = False
    expect(banner).to_be_hidden()
    expect(page.locator("#state")).to_have_text("ready")
    visit.problems = [problem for problem in visit.problems if "503" not in problem]


@pytest.mark.parametrize("size", [NARROW, (768, 1024)], ids=["telephone", "tablet"])
def test_nothing_scrolls_sideways(desk, visit, size):
    page = visit(desk.url, size=size)
    for name in VIEWS:
        page.get_by_role("navigation", name="Views").get_by_role("link", name=name).click()
        expect(page.locator(f"#view-{name}")).to_be_visible()
        wide = page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")
        assert wide == size[0], name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(desk, visit, scheme):
    page = visit(desk.url, scheme=scheme)
    for name in VIEWS:
        page.get_by_role("navigation", name="Views").get_by_role("link", name=name).click()
        expect(page.locator(f"#view-{name}")).to_be_visible()
        expect(page.locator(f"#view-{name} :is(li, td, text, p)").first).to_be_attached()
        assert page.evaluate(FAINT) == [], name


def test_theme_follows_the_system_until_one_is_chosen(desk, visit):
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    page = visit(desk.url, scheme="dark")
    dark = page.evaluate(ground)
    page.get_by_role("button", name="Colours: as the system").click()
    page.get_by_role("button", name="Colours: light").wait_for()
    assert page.evaluate(ground) != dark
    page.reload()
    page.get_by_role("button", name="Colours: light").click()
    page.get_by_role("button", name="Colours: dark").wait_for()
    assert page.evaluate(ground) == dark


def test_views_are_reached_by_keyboard_and_named(desk, visit):
    page = visit(desk.url)
    expect(page.locator("#view-cluster")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the content")).to_be_focused()
    page.get_by_role("link", name="Charts").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#view-charts")).to_be_visible()
    expect(page).to_have_title("Charts · Tandem")
    expect(page.get_by_role("link", name="Charts")).to_have_attribute("aria-current", "page")


def test_every_control_has_a_name_and_every_table_a_caption(desk, visit):
    page = visit(desk.url)
    for name in VIEWS:
        page.get_by_role("navigation", name="Views").get_by_role("link", name=name).click()
        expect(page.locator(f"#view-{name} h2").first).to_be_attached()
    unnamed = (
        "all => all.filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"
    )
    assert page.locator("button, select, textarea, input, a").evaluate_all(unnamed) == []
    assert page.locator("table:not(:has(caption))").count() == 0
    ids = page.locator("[id]").evaluate_all("all => all.map((e) => e.id)")
    assert len(ids) == len(set(ids))
