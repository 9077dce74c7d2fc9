"""Draw the states of a walk quickly, all on one scale, and save them as PNG and GIF."""

import base64
import io
import math

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from draw import picture

WIDTH = 480  # of a picture, about, in pixels
FRAMES, FRAME_WIDTH, COLOURS = 60, 240, 32  # the most pictures of an animation, their width and their colours
ARROWS = 13  # in each direction, of a field
APART = 16  # pixels between two pictures
MARK = '#e4572e'


class Tiles:
    """Images in a grid, each in [-1, 1]."""

    paper = 'white'

    def draw(self, x, width=WIDTH, mark=None):
        """Draw images [N, C, H, W]. mark: (row, column) of a pixel to frame, if there is one image."""
        drawn = picture.of(x, width // math.ceil(math.sqrt(len(x))))
        if mark:
            side = drawn.width / x.shape[-1]
            top, left = (side * place for place in mark)
            corners = [left, top, left + side - 1, top + side - 1]
            ImageDraw.Draw(drawn).rectangle(corners, outline=MARK, width=max(2, round(side / 10)))
        return drawn if mark or x.shape[1] > 1 else drawn.convert('L')  # a quarter of the work of packing it


class Plane:
    """Points in the plane, on axes that stay as they are, over the density of a data set.

    Axes and density are drawn once. data: points [M, 2], or None for no density. reach: the largest coordinate shown.
    dark: whether on a dark page. A plane is not for two threads at once.
    """

    def __init__(self, data, reach, dark=False):
        self.reach, ink, self.paper = reach, *(('#fafafa', '#0e1117') if dark else ('#31333f', '#ffffff'))
        figure = Figure(figsize=(WIDTH / 100, WIDTH / 100), dpi=100, facecolor='none')  # the page shows through
        self.axes = figure.add_axes([0.12, 0.08, 0.85, 0.89], facecolor='none')
        self.axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
        self.axes.tick_params(labelsize=11, colors=ink)
        self.axes.spines[:].set_color(ink)
        if data is not None:
            lines = torch.linspace(-reach, reach, 65)
            density = torch.histogramdd(data.cpu(), [lines, lines])[0].T.sqrt()  # [y, x]
            peak = density.max().item() or 1
            extent = [-reach, reach, -reach, reach]
            look = {'cmap': 'gray' if dark else 'gray_r', 'vmin': -0.5 * peak, 'vmax': 2.5 * peak}
            self.axes.imshow(
                np.ma.masked_equal(density.numpy(), 0), origin='lower', extent=extent, aspect='auto', **look
            )
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        self.canvas, self.empty = canvas, canvas.copy_from_bbox(figure.bbox)
        self.points = self.axes.scatter([], [], linewidths=0, color='#4c9be8' if dark else '#1f6fc4', alpha=0.7)
        self.marked = self.axes.scatter([], [], s=90, facecolors='none', edgecolors=MARK, linewidths=2)

    def grid(self):
        """Return the places of the arrows of a field, [ARROWS**2, 2]."""
        line = torch.linspace(-self.reach, self.reach, ARROWS + 2)[1:-1]
        return torch.cartesian_prod(line, line)

    def draw(self, x, width=WIDTH, mark=None, field=None):
        """Draw points [N, 2]. mark: the index of a point to circle. field: where the arrows of `grid` lead [.., 2].

        Arrows are shortened by one factor, so that the longest is as long as the way to the next one.
        """
        self.canvas.restore_region(self.empty)
        self.points.set_offsets(x.cpu().numpy())
        self.points.set_sizes([min(30, max(4, 8000 / len(x)))])
        self.axes.draw_artist(self.points)
        if mark is not None:
            self.marked.set_offsets(x[mark : mark + 1].cpu().numpy())
            self.axes.draw_artist(self.marked)
        if field is not None:
            start = self.grid()
            step = field.cpu() - start
            step *= 2 * self.reach / (ARROWS + 1) / step.norm(dim=1).max().clamp(min=1e-9)
            arrows = self.axes.quiver(*start.T.numpy(), *step.T.numpy(), angles='xy', scale_units='xy', scale=1)
            arrows.set(color=MARK, alpha=0.9)
            self.axes.draw_artist(arrows)
            arrows.remove()
        size = self.canvas.get_width_height()
        drawn = Image.frombuffer('RGBA', size, self.canvas.buffer_rgba()).copy()
        return drawn if width == WIDTH else drawn.resize((width, width), Image.Resampling.BILINEAR)


def beside(left, right):
    """Return two pictures of one size side by side; without the right one, its place is transparent."""
    drawn = Image.new('LA' if left.mode == 'L' else 'RGBA', (2 * left.width + APART, left.height))
    drawn.paste(left, (0, 0))
    if right:
        drawn.paste(right, (left.width + APART, 0))
    return drawn


def flat(canvas, x, width=WIDTH):
    """Return the picture of a state, RGB, on a background of its own."""
    drawn = canvas.draw(x, width).convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', drawn.size, canvas.paper), drawn).convert('RGB')


def png(image, effort=9):
    """Return a PIL image as the bytes of a PNG. effort: of its compression, 0 to 9."""
    file = io.BytesIO()
    image.save(file, 'PNG', compress_level=effort)
    return file.getvalue()


def url(image):
    """Return a picture as an address that holds it, so that it comes with the page and not by a request of its own."""
    return f'data:image/png;base64,{base64.b64encode(png(image, effort=3)).decode()}'


def gif(canvas, states):
    """Return a GIF of up to FRAMES of these states [N, ...], evenly spread, that rests on the last one."""
    n = min(FRAMES, len(states))
    picked = [states[round(i * (len(states) - 1) / max(1, n - 1))] for i in range(n)]
    frames = [flat(canvas, x, FRAME_WIDTH).quantize(COLOURS, dither=Image.Dither.NONE) for x in picked]
    file = io.BytesIO()
    rest = [*[60] * (n - 1), 2000]  # milliseconds
    frames[0].save(file, 'GIF', save_all=True, append_images=frames[1:], duration=rest, loop=0)
    return file.getvalue()
