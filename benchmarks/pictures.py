"""Pictures of pages for the docs, taken by Debian's Chromium.

python benchmarks/pictures.py runs/demo/report.html docs/pictures/report-demo.png --height 2200
"""

from __future__ import annotations

import argparse
import base64
import shutil
from io import BytesIO
from pathlib import Path

from PIL import Image
from selenium import webdriver


def picture(page: Path, width: int, height: int, dark: bool) -> bytes:
    """The top of a page as PNG."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        colours = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": colours})
        shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
        browser.get(page.resolve().as_uri())
        return base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])
    finally:
        browser.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=2200)
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args()
    content = picture(arguments.page, arguments.width, arguments.height, arguments.dark)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    Image.open(BytesIO(content)).convert("RGB").save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
