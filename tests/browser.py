"""A page in a real browser (Debian's chromium, headless), at any width."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
"""None: no browser; tests that need one are skipped."""
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --enable-logging=stderr "
    "--allow-file-access-from-files"
)
_PROBE = """onload = () => {
  const inner = document.querySelector("iframe").contentDocument;
  document.body.dataset.seen = JSON.stringify({
    scroll_width: inner.scrollingElement.scrollWidth,
    drawn: [...inner.querySelectorAll("figure [role=img] > svg")].filter(f => f.getBoundingClientRect().height > 80).length,
  });
};"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the browser made of a page."""

    console: str
    """Everything it logged."""
    scroll_width: int
    """Width of the page's content, CSS pixels; above the window's: it scrolls sideways."""
    drawn: int
    """Figures with a height."""


def look(source: str, folder: Path, width: int) -> Seen:
    """Open a page in a frame of `width` CSS pixels (a window of its own can't be narrower than 500).

    Args:
        source: the page.
        folder: for the files of the visit.
        width: of the window.
    """
    (folder / "page.html").write_text(source, encoding="utf-8")
    frame = f'<iframe src="page.html" style="border: 0; width: {width}px; height: 900px"></iframe>'
    (folder / "frame.html").write_text(f"<body>{frame}<script>{_PROBE}</script></body>", encoding="utf-8")
    command = [
        CHROMIUM,
        *_FLAGS.split(),
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1400,900",
        "--dump-dom",
    ]
    done = subprocess.run([*command, (folder / "frame.html").as_uri()], capture_output=True, text=True, timeout=120)
    seen = json.loads(re.search(r'data-seen="([^"]*)"', done.stdout)[1].replace("&quot;", '"'))
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return Seen(console=console, **seen)
