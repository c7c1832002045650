"""How many frames a second the page holds beside 8 workers and 64 requests, and what they cost, view by view.

`python -m tests.dashboard.frames` prints a row for each view. Without a GPU, as in a container, Chromium paints on the processor,
which shows in the frames and not in the time that scripts take.
"""

from contextlib import closing

from playwright.sync_api import CDPSession, sync_playwright

from tests.dashboard.fake_feed import FakeFeed, Server
from tests.dashboard.pictures import FULL_MS, VIEWS
from tests.support.browser import WIDE, chromium

NUM_FRAMES = 300
FRAMES = """
    (count) => new Promise((done) => {
        const began = performance.now();
        const frame = () => (count-- > 0 ? requestAnimationFrame(frame) : done(performance.now() - began));
        requestAnimationFrame(frame);
    })
"""


def busy_s(session: CDPSession) -> tuple[float, float]:
    """What the page's thread has spent so far: on scripts, and in all."""
    found = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    return found["ScriptDuration"], found["TaskDuration"]


def main() -> None:
    with closing(Server(FakeFeed())) as desk, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDE[0], "height": WIDE[1]})
        page.goto(f"{desk.url}/#timeline")
        page.wait_for_timeout(FULL_MS)
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})  # the thread's own time, whatever else runs
        print(f"{'view':10} {'frames/s':>9} {'scripts':>9} {'all work':>9}   a frame")
        for view in VIEWS:
            page.get_by_role("navigation", name="Views").get_by_role("link", name=view).click()
            page.wait_for_timeout(1000)
            before = busy_s(session)
            took_ms = page.evaluate(FRAMES, NUM_FRAMES)
            scripts, work = (
                1000 * (now - then) / NUM_FRAMES for now, then in zip(busy_s(session), before, strict=True)
            )
            print(f"{view:10} {1000 * NUM_FRAMES / took_ms:9.1f} {scripts:6.2f} ms {work:6.2f} ms")
        browser.close()


if __name__ == "__main__":
    main()
