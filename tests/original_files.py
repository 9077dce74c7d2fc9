"""Write small files in the formats of CIFAR-10 and MNIST."""

import pickle
import struct

import numpy as np
import torchvision


def write_cifar10(root, monkeypatch):
    folder = root / 'cifar-10-batches-py'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ['data_batch_1', 'data_batch_2', 'data_batch_3', 'data_batch_4', 'data_batch_5']:
        batch = {'data': rng.integers(0, 255, (4, 3072), dtype=np.uint8), 'labels': [0, 1, 2, 9]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / 'batches.meta').write_bytes(pickle.dumps({'label_names': list('abcdefghij')}))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, '_check_integrity', lambda self: True)  # md5 of the real files
    monkeypatch.setattr(torchvision.datasets.cifar, 'check_integrity', lambda *_: True)


def write_mnist(root, name):
    folder = root / name / 'raw'
    folder.mkdir(parents=True)
    for part, n in (('train', 20), ('t10k', 5)):
        pixels = np.random.default_rng(n).integers(0, 255, (n, 28, 28), dtype=np.uint8)
        (folder / f'{part}-images-idx3-ubyte').write_bytes(struct.pack('>4i', 2051, n, 28, 28) + pixels.tobytes())
        (folder / f'{part}-labels-idx1-ubyte').write_bytes(
            struct.pack('>2i', 2049, n) + bytes(i % 10 for i in range(n))
        )
