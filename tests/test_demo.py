"""Drive the page of demo.py in a real browser. `make test-browser` runs these tests and keeps screenshots."""

import base64
import functools
import io
import math
import os
import re
import shlex
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browsing import chromium, served, settled
from conftest import ROOT, TINY
from PIL import Image
from runs import Forked, config_of

sync_api = pytest.importorskip('playwright.sync_api', reason='needs requirements-browser.txt')

# ruff: noqa: E402
import figure
from draw import masks, picture
from draw.inference import Inference
from draw.noise import Noise
from page import pictures
from run import build, hardware, labels
from run.config import replace
from run.restore import restore

expect = sync_api.expect
SEEN = ROOT / 'logs' / 'screenshots'
SCREEN = {'viewport': {'width': 1280, 'height': 1000}}
PHONE = {'viewport': {'width': 390, 'height': 844}, 'has_touch': True}
N, TILE, T = 9, 160, 40  # images, pixels of one in a picture, and the steps of the first run
pytestmark = pytest.mark.browser


@pytest.fixture(scope='module')
def logs(tmp_path_factory):
    """Make logs/ with a run of images, a conditional one and one of points, and a broken checkpoint."""
    folder = tmp_path_factory.mktemp('logs')
    common = [*TINY, '--train', '--lr=0.01', '--total_steps=20', '--feature_net=classifier']
    wide = [flag.replace('--ch_mult=1', '--ch_mult=1,2').replace('--T=8', f'--T={T}') for flag in common]
    runs = {
        'images': [*wide, '--beta_T=0.2', '--save_step=10', '--var_type=fixedsmall'],
        'labels': [*wide, '--beta_T=0.2', '--cond'],
        'points': [*wide, '--dataset=moons', '--net=point_mlp'],
    }
    started = [Forked(*argv, f'--logdir={folder / name}', log=folder / f'{name}.log') for name, argv in runs.items()]
    assert [run.status() for run in started] == [0, 0, 0]
    (folder / 'broken').mkdir()
    (folder / 'broken' / 'ckpt.pt').write_bytes((folder / 'images' / 'ckpt.pt').read_bytes()[:5000])
    return folder


@pytest.fixture(scope='module')
def address(logs):
    """Serve the page with the run of images chosen, and return its address."""
    with served(logs / 'server.log', f'--ckpt={logs / "images"}', f'--logs={logs}') as address:
        yield address
    log = (logs / 'server.log').read_text()
    assert address in log and not re.search(rf'File "{ROOT}/(demo|page)', log), log


@pytest.fixture(scope='module')
def browser():
    """Start the browser. Fails if there is no chromium."""
    SEEN.mkdir(parents=True, exist_ok=True)
    with sync_api.sync_playwright() as playwright:
        browser = chromium(playwright)
        expect.set_options(timeout=30_000)
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def window(browser):
    """Open a window in which the tabs of all visitors share the files of Streamlit, which takes half the time."""
    with browser.new_context(**SCREEN) as window:
        yield window


@pytest.fixture
def visit(address, browser, window):
    """Return a function that loads the page as a new visitor: visit(query, **options of a browser of their own)."""
    opened = []

    def load(query='', **options):
        if options:
            opened.append(browser.new_context(**SCREEN | options))
        page = (opened[-1] if options else window).new_page()
        opened.append(page)
        page.set_default_timeout(30_000)
        page.goto(query if query.startswith('http') else f'{address}/?{query}')
        expect(page.locator('[data-testid=stRadio]').first).to_be_visible()
        settled(page)
        return page

    yield load
    for each in reversed(opened):
        each.close()


def at(page, t):
    """Wait for the page to be at rest at a state with t noisings."""
    expect(page.get_by_text(re.compile(rf'^t = {t}\b'))).to_be_visible()
    settled(page)


def shown(page, i=0):
    """Return the picture i on the page as an array."""
    src = page.locator('[data-testid=stMain] [data-testid=stImage] img').nth(i).get_attribute('src')
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(src.removeprefix('data:image/png;base64,')))).convert('RGB')
    )


