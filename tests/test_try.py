"""Draw on the page of docs/try in a real browser. `make test-browser` runs these tests and keeps screenshots."""

import json
import os
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from browsing import chromium, folder_served
from conftest import ROOT, TINY
from PIL import Image
from runs import Forked

sync_api = pytest.importorskip('playwright.sync_api', reason='needs requirements-browser.txt')

# ruff: noqa: E402
from draw.noise import NOISES
from draw.picture import to_uint8

expect = sync_api.expect
PAGE, SEEN = ROOT / 'docs' / 'try', ROOT / 'logs' / 'screenshots'
LABELS = ['--cond', '--var_type=learned_range', '--loss=hybrid', '--guidance=3', '--guidance_interval=0.3,2']
COLOUR = ['--channels=3', '--img_size=4x8']  # height and width
pytestmark = pytest.mark.browser


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """Serve the page in a folder of its own, and return the folder and its address. The models are missing."""
    if not (PAGE / 'vendor' / 'ort.wasm.bundle.min.mjs').exists():
        pytest.skip('needs onnxruntime-web: make test-browser downloads it')
    folder = tmp_path_factory.mktemp('site')
    shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns('model'), dirs_exist_ok=True)
    with folder_served(folder) as address:
        yield folder, address


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Train a network of digits and one of digits with labels, and export them."""
    folder = tmp_path_factory.mktemp('models')
    common = [*TINY, '--train', '--lr=0.01', '--total_steps=20', '--ema_decay=0.5', '--export=onnx']
    wide = [flag.replace('--ch_mult=1', '--ch_mult=1,2').replace('--T=8', '--T=12') for flag in common]
    runs = {'digits': ['--order=2', '--sample_steps=10', '--clip_denoised'], 'labels': [*LABELS, *COLOUR]}
    started = [
        Forked(*wide, *argv, f'--logdir={folder / name}', log=folder / f'{name}.log') for name, argv in runs.items()
    ]
    assert [run.status() for run in started] == [0, 0], [run.error() for run in started]
    return folder


@pytest.fixture(scope='module')
def browser():
    """Start the browser. Skips if there is no chromium."""
    SEEN.mkdir(parents=True, exist_ok=True)
    with sync_api.sync_playwright() as playwright:
        try:
            browser = chromium(playwright)
        except FileNotFoundError as error:
            pytest.skip(str(error))
        yield browser
        browser.close()


@pytest.fixture
def visit(site, browser):
    """Return a function that opens the page with a model: visit(folder or None, script to run first, options)."""
    folder, address = site
    contexts = []

    def load(model=None, script='', **options):
        shutil.rmtree(folder / 'model', ignore_errors=True)
        if model:
            shutil.copytree(model, folder / 'model')
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.add_init_script(script)
        page.goto(address)
        expect(page.get_by_role('status')).not_to_contain_text('Loading', timeout=60_000)
        return page

    yield load
    for context in contexts:
        context.close()


def draw(page):
    page.get_by_role('button', name='Draw').click()
    expect(page.get_by_role('status')).to_have_text(re.compile('^Drawn in'), timeout=60_000)


def shown(page, name, n, height=8, width=8):
    """Return the n pictures on a canvas, uint8 [n, height, width, 3]."""
    script = 'c => [c.width, ...c.getContext("2d").getImageData(0, 0, c.width, c.height).data]'
    whole, *pixels = page.locator(f'#{name}').evaluate(script)
    tiled = np.array(pixels, dtype=np.uint8).reshape(-1, whole, 4)
    columns = (whole + 1) // (width + 1)
    corners = [(i // columns * (height + 1), i % columns * (width + 1)) for i in range(n)]
    return np.stack([tiled[row : row + height, column : column + width, :3] for row, column in corners])


def same(images, expected):
    """Assert that images are equal to 2 grey levels, and that they are not all of one grey."""
    assert np.abs(images.astype(int) - expected).max() <= 2 and np.ptp(expected, axis=(1, 2, 3)).min() > 50


@pytest.mark.parametrize(
    'model, choices, controls',
    [
        ('digits', {}, {}),
        ('digits', {'eta': '0', 'order': '3', 'images': '1'}, {'seed': '12345678901'}),
        ('labels', {}, {}),
        ('labels', {'steps': '10', 'order': '2', 'eta': '0.5', 'label': '7', 'images': '4'}, {'guidance': '1'}),
        ('labels', {'steps': '5', 'images': '4'}, {'guidance': '0', 'seed': '9'}),
    ],
)
def test_the_browser_draws_what_the_command_below_draws(visit, models, tmp_path, cli, model, choices, controls):
    page = visit(models / model / 'onnx')
    for name, value in choices.items():
        page.locator(f'#{name}').select_option(value)
    for name, value in controls.items():
        page.locator(f'#{name}').fill(value)
    draw(page)
    command = page.locator('#command').inner_text().replace('CHECKPOINT', str(models / model))
    words = shlex.split(command)
    assert words[:2] == ['python', 'main.py']
    status, _, error = cli(*words[2:], '--device=cpu', f'--out={tmp_path}')
    assert status == 0, error
    expected = np.stack([np.array(Image.open(path).convert('RGB')) for path in sorted(tmp_path.glob('0*.png'))])
    assert len(expected) == int(choices.get('images', 16))
    same(shown(page, 'x_t', *expected.shape[:3]), expected)
    page.screenshot(path=SEEN / f'try_{model}.png', full_page=True)


def test_the_slider_goes_from_noise_to_the_image(visit, models):
    page = visit(models / 'digits' / 'onnx', color_scheme='dark', viewport={'width': 390, 'height': 844})
    page.get_by_label('Images').select_option('4')
    draw(page)
    position = page.get_by_role('slider', name='Position in the walk')
    assert (position.get_attribute('max'), position.input_value()) == ('10', '10')
    assert (shown(page, 'x_t', 4) == shown(page, 'x0_hat', 4)).all()
    position.press('Home')
    expect(page.get_by_text('t = 12 noisings left')).to_be_visible()
    z = NOISES['philox'](0, range(4), (8, 8), torch.device('cpu'))()
    same(shown(page, 'x_t', 4), to_uint8(z).numpy()[..., None].repeat(3, axis=3))
    assert (shown(page, 'x_t', 4) != shown(page, 'x0_hat', 4)).any()
    assert page.evaluate('document.documentElement.scrollWidth') == 390  # nothing is wider than a phone
    assert max(map(int, re.findall(r'\d+', page.evaluate('getComputedStyle(document.documentElement).color')))) > 200
    page.screenshot(path=SEEN / 'try_phone.png', full_page=True)


def test_only_what_has_a_table_can_be_chosen_and_a_walk_can_be_stopped(visit, models):
    page = visit(models / 'digits' / 'onnx', 'delete window.setTimeout; window.setTimeout = () => 0')
    order, eta = page.get_by_label('Order'), page.get_by_label('Eta')
    assert eta.locator('option:disabled').count() == 0 and page.get_by_label('Guidance').is_hidden()
    assert order.locator('option:disabled').all_inner_texts() == ['3']  # which is for eta = 0
    eta.select_option('0')
    order.select_option('3')
    assert eta.locator('option:disabled').all_inner_texts() == ['0.5', '1']
    page.get_by_role('button', name='Draw').click()  # the walk waits for a timer that never comes
    expect(page.get_by_role('status')).to_have_text('Step 0 of 10')
    page.get_by_role('button', name='Stop').click()
    expect(page.get_by_role('status')).to_have_text('Stopped.')
    expect(page.get_by_role('button', name='Draw')).to_be_visible()


def test_what_is_missing_is_said_in_one_line(visit, models, site, tmp_path):
    folder, _ = site
    described = json.loads((models / 'digits' / 'onnx' / 'sampler.json').read_text())
    (tmp_path / 'sampler.json').write_text(json.dumps({**described, 'shape': [2]}))
    for model, script, text in (
        (None, '', 'model/sampler.json is missing: run make try.'),
        (tmp_path, '', 'This is a model of points, and the page draws images.'),
        (models / 'digits' / 'onnx', 'delete window.WebAssembly', 'This browser has no WebAssembly'),
    ):
        page = visit(model, script)
        expect(page.get_by_role('status')).to_contain_text(text)
        assert page.locator('main').is_hidden()
    (folder / 'vendor').rename(folder / 'elsewhere')
    try:
        expect(visit().get_by_role('status')).to_contain_text('which runs the network, is missing: run make try.')
    finally:
        (folder / 'elsewhere').rename(folder / 'vendor')


def test_a_model_that_has_changed_is_shown_at_once(visit, models, site, tmp_path):
    """A browser takes a file to be unchanged for a tenth of its age, unless it is told to ask."""
    old = shutil.copytree(models / 'digits' / 'onnx', tmp_path / 'old')
    for path in old.iterdir():
        os.utime(path, (0, 10**9))
    page, (folder, address) = visit(old), site
    assert page.get_by_label('Guidance').is_hidden()
    shutil.rmtree(folder / 'model')
    shutil.copytree(models / 'labels' / 'onnx', folder / 'model')
    page.goto(address)
    expect(page.get_by_role('status')).to_have_text('Press Draw.')
    assert page.get_by_label('Guidance').is_visible()


def test_a_seed_is_what_the_command_takes_or_nothing_is_drawn(visit, models):
    page = visit(models / 'digits' / 'onnx')
    for seed in ('-1', '1.5', '9007199254740992', '18446744073709551616'):
        page.locator('#seed').fill(seed)
        page.get_by_role('button', name='Draw').click()
        assert page.get_by_role('status').inner_text() == 'Press Draw.' and page.locator('#command').is_hidden(), seed
    page.locator('#seed').fill('1e3')
    draw(page)
    expect(page.locator('#command')).to_contain_text('--seed=1000 ')


def test_noise_in_javascript_is_that_of_python(visit, models):
    page = visit(models / 'digits' / 'onnx')
    known = page.evaluate("import('./sampler.js').then((it) => it.philox(0n, 0n, 0n).map((word) => word.toString(16)))")
    assert known == ['16554d9eca36314c', 'db20fe9d672d0fdc', 'd7e772cee186176b', '7e68b68aec7ba23b']  # of Random123
    seed, indices = 2**64 - 1, [3, 70, 0]
    drawn = page.evaluate(f"""import('./sampler.js').then(({{ Noise }}) => {{
        const noise = new Noise({seed}n, {indices}, 15)
        return [noise.draw(), noise.draw()].map((z) => [...z])
    }})""")
    noise = NOISES['philox'](seed, indices, (15,), torch.device('cpu'))
    for z in drawn:
        np.testing.assert_allclose(np.float32(z), noise().flatten(), rtol=3e-7, atol=1e-9)
