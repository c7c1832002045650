"""The page's modules by themselves, in a browser: what they make of given input."""

from contextlib import closing

import pytest

from tests.support.browser import Visits

# The same steps, once as they come while the picture moves on, once all at once: both must look the same.
PAINTED_AS_IT_MOVES = """
    async () => {
        const { Painter, KINDS } = await import("/dashboard/painter.js");
        const { Steps } = await import("/dashboard/steps.js");
        const frame = document.body.appendChild(document.createElement("div"));
        frame.className = "timeline";
        const swatches = KINDS.map((kind) => frame.appendChild(document.createElement("span")));
        swatches.forEach((swatch, index) => (swatch.className = `swatch kind-${KINDS[index]}`));
        const begin = 1_800_000_000;
        let seed = 7;
        const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
        const all = [];
        for (let at = begin; at < begin + 12; at += 0.004 + random() * 0.05) {
            const s = 0.003 + random() * 0.02;
            const worker = random() < 0.5 ? "one" : "two";
            all.push({ worker, n: all.length, route: "one>two", kind: KINDS[all.length % 5] ?? "new", at, s, tokens: 1, requests: ["r1"] });
        }
        const copies = () => all.map((step) => ({ ...step }));
        const painted = (steps, until) => {
            const canvas = frame.appendChild(document.createElement("canvas"));
            const painter = new Painter(canvas, swatches);
            const paint = (to) => painter.paint({
                names: ["one", "two"], steps, fresh: steps.takeFresh(), shares: new Map(), from: to - 4, to, request: null, picked: null,
            });
            until(paint);
            const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
            copy.drawImage(canvas, 0, 0);
            return copy.getImageData(0, 0, canvas.width, canvas.height).data;
        };
        const moving = new Steps();
        const moved = painted(moving, (paint) => {
            let told = 0;
            const coming = copies();
            for (let to = begin + 0.5; to < begin + 11; to += 0.0167) {
                // Some come late: after their time was painted.
                for (; told < coming.length && coming[told].at + coming[told].s < to + 0.1 - (told % 3) * 0.2; told += 1) {
                    moving.add(coming[told].worker, [coming[told]], to);
                }
                paint(to);
            }
            for (; told < coming.length; told += 1) moving.add(coming[told].worker, [coming[told]], begin + 11);
            paint(begin + 11);
        });
        const still = new Steps();
        for (const step of copies()) still.add(step.worker, [step], begin + 11);
        const whole = painted(still, (paint) => paint(begin + 11));
        let different = 0;
        let coloured = 0;
        for (let at = 0; at < whole.length; at += 4) {
            coloured += whole[at] !== whole[at + 1] || whole[at + 1] !== whole[at + 2];
            different += [0, 1, 2].some((part) => Math.abs(whole[at + part] - moved[at + part]) > 2);
        }
        return { different, coloured, pixels: whole.length / 4 };
    }
"""
BLOCKS = """
    async (text) => {
        const { blocks } = await import("/dashboard/markdown.js");
        const root = document.createElement("div");
        root.append(...blocks(text));
        return root.innerHTML;
    }
"""
EVENTS = """
    async ([text, size]) => {
        const { EventReader } = await import("/dashboard/feed.js");
        const found = [];
        const reader = new EventReader((name, data) => found.push([name, data]));
        for (let at = 0; at < text.length; at += size) reader.read(text.slice(at, at + size));
        return found;
    }
"""
FORMATTED = """
    async ([name, value]) => (await import("/dashboard/format.js"))[name](value)
"""


@pytest.fixture(scope="module")
def page(desk, browser):
    with closing(Visits(browser)) as visits:
        yield visits(desk.url)
        assert visits.problems == []


def test_picture_that_moves_is_the_one_that_is_painted_at_once(page):
    found = page.evaluate(PAINTED_AS_IT_MOVES)
    assert found["coloured"] > 10_000
    assert found["different"] == 0


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a **b** *c* `d*e*`", "<p>a <strong>b</strong> <em>c</em> <code>d*e*</code></p>"),
        ("<b>a</b> & <script>x()</script>", "<p>&lt;b&gt;a&lt;/b&gt; &amp; &lt;script&gt;x()&lt;/script&gt;</p>"),
        ("2 * 3 * 4 and snake_case_name", "<p>2 * 3 * 4 and snake_case_name</p>"),
        ("a\nb\n\nc", "<p>a\nb</p><p>c</p>"),
        ("- a\n- b\n  - c\n\nd", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><p>d</p>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("```py\n<i>\n", '<pre data-language="py" tabindex="0"><code>&lt;i&gt;\n</code></pre>'),
        ("```\na\n```\nb", '<pre tabindex="0"><code>a</code></pre><p>b</p>'),
        ("> a\n> b", "<blockquote><p>a\nb</p></blockquote>"),
        ("[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>"),
        ("# a", '<p class="heading level-1" role="heading" aria-level="3">a</p>'),
        ("a\n---\nb", "<p>a</p><hr><p>b</p>"),
    ],
)
def test_answer_is_shown_as_it_is_written(page, text, html):
    assert page.evaluate(BLOCKS, text) == html


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_events_are_read_whatever_they_are_cut_into(page, size):
    text = ': quiet\n\nevent: status\ndata: {"a":1}\n\nevent: x\ndata: 1\ndata: 2\n\ndata: cut'
    assert page.evaluate(EVENTS, [text, size]) == [["status", '{"a":1}'], ["x", "1\n2"]]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("seconds", None, "\N{EN DASH}"),
        ("seconds", 0, "0 s"),
        ("seconds", 0.000062, "62 \N{MICRO SIGN}s"),
        ("seconds", 0.00996, "10 ms"),
        ("seconds", 0.9996, "1.00 s"),
        ("seconds", 125, "2 min 05 s"),
        ("bytes", 999_600, "1 MB"),
        ("bytes", 39_040_000_000, "39 GB"),
        ("number", 1234.5, "1,235"),
        ("share", 0.404, "40 %"),
        ("layers", [3, 4], "3"),
        ("layers", None, "\N{EN DASH}"),
        ("route", ["a", "b"], "a \N{RIGHTWARDS ARROW} b"),
        ("sentence", "port 1 is in use", "Port 1 is in use."),
    ],
)
def test_figures_are_said_as_people_read_them(page, name, value, text):
    assert page.evaluate(FORMATTED, [name, value]) == text
