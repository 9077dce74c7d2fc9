"""Computes the Fréchet distance between Gaussians from the eigenvalues of symmetric matrices alone."""

import torch

from .files import Unscorable
from .statistics import check_gaussian


def as_gaussian(mu, sigma, device):
    """Makes float64 tensors on `device` of mu [d] and sigma [d, d]. Raises ValueError if they are no Gaussian."""
    mu, sigma = (torch.as_tensor(x, dtype=torch.float64, device='cpu') for x in (mu, sigma))
    mu, sigma = torch.atleast_1d(mu), torch.atleast_2d(sigma)
    check_gaussian(mu.numpy(), sigma.numpy())
    return mu.to(device), sigma.to(device)


def check_psd(eigenvalues, eps, name):
    """Raises Unscorable if an eigenvalue lies further below 0 than eps times the largest."""
    if eigenvalues.min() < -eps * eigenvalues.max().abs():
        raise Unscorable(f'{name} is not positive semi-definite: eigenvalues {eigenvalues.min():g} and up')


def root(sigma, eps):
    """Factorises sigma = A A^T: A is [d, d], by Cholesky, if the rank is full, else [d, r], by eigh."""
    tiny = len(sigma) * torch.finfo(sigma.dtype).eps
    lower, info = torch.linalg.cholesky_ex(sigma)
    pivots = lower.diagonal() ** 2
    if info == 0 and pivots.min() > tiny * pivots.max():
        return lower
    w, v = torch.linalg.eigh(sigma)
    check_psd(w, eps, 'sigma1')
    # This leaves out the null space, in which rounding turns zeros into ~1e-16. The square root of that is 1e-8, and
    # 2048 times as much would show in the sum.
    kept = w >= tiny * w.max()
    return v[:, kept] * w[kept].sqrt()


def calculate_frechet_distance(mu1, sigma1, mu2, sigma2, eps=1e-6, use_torch=False):
    """d^2 = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1^1/2 S2 S1^1/2)^1/2 (Dowson & Landau 1982; FID: arXiv:1706.08500).

    For any A with A A^T = S1, the eigenvalues of A^T S2 A are those of S1 S2. So the last trace is a sum of square
    roots of the eigenvalues of a symmetric matrix. All of this is float64, and no matrix square root is taken.

    mu1, mu2: [d]; sigma1, sigma2: [d, d]; arrays or tensors. eps: how far below zero an eigenvalue may lie, relative
    to the largest, before its matrix is refused. use_torch: whether to compute on the GPU, if there is one.

    Returns a float. Raises ValueError for wrong shapes, for NaN, and for a matrix that is no covariance.
    """
    device = 'cuda' if use_torch and torch.cuda.is_available() else 'cpu'
    mu1, sigma1 = as_gaussian(mu1, sigma1, device)
    mu2, sigma2 = as_gaussian(mu2, sigma2, device)
    if len(mu1) != len(mu2):
        raise ValueError(f'statistics of different features: {len(mu1)} against {len(mu2)} dimensions')
    a = root(sigma1, eps)
    eigenvalues = torch.linalg.eigvalsh(a.T @ sigma2 @ a)
    check_psd(eigenvalues, eps, 'sigma2')
    trace = eigenvalues.clamp(min=0).sqrt().sum()
    return ((mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * trace).item()
