"""Take the pictures of the page for docs/: python tests/page_pictures.py LOGS FOLDER, or make page-pictures.

LOGS, relative to the root of the project, holds the runs of config/DIGITS.txt and config/S_CURVE.txt.
"""

import sys
import tempfile
from pathlib import Path

from browsing import chromium, served, settled
from PIL import Image
from playwright.sync_api import sync_playwright

COLOURS = 256  # of a picture, which is then a third of the size
# name -> query, name of a button to press or None, and size and colours of the browser
PICTURES = {
    'page': ('ckpt=DIGITS/ckpt.pt&order=2&eta=0&sample_steps=20&walk=denoise12', None, 1700, 'light'),
    'page_points': ('ckpt=S_CURVE/ckpt.pt&walk=denoise60', None, 960, 'dark'),
    'page_compare': ('ckpt=DIGITS/ckpt.pt&view=compare', 'Draw both from one noise', 1120, 'light'),
}


def main(logs, folder):
    """Write each of PICTURES as a PNG."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        served(Path(temporary) / 'log', f'--logs={logs}') as address,
        sync_playwright() as playwright,
    ):
        browser = chromium(playwright)
        for name, (query, button, height, colours) in PICTURES.items():
            page = browser.new_page(viewport={'width': 1280, 'height': height}, color_scheme=colours)
            page.goto(f'{address}/?lang=en&{query}')
            page.locator('[data-testid=stRadio]').first.wait_for()
            settled(page)
            if button:
                page.get_by_role('button', name=button).click()
            page.locator('[data-testid=stImage]').first.wait_for()
            page.wait_for_timeout(2000)  # charts are drawn last
            settled(page)
            path = Path(folder) / f'{name}.png'
            page.screenshot(path=path)
            Image.open(path).convert('RGB').quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
        browser.close()


if __name__ == '__main__':
    main(*sys.argv[1:])
