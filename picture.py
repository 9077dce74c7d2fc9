"""Tensors to pictures: grids of images, plots of points in the plane, curves."""

import math

import torch
from PIL import Image, ImageDraw
from torch.nn import functional as F
from torchvision.utils import make_grid

PADDING = 2  # pixels between the tiles of a grid


def of(x, tile=48):
    """One picture of a batch: a grid of images [N, C, H, W] in [-1, 1], as of `grid`, or a plot of points [N, 2]."""
    return grid(to_uint8(x), tile=tile) if x.ndim == 4 else plot([[x]])


def to_uint8(x):
    """[-1, 1] -> 0..255, rounded to the nearest as torchvision's save_image does."""
    return ((x + 1) * 127.5 + 0.5).clamp(0, 255).to(torch.uint8)


def grid(images, columns=None, tile=48):
    """One picture of uint8 images [N, C, H, W], as square as can be by default; those below `tile` are enlarged."""
    scale = max(1, tile // images.shape[-1])
    images = F.interpolate(images.float(), scale_factor=scale).to(torch.uint8)
    tiled = make_grid(images, nrow=columns or math.ceil(math.sqrt(len(images))), padding=PADDING)
    return Image.fromarray(tiled.permute(1, 2, 0).cpu().numpy())


def table(rows, titles, names):
    """A grid of images in [-1, 1], a tensor [N, C, H, W] a row, under the titles of its columns, beside its names."""
    tiles = grid(to_uint8(torch.cat(list(rows))), columns=len(titles), tile=64)
    left, top = 12 + 6 * max(map(len, names)), 16
    whole = Image.new('RGB', (tiles.width + left, tiles.height + top))
    whole.paste(tiles, (left, top))
    pen = ImageDraw.Draw(whole)
    width, height = (tiles.width - PADDING) / len(titles), (tiles.height - PADDING) / len(names)
    for i, title in enumerate(titles):
        pen.text((left + PADDING + (i + 0.5) * width, top / 2), title, anchor='mm')
    for i, name in enumerate(names):
        pen.text((left - 4, top + PADDING + (i + 0.5) * height), name, anchor='rm')
    return whole


def plot(rows, titles=(), names=()):
    """Scatter plots of points [N, 2], one list of them a row; the panels of a column share their limits."""
    side = 4 if len(rows) == len(rows[0]) == 1 else 1.8
    figure, axes = _panels(len(rows), len(rows[0]), side, side)
    for column, panels in enumerate(zip(*rows, strict=True)):
        reach = 1.1 * max(
            panel.abs().flatten().kthvalue(math.ceil(0.995 * panel.numel()))[0].item() for panel in panels
        )
        for row, panel in enumerate(panels):
            ax = axes[row, column]
            ax.scatter(*panel.T.cpu().numpy(), s=min(8, 4000 / len(panel)), linewidths=0, color=f'C{row}', alpha=0.6)
            ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect='equal')
            ax.tick_params(labelsize=6)
    for ax, title in zip(axes[0], titles, strict=False):
        ax.set_title(title, fontsize=9)
    for ax, name in zip(axes[:, 0], names, strict=False):
        ax.set_ylabel(name)
    return _rendered(figure)


def curves(*panels):
    """Line plots side by side: a panel is a dict of x, y and what else matplotlib's `Axes.set` takes."""
    figure, axes = _panels(1, len(panels), 4.5, 3.5)
    for ax, panel in zip(axes[0], panels, strict=True):
        ax.plot(panel['x'], panel['y'], marker='.', markersize=4, linewidth=1)
        ax.set(**{key: value for key, value in panel.items() if key not in ('x', 'y')})
        ax.grid(alpha=0.3)
    return _rendered(figure)


def _panels(rows, columns, width, height):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), dpi=100, layout='constrained')
    return figure, figure.subplots(rows, columns, squeeze=False)


def _rendered(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.frombuffer('RGBA', canvas.get_width_height(), canvas.buffer_rgba()).convert('RGB')