def halves(page):
    """Return the pictures of x_t and of the predicted x_0 as arrays."""
    both = shown(page)
    width = (both.shape[1] - 16) // 2
    return both[:, :width], both[:, width + 16 :]


def drawn(x):
    return np.asarray(picture.of(x, TILE))


def fill(page, label, value):
    """Enter a number into a field."""
    field = page.get_by_role('spinbutton', name=label, exact=isinstance(label, str)).first
    field.fill(str(value))
    field.press('Enter')
    settled(page)


def go(page, k):
    """Go to step k by typing its number."""
    fill(page, re.compile('^Step, of'), k)


def choose(page, label, option):
    """Choose an option of a select box by its name."""
    box = page.get_by_role('combobox', name=label)
    box.evaluate('box => box.scrollIntoView({block: "center"})')
    settled(page)  # a list closes again if the page moves
    box.click()
    page.get_by_role('option').first.wait_for()
    box.press_sequentially(option)
    page.get_by_role('option').filter(has_text=option).first.wait_for()
    box.press('Enter')
    settled(page)


def pick(page, text):
    """Click on a radio button or a toggle by its text."""
    page.get_by_text(text, exact=True).first.click()
    settled(page)


def press(page, name, key):
    """Press a key on a slider."""
    page.get_by_role('slider', name=name).first.press(key)
    settled(page, 400)


def keep(page, name):
    """Save a screenshot for a person to look at."""
    page.screenshot(path=SEEN / f'{name}.png', full_page=True)


@functools.cache
def walked(logs, run, **changes):
    """Return what the sampler itself makes of a run with these settings: the walk, and (t, x, prediction at x)."""
    config = replace(config_of(), ckpt=str(logs / run), weights=changes.pop('weights', 'ema'))
    config, net, _ = restore(config, {'weights'})
    config = replace(config, num_images=N, **changes)
    device = hardware.device(config)
    noise = Noise(config.seed, range(N), build.shape(config), device)
    sampler = build.sampler(config, Inference(net, hardware.precision(config))).to(device)
    x, t, states = sampler.start(noise()), sampler.states[-1], []
    for s, x_s, x0_hat in sampler.trajectory(x, labels.of_indices(config, range(N)), noise=noise):
        states.append((t, x, x0_hat))
        t, x = s, x_s
    return SimpleNamespace(config=config, sampler=sampler, states=[*states, (0, x, x)])


def same(page, state):
    """Check that the page shows a state, (t, x, prediction), exactly as the sampler has it."""
    t, x, x0_hat = state
    at(page, t)
    for _ in range(50):  # the browser may still be drawing
        equal = [(seen == drawn(expected)).all() for seen, expected in zip(halves(page), (x, x0_hat), strict=True)]
        if all(equal):
            return
        time.sleep(0.1)
    raise AssertionError(f"t = {t}: x_t and the prediction are equal to the sampler's: {equal}")


def table(page):
    """Return the rows of the table of a step, [[term, weight, value, product], ...]."""
    rows = page.locator('[data-testid=stTable] tbody tr')
    return [rows.nth(i).locator('th, td').all_inner_texts() for i in range(rows.count())]


def test_no_click_is_lost_and_what_was_walked_is_kept(visit, logs):
    page, ours = visit(), walked(logs, 'images')
    assert page.get_by_role('combobox', name='Checkpoint').input_value() == 'images'  # not its spare
    same(page, ours.states[0])
    up, down = (
        page.locator(f'[data-testid=stMain] [data-testid=stNumberInputStep{way}]').first for way in ('Up', 'Down')
    )
    for _ in range(9):
        up.click()
    same(page, ours.states[9])
    for _ in range(4):
        down.click()
    same(page, ours.states[5])
    keep(page, 'walk')
    press(page, 'Position in the walk', 'ArrowRight')
    same(page, ours.states[6])
    press(page, 'Position in the walk', 'End')
    same(page, ours.states[T])
    go(page, 0)
    same(page, ours.states[0])
    fill(page, 'Steps a click', 15)
    for k in (15, 30, T):  # the last one is shorter
        up.click()
        same(page, ours.states[k])
    down.click()
    same(page, ours.states[T - 15])


