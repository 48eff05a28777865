"""Photograph a report for the README: `make demo`, then `python docs/photograph.py demo/report.html`."""

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parent / "images" / "report.png"
WIDTH, SHARPNESS = 1400, 1.4
LAST = "ΔM against ΔD"  # the card down to which it goes


def photograph(report: Path, picture: Path) -> None:
    """Write the top of a report as PNG, from its head to the end of a card."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": WIDTH, "height": 2000}, device_scale_factor=SHARPNESS)
        page.goto(report.resolve().as_uri())
        page.wait_for_timeout(3000)
        card = page.get_by_text(LAST, exact=True).first.locator(
            "xpath=ancestor::*[contains(concat(' ', @class, ' '), ' card ')][1]"
        )
        box = card.bounding_box()
        if box is None:
            raise SystemExit(f"{report}: there is no {LAST!r}")
        page.screenshot(path=picture, clip={"x": 0, "y": 0, "width": WIDTH, "height": box["y"] + box["height"] + 10})
        browser.close()
    Image.open(picture).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    photograph(Path(sys.argv[1]), PICTURE)
