"""Check what the page is made of, without a browser: its walk, its numbers, its texts and its command lines."""

import ast
import io
import re
import string
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qsl

import numpy as np
import pytest
import torch
from absl.testing import flagsaver
from conftest import ROOT, TINY
from PIL import Image
from runs import load

pytest.importorskip('streamlit', reason='needs requirements-demo.txt')

from streamlit.testing.v1 import AppTest

import main
from dataset import DataError
from diffusion import GaussianDiffusionSampler
from draw import masks
from draw.noise import Noise
from draw.walk import Edit, denoise
from page import opening, pictures, settings, show, step, texts
from page.walk import Walk, most_items
from process.operators import inpaint
from run.config import drawn_keys, replace
from run.restore import restore

SHAPE, T, CPU = (1, 4, 4), 12, torch.device('cpu')


def net(x, t, y=None):
    """Predict something that depends on all inputs and is not linear in x."""
    return 0.6 * x.sin() + 0.03 * t[0] + (0 if y is None else 0.1 * y[:, None, None, None])


def sampler(**options):
    return GaussianDiffusionSampler(net, 1e-3, 0.3, T, 4, **options)


def walk(**options):
    return Walk(sampler(**options), Noise(3, range(2), SHAPE, CPU), torch.tensor([0, 1]))


KINDS = [
    {},
    {'steps': 5, 'var_type': 'fixedsmall', 'eta': 0.5},
    {'steps': 6, 'order': 2},
    {'steps': 6, 'order': 3, 'eta': 0.0, 'corrector': True},
    {'steps': 6, 'clip_denoised': True, 'spacing': 'trailing'},
]


@pytest.mark.parametrize('options', KINDS)
def test_a_walk_of_p_is_the_trajectory_of_the_sampler_and_its_noise(options):
    noise, ours = Noise(3, range(2), SHAPE, CPU), walk(**options)
    x_T = sampler(**options).start(noise())
    expected = list(sampler(**options).trajectory(x_T, torch.tensor([0, 1]), noise=noise))
    assert ours.end(True) == len(expected)
    for k in range(len(expected)):  # one at a time, with a look at what comes next
        ours.taken()
        ours.go(k + 1, True)
    assert [state.t for state in ours.states[1:]] == [t for t, _, _ in expected]
    for k, (_, x, x0_hat) in enumerate(expected):
        assert torch.equal(ours.states[k + 1].x, x) and torch.equal(ours.taken(k).x0_hats[0], x0_hat)
    assert ours.taken() is None and ours.end(True) == ours.at


@pytest.mark.parametrize('options', KINDS)
def test_going_back_and_turning_leave_the_steps_as_they_were(options):
    straight, ours = walk(**options), walk(**options)
    straight.go(5, True)
    ours.go(4, True)
    kept = ours.states[4].x
    ours.go(2, True)
    assert ours.at == 2 and ours.kept(True) == 4 and ours.states[4].x is kept
    ours.go(4, False)  # turn: what came after is forgotten
    assert [state.denoised for state in ours.states] == [False, True, True, False, False]
    assert ours.states[4].t == ours.states[2].t + 2 and len(ours.states) == 5
    ours.go(2, False)
    ours.go(5, True)  # and on again as if it had not turned, with the predictions from before
    assert all(torch.equal(a.x, b.x) for a, b in zip(ours.states, straight.states, strict=True))
    again = walk(**options)
    again.replay(show.read_path(show.write_path(ours.runs)))
    assert torch.equal(again.state.x, ours.state.x) and again.at == 5


def test_a_walk_of_q_is_that_of_diffuse_and_comes_back_by_p():
    x_0 = torch.linspace(-1, 1, 32).view(2, *SHAPE)
    ours = Walk(sampler(), Noise(0, range(2), SHAPE, CPU), x=x_0)
    assert ours.taken() is None and ours.end(False) == T and ours.end(True) == 0
    ours.go(100, False)
    noise = Noise(0, range(2), SHAPE, CPU)
    for k, (t, x) in enumerate(sampler().diffuse(x_0, noise=noise), 1):
        assert ours.states[k].t == t and torch.equal(ours.states[k].x, x)
    ours.go(7, False)
    prediction = next(sampler().trajectory(ours.state.x, start=7, noise=torch.zeros_like))[2]
    assert torch.equal(ours.taken().x0_hats[0], prediction)  # there is one at every state
    ours.go(100, True)
    assert ours.state.t == 0 and ours.runs == [(False, 7), (True, 7)]


