"""Drive the page of demo.py in a real browser. `make test-browser` runs these tests and keeps screenshots."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import ROOT, TINY

sync_api = pytest.importorskip('playwright.sync_api', reason='needs requirements-browser.txt')
expect = sync_api.expect
CHROMIUM = os.environ.get('CHROMIUM') or shutil.which('chromium') or shutil.which('google-chrome')
SEEN = ROOT / 'logs' / 'screenshots'
pytestmark = pytest.mark.browser


@pytest.fixture(scope='module')
def logs(tmp_path_factory):
    """Make logs/ with a run of many steps, a conditional one of few, one of points, and a broken checkpoint."""
    folder = tmp_path_factory.mktemp('logs')
    wide = [flag.replace('--ch_mult=1', '--ch_mult=1,2') for flag in TINY]
    points = ['--dataset=circles', '--net=point_mlp', '--T=20']
    for name, extra in {
        'long': ['--T=1000', '--beta_T=0.02'],
        'labels': ['--cond', '--T=50'],
        'points': points,
    }.items():
        argv = [*wide, '--train', '--lr=0.01', '--total_steps=20', *extra, f'--logdir={folder / name}']
        subprocess.run([sys.executable, str(ROOT / 'main.py'), *argv], check=True, capture_output=True)
    (folder / 'broken').mkdir()
    (folder / 'broken' / 'ckpt.pt').write_bytes((folder / 'long' / 'ckpt.pt').read_bytes()[:5000])
    return folder


@pytest.fixture(scope='module')
def address(logs):
    """Serve the page with the long run chosen, and return its address."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    argv = [sys.executable, '-m', 'streamlit', 'run', 'demo.py', f'--server.port={port}', '--']
    argv += [f'--ckpt={logs / "long" / "ckpt.pt"}', f'--logs={logs}']
    with open(logs / 'server.log', 'wb') as log, subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log) as server:
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f'http://127.0.0.1:{port}/_stcore/health')
                    break
                except OSError:
                    assert server.poll() is None, (logs / 'server.log').read_text()
                    time.sleep(0.1)
            yield f'http://127.0.0.1:{port}'
        finally:
            server.terminate()
    log = (logs / 'server.log').read_text()
    assert f'http://127.0.0.1:{port}' in log and 'Traceback' not in log, log


@pytest.fixture
def page(address):
    """Load the page in a new browser. Fails if there is no chromium."""
    with sync_api.sync_playwright() as playwright:
        if not CHROMIUM:
            pytest.fail('no chromium: apt-get install chromium, or set CHROMIUM')
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu', '--disable-background-networking']
        )
        page = browser.new_page(viewport={'width': 1280, 'height': 1000})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        page.goto(address)
        expect(page.get_by_text('Step t = ')).to_be_visible()
        yield page
        SEEN.mkdir(parents=True, exist_ok=True)
        browser.close()


def settled(page):
    """Wait until the script behind the page rests. It also pauses between a click and its run, and between two runs."""
    page.evaluate('window.restingSince = performance.now()')
    page.wait_for_function("""() => {
        const state = document.querySelector('[data-testid=stApp]').dataset.testScriptState
        if (state !== 'notRunning') window.restingSince = performance.now()
        return performance.now() - window.restingSince > 500
    }""")


def step(page):
    """Return the current step that the page names."""
    return int(re.search(r'Step t = (\d+)', page.get_by_text('Step t = ').inner_text())[1])


def at(page, t):
    """Wait for the page to be at rest at a step."""
    expect(page.get_by_text(re.compile(rf'Step t = {t}\b'))).to_be_visible()
    settled(page)


def pictures(page):
    """Return the addresses of the pictures, which are hashes of their content."""
    images = page.locator('[data-testid=stImage] img')
    return [images.nth(i).get_attribute('src') for i in range(images.count())]


def fill(page, label, value):
    """Enter a number into a field."""
    field = page.get_by_label(label, exact=True)
    field.fill(str(value))
    field.press('Enter')
    settled(page)


def choose(page, label, option):
    """Choose an option of a select box, by part of its name."""
    page.get_by_role('combobox', name=label).click()
    page.get_by_role('option').filter(has_text=option).click()


def click(page, name):
    """Click a button."""
    button(page, name).click()


def button(page, name):
    """Find a button of ours: Streamlit shows its own Stop while the script runs."""
    return page.locator('[data-testid=stMain]').get_by_role('button', name=name)