def test_play_goes_to_the_end_and_pauses(visit, logs):
    page, ours = visit(), walked(logs, 'images')
    top = page.locator('[data-testid=stImage]').first.bounding_box()
    page.get_by_text('Play', exact=True).click()
    expect(page.get_by_text(re.compile(rf'^t = (?!{T}\b)'))).to_be_visible()
    assert page.locator('[data-testid=stImage]').first.bounding_box() == top  # nothing moves
    page.get_by_text('Play', exact=True).click()
    settled(page)
    t = int(re.search(r't = (\d+)', page.get_by_text(re.compile(r'^t = ')).inner_text())[1])
    assert 0 < t < T
    same(page, ours.states[T - t])
    page.get_by_role('slider', name='Pictures a second').press('End')
    fill(page, 'Steps a click', 8)  # which is what a picture of a play takes too
    page.get_by_text('Play', exact=True).click()
    same(page, ours.states[T])
    time.sleep(0.5)
    same(page, ours.states[T])  # it does not begin again by itself
    page.get_by_text('Play', exact=True).click()  # but it does if asked to
    expect(page.get_by_text(re.compile(r'^t = [1-9]'))).to_be_visible()


def test_a_play_on_a_busy_machine_leaves_the_settings_as_they_were(visit, logs):
    """The browser must not forget a widget of which Streamlit has thrown away an element before it was sent."""
    with served(logs / 'slow.log', f'--ckpt={logs / "images"}', f'--logs={logs}', script='tests/slow_page.py') as slow:
        page, ours = visit(f'{slow}/?n=2&pace=20'), walked(logs, 'images')
        fill(page, 'Row', 6)
        page.get_by_text('Play', exact=True).click()
        same(page, ours.states[T])
        settled(page)
        same(page, ours.states[T])
        assert [box.is_checked() for box in page.locator('[data-testid=stMain] input[type=checkbox]').all()] == [
            False, True, True
        ]  # fmt: skip
        assert page.get_by_role('spinbutton', name='Steps a click').input_value() == '2'
        assert page.get_by_role('slider', name='Pictures a second').get_attribute('aria-valuetext') == '20'
        go(page, T - 2)
        assert page.get_by_role('spinbutton', name='Row').input_value() == '6'


@pytest.mark.parametrize('query', ['', 'order=2&sample_steps=8&', 'order=3&corrector=true&eta=0&sample_steps=8&'])
def test_the_numbers_of_a_step_add_up_to_the_next_state(visit, logs, query):
    options = {name: int(value) for name, value in re.findall(r'(order|sample_steps)=(\d+)', query)}
    if 'corrector' in query:
        options |= {'corrector': True, 'eta': 0.0}
    page, ours = visit(f'{query}walk=denoise3'), walked(logs, 'images', **options)
    fill(page, 'Image', 4)
    fill(page, 'Row', 6)
    fill(page, 'Column', 2)
    *rows, (_, _, _, total) = table(page)
    weights, values, products = ([float(row[i]) for row in rows] for i in (1, 2, 3))
    assert abs(sum(np.multiply(weights, values)) - float(total)) < 1e-5
    assert abs(sum(products) - float(total)) < 1e-5
    assert float(total) == pytest.approx(ours.states[4][1][4, 0, 6, 2].item(), abs=1e-6)
    (_, _, row) = ours.sampler.route()[3]
    assert weights[0] == pytest.approx(row.cx, abs=1e-8) and weights[1] == pytest.approx(row.c[0], abs=1e-8)
    assert len(rows) == 1 + len([c for c in row.c[:4] if c or len(row.c) > 1]) + (row.std > 0)
    equations = page.locator('.katex annotation').all_text_contents()
    assert any(f'{row.cx:.4f}' in text and f'{row.c[0]:.4f}' in text for text in equations)
    count = page.locator('[data-testid=stMain] [data-testid=stImage] img').count()
    assert count == 1 + 6 + len(row.c[:4]) - 1
    expect(page.locator('[data-testid=stVegaLiteChart]')).to_have_count(2)
    go(page, 4)
    assert abs(float(total) - float(table(page)[0][2])) < 1e-7  # it is the x_t of the next step
    keep(page, f'step-{options.get("order", 1)}')