@pytest.mark.parametrize('options', KINDS)
def test_the_terms_of_the_panel_add_up_to_the_next_state(options):
    ours = walk(**options)
    for k in range(ours.end(True)):
        ours.go(k, True)
        parts = step.terms(ours)
        total = sum(weight * x for _, weight, x in parts)
        torch.testing.assert_close(total, ours.taken().x_s, atol=1e-6, rtol=1e-6)
        times = [int(t) for name, _, _ in parts[:-1] for t in re.findall(r'x_\{(\d+)\}', name)]
        states = [state.t for state in ours.states[: k + 1]]
        assert times[0] == states[-1] and set(times) <= set(states)


@pytest.mark.parametrize('options', KINDS)
def test_a_walk_that_completes_images_is_that_of_the_command_line_and_its_steps_add_up(options):
    ours, expected, known = completing(**options)
    ups = 0
    for k in range(ours.end(True)):
        ours.go(k, True)
        taken, raw = ours.taken(), getattr(ours.state, 'raw', None)
        total = sum(weight * x for _, weight, x in step.terms(ours))
        torch.testing.assert_close(total, taken.x_s, atol=1e-6, rtol=1e-6)
        assert (taken.s > taken.t) == (not taken.x0_hats)
        ups += not taken.x0_hats
        if taken.x0_hats:
            assert torch.equal(taken.x0_hats[0], torch.where(known, ours.source, raw))
    ours.go(10**4, True)
    assert ups > 1 and ours.state.t == 0 and ours.end(True) == ours.at == len(ours.stops) - 1
    assert torch.equal(ours.state.x.clamp(-1, 1), expected)
    assert torch.equal(ours.state.x[known], ours.source[known])
    ours.go(7, True)  # back, and on again
    again, _, _ = completing(**options)
    again.replay(ours.runs)
    assert again.at == 7 and torch.equal(again.state.x, ours.state.x) and ours.kept(True) == ours.end(True)


def completing(**options):
    """Return a walk that completes two images, what `draw.walk.denoise` makes of them, and what is known of them."""
    known = masks.known('random:0.4', '', 2, *SHAPE[1:], 0)
    sources = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    planned = Edit(sources, operator=lambda rows: inpaint(known[rows]))
    config = SimpleNamespace(resample=3, jump=2, net='unet')

    def begin():
        noise = Noise(3, range(2), SHAPE, CPU)
        return noise, *planned.begin(sampler(**options), [0, 1], noise())

    y, (noise, x_T, project) = torch.tensor([0, 1]), begin()
    expected = denoise(config, sampler(**options), x_T, y, noise, lambda: False, project=project)
    noise, x_T, project = begin()
    stops = planned.stops(sampler(**options), config)
    ours = Walk(sampler(**options), noise, y, x_T, stops[0], project, stops)
    ours.source = sources
    return ours, expected, known


def test_memory_limits_the_images_of_a_walk():
    few, many = len(sampler(steps=5).states), len(sampler().states)
    assert most_items(few, SHAPE) > most_items(many, SHAPE) or most_items(few, SHAPE) == 10**4
    big = most_items(many, (3, 1024, 1024))
    assert big == 1 and most_items(many, (3, 256, 256)) * 12 * 3 * 256**2 * (T + 2) <= 2**29


def test_points_keep_their_axes_and_arrows_lead_to_the_prediction():
    plane = pictures.Plane(torch.zeros(10, 2), reach=2.0)
    near, far = (pictures.flat(plane, x) for x in (torch.zeros(5, 2), torch.full((5, 2), 1.5)))
    frame = Image.new('L', near.size, 255)
    frame.paste(0, (62, 18, 462, 438))  # all but the axes
    left = [Image.composite(drawn, Image.new('RGB', drawn.size), frame).tobytes() for drawn in (near, far)]
    assert left[0] == left[1] and near.tobytes() != far.tobytes()
    assert plane.grid().abs().max() < 2 and len(plane.grid()) == pictures.ARROWS**2
    with_arrows = plane.draw(torch.zeros(5, 2), field=torch.zeros_like(plane.grid()))
    assert with_arrows.tobytes() != plane.draw(torch.zeros(5, 2)).tobytes()


