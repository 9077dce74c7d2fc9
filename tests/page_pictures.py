"""Take the pictures of the pages for docs/: python tests/page_pictures.py LOGS FOLDER, or make page-pictures.

LOGS, relative to the root of the project, holds the runs of config/DIGITS.txt and config/S_CURVE.txt, and docs/try
what `make try-files MODEL=DIGITS_CFG` puts there.
"""

import sys
import tempfile
from pathlib import Path

from browsing import ROOT, chromium, folder_served, served, settled
from PIL import Image
from playwright.sync_api import sync_playwright

COLOURS = 256  # of a picture, which is then a third of the size
# name -> query, name of a button to press or None, and size and colours of the browser
PICTURES = {
    'page': ('ckpt=DIGITS/ckpt.pt&order=2&eta=0&sample_steps=20&walk=denoise12', None, 1790, 'light'),
    'page_points': ('ckpt=S_CURVE/ckpt.pt&walk=denoise60', None, 960, 'dark'),
    'page_compare': ('ckpt=DIGITS/ckpt.pt&view=compare', 'Draw both from one noise', 1120, 'light'),
}


def main(logs, folder):
    """Write each of PICTURES, and one of docs/try, as a PNG."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        served(Path(temporary) / 'log', f'--logs={logs}') as address,
        folder_served(ROOT / 'docs' / 'try') as address_of_try,
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
            take(page, Path(folder) / f'{name}.png')
        take(on_the_way(browser, address_of_try), Path(folder) / 'try.png')
        browser.close()


def on_the_way(browser, address):
    """Return the page of docs/try, on the way through a walk with guidance."""
    page = browser.new_page(viewport={'width': 940, 'height': 840})
    page.goto(address)
    page.get_by_label('Guidance').fill('2')
    page.get_by_role('button', name='Draw').click()
    page.get_by_text('Drawn in').wait_for()
    page.get_by_role('slider').fill('14')
    return page


def take(page, path):
    """Save what a page shows in few colours."""
    page.screenshot(path=path)
    Image.open(path).convert('RGB').quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
