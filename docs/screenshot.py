"""Draws the first screen of a report as docs/report.png, the picture in the README.

    python docs/screenshot.py [REPORT.html] [--out PNG] [--size 1280x860] [--dark]

Needs Chromium or Chrome on the PATH.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("report", type=Path, nargs="?", default=ROOT / "runs/pipelines/demo/report.html")
    arguments.add_argument("--out", type=Path, default=ROOT / "docs/report.png")
    arguments.add_argument(
        "--size", default="1280x860", help="of the window, in CSS pixels; the picture has twice as many"
    )
    arguments.add_argument("--dark", action="store_true", help="as a reader sees it whose system is dark")
    given = arguments.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"screenshot: no browser found; install one of {', '.join(BROWSERS)}")
    if not given.report.is_file():
        sys.exit(
            f"screenshot: {given.report} does not exist; make it first: athanor pipeline experiment=pipelines/demo"
        )
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                "--hide-scrollbars", "--force-device-scale-factor=2", f"--user-data-dir={profile}",
                f"--blink-settings=preferredColorScheme={0 if given.dark else 1}",
                f"--window-size={given.size.replace('x', ',')}", f"--screenshot={given.out.resolve()}",
                given.report.resolve().as_uri(),
            ],
            check=True, timeout=120, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    print(given.out)


if __name__ == "__main__":
    main()
