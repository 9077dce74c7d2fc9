"""Keep what a visitor has walked: the states between noise and image, each with the step that leads on from it."""

import time
from types import SimpleNamespace

import torch

from process.solvers import Step, Taken

KEPT_BYTES = 2**29  # about what one walk may keep, which limits the number of images of a page


class Walk:
    """A list of states that grows at its end, by denoising (p) or diffusing (q), and a place in it, `at`.

    A state has t, the noisings in it; x [n, ...]; denoised, whether a step of p led to it; drawn, the draws of noise
    before it; and, once somebody has asked, `taken`, the step of p that leads on from it (`Taken`), and
    `raw`, its prediction before `project`. However often the reader goes back, a step uses the same draw, and a walk of
    p alone from x_T uses the draws in the order of `--sample`.

    A walk that edits images has one direction. Where it goes back up, by q in one step, `taken` is that step; it has no
    x0_hat.

    sampler: a GaussianDiffusionSampler. x, t: the first state; by default x_T. noise: x -> z, such as a
    `draw.noise.Noise`. y: int64 labels [n] or None. project, stops: of an edit, as `draw.walk.Edit` returns them.
    """

    def __init__(self, sampler, noise, y=None, x=None, t=0, project=None, stops=None):
        self.sampler, self.noise, self.y, self.project, self.stops = sampler, noise, y, project, stops
        if x is None:
            x, t = sampler.start(noise()), sampler.states[-1]
        self.states = [SimpleNamespace(t=t, x=x, denoised=False, drawn=0, taken=None)]
        self.draws, self.at = [], 0
        self.going, self.going_at = None, None  # steps of p under way, and the state that the next one leads on from

    @property
    def state(self):
        """The state at which the reader is."""
        return self.states[self.at]

    def taken(self, k=None):
        """Return the step of p that leads on from state k, by default the one at hand, or None at the image."""
        k = self.at if k is None else k
        state = self.states[k]
        if state.taken is None and self.stops and k + 1 < len(self.stops) and self.stops[k + 1] > state.t:
            state.taken = self._back_up(k)
        elif state.taken is None and state.t:
            if self.going_at != k:
                self._set_out(k)
            state.taken, self.going_at = next(self.going), k + 1
        return state.taken

    def _back_up(self, k):
        """Return the step of q by which an edit goes back up from state k."""
        state, t, z = self.states[k], self.stops[k + 1], self._draw(k)
        kept = self.sampler.kept(state.t, t)
        row = Step(kept**0.5, (), (1 - kept) ** 0.5, 0.0)
        return Taken(state.t, t, row, state.x, (), row.std, z, self.sampler.renoise(state.x, state.t, t, z))

    def _set_out(self, k):
        """Go along p up to state k, from where p began, so that the step there has its earlier predictions."""
        first = k
        while self.states[first].denoised:
            first -= 1
        start = self.states[first]
        self.going_at = first
        noise, project = (lambda x: self._draw(self.going_at)), self._project if self.project else None
        self.going = self.sampler.walk(start.x, self.y, start.t, noise=noise, project=project)
        while self.going_at < k:
            next(self.going)
            self.going_at += 1

    def _project(self, x0_hat):
        self.states[self.going_at].raw = x0_hat
        return self.project(x0_hat)

    def _draw(self, k):
        while len(self.draws) <= self.states[k].drawn:
            self.draws.append(self.noise())
        return self.draws[self.states[k].drawn]

    def kept(self, denoise):
        """Return the index of the last state on this way that has been walked already."""
        if self.stops:
            return len(self.states) - 1
        k = self.at
        while k + 1 < len(self.states) and self.states[k + 1].denoised == denoise:
            k += 1
        return k

    def end(self, denoise):
        """Return the index that the last state on this way, the image or noise, has or will have."""
        if self.stops:
            return len(self.stops) - 1
        k = self.kept(denoise)
        t = self.states[k].t
        left = sum(timestep < t - 1 for timestep in self.sampler.timesteps) + (t > 0)
        return k + (left if denoise else self.sampler.T - t)

    def go(self, target, denoise, seconds=float('inf')):
        """Move to state `target`, by steps of p or q if it is ahead; stop on the way after about so many seconds."""
        until = time.monotonic() + seconds
        target = max(0, min(target, self.end(denoise)))
        self.at = min(target, self.kept(denoise))
        while self.at < target:
            self._on(denoise)
            if time.monotonic() > until:
                break

    def _on(self, denoise):
        """Take one step from the state at hand. What was walked from there in the other direction is forgotten."""
        state, taken = self.state, self.taken() if denoise else None
        del self.states[self.at + 1 :]
        if taken:
            t, x = taken.s, taken.x_s
        else:
            ((t, x),) = self.sampler.diffuse(state.x, state.t, state.t + 1, noise=lambda x: self._draw(self.at))
        if self.going_at != self.at + 1 or not denoise:
            self.going_at = None
        drawn = state.drawn + (taken is None or taken.z is not None)
        by_p = taken is not None and t < state.t
        self.states.append(SimpleNamespace(t=t, x=x, denoised=by_p, drawn=drawn, taken=None))
        self.at += 1

    @property
    def runs(self):
        """The way to the state at hand as [(whether by p, number of steps)], which `replay` takes."""
        if self.stops:
            return [(True, self.at)] if self.at else []
        runs = []
        for state in self.states[1 : self.at + 1]:
            if runs and runs[-1][0] == state.denoised:
                runs[-1][1] += 1
            else:
                runs.append([state.denoised, 1])
        return [tuple(run) for run in runs]

    def replay(self, runs):
        """Walk as another walk did, as far as the chain allows."""
        for denoise, steps in runs:
            self.go(self.at + steps, denoise)


def most_items(states, shape):
    """Return how many images or points of this shape a walk of so many states can keep: at least 1, at most 10,000."""
    each = 12 * torch.Size(shape).numel() * (states + 1)  # float32: x_t, x0_hat and z of each step
    return max(1, min(10**4, KEPT_BYTES // each))