def test_a_real_image_is_diffused_and_comes_back(visit, logs, tmp_path):
    page = visit()
    pick(page, 'training images')
    at(page, 0)
    choose(page, 'Class', '3')
    first = shown(page)
    fill(page, 'From number', 5)
    assert (shown(page) != first).any()
    left, right = halves(page)
    assert (left == right).all()  # x_0 itself
    expect(page.get_by_text('no step of denoising is left')).to_be_visible()
    go(page, 12)
    at(page, 12)
    left, right = halves(page)
    assert (left != right).any()  # there is a prediction after Diffuse
    pick(page, 'Denoise')
    go(page, 24)
    at(page, 0)
    keep(page, 'real')
    path = tmp_path / 'own.png'
    Image.fromarray(np.full((20, 30, 3), 255, np.uint8)).save(path)
    pick(page, 'an image of your own')
    expect(page.get_by_text('Choose an image')).to_be_visible()
    page.locator('input[type=file]').set_input_files(path)
    at(page, 0)
    assert (halves(page)[0][20:100, 20:100] == 255).all()
    page.get_by_text('The same again').click()
    expect(page.get_by_text('does not hold the image')).to_be_visible()


def test_images_are_completed_as_by_the_command_line(visit, logs, tmp_path, monkeypatch):
    page = visit('sample_steps=5&resample=2&jump=2&num_images=4&start=image&item=3&mask=box:1,2,6,7')
    at(page, 33)
    expect(page.get_by_text('what is known')).to_be_visible()
    assert page.get_by_text('Diffuse', exact=True).count() == 0  # it has one direction
    press(page, 'Rows of the box', 'ArrowRight')
    fill(page, 'Row', 3)
    fill(page, 'Column', 0)  # a known pixel
    for k in (0, 1, 2, 10):  # of 5 steps, of which 4 are taken twice, and 2 on the way back up
        go(page, k)
        *rows, (_, _, _, total) = table(page)
        assert abs(sum(float(row[1]) * float(row[2]) for row in rows) - float(total)) < 1e-5
        if len(rows) == 3:
            put_in = next(text for text in page.locator('.katex annotation').all_text_contents() if 'cdot' in text)
            y, raw, x0_hat = (float(number) for number in re.findall(r'-?\d\.\d{8}', put_in))
            assert y == x0_hat == float(rows[1][2]) and raw != y
    expect(page.get_by_text('Back up from')).to_have_count(0)
    go(page, 2)
    expect(page.get_by_text('Back up from 17 to 33')).to_be_visible()
    keep(page, 'complete')
    go(page, 11)
    at(page, 0)
    other = visit(page.url)
    at(other, 0)
    assert (shown(other) == shown(page)).all()
    with page.expect_download() as download:
        page.get_by_role('button', name='Save the images to complete').click()
    download.value.save_as(tmp_path / download.value.suggested_filename)
    monkeypatch.chdir(tmp_path)
    compare_with_command(page, tmp_path, 4)
    samples = np.load(tmp_path / 'out' / 'samples.npz')['arr_0'][..., 0]
    sources = np.load(tmp_path / 'sources.npz')['arr_0'][..., 0]
    known = np.ones((8, 8), bool)
    known[3:7, 1:6] = False
    assert (samples[:, known] == sources[:, known]).all() and (samples != sources).any()


def test_an_image_of_ones_own_is_completed_several_times(visit, tmp_path, monkeypatch):
    page = visit('ckpt=labels/ckpt.pt&sample_steps=4&order=2&resample=1&num_images=2&start=image&mask=half')
    expect(page.get_by_text('say with --labels what the images show')).to_be_visible()
    choose(page, 'Label', '3')
    path = tmp_path / 'own.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)).save(path)
    pick(page, 'an image of your own')
    page.locator('input[type=file]').set_input_files(path)
    at(page, T)
    choose(page, 'Draw anew', 'pixels at random')
    at(page, T)
    go(page, 4)
    with page.expect_download() as download:
        page.get_by_role('button', name='Save the images to complete').click()
    download.value.save_as(tmp_path / 'sources.npz')
    monkeypatch.chdir(tmp_path)
    compare_with_command(page, tmp_path, 2)
    samples = np.load('out/samples.npz')['arr_0'][..., 0]
    known = masks.known('random:0.5', '', 1, 8, 8, 0)[0, 0].numpy()
    assert (samples[:, known] == np.load('sources.npz')['arr_0'][..., 0][:, known]).all()
    assert (samples[0] != samples[1]).any()
    keep(page, 'complete-own')


