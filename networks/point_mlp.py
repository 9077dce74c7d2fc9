"""Define `PointMLP`, a small network for points in the plane."""

from torch import nn

from model import labels_or_none


class PointMLP(nn.Module):
    """eps_theta(x_t, t) for points: x [B, dim], t int64 [B] in 0..T-1, y int64 [B] or None -> out [B, dim].

    It has three hidden layers of `ch` units. Before the ReLU of each, a learned embedding of the step is added, and
    with num_classes one of the label too. y = num_classes, or y = None, means no label. The network follows the 2-D
    s_curve tutorial.
    """

    def __init__(self, T, ch=128, *, dim=2, num_classes=None):
        super().__init__()
        self.num_classes = num_classes
        self.hidden = nn.ModuleList(nn.Linear(width, ch) for width in (dim, ch, ch))
        self.step_embeddings = nn.ModuleList(nn.Embedding(T, ch) for _ in self.hidden)
        if num_classes:
            self.label_embeddings = nn.ModuleList(nn.Embedding(num_classes + 1, ch) for _ in self.hidden)
        self.tail = nn.Linear(ch, dim)

    def forward(self, x, t, y=None):
        y = labels_or_none(self, t, y)
        for i, layer in enumerate(self.hidden):
            x = layer(x) + self.step_embeddings[i](t)  # [B, ch]
            if y is not None:
                x = x + self.label_embeddings[i](y)
            x = x.relu()
        return self.tail(x)  # [B, dim]
