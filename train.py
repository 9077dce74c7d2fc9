"""The training loop: Algorithm 1 with EMA, warm-up and clipping, resumed by running the same command again.

Every random number of a step is a function of (seed, step), and the order of an epoch of (seed, epoch), so that a
checkpoint needs no generator state and a resumed run equals an unbroken one bit for bit on the CPU. Of several ranks
each draws what the whole batch needs and takes its share, so that all together take the steps of one process; only the
masks of dropout are functions of (seed, rank, step). Rank 0 writes and logs.
"""

import contextlib
import copy
import hashlib
import logging
import math
import os
import shlex
import time

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dataset import loader
from draw import picture, walk
from draw.inference import Inference
from draw.noise import Noise, derive_seed
from run import build, checkpoint, checks, compiling, distributed, files, hardware, inputs, labels
from run.config import disagreements, replace
from run.errors import memory
from run.events import Log, Silence


def train(config, flagfile='', interrupted=lambda: False, evaluate=None):
    """Train to --total_steps in --logdir, from its checkpoint if there is one; once `interrupted()`, save and return.

    config: the value of every flag. flagfile: text written to logdir/flagfile.txt. evaluate: what --eval_step calls
    with (config, net, step, interrupted), `evaluate.evaluate`.

    Raises UsageError, DataError, CheckpointError or OSError where the run cannot start or go on, and FloatingPointError
    where a loss or gradient is not finite; no update with it was made and none is saved.
    """
    with distributed.first_here():  # to download
        data = inputs.dataset(config)
    config = inputs.fit(config, data)
    loader.check_batch_size(data, config.batch_size)
    checks.check(config, training=True)
    with contextlib.nullcontext() if distributed.rank() else checkpoint.exclusive(config.logdir):
        os.makedirs(os.path.join(config.logdir, 'sample'), exist_ok=True)
        run = Run(config)
        run.describe()
        with distributed.main_first():  # to put a damaged checkpoint aside
            run.resume()
        if distributed.world() > 1 and not distributed.same(run.digest()):
            raise checkpoint.CheckpointError(
                f'{run.path} is not the same on every rank: --logdir must be one they share'
            )
        if config.num_classes:
            inputs.go_on_with_classes(config, data)
        write_flagfile(config, flagfile)
        begun = run.step
        loop(run, data, flagfile, interrupted, evaluate)
        if not distributed.rank() and (interrupted() or run.step > begun):
            print(_ending(run, interrupted()))


def _ending(run, interrupted):
    """What to say at the end: what was saved where, and what may come next."""
    config = run.config
    saved = f'{run.path} holds step {run.step} of {config.total_steps}'
    if interrupted and run.step < config.total_steps:
        return f'stopped: {saved}; the same command goes on from there'
    return f'trained: {saved}; next: python main.py --sample --logdir={shlex.quote(config.logdir)}'


def begin(config, net, ema, flagfile=''):
    """A run at step 0 in --logdir, of state dicts of a network and its average, which may lack what is not trained.

    Raises FileExistsError where --logdir holds a run, ValueError as `checks.check`, CheckpointError where the weights
    are not of the config's network or the checkpoint cannot be written, OSError.
    """
    checks.check(config, training=True)
    run = Run(config, trains=False)
    for module, weights in ((run.net, net), (run.ema, ema)):
        fixed = {key: value for key, value in module.named_parameters() if not value.requires_grad}
        checkpoint.load_weights(module, {**fixed, **weights}, config.import_ckpt)
    with checkpoint.exclusive(config.logdir):
        if os.path.exists(run.path):
            raise FileExistsError(f'{run.path} is there already: choose another --logdir')
        os.makedirs(os.path.join(config.logdir, 'sample'), exist_ok=True)
        run.save()
        write_flagfile(config, flagfile)


def write_flagfile(config, text):
    """Write logdir/flagfile.txt, on rank 0."""
    if distributed.rank():
        return
    files.write_text(os.path.join(config.logdir, 'flagfile.txt'), text)


