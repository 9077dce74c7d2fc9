"""Turn tensors into pictures: grids of images, plots of points in the plane, and curves."""

import math

import torch
from PIL import Image

from run import files

TILE = 64  # approximate length, in pixels, that the shorter side of smaller images is enlarged to
GAP = 3  # white pixels around each image of a grid
APART, MARGIN = 12, 6  # white pixels between the groups of a table, and around the table
FONT, DPI = 9, 100  # font size in points beside images of TILE pixels, and resolution


def of(x, tile=TILE):
    """Draw a batch as one picture: images [N, C, H, W] in [-1, 1] with `grid`, or points [N, 2] with `plot`."""
    return grid(to_uint8(x), tile=tile) if x.ndim == 4 else plot([[x]])


def to_uint8(x):
    """Map [-1, 1] to 0..255, rounded to the nearest as torchvision's save_image does."""
    return ((x + 1) * 127.5 + 0.5).clamp(0, 255).to(torch.uint8)


def save(path, image):
    """Write a PIL image as PNG, completely or not at all."""
    with files.replacing(path) as temporary:
        image.save(temporary, format='PNG')


def grid(images, columns=None, tile=TILE):
    """Draw uint8 images [N, C, H, W] in a grid that is, by default, as square as possible.

    Each pixel becomes a square of pixels, so that the shorter side of an image is about `tile` long. Larger images keep
    their size.
    """
    from torchvision.utils import make_grid  # here, since torchvision takes a second to import

    height, width = images.shape[-2:]
    scale = max(1, round(tile / min(height, width)))
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    columns = columns or math.ceil(math.sqrt(len(images) * height / width))
    tiled = make_grid(images, nrow=columns, padding=GAP, pad_value=255)
    return Image.fromarray(tiled.permute(1, 2, 0).cpu().numpy())


def table(rows, titles, names=None, group=None):
    """Draw images in [-1, 1], one tensor [N, C, H, W] per row, with titles above the columns and names beside the rows.

    Titles and names may hold mathtext; without names, the rows have numbers from 1. group: the number of rows in a
    group, or None for all; gaps separate the groups.
    """
    from matplotlib.figure import Figure
    from matplotlib.textpath import TextPath

    names, group = names or [f'${i + 1}$' for i in range(len(rows))], group or len(rows)
    blocks = [grid(to_uint8(torch.cat(list(part))), len(titles)) for part in batched(rows, group)]
    across = (blocks[0].width - GAP) // len(titles)  # pixels from one image to the next, in a row
    down = (blocks[0].height - GAP) // len(rows[:group])  # and in a column
    font = FONT * min(3, max(1, (across - GAP) / TILE))
    pixels = font * DPI / 72
    left = round(2 * MARGIN + max(TextPath((0, 0), name, size=pixels).get_extents().width for name in names))
    top = round(2 * pixels)
    width = left + blocks[0].width + MARGIN
    height = top + sum(block.height for block in blocks) + APART * (len(blocks) - 1) + MARGIN
    page = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)

    def write(x, y, text, **align):
        page.text(x / width, 1 - y / height, text, fontsize=font, **align)

    for i, title in enumerate(titles):
        write(left + GAP / 2 + (i + 0.5) * across, top / 2, title, ha='center', va='center')
    corners = []
    for names_of_block, block in zip(batched(names, group), blocks, strict=True):
        corners.append((left, top))
        for i, name in enumerate(names_of_block):
            write(left - MARGIN, top + GAP / 2 + (i + 0.5) * down, name, ha='right', va='center')
        top += block.height + APART
    drawn = _rendered(page)
    for corner, block in zip(corners, blocks, strict=True):
        drawn.paste(block, corner)
    return drawn


def plot(rows, titles=(), names=(), arrows=()):
    """Draw scatter plots of points [N, 2], one list of tensors per row, all on one `scale`.

    arrows: the direction of time above each row, as matplotlib's arrow styles '->' and '<-'.
    """
    side = 4 if len(rows) == len(rows[0]) == 1 else 1.6
    figure, axes = _panels(len(rows), len(rows[0]), side, side + 0.2 * bool(arrows))
    reach = scale([panel for row in rows for panel in row])
    for row, panels in enumerate(rows):
        for ax, panel in zip(axes[row], panels, strict=True):
            ax.scatter(*panel.T.cpu().numpy(), s=min(8, 4000 / len(panel)), linewidths=0, color=f'C{row}', alpha=0.6)
            ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect='equal')
            ax.tick_params(labelsize=6)
            ax.label_outer()
    for ax, title in zip(axes[0], titles, strict=False):
        ax.set_title(title, fontsize=9, pad=14 if arrows else None)
    for ax, name in zip(axes[:, 0], names, strict=False):
        ax.set_ylabel(name)
    for panels, style in zip(axes, arrows, strict=False):
        _arrow(figure, panels, style)
    return _rendered(figure)


def scale(clouds):
    """Return how far from the origin the axes of plots of these points [N, 2] reach.

    The plots show the narrowest cloud whole. They may cut the widest, but show most of it: a scale that held all of it
    could make the narrowest too small to see.
    """
    extents = [cloud.abs().flatten().sort().values for cloud in clouds]
    whole, most = ([extent[math.ceil(share * len(extent)) - 1] for extent in extents] for share in (0.995, 0.85))
    return 1.1 * max(min(whole), max(most)).item()


def curves(*panels, title=None, columns=3):
    """Draw line plots side by side, in rows. A panel is a dict of x, y and arguments of matplotlib's `Axes.set`.

    If x or y are [n, lines], there is a line for each column, and `label` holds their names.
    """
    columns = min(columns, len(panels))
    figure, axes = _panels(math.ceil(len(panels) / columns), columns, 4.5, 3.8)
    figure.suptitle(title)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax, panel in zip(axes.flat, panels, strict=False):
        label = panel.get('label')
        ax.plot(panel['x'], panel['y'], marker='.', markersize=4, linewidth=1, label=label)
        ax.set(**{key: value for key, value in panel.items() if key not in ('x', 'y', 'label')})
        if label:
            ax.legend()
        ax.grid(alpha=0.3)
    return _rendered(figure)


def batched(items, n):
    """Split the items into lists of n; the last list has what is left."""
    return [items[i : i + n] for i in range(0, len(items), n)]


def _arrow(figure, panels, style):
    from matplotlib.patches import ConnectionPatch

    ends = {'xyA': (0, 1.06), 'coordsA': panels[0].transAxes, 'xyB': (1, 1.06), 'coordsB': panels[-1].transAxes}
    figure.add_artist(ConnectionPatch(**ends, arrowstyle=style, mutation_scale=12, color='0.3'))


def _panels(rows, columns, width, height):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), dpi=100, layout='constrained')
    return figure, figure.subplots(rows, columns, squeeze=False)


def _rendered(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.frombuffer('RGBA', canvas.get_width_height(), canvas.buffer_rgba()).convert('RGB')
