"""Pictures of every view of the dashboard, beside the desk that is not there, for the documents.

`python -m tests.dashboard.pictures [FOLDER]` writes them to docs/figures: each view in light, in dark and on a telephone.
It needs Pillow, as nothing else here does: `.venv/bin/pip install pillow`.
"""

import io
import math
import sys
from contextlib import closing
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.dashboard.fake_feed import FakeFeed, Server
from tests.support.browser import NARROW, chromium

FIGURES = Path(__file__).resolve().parents[2] / "docs" / "figures"
VIEWS = ("cluster", "timeline", "requests", "charts", "chat", "journal")
# Name of the picture, colours, size of the window.
LOOKS = (("light", "light", (1200, 800)), ("dark", "dark", (1200, 800)), ("narrow", "light", NARROW))
NUM_COLOURS, NUM_GROUNDS = 15, 7
GROUNDS_APART, SHADES_APART = 8, 26
# A colour with a tint says something: by how much more it counts for each part of that.
VIVID = 0.1
TALL = 1190
# Until the timeline is full.
FULL_MS = 11_000


def prepare(page: Page, view: str, look: str) -> None:
    """What a visitor would do to see what the view is for."""
    page.get_by_role("navigation", name="Views").get_by_role("link", name=view).click()
    if view == "timeline":
        for _ in range(5):
            page.get_by_role("button", name="Shorter span").click()
        page.get_by_role("button", name="Pause").click()
    if view == "timeline" and look == "dark":
        canvas = page.get_by_role("application")
        for key in ",,,,,,,,,,,,,,,,,,,,,":
            canvas.press(key)
        page.locator(".detail .chip").last.click()
    if view == "chat":
        page.get_by_label("Message").fill("What is a KV cache?")
        page.get_by_role("button", name="Send").click()
        page.get_by_role("button", name="Why this way?").click()
        page.get_by_role("row", name="tensor-parallel").wait_for()
    page.wait_for_timeout(700)


def reduced(png: bytes) -> bytes:
    """As lossless WebP in its commonest colours, which is nearly all that a page has: a sixth of what came."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    used = picture.getcolors(picture.width * picture.height) or []
    kept: list[tuple[int, ...]] = []
    for _, colour in sorted(used, key=lambda use: use[0] * (1 + VIVID * (max(use[1]) - min(use[1]))), reverse=True):
        # Grounds differ by little, and are what is seen; of the shades at the edges of letters some are enough.
        apart = GROUNDS_APART if len(kept) < NUM_GROUNDS else SHADES_APART
        if len(kept) < NUM_COLOURS and all(math.dist(colour, other) > apart for other in kept):
            kept.append(colour)
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for colour in kept for part in colour])
    written = io.BytesIO()
    few = picture.quantize(palette=palette, dither=Image.Dither.NONE).convert("RGB")
    few.save(written, "WEBP", lossless=True, method=6)
    return written.getvalue()


def main(folder: Path) -> None:
    with closing(Server(FakeFeed())) as desk, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        total = 0
        for look, scheme, (width, height) in LOOKS:
            size = {"width": width, "height": height}
            page = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce").new_page()
            page.goto(f"{desk.url}/#timeline")
            page.wait_for_timeout(FULL_MS)
            for view in VIEWS:
                prepare(page, view, look)
                # The first is the one that stands for all: with what is below the fold.
                page.set_viewport_size(size | ({"height": TALL} if (view, look) == (VIEWS[0], "light") else {}))
                file = folder / f"dashboard-{view}-{look}.webp"
                file.write_bytes(reduced(page.screenshot()))
                total += file.stat().st_size
                print(f"{file.name}: {file.stat().st_size / 1000:.0f} kB")
            page.context.close()
        print(f"{total / 1000:.0f} kB together")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FIGURES)