def loop(run, data, flagfile='', interrupted=lambda: False, evaluate=None):
    """Steps from `run.step` to --total_steps, in pytorch-ddpm's order but for saving before sampling."""
    config = run.config
    if run.step >= config.total_steps:
        logging.info('%s is at step %d of %d: raise --total_steps to go on', run.path, run.step, config.total_steps)
        return
    stream = inputs.batches(config, data, run.step)
    agree, due = distributed.Consensus(), Alarm(config.save_minutes)
    with Silence() if distributed.rank() else Log(run, flagfile) as log:
        while run.step < config.total_steps:
            stop, save = agree(interrupted(), due())
            if stop:
                break
            torch.manual_seed(derive_seed('step', config.seed, 0, run.step))
            x_0, y = next(stream)
            if run.step == 0:
                show(log, 'real_sample', x_0[: config.sample_size])
            lr = run.optim.param_groups[0]['lr']
            log.add(*run.update(x_0, y if config.num_classes else None), lr)
            if save or run.is_at(config.save_step) or run.is_at(config.keep_every):
                log.flush()
                run.save()
                log.restart_clock()
            if run.is_at(config.sample_step):
                log.flush()
                with memory('lower --sample_size'):
                    drawn = run.preview(interrupted)
                if drawn is not None:
                    show(log, 'sample', drawn, os.path.join(config.logdir, 'sample', f'{run.step}.png'))
                log.restart_clock()
            if run.is_at(config.eval_step):
                log.flush()
                averaged = replace(config, weights='ema', ckpt='')
                with memory('lower --sample_batch_size'):
                    record = evaluate(averaged, run.ema, run.step, interrupted)
                if record:
                    log.scores(record)
                log.restart_clock()
        log.flush()
    if run.saved != run.step:
        run.save()


def show(log, name, x, path=None):
    """A picture of a batch to TensorBoard and, given a path, to a file, on rank 0."""
    if distributed.rank():
        return
    drawn = picture.of(x)
    if path:
        picture.save(path, drawn)
    log.image(name, drawn)