def compare_with_command(page, folder, n):
    """Run the command line that the page shows, and check that its n images are those of the page."""
    page.get_by_text('The same again').click()
    command = shlex.split(page.locator('[data-testid=stCode] code').first.inner_text())
    assert command[:2] == ['python', 'main.py']
    assert Forked(*command[2:], f'--out={folder / "out"}', log=folder / 'log').status() == 0, command
    images = [Image.open(folder / 'out' / f'{i:06d}.png') for i in range(n)]
    x = torch.stack([torch.from_numpy(np.asarray(image).copy()) for image in images])[:, None]
    tile = pictures.WIDTH // math.ceil(math.sqrt(n))
    assert (np.asarray(picture.grid(x, tile=tile)) == halves(page)[0]).all()


def test_a_changed_setting_begins_a_new_walk_at_once(visit, logs):
    page, total = visit('ckpt=labels/ckpt.pt'), {}
    go(page, 10)
    for act, changes in (
        (lambda: choose(page, 'Label', '3'), {'labels': '3'}),
        (lambda: pick(page, 'raw'), {'weights': 'net'}),
        (lambda: choose(page, 'Sampler', 'UniPC-2'), {'order': 2, 'corrector': True, 'eta': 0.0}),
        (lambda: fill(page, 'Sampling steps', 6), {'sample_steps': 6}),
        (lambda: fill(page, 'Seed', 5), {'seed': 5}),
    ):
        act()
        total |= changes
        ours = walked(logs, 'labels', **total)
        same(page, ours.states[0])
        go(page, 4)
        same(page, ours.states[4])


def test_every_control_of_the_sampler_counts_and_what_does_not_fit_is_said(visit, logs):
    page = visit()
    choose(page, 'Sampler', 'DDIM')
    fill(page, 'Sampling steps', 4)
    expect(page.get_by_text('begins at 31, not at 40')).to_be_visible()
    choose(page, 'Spacing', 'trailing')
    fill(page, 'eps_scale', 1.01)
    pick(page, 'Clip outputs')
    ours = walked(logs, 'images', eta=0.0, sample_steps=4, spacing='trailing', eps_scale=1.01, clip_denoised=True)
    go(page, 3)
    same(page, ours.states[3])
    pick(page, 'Corrector')
    choose(page, 'Order', '3')
    press(page, 'eta', 'ArrowRight')
    expect(page.get_by_text('These settings do not go together')).to_be_visible()
    press(page, 'eta', 'Home')
    ours = walked(
        logs, 'images', eta=0.0, sample_steps=4, spacing='trailing', eps_scale=1.01, clip_denoised=True,
        order=3, corrector=True,
    )  # fmt: skip
    go(page, 4)
    same(page, ours.states[4])
    left = halves(page)[0]
    pick(page, 'Show predicted x_0')
    hidden = halves(page)
    assert (hidden[0] == left).all() and (hidden[1] == 0).all()  # x_t keeps its place and size


