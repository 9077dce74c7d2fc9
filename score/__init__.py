"""Scores images by FID, IS and KID, from one streamed pass through one feature net.

It scores points in the plane too, by the sliced Wasserstein distance. It knows nothing of diffusion.
"""

# ruff: noqa: F401 (what is imported here is what this package offers)

from .both import get_fid_score, get_inception_and_fid_score, get_inception_score
from .features import FEATURE_NETS, FeatureNet, full_fp32
from .fid import calculate_frechet_distance
from .files import ScoreError, check_writable
from .inception import PROTOCOLS
from .kid import kept_indices, kernel_inception_distance, kid_interval
from .metrics import (
    ALIASES,
    METRICS,
    USUAL,
    Metric,
    compare_statistics,
    describe_figures,
    figure_names,
    main_figures,
    needs_of,
    ranking,
    that_need,
)
from .monge import mind
from .neighbours import KEPT, authenticity, nearest, prdc
from .points import sliced_wasserstein
from .scorer import Scorer, build_statistics
from .source import StaleError, check_source
from .statistics import (
    Moments,
    Statistics,
    exact_device,
    holds,
    load_features,
    load_statistics,
    save_features,
    save_statistics,
)