def test_an_animation_is_small_and_rests_on_the_last_state():
    states = [torch.randn(9, 3, 32, 32, generator=torch.Generator().manual_seed(k)) for k in range(70)]
    content = pictures.gif(pictures.Tiles(), states)
    animation = Image.open(io.BytesIO(content))
    assert animation.n_frames == pictures.FRAMES and len(content) < 2.5e6
    animation.seek(pictures.FRAMES - 1)
    last = np.asarray(pictures.flat(pictures.Tiles(), states[-1], pictures.FRAME_WIDTH), int)
    assert animation.info['duration'] == 2000
    assert abs(np.asarray(animation.convert('RGB'), int) - last).mean() < 40  # in few colours


def test_every_text_is_there_in_both_languages_and_used():
    def fields(text):
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    for key, both in texts.TEXTS.items():
        assert (
            len(both) == len(texts.LANGUAGES) and all(both) and len({frozenset(fields(text)) for text in both}) == 1
        ), key
    used = set()
    for path in [*(ROOT / 'page').glob('*.py'), ROOT / 'demo.py']:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used.add(node.value)
            if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
                used.add(node.values[0].value)  # say(f'view_{name}')
    missing = [key for key in texts.TEXTS if key not in used and key[: key.find('_') + 1] not in used]
    assert not missing


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Train for four steps on labels, and return the checkpoint as the page opens it."""
    folder = tmp_path_factory.mktemp('page') / 'run'
    argv = [*TINY, '--train', '--cond', f'--logdir={folder}', '--spacing=quad', '--sample_steps=6']
    with flagsaver.flagsaver():
        assert main.main(main.parse_flags(['main.py', *argv])) == 0
    return opening.load.__wrapped__(str(folder / 'ckpt.pt'), 0, 'ema')


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'order': 2, 'sample_steps': 3},
        {'order': 3, 'eta': 0.0, 'corrector': True, 'sample_steps': 0, 'eps_scale': 1.005},
        {'labels': '3', 'guidance': 2.5, 'seed': 7, 'clip_denoised': True, 'weights': 'net'},
    ],
)
def test_the_command_line_draws_with_the_settings_of_the_page(run, changes):
    config = replace(settings.suggested(run.config), sample=True, **changes)
    program, script, *argv = settings.command(config, run).split()
    assert (program, script) == ('python', 'main.py')
    with flagsaver.flagsaver():
        for name in main.FLAGS:
            main.FLAGS[name].present = 0
        main.parse_flags(['main.py', *argv])
        restored, _, _ = restore(*main.configuration())
    assert all(getattr(restored, key) == getattr(config, key) for key in (*drawn_keys(), 'num_images', 'sample'))


def test_checkpoints_are_found_without_their_spares(tmp_path, monkeypatch):
    for name in ('b/ckpt.prev.pt', 'b/ckpt-50.pt', 'b/ckpt.pt', 'a/ckpt.pt', 'b/ckpt.bad.pt', 'ckpt.pt'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr('sys.argv', ['demo.py', '--logs', str(tmp_path)])
    assert list(opening.found()) == ['ckpt.pt', 'a/ckpt.pt', 'b/ckpt.pt', 'b/ckpt-50.pt']
    monkeypatch.setattr('sys.argv', ['demo.py', '--logs', str(tmp_path), '--ckpt', str(tmp_path / 'b')])
    assert next(iter(opening.found())) == 'b/ckpt.pt'


@pytest.mark.parametrize('path', ['denoise', 'walk3', '5', 'denoise3,diffuse2', ''])
def test_a_path_that_says_nothing_is_refused(path):
    with pytest.raises(ValueError, match='is no path such as'):
        show.read_path(path)


def test_real_items_are_those_of_the_class_that_was_asked_for(run):
    data, _ = opening.training_data(run.path, run.modified, run.config)
    labels = torch.tensor([data[i][1] for i in range(len(data))])
    rows = (labels == 7).nonzero()[:, 0]
    expected = data.prepare(torch.stack([data[int(i)][0] for i in [*rows[3:], rows[0]]]))
    assert torch.equal(opening.real(run, '7', 3, len(rows) - 2).cpu(), expected)  # after the last comes the first


def test_an_image_of_ones_own_is_seen_as_the_network_sees_it(run):
    file = SimpleNamespace(name='wide.png', getvalue=lambda: content.getvalue())
    content = io.BytesIO()
    image = Image.new('RGB', (24, 16), (0, 0, 255))
    image.paste((255, 255, 255), (4, 0, 20, 16))  # the largest square in the middle is white
    image.save(content, 'PNG')
    x = opening.uploaded(run.config, file, 3)
    assert x.shape == (3, 1, 8, 8) and (x > 0.8).all()  # resizing takes in a little of the blue beside it
    content.seek(50)
    content.write(bytes(20))
    with pytest.raises(DataError, match='cannot be decoded'):
        opening.uploaded(run.config, file, 3)


@pytest.fixture
def visit(run, monkeypatch):
    """Return a function that shows the page of demo.py to a new visitor, without a browser: visit(**query)."""
    monkeypatch.setattr('sys.argv', ['demo.py', f'--logs={Path(run.path).parent.parent}'])

    def show_page(**query):
        page = AppTest.from_file(str(ROOT / 'demo.py'), default_timeout=60)
        for name, value in query.items():
            page.query_params[name] = value
        return page.run()

    return show_page


@pytest.mark.parametrize(
    'query, message',
    [
        ({'order': '7'}, 'order: value should be one of'),
        ({'sample_steps': '400'}, 'between 1 and T'),
        ({'num_images': '5000'}, 'num_images must be 1 to'),
        ({'seed': '3000000000'}, 'seed must be 0 to 2147483647'),
        ({'guidance': '20'}, 'guidance must be 0.0 to 10.0'),
        ({'eps_scale': '5'}, 'eps_scale must be 0.5 to 2.0'),
        ({'labels': '3,5'}, 'labels=3,5'),
        ({'start': 'image', 'item': '100000'}, 'item=100000'),
        ({'start': 'image', 'item_class': '99'}, 'item_class=99'),
        ({'ckpt': 'other/ckpt.pt'}, 'a checkpoint other/ckpt.pt that is not here'),
        ({'walk': 'sideways3'}, 'walk=sideways3 is no path'),
        ({'pace': '7'}, 'pace=7'),
        ({'view': 'compare', 'b_ckpt': 'gone/ckpt.pt'}, 'b_ckpt=gone/ckpt.pt'),
    ],
)
def test_a_link_that_cannot_be_followed_says_so(visit, query, message):
    page = visit(**query)
    (warning,) = page.warning
    assert message in warning.value and not page.exception and not page.error
    assert page.code[0].value.startswith('python main.py')  # the rest of the page is there


def test_a_play_begins_with_a_network_slower_than_a_picture(visit, monkeypatch):
    page = visit(n='4')
    monkeypatch.setattr(show, 'BUDGET', 0)  # a step takes longer
    (play,) = (toggle for toggle in page.toggle if toggle.label == 'Play')
    play.set_value(True).run()
    assert not page.exception and page.session_state.walk.at > 0


def test_a_figure_takes_its_settings_from_the_link(visit):
    page = visit(view='figures', figure='nearest', feature_net='classifier', num_images='2')
    assert page.code[0].value.startswith('python main.py --figure=nearest')
    assert '--num_images=2 --feature_net=classifier' in page.code[0].value


def test_a_link_and_a_command_know_the_other_checkpoint_of_a_comparison(run, visit):
    other = Path(run.path).parent.parent / 'other'
    other.mkdir()
    state = load(Path(run.path).parent)
    torch.save({**state, 'config': {**state['config'], 'order': 2, 'spacing': 'auto'}}, other / 'ckpt.pt')
    (other.parent / 'another').mkdir()
    torch.save(state, other.parent / 'another' / 'ckpt.pt')
    page = visit(view='compare', against='ckpt', ckpt='run/ckpt.pt')
    assert page.selectbox(key='b_ckpt').value == 'another/ckpt.pt'
    page.selectbox(key='b_ckpt').select('other/ckpt.pt').run()
    _, theirs, link = (code.value for code in page.code)
    assert f'--ckpt={other / "ckpt.pt"}' in theirs and '--spacing=quad --order=1' in theirs and '--T' not in theirs
    again = visit(**dict(parse_qsl(link.partition('?')[2])))
    assert [code.value for code in again.code] == [code.value for code in page.code]