def test_points_have_one_scale_and_go_to_the_image(visit, logs):
    page = visit('ckpt=points/ckpt.pt&num_images=500')
    axes = halves(page)[0][446:, :]
    assert (axes == halves(page)[1][446:, :]).all()
    go(page, T)
    at(page, 0)
    assert (halves(page)[0][446:, :] == axes).all()
    go(page, T // 2)
    fill(page, 'Point', 7)
    *rows, (_, _, _, total) = table(page)
    assert abs(sum(float(row[1]) * float(row[2]) for row in rows) - float(total)) < 1e-5
    pick(page, 'training points')
    at(page, 0)
    keep(page, 'points')
    pick(page, 'Figures')
    expect(page.get_by_text('Figures are of images')).to_be_visible()


def test_two_settings_are_compared_from_one_noise(visit, logs):
    page = visit('ckpt=labels/ckpt.pt')
    pick(page, 'Compare')
    fill(page, re.compile('^Sampling steps'), T)
    many = walked(logs, 'labels').states[-1][1].clamp(-1, 1)
    few = {'order': 2, 'eta': 0.0, 'sample_steps': 10}
    for what, changes in (
        ('the sampler', few),
        ('the weights', {'weights': 'net'}),
        ('the guidance', {'guidance': 3.0}),
    ):
        choose(page, 'B differs from A in', what)
        page.get_by_role('button', name='Draw both').click()
        expect(page.get_by_text(re.compile(r'[\d.]+ s for \d+ steps'))).to_have_count(2)
        settled(page)
        other = walked(logs, 'labels', **changes).states[-1][1].clamp(-1, 1)
        assert (shown(page, 0) == drawn(many)).all() and (shown(page, 1) == drawn(other)).all(), what
        rms = page.get_by_text('Root mean square').inner_text()
        assert rms.endswith(f'{(many - other).square().mean().sqrt().item():.3f}')
    keep(page, 'compare')
    choose(page, 'B differs from A in', 'the checkpoint')
    page.get_by_role('combobox', name='Checkpoint').last.click()
    page.get_by_role('option').filter(has_text='points').click()
    expect(page.get_by_text('draw images of different shapes')).to_be_visible()
    page.get_by_role('combobox', name='Checkpoint').last.click()
    page.get_by_role('option').filter(has_text='images').click()
    page.get_by_role('button', name='Draw both').click()
    expect(page.get_by_text(re.compile(r'[\d.]+ s for \d+ steps'))).to_have_count(2)


def test_the_figures_of_the_command_line_are_drawn_by_a_button(visit, logs):
    page = visit('view=figures&figure=interpolate')
    page.get_by_role('button', name='Draw').click()
    expect(page.locator('[data-testid=stMain] [data-testid=stImage] img')).to_be_visible()
    expect(page.get_by_text('--figure=interpolate')).to_have_count(1)
    choose(page, 'Figure', 'progressive')
    expect(page.locator('[data-testid=stMain] [data-testid=stImage] img')).to_have_count(0)
    page.get_by_role('button', name='Draw').click()
    expect(page.locator('[data-testid=stMain] [data-testid=stImage] img')).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role('button', name='PNG', exact=True).click()
    assert Image.open(download.value.path()).width > 300
    keep(page, 'figure')


@pytest.mark.parametrize('kind, run, more', [('interpolate', 'images', '&between=codes'), ('guidance', 'labels', '')])
def test_a_figure_of_the_page_is_that_of_the_command_line(visit, logs, kind, run, more):
    page = visit(f'ckpt={run}/ckpt.pt&view=figures&figure={kind}&sample_steps=4&order=2&num_images=2{more}')
    page.get_by_role('button', name='Draw').click()
    expect(page.locator('[data-testid=stMain] [data-testid=stImage] img')).to_be_visible()
    settled(page)
    with page.expect_download() as download:
        page.get_by_role('button', name='PNG', exact=True).click()
    config = replace(config_of(), ckpt=str(logs / run))
    config, net, _ = restore(config, set())
    config = replace(config, figure=kind, between='codes', sample_steps=4, order=2, spacing='auto', num_images=2)
    expected = figure.FIGURES[kind](config, net, lambda: False)
    assert (np.asarray(Image.open(download.value.path())) == np.asarray(expected)).all()
    keep(page, kind)


def test_a_checkpoint_of_the_paper_s_network_is_loaded_once(visit, logs):
    config = config_of('--flagfile=config/CIFAR10.txt')
    config.channels, config.class_names = 3, []
    weights = build.network(config).state_dict()
    step = 123_457  # so that the log tells of this checkpoint alone
    config.ema_decay = 0.999999  # it warns, once each time it loads, that its average is hardly one
    state = {'net_model': weights, 'ema_model': weights, 'step': step, 'config': vars(config)}
    (logs / 'paper').mkdir()
    torch.save(state, logs / 'paper' / 'ckpt.pt')
    page, *others = (visit('ckpt=paper/ckpt.pt&num_images=1&order=2&sample_steps=4') for _ in range(2))
    expect(page.get_by_text('35,874,307 parameters')).to_be_visible()
    for k in (1, 2):
        go(page, k)
    for other in others:
        go(other, 1)
        assert (halves(other)[0] != halves(page)[0]).any()
    assert (logs / 'server.log').read_text().count(f'step {step}') == 1
    shutil.rmtree(logs / 'paper')


def test_a_link_and_a_command_make_the_same_again_and_files_are_saved(visit, logs, tmp_path):
    page = visit('ckpt=labels/ckpt.pt&order=2&sample_steps=9&seed=3&labels=2')
    go(page, 9)
    compare_with_command(page, tmp_path, N)
    link = page.locator('[data-testid=stCode] code').last.inner_text()
    pick(page, 'Diffuse')
    go(page, 12)
    assert page.url.split('?')[1] != link.split('?')[1]
    other = visit(page.url)
    at(other, 3)
    assert (shown(other) == shown(page)).all()
    assert other.get_by_role('spinbutton', name='Seed').input_value() == '3'
    for name, kind in (('Save the state as PNG', 'PNG'), ('Save the walk as GIF', 'GIF')):
        with page.expect_download() as download:
            page.get_by_role('button', name=name).click()
        image = Image.open(download.value.path())
        assert image.format == kind and getattr(image, 'n_frames', 1) == (13 if kind == 'GIF' else 1)
        assert os.path.getsize(download.value.path()) < 1e6


def test_a_link_that_cannot_be_followed_says_so(visit):
    page = visit('seed=3000000000')
    expect(page.get_by_text('seed must be 0 to 2147483647 here')).to_be_visible()
    at(page, T)


def test_two_visitors_do_not_share_a_walk(visit, logs):
    one, two = visit(), visit(locale='en-GB')  # in browsers of their own
    ours = walked(logs, 'images')
    go(one, 7)
    go(two, 2)
    same(one, ours.states[7])
    same(two, ours.states[2])


def test_a_checkpoint_that_is_broken_or_deleted_is_one_line(visit, logs):
    shutil.copytree(logs / 'images', logs / 'passing')
    page = visit('ckpt=passing/ckpt.pt')
    go(page, 3)
    shutil.rmtree(logs / 'passing')
    go(page, 5)  # the walk goes on
    at(page, T - 5)
    pick(page, 'raw')
    expect(page.get_by_text('is missing: choose another checkpoint')).to_be_visible()
    choose(page, 'Checkpoint', 'broken')
    expect(page.get_by_text('is damaged or no checkpoint')).to_be_visible()
    assert page.get_by_text('Traceback').count() == 0 and page.locator('[data-testid=stAlert]').count() == 1
    keep(page, 'broken')
    choose(page, 'Checkpoint', 'images')
    at(page, T)
    page.get_by_role('combobox', name='Checkpoint').click()
    expect(page.get_by_role('option')).to_have_count(4)  # neither the deleted one nor any spare


def test_a_phone_shows_the_picture_and_the_controls_without_scrolling(visit):
    page = visit('walk=denoise20', color_scheme='dark', **PHONE)
    expect(page.locator('[data-testid=stImage]').first).to_be_in_viewport(ratio=1)
    assert page.evaluate('document.querySelector("[data-testid=stMain]").scrollWidth') <= 390
    assert page.evaluate('getComputedStyle(document.documentElement).fontSize') == '18px'
    dark = page.evaluate('getComputedStyle(document.querySelector("[data-testid=stApp]")).backgroundColor')
    assert max(map(int, re.findall(r'\d+', dark)[:3])) < 60
    keep(page, 'phone')


def test_the_language_is_that_of_the_browser_and_can_be_switched(visit):
    page = visit('walk=denoise5', locale='zh-CN')
    expect(page.get_by_text('逐步走过扩散过程')).to_be_visible()
    pick(page, 'English')
    expect(page.get_by_text('Step through a diffusion')).to_be_visible()
    at(page, T - 5)  # and the walk is where it was
    pick(page, '中文')
    expect(page.get_by_text('这一步里发生了什么')).to_be_visible()
    keep(page, 'chinese')