def keep(page, name):
    """Save a screenshot for a person to look at."""
    SEEN.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SEEN / f'{name}.png', full_page=True)


def test_denoise_diffuse_and_reset(page):
    at(page, 1000)
    noise = pictures(page)
    assert len(noise) == 1
    expect(button(page, 'Diffuse')).to_be_disabled()
    fill(page, 'Steps a click', 5)
    click(page, 'Denoise 5 steps')
    at(page, 995)
    denoised = pictures(page)
    assert denoised != noise
    click(page, 'Diffuse 5 steps')
    at(page, 1000)
    assert pictures(page) not in (noise, denoised)
    keep(page, 'diffused')
    click(page, 'Reset')
    expect(page.locator('[data-testid=stImage] img')).to_have_attribute('src', noise[0])
    click(page, 'Denoise 5 steps')
    at(page, 995)
    assert pictures(page) == denoised  # the seed decides


def test_stopping_keeps_what_was_walked(page):
    fill(page, 'Steps a click', 1000)
    click(page, 'Denoise 1000 steps')
    expect(page.get_by_text(re.compile(r'step \d+ of 1000'))).to_be_visible()
    expect(page.get_by_text(re.compile('Step t = [1-9]\\d\\d\\b'))).to_be_visible()  # shown while it runs
    keep(page, 'running')
    click(page, 'Stop')
    expect(button(page, 'Download the animation')).to_be_visible()
    settled(page)
    stopped = step(page)
    assert 0 < stopped < 1000
    keep(page, 'stopped')
    fill(page, 'Steps a click', 5)
    click(page, 'Denoise 5 steps')
    at(page, stopped - 5)
    with page.expect_download() as download:
        click(page, 'Download the animation')
    with open(download.value.path(), 'rb') as file:
        assert file.read(6) == b'GIF89a'


def test_the_predicted_image_and_the_other_weights(page):
    fill(page, 'Steps a click', 5)
    page.get_by_text('Show predicted x0').click()
    expect(page.get_by_text('No prediction yet')).to_be_visible()
    click(page, 'Denoise 5 steps')
    at(page, 995)
    assert len(pictures(page)) == 2
    keep(page, 'predicted')
    page.get_by_text('Show predicted x0').click()
    expect(page.locator('[data-testid=stImage] img')).to_have_count(1)
    settled(page)
    assert step(page) == 995  # the state survives
    page.get_by_text('raw', exact=True).click()
    settled(page)
    click(page, 'Denoise 5 steps')
    at(page, 990)


def test_ddim_walks_to_the_image_in_its_own_steps(page):
    page.get_by_text('DDIM').click()
    settled(page)
    fill(page, 'Sampling steps', 20)
    at(page, 951)
    fill(page, 'Steps a click', 20)
    click(page, 'Denoise 20 steps')
    at(page, 0)
    expect(button(page, 'Denoise 20 steps')).to_be_disabled()
    page.get_by_text('Schedule').click()
    expect(page.locator('[data-testid=stVegaLiteChart]')).to_be_visible()
    keep(page, 'ddim')


def test_switching_to_a_conditional_model_and_to_points(page, logs):
    assert page.get_by_text('Guidance').count() == 0
    choose(page, 'Checkpoint', 'labels/ckpt.pt')
    at(page, 50)
    free = pictures(page)
    choose(page, 'Label', '3')
    settled(page)
    assert pictures(page) == free  # the same noise
    fill(page, 'Steps a click', 50)
    click(page, 'Denoise 50 steps')
    at(page, 0)
    keep(page, 'labels')
    choose(page, 'Checkpoint', 'points/ckpt.pt')
    at(page, 20)
    fill(page, 'Steps a click', 20)
    click(page, 'Denoise 20 steps')
    at(page, 0)
    keep(page, 'points')


def test_a_broken_checkpoint_shows_a_message(page):
    choose(page, 'Checkpoint', 'broken/ckpt.pt')
    expect(page.get_by_text('This checkpoint cannot be used')).to_be_visible()
    expect(page.get_by_text('is damaged or no checkpoint')).to_be_visible()
    assert page.get_by_text('Traceback').count() == 0
    keep(page, 'broken')
    choose(page, 'Checkpoint', 'long/ckpt.pt')
    at(page, 1000)
