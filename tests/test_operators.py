"""Hold the projection of what is known of an image to linear algebra, and time travel to RePaint's schedule."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion import GaussianDiffusionSampler
from draw import walk
from process.operators import LUMA, colorize, inpaint, upscale
from process.schedules import make_betas
from process.solvers import step_table

C, H, W = 3, 2, 4  # of the images here
D, T, BETAS = C * H * W, 40, (1e-3, 0.3)
KNOWN = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0]], dtype=torch.bool)[None, None]
OPERATORS = {'inpaint': inpaint(KNOWN), 'upscale': upscale(2), 'colorize': colorize()}
SOLVERS = [(1, False, 1.0), (1, False, 0.0), (2, False, 1.0), (2, True, 0.0), (3, True, 0.0)]


def matrices(name):
    """Return A as a matrix on flattened images, float64, and its pseudo-inverse."""
    if name == 'inpaint':
        A = torch.diag(KNOWN.expand(1, C, H, W).flatten().double())
    elif name == 'colorize':
        A = torch.kron(torch.tensor([LUMA]).double(), torch.eye(H * W).double())
    else:
        columns = torch.kron(torch.eye(W // 2).double(), torch.ones(1, 2).double())
        A = torch.kron(torch.eye(C).double(), torch.kron(torch.ones(1, H).double(), columns)) / 4
    return A, torch.linalg.pinv(A)


@pytest.mark.parametrize('name', OPERATORS)
def test_an_operator_is_its_matrix_and_its_inverse_the_pseudo_inverse(name):
    x, (A, inverse) = torch.randn(5, C, H, W, dtype=torch.float64), matrices(name)
    y = OPERATORS[name].forward(x)
    torch.testing.assert_close(y.flatten(1), x.flatten(1) @ A.T)
    torch.testing.assert_close(OPERATORS[name].inverse(y).flatten(1), y.flatten(1) @ inverse.T)
    projected = OPERATORS[name].projection(y)(torch.randn_like(x))
    torch.testing.assert_close(OPERATORS[name].forward(projected), y)


def test_grey_is_what_pillow_makes_of_a_colour_image():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    grey = colorize().forward(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())[0, 0]
    assert np.abs(grey.numpy() - np.asarray(Image.fromarray(pixels).convert('L'))).max() < 0.51


def test_images_that_an_operator_does_not_fit_are_refused():
    with pytest.raises(ValueError, match='a factor of 3 does not divide images of 8x9'):
        upscale(3).forward(torch.zeros(1, 1, 8, 9))
    with pytest.raises(ValueError, match='colour has 3 channels, and these images have 1'):
        colorize().forward(torch.zeros(1, 1, 8, 8))


def bent(x, t):
    return torch.tanh(2 * x + 0.3 * x.roll(1, -1)) + 0.01 * t[:, None, None, None]


def sampler_of(net, order=1, corrector=False, eta=1.0, steps=None, **options):
    options |= {'order': order, 'corrector': corrector, 'eta': eta, 'steps': steps}
    return GaussianDiffusionSampler(net, *BETAS, T, W, 'xstart', 'fixedsmall', **options)


@pytest.mark.parametrize(('order', 'corrector', 'eta'), SOLVERS)
@pytest.mark.parametrize('name', OPERATORS)
def test_a_projected_walk_is_that_of_a_network_which_predicts_what_is_projected(name, order, corrector, eta):
    truth, x_T = torch.rand(2, C, H, W) * 2 - 1, torch.randn(2, C, H, W)
    y = OPERATORS[name].forward(truth)
    project = OPERATORS[name].projection(y)
    how = order, corrector, eta, 8

    def walked(sampler, **options):
        torch.manual_seed(0)
        return list(sampler.trajectory(x_T, **options))

    ours = walked(sampler_of(bent, *how), project=project)
    theirs = walked(sampler_of(lambda x, t: project(bent(x, t)), *how))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])
    x_0 = ours[-1][1]
    torch.testing.assert_close(OPERATORS[name].forward(x_0), y)
    assert (x_0 - truth).abs().max() > 0.1
    if name == 'inpaint':
        kept = KNOWN.expand_as(truth)
        assert torch.equal(x_0[kept], truth[kept])


def test_each_part_of_the_way_is_taken_as_often_as_by_repaint():
    sampler = SimpleNamespace(states=list(range(7)))
    # RePaint's schedule for 6 steps: 6 5 4 3, up to 5, 4 3 2 1, up to 3, 2 1 0
    assert walk.descents(sampler, 6, 2, 2) == [(6, 3), (5, 1), (3, 0)]
    assert walk.descents(sampler, 6, 1, 2) == walk.descents(sampler, 6, 9, 6) == [(6, 0)]
    assert walk.descents(sampler, 3, 3, 1) == [(3, 2), (3, 2), (3, 1), (2, 1), (2, 0)]  # algorithm 1
    sampler = SimpleNamespace(states=[0, 1, 11, 21])
    assert walk.descents(sampler, 16, 2, 1) == [(16, 11), (16, 1), (11, 0)]  # a start that is no stop of the sampler


def test_one_leap_of_noise_is_many_steps():
    sampler, x = sampler_of(None), torch.randn(2, C, H, W)
    for s, t in ((0, 5), (3, 9)):
        *_, (_, mean) = sampler.diffuse(x, s, t, noise=torch.zeros_like)
        torch.testing.assert_close(sampler.renoise(x, s, t, torch.zeros_like(x)), mean)
        kept = (mean / x).mean() ** 2
        torch.testing.assert_close(sampler.renoise(x, s, t, x), mean + (1 - kept).sqrt() * x, rtol=1e-4, atol=1e-4)


# --- Gaussian data, of which the best prediction and the distribution given y are known


def near(n, rho):
    return rho ** (torch.arange(n)[:, None] - torch.arange(n)).abs().double()


def affine(rho, name, resample, jump=2, T=T, betas=BETAS):
    """Return what the walk makes of Gaussian data, by its means and covariances alone.

    Returns (mean and covariance of x_0 by the walk, the same of q(x_0 | y), the best predictor, y).
    """
    mean, cov = (
        torch.linspace(-0.2, 0.3, D).double(),
        0.09 * torch.kron(near(C, rho), torch.kron(near(H, rho), near(W, rho))),
    )
    A, inverse = matrices(name)
    y = A @ (mean + torch.linalg.cholesky(cov) @ torch.linspace(-1, 1, D).double())
    gain = cov @ A.T @ torch.linalg.pinv(A @ cov @ A.T)
    given = mean + gain @ (y - A @ mean), cov - gain @ A @ cov
    alphas_bar = (1 - make_betas('linear', *betas, T)).cumprod(0)
    eye, table = torch.eye(D).double(), step_table(alphas_bar, range(T))

    def predictor(t):
        ab = alphas_bar[t]
        weight = ab.sqrt() * cov @ torch.linalg.inv(ab * cov + (1 - ab) * eye)
        return weight, mean - ab.sqrt() * weight @ mean

    m, S = torch.zeros(D).double(), eye
    left = T
    for top, stop in walk.descents(SimpleNamespace(states=list(range(T + 1))), T, resample, jump):
        if top > left:
            kept = alphas_bar[top - 1] / alphas_bar[left - 1]
            m, S = kept.sqrt() * m, kept * S + (1 - kept) * eye
        for t in reversed(range(stop, top)):
            c0, cx, std = table[t]
            weight, bias = predictor(t)
            keep = eye - inverse @ A
            onto = c0 * keep @ weight + cx * eye
            m, S = onto @ m + c0 * (keep @ bias + inverse @ y), onto @ S @ onto.T + std**2 * eye
        left = stop
    return (m, S), given, predictor, y


@pytest.mark.parametrize('resample', [1, 3])
@pytest.mark.parametrize('name', OPERATORS)
def test_samples_of_gaussian_data_have_the_mean_and_covariance_that_the_walk_should_give(name, resample):
    (mean, cov), _, predictor, y = affine(0.5, name, resample)

    def best(x, t):
        weight, bias = predictor(int(t[0]))
        return (x.flatten(1) @ weight.T.float() + bias.float()).reshape(x.shape)

    n, generator, ends = 20_000, torch.Generator().manual_seed(0), []
    config = SimpleNamespace(net='unet', resample=resample, jump=2)
    shape = OPERATORS[name].forward(torch.zeros(1, C, H, W)).shape

    def noise(x=None):
        return torch.randn(n, C, H, W, generator=generator)

    def observe(t, x_t, x0_hat):
        ends.append(x_t.flatten(1).double())

    project = OPERATORS[name].projection(y.float().reshape(shape))
    walk.denoise(config, sampler_of(best), noise(), None, noise, lambda: False, observe, project=project)
    found = ends[-1]  # before it is clipped
    error = (found.mean(0) - mean) / (cov.diagonal() / n).sqrt().clamp(min=1e-5)
    assert error.abs().max() < 5
    spread = (cov.diagonal()[:, None] * cov.diagonal() + cov**2).sqrt() / n**0.5  # std of a sample covariance
    assert ((torch.cov(found.T) - cov) / spread.clamp(min=1e-6)).abs().max() < 5.5


def bias(name, rho, resample, jump):
    """Return the root mean square errors of mean and standard deviation, in units of the true standard deviation."""
    (mean, cov), (true_mean, true_cov), *_ = affine(rho, name, resample, jump, T=400, betas=(1e-4, 0.03))
    free = true_cov.diagonal() > 1e-9
    std, true_std = cov.diagonal()[free].sqrt(), true_cov.diagonal()[free].sqrt()
    return [error.square().mean().sqrt().item() for error in ((mean - true_mean)[free] / true_std, std / true_std - 1)]


@pytest.mark.parametrize('name', OPERATORS)
def test_resampling_takes_away_the_bias_of_the_mean(name):
    # An error of 0.05 standard deviations shows only in more than (2 / 0.05)^2 = 1,600 samples.
    independent, once, often = bias(name, 0.0, 1, 1), bias(name, 0.9, 1, 1), bias(name, 0.9, 10, 10)
    assert independent[0] < 1e-3 and independent[1] < 0.03
    assert once[0] > 3 * often[0] and often[0] < 0.05 and often[1] < 0.07
