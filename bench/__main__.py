"""python -m bench [frechet] [inception]: interleaved repeats in one process, medians, and the ratio to the baseline."""

import argparse
import statistics
import time

import numpy as np
import scipy.linalg
import torch

from score import calculate_frechet_distance
from score.features import assemble
from score.inception import FEATURE_DIM, NUM_CLASSES, FIDInception, pytorch_input


def interleaved(candidates, repeats):
    """Median seconds of each of {name: function}, called in turn `repeats` times after one warm-up round."""
    seconds = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, function in candidates.items():
            begin = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def frechet(repeats):
    """The distance between two 2048-d Gaussians of full rank, against scipy's sqrtm of the product."""
    rng = np.random.default_rng(0)
    scale = np.exp(rng.normal(size=FEATURE_DIM))
    sides = [rng.normal(size=(3000, FEATURE_DIM)) * scale + 0.1 * i for i in range(2)]
    (mu1, sigma1), (mu2, sigma2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in sides)

    def by_sqrtm():
        root = scipy.linalg.sqrtm(sigma1 @ sigma2).real
        return ((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(root)

    def ours():
        return calculate_frechet_distance(mu1, sigma1, mu2, sigma2)

    expected = by_sqrtm()
    print(f'  relative difference of the distances: {abs(ours() - expected) / expected:.1e}')
    return interleaved({'scipy.linalg.sqrtm': by_sqrtm, 'ours': ours}, repeats)


def inception(repeats, images=16):
    """Features of 32x32 images by the FID Inception with random weights: what it computes does not alter its speed."""
    torch.manual_seed(0)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    x = torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8)
    about = {'name': 'inception', 'weights_hash': '', 'protocol': 'pytorch', 'prepare': pytorch_input}
    nets = {
        precision: assemble(FIDInception().eval(), precision, device, dim=FEATURE_DIM, num_classes=NUM_CLASSES, **about)
        for precision in ('fp32', 'bf16')
    }
    return interleaved({name: lambda net=net: net(x) for name, net in nets.items()}, repeats)


BENCHES = {'frechet': frechet, 'inception': inception}


def main():
    parser = argparse.ArgumentParser(prog='python -m bench', description=__doc__)
    parser.add_argument('names', nargs='*', choices=[*BENCHES, []], help='all by default')
    parser.add_argument('--repeats', type=int, default=5)
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f'{torch.get_num_threads()} CPU threads'
    print(f'torch {torch.__version__}, {device}, medians of {options.repeats}')
    for name in options.names or BENCHES:
        print(f'{name}: {BENCHES[name].__doc__}')
        medians = BENCHES[name](options.repeats)
        baseline = next(iter(medians.values()))
        for candidate, seconds in medians.items():
            print(f'  {candidate:20s} {seconds * 1e3:10.1f} ms  {baseline / seconds:6.2f}x')


if __name__ == '__main__':
    main()
