"""Draw the scores of a run against its training steps."""

import math

import score
from draw import picture
from run import records
from run.events import OTHER_SCORES


def curves(points):
    """Draw a panel for each figure that a run's records have. Return a PIL image, or None if they have none.

    points: {step: record}, measured in the same way, as `records.while_training` returns them.
    """
    *_, last = points.values()
    panels = []
    for figure in (*score.main_figures(), *OTHER_SCORES):
        known = {step: records.score_of(record, figure) for step, record in points.items()}
        known = {step: value for step, value in known.items() if value is not None and math.isfinite(value)}
        if known:
            panels.append({'x': list(known), 'y': list(known.values()), 'xlabel': 'training steps', 'ylabel': figure})
    if not panels:
        return None
    items, steps = 'points' if 'SW' in last else 'images', last['sample_steps'] or last['T']
    how = [f'{last["n"]} {items}, {steps} sampling steps, order {last["order"]}']
    if 'reference' in last:
        how += [f'{last["feature_net"]} features, {last["protocol"]} protocol', f'against {last["reference"]}']
    return picture.curves(*panels, title='\n'.join(how).replace('$', r'\$'))