def lr_factor(config, step):
    """Of --lr: from 0 up to 1 over --warmup steps, then 1 or, with --lr_schedule=cosine, down to 0 at --total_steps."""
    if step < config.warmup:
        return step / config.warmup
    if config.lr_schedule == 'constant':
        return 1.0
    progress = (step - config.warmup) / max(1, config.total_steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def p_uncond(config, step):
    """Of --p_uncond: the same throughout or, with --p_uncond_schedule=linear, from 1 down to it at --total_steps."""
    if config.p_uncond_schedule == 'constant':
        return config.p_uncond
    return 1 + (config.p_uncond - 1) * min(step / max(1, config.total_steps - 1), 1.0)


class Alarm:
    """Whether so many minutes have passed since it last said so, by rank 0's clock; 0 for never."""

    def __init__(self, minutes):
        self.seconds = 60 * minutes if distributed.rank() == 0 else 0
        self.last = time.monotonic()

    def __call__(self):
        if not 0 < self.seconds <= time.monotonic() - self.last:
            return False
        self.last = time.monotonic()
        return True


class MeanLoss(nn.Module):
    """The mean of a trainer's loss: what is compiled, and whose gradients are averaged over the ranks."""

    def __init__(self, trainer):
        super().__init__()
        self.trainer = trainer

    def forward(self, **batch):
        return self.trainer(**batch).mean()

    def compile(self, **options):
        """Compile what follows, as one graph for the size it comes in. options: of inductor."""
        super().compile(dynamic=False, fullgraph=True, options=options)


class Run:
    """What a checkpoint holds (network, EMA, optimiser, schedule, step, x_T, sampler of t), and what is done to it."""

    def __init__(self, config, trains=True):
        """trains: whether steps will be taken, for which it may pay to compile."""
        self.config = config
        self.path = os.path.join(config.logdir, 'ckpt.pt')
        self.device = hardware.device(config)
        self.autocast = hardware.autocast(config)
        torch.manual_seed(derive_seed('init', config.seed))
        self.net = build.network(config).to(self.device)
        if self.device.type == 'cuda':
            self.net.to(memory_format=torch.channels_last)  # on a CPU it slows the way back through GroupNorm
        self.ema = copy.deepcopy(self.net).eval()
        self.trainer = build.trainer(config, self.net).to(self.device)
        self.loss = MeanLoss(self.trainer)
        images = config.total_steps * config.batch_size / distributed.world()
        self.compiled = trains and compiling.compiles(config, images, backward=True)
        if self.compiled:
            self.loss.compile()
        self.loss = distributed.parallel(self.loss, accumulates=config.grad_accum > 1)
        # Every parameter, the frozen time table too: so Adam numbers them as pytorch-ddpm does.
        self.optim = torch.optim.Adam(self.net.parameters(), lr=config.lr, fused=True)
        self.sched = torch.optim.lr_scheduler.LambdaLR(self.optim, lambda step: lr_factor(config, step))
        self.step = 0
        self.saved = -1
        self.x_T = torch.randn(config.sample_size, *build.shape(config)).to(self.device)
        self.trained = [p for p in self.net.parameters() if p.requires_grad]
        self.averaged = [p for p in self.ema.parameters() if p.requires_grad]
        self.average = get_ema_multi_avg_fn(config.ema_decay)
        self.broken = torch.zeros((), device=self.device)  # 1 from the first loss or gradient that is not finite on

    def describe(self):
        """Say what trains, on what, and where that is to be seen."""
        millions = sum(p.numel() for p in self.trained) / 1e6
        compiled = ', compiled' if self.compiled else ''
        logging.info('%.2f M parameters on %s%s', millions, hardware.describe(self.config), compiled)
        logging.info('the run is in %s: tensorboard --logdir=%s', *2 * [shlex.quote(self.config.logdir)])
        if self.compiled:
            logging.info(compiling.COMPILING)

    def is_at(self, every):
        """Whether this step is one of every so many; 0 for none."""
        return bool(every) and self.step % every == 0

    def update(self, x_0, y=None):
        """One step of Algorithm 1 on this rank's share of a batch.

        Labels y are left out with probability `p_uncond`, so that the network learns to do without.

        Returns the loss of the whole batch and its gradient's global norm, both still on the device.
        """
        config, share = self.config, distributed.share(self.config.batch_size)
        self.optim.zero_grad()
        t, eps = self.trainer.draw((config.batch_size, *x_0.shape[1:]), self.device)
        batch = {'x_0': x_0, 't': t[share], 'eps': eps[share]}
        if y is not None:
            dropped = torch.rand(config.batch_size, device=y.device)[share] < p_uncond(config, self.step)
            batch['y'] = torch.where(dropped, config.num_classes, y)
        if distributed.rank():  # masks of dropout of its own
            torch.manual_seed(derive_seed('dropout', config.seed, distributed.rank(), self.step))
        loss = torch.zeros((), device=self.device)
        parts = list(zip(*(value.chunk(config.grad_accum) for value in batch.values()), strict=True))
        for part in parts:
            last = part is parts[-1]
            with contextlib.nullcontext() if last else distributed.unsynced(self.loss):
                with self.autocast:
                    mean = self.loss(**dict(zip(batch, part, strict=True)))
                of_batch = mean / (config.batch_size / len(part[0]))
                (of_batch * distributed.world()).backward()  # as the ranks' gradients are averaged, not summed
            loss += of_batch.detach()
        for sums in (loss, *self.trainer.t_sampler.noted()):
            distributed.all_sum(sums)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, config.grad_clip or math.inf)
        # The fused kernel makes no update where found_inf is 1: the check without waiting for the device.
        self.broken = torch.maximum(self.broken, (~torch.isfinite(loss + norm)).float())
        self.optim.found_inf = self.broken
        self.optim.step()
        self.sched.step()
        self.average(self.averaged, self.trained, None)
        self.step += 1
        return loss, norm

    def preview(self, interrupted):
        """x_0 [sample_size, ...] of the EMA network from the fixed x_T, a share a rank; None once interrupted."""
        n = len(self.x_T)
        share = distributed.share(n)
        seed, indices = derive_seed('preview', self.config.seed), range(n)[share]
        x_0 = self.x_T[share]
        if indices:
            noise = Noise(seed, indices, self.x_T.shape[1:], self.device)
            sampler = build.sampler(self.config, Inference(self.ema, hardware.precision(self.config))).to(self.device)
            y = labels.of_indices(self.config, indices)
            x_0 = walk.denoise(self.config, sampler, sampler.start(x_0), y, noise, interrupted)
        return None if distributed.any_rank(x_0 is None) else distributed.whole(x_0, share, n)

    def save(self):
        """Write the checkpoint, on rank 0. Raises CheckpointError where it cannot be written."""
        state = {
            'net_model': self.net.state_dict(),
            'ema_model': self.ema.state_dict(),
            'optim': self.optim.state_dict(),
            'sched': self.sched.state_dict(),
            'step': self.step,
            'x_T': self.x_T,
            'config': vars(self.config),
            'ranks': distributed.world(),
        }
        if drawn_by := self.trainer.t_sampler.state_dict():
            state['t_sampler'] = drawn_by
        if not distributed.rank():
            keep = self.step and self.is_at(self.config.keep_every)
            checkpoint.save(self.path, state, checkpoint.numbered(self.path, self.step) if keep else None)
        self.saved = self.step

    def digest(self):
        """A hash of what the next step depends on, of which every rank must have the same."""
        digest = hashlib.sha256(str(self.step).encode())
        moments = [value for state in self.optim.state.values() for value in state.values()]
        modules = self.net, self.ema, self.trainer.t_sampler
        weights = [value for module in modules for value in module.state_dict().values()]
        for value in (*weights, *moments, self.x_T):
            digest.update(value.cpu().contiguous().numpy())
        return digest.hexdigest()

    def resume(self):
        """Go on from the checkpoint, ours or pytorch-ddpm's, if there is one; --lr and its schedule are the flags'.

        Raises CheckpointError where it is damaged, of another network, or trained with other flags.
        """
        try:
            state = checkpoint.load(self.path, repair=True)
        except FileNotFoundError:
            return
        with checkpoint.refusing_other_forms(self.path, ValueError):
            self._restore(state)
        ranks = state.get('ranks', 1)
        now = distributed.world()
        changed = '' if ranks == now else f', on {now} {"process" if now == 1 else "processes"} in place of {ranks}'
        logging.info('resuming %s at step %d%s', self.path, self.step, changed)

    def _restore(self, state):
        stored = state.get('config', {})
        if wrong := disagreements(self.config, stored):
            raise checkpoint.CheckpointError(
                f'{self.path} cannot go on with {", ".join(wrong)}: choose another --logdir'
            )
        self.config.class_names = stored.get('class_names')
        self.config.import_ckpt = stored.get('import_ckpt', '')  # where its weights came from
        checkpoint.load_weights(self.net, state['net_model'], self.path)
        checkpoint.load_weights(self.ema, state['ema_model'], self.path)
        self.step = self.saved = state['sched']['last_epoch']  # pytorch-ddpm's `step` is one less: the last one's index
        if self.step < 0 or state['x_T'].shape[1:] != self.x_T.shape[1:]:
            raise ValueError(f'step {self.step}, x_T {list(state["x_T"].shape)}')
        lr = self.config.lr * lr_factor(self.config, self.step)
        for group in state['optim']['param_groups']:
            group.update(fused=True, foreach=None, initial_lr=self.config.lr, lr=lr)
        self.optim.load_state_dict(state['optim'])
        for parameter, moments in self.optim.state.items():  # in its layout, which the fused kernel takes for granted
            for key in ('exp_avg', 'exp_avg_sq'):
                moments[key] = torch.empty_like(parameter).copy_(moments[key])
        self.sched.load_state_dict({**state['sched'], 'base_lrs': [self.config.lr], '_last_lr': [lr]})
        self.x_T = state['x_T'].to(self.device)
        # Not strict: a checkpoint of another sampler of t, or of none, has it begin anew.
        self.trainer.t_sampler.load_state_dict(state.get('t_sampler', {}), strict=False)
