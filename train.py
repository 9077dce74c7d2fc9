"""The training loop: Algorithm 1 with EMA, warm-up and clipping. Running the same command again resumes the run.

The random numbers of a step depend only on (seed, step), and the order of an epoch only on (seed, epoch). A checkpoint
therefore needs no generator state, and on the CPU a resumed run equals an unbroken one bit for bit. Each rank draws the
random numbers of the whole batch and uses its share of them, so that several ranks take the same steps as one process.
Only the dropout masks depend on (seed, rank, step). Rank 0 writes and logs.
"""

import contextlib
import copy
import hashlib
import logging
import math
import os
import shlex

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dataset import loader
from draw import picture, scores, walk
from draw.inference import Inference
from draw.noise import Noise, derive_seed
from run import build, checkpoint, checks, compiling, distributed, files, hardware, inputs, labels, records
from run.best import Best
from run.config import disagreements, in_few_steps, replace
from run.errors import memory
from run.events import Log, Silence


def train(config, flagfile='', interrupted=lambda: False, evaluate=None):
    """Train to --total_steps in --logdir, from its checkpoint if there is one. Once `interrupted()`, save and return.

    config: the value of every flag. flagfile: text written to logdir/flagfile.txt. evaluate: the function that
    --eval_step calls with (config, net, step, interrupted), as `evaluate.evaluate` takes them.

    Raises UsageError, DataError, CheckpointError or OSError if the run cannot start or go on, and FloatingPointError
    if a loss or gradient is not finite; that update is neither made nor saved.
    """
    if config.eval_step and evaluate is None:
        raise ValueError('--eval_step needs a function to evaluate with')
    with distributed.first_here():  # one rank of each machine downloads
        data = inputs.dataset(config)
    config = inputs.fit(config, data)
    loader.check_batch_size(data, config.batch_size)
    checks.check(config, training=True)
    with contextlib.nullcontext() if distributed.rank() else checkpoint.exclusive(config.logdir):
        os.makedirs(os.path.join(config.logdir, 'sample'), exist_ok=True)
        run = Run(config)
        run.describe()
        with distributed.main_first():  # rank 0 renames a damaged checkpoint
            run.resume()
        if distributed.world() > 1 and not distributed.same(run.digest()):
            raise checkpoint.CheckpointError(
                f'{run.path} is not the same on every rank: --logdir must be one they share'
            )
        if config.num_classes:
            inputs.go_on_with_classes(config, data)
        if config.keep_best and not distributed.rank():
            run.best = Best(config.keep_best, run.path)
        if config.eval_step and run.saved < 0 and records.read(config.logdir):
            logging.warning('%s/eval.txt is of a run before this one: eval.png may show its scores too', config.logdir)
        write_flagfile(config, flagfile)
        first_step = run.step
        loop(run, data, flagfile, interrupted, evaluate)
        if not distributed.rank() and (interrupted() or run.step > first_step):
            print(_ending(run, interrupted()))


def _ending(run, interrupted):
    """Return the closing message: what was saved where, and what to run next."""
    config = run.config
    saved = f'{run.path} holds step {run.step} of {config.total_steps}'
    if interrupted and run.step < config.total_steps:
        return f'stopped: {saved}; the same command goes on from there'
    return f'trained: {saved}; next: python main.py --sample --logdir={shlex.quote(config.logdir)}'


def begin(config, net, ema, flagfile=''):
    """Create a run at step 0 in --logdir from two state dicts, `net` and `ema`, which may lack what is not trained.

    Raises FileExistsError if --logdir holds a run, CheckpointError if the weights do not fit the config's network or
    the checkpoint cannot be written, OSError.
    """
    run = Run(config, trains=False)
    for module, weights in ((run.net, net), (run.ema, ema)):
        fixed = {key: value for key, value in module.named_parameters() if not value.requires_grad}
        checkpoint.load_weights(module, {**fixed, **weights}, config.import_ckpt)
    with checkpoint.exclusive(config.logdir):
        if checkpoint.exists(run.path):
            raise FileExistsError(f'{config.logdir} holds a checkpoint already: choose another --logdir')
        os.makedirs(os.path.join(config.logdir, 'sample'), exist_ok=True)
        run.save()
        write_flagfile(config, flagfile)


def write_flagfile(config, text):
    """Write logdir/flagfile.txt, on rank 0 only."""
    if distributed.rank():
        return
    files.write_text(os.path.join(config.logdir, 'flagfile.txt'), text)


def loop(run, data, flagfile='', interrupted=lambda: False, evaluate=None):
    """Train from `run.step` to --total_steps, in pytorch-ddpm's order except that it saves before it samples."""
    config = run.config
    if run.step >= config.total_steps:
        logging.info('%s is at step %d of %d: raise --total_steps to go on', run.path, run.step, config.total_steps)
        return
    stream = inputs.batches(config, data, run.step)
    agree, due = distributed.Consensus(), distributed.Alarm(config.save_minutes)
    with Silence() if distributed.rank() else Log(run, flagfile) as log:
        while run.step < config.total_steps:
            stop, save = agree(interrupted(), due())
            if stop:
                break
            torch.manual_seed(derive_seed('step', config.seed, 0, run.step))  # 0 on every rank: all draw the same
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
                averaged = replace(in_few_steps(config, config.eval_sample_steps), weights='ema', ckpt='')
                try:
                    with memory('lower --sample_batch_size'):
                        record = evaluate(averaged, run.ema, run.step, interrupted)
                except Exception:
                    if run.saved != run.step:  # a score that cannot be had costs no steps
                        run.save()
                    raise
                if record:
                    show_scores(run, log, record)
                    if run.best and run.best.note(record):
                        run.save(run.best.entry)
                log.restart_clock()
        log.flush()
        if run.saved != run.step:  # before the log is closed, which may take a while
            run.save()


def show(log, name, x, path=None):
    """Send a picture of a batch to the trackers and, if a path is given, to a file, on rank 0 only."""
    if distributed.rank():
        return
    drawn = picture.of(x)
    if path:
        picture.save(path, drawn)
    log.image(name, drawn)


def show_scores(run, log, record):
    """Send a record of --eval_step to the trackers, and draw it with those before it in logdir/eval.png."""
    log.scores(record)
    path = os.path.join(run.config.logdir, 'eval.png')
    try:
        drawn = scores.curves(records.while_training(run.config.logdir, record))
    except ImportError as error:
        logging.warning('no %s: %s; pip install -r requirements.txt', path, error)
        return
    if drawn:
        picture.save(path, drawn)


def lr_factor(config, step):
    """Return the factor of --lr: 0 to 1 over --warmup steps, then 1 or, with cosine, down to 0 at --total_steps."""
    if step < config.warmup:
        return step / config.warmup
    if config.lr_schedule == 'constant':
        return 1.0
    progress = (step - config.warmup) / max(1, config.total_steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def p_uncond(config, step):
    """Return the probability of dropping a label: --p_uncond or, with linear, from 1 down to it at --total_steps."""
    if config.p_uncond_schedule == 'constant':
        return config.p_uncond
    return 1 + (config.p_uncond - 1) * min(step / max(1, config.total_steps - 1), 1.0)


class MeanLoss(nn.Module):
    """The mean of a trainer's loss. This module is compiled, and its gradients are averaged over the ranks."""

    def __init__(self, trainer):
        super().__init__()
        self.trainer = trainer

    def forward(self, **batch):
        return self.trainer(**batch).mean()

    def compile(self, **options):
        """Compile the forward pass as one graph of fixed shapes. options: passed to inductor."""
        super().compile(dynamic=False, fullgraph=True, options=options)


class Run:
    """A training run: all that a checkpoint holds (network, EMA, optimiser, schedule, step, x_T, sampler of t)."""

    def __init__(self, config, trains=True):
        """trains: whether training steps will follow, for which compiling may pay."""
        self.config = config
        self.path = os.path.join(config.logdir, 'ckpt.pt')
        self.device = hardware.device(config)
        self.autocast = hardware.autocast(config)
        torch.manual_seed(derive_seed('init', config.seed))
        self.net = build.network(config).to(self.device)
        self.ema = copy.deepcopy(self.net).eval()
        self.trainer = build.trainer(config, self.net).to(self.device)
        self.loss = MeanLoss(self.trainer)
        images = config.total_steps * config.batch_size / distributed.world()
        self.compiled = trains and compiling.compiles(config, images, backward=True)
        if self.compiled:
            self.compile(**compiling.options(config, parts=config.grad_accum))
        self.loss = distributed.parallel(self.loss, accumulates=config.grad_accum > 1)
        # Pass the frozen time table too: then Adam numbers the parameters as pytorch-ddpm does.
        self.optim = torch.optim.Adam(self.net.parameters(), lr=config.lr, fused=True)
        self.sched = torch.optim.lr_scheduler.LambdaLR(self.optim, lambda step: lr_factor(config, step))
        self.step = 0
        self.saved = -1
        self.best = None  # with --keep_best, a `Best` on rank 0
        with memory('lower --sample_size'):
            self.x_T = torch.randn(config.sample_size, *build.shape(config)).to(self.device)
        self.trained = [p for p in self.net.parameters() if p.requires_grad]
        self.averaged = [p for p in self.ema.parameters() if p.requires_grad]
        self.average = get_ema_multi_avg_fn(config.ema_decay)
        self.broken = torch.zeros((), device=self.device)  # 1 once a loss or gradient was not finite

    def compile(self, **options):
        """Compile the loss, on a GPU with channels last. On a CPU they slow the backward pass of GroupNorm."""
        if self.device.type == 'cuda':
            for net in (self.net, self.ema):
                net.to(memory_format=torch.channels_last)
        self.loss.compile(**options)

    def describe(self):
        """Log what trains, on which device, and how to watch it."""
        millions = sum(p.numel() for p in self.trained) / 1e6
        compiled = ', compiled' if self.compiled else ''
        logging.info('%.2f M parameters on %s%s', millions, hardware.describe(self.config), compiled)
        where = shlex.quote(self.config.logdir)
        watched = f': tensorboard --logdir={where}' if 'tensorboard' in self.config.track else ''
        logging.info('the run is in %s%s', where, watched)
        if self.compiled:
            logging.info(compiling.COMPILING)

    def is_at(self, every):
        """Return whether this step is a multiple of `every`; 0 means never."""
        return bool(every) and self.step % every == 0

    def update(self, x_0, y=None):
        """Take one step of Algorithm 1 on this rank's share of a batch.

        Drops each label of y with probability `p_uncond`, so that the network also learns to predict without labels.

        Returns the loss of the whole batch and its gradient's global norm, both still on the device.
        """
        config, share = self.config, distributed.share(self.config.batch_size)
        self.optim.zero_grad()
        t, eps = self.trainer.draw((config.batch_size, *x_0.shape[1:]), self.device)
        batch = {'x_0': x_0, 't': t[share], 'eps': eps[share]}
        if y is not None:
            dropped = torch.rand(config.batch_size, device=y.device)[share] < p_uncond(config, self.step)
            batch['y'] = torch.where(dropped, config.num_classes, y)
        if distributed.rank():  # each rank has its own dropout masks
            torch.manual_seed(derive_seed('dropout', config.seed, distributed.rank(), self.step))
        loss = torch.zeros((), device=self.device)
        parts = list(zip(*(value.chunk(config.grad_accum) for value in batch.values()), strict=True))
        for part in parts:
            last = part is parts[-1]
            with contextlib.nullcontext() if last else distributed.unsynced(self.loss):
                with self.autocast:
                    mean = self.loss(**dict(zip(batch, part, strict=True)))
                part_loss = mean / (config.batch_size / len(part[0]))
                (part_loss * distributed.world()).backward()  # the ranks' gradients are averaged, not summed
            loss += part_loss.detach()
        for sums in (loss, *self.trainer.t_sampler.noted()):
            distributed.all_sum(sums)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, config.grad_clip or math.inf)
        # The fused kernel skips the update if found_inf is 1, so the check does not wait for the device.
        self.broken = torch.maximum(self.broken, (~torch.isfinite(loss + norm)).float())
        self.optim.found_inf = self.broken
        self.optim.step()
        self.sched.step()
        self.average(self.averaged, self.trained, None)
        self.step += 1
        return loss, norm

    def preview(self, interrupted):
        """Return x_0 [sample_size, ...] drawn from the fixed x_T by the EMA network on all ranks; None if stopped."""
        n, config = len(self.x_T), in_few_steps(self.config, self.config.preview_steps)
        share = distributed.share(n)
        seed, indices = derive_seed('preview', config.seed), range(n)[share]
        x_0 = self.x_T[share]
        if indices:
            noise = Noise(seed, indices, self.x_T.shape[1:], self.device)
            sampler = build.sampler(config, Inference(self.ema, hardware.precision(config))).to(self.device)
            y = labels.of_indices(config, indices)
            x_0 = walk.denoise(config, sampler, sampler.start(x_0), y, noise, interrupted)
        return None if distributed.any_rank(x_0 is None) else distributed.whole(x_0, share, n)

    def save(self, best=None):
        """Write the checkpoint, on rank 0 only. Raises CheckpointError if it cannot be written.

        best: the entry of `Best`, if this is the best checkpoint so far; then it is kept as ckpt.best.pt too.
        """
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
        if t_sampler := self.trainer.t_sampler.state_dict():
            state['t_sampler'] = t_sampler
        kept = []
        if self.step and self.is_at(self.config.keep_every):
            kept.append(checkpoint.numbered(self.path, self.step))
        if best:
            state['best'] = best
            kept.append(checkpoint.best(self.path))
        if not distributed.rank():
            checkpoint.save(self.path, state, *kept)
        self.saved = self.step

    def digest(self):
        """Return a hash of what the next step depends on. It must be the same on every rank."""
        digest = hashlib.sha256(str(self.step).encode())
        moments = [value for state in self.optim.state.values() for value in state.values()]
        modules = self.net, self.ema, self.trainer.t_sampler
        weights = [value for module in modules for value in module.state_dict().values()]
        for value in (*weights, *moments, self.x_T):
            digest.update(value.cpu().contiguous().numpy())
        return digest.hexdigest()

    def resume(self):
        """Resume from the checkpoint, ours or pytorch-ddpm's, if there is one; the flags decide --lr and its schedule.

        Raises CheckpointError if it is damaged, holds another network, or was trained with other flags.
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
        before, now = stored.get('dataset', self.config.dataset), self.config.dataset
        if before != now and not stored.get('import_ckpt'):
            logging.warning('%s was trained on --dataset=%s and goes on with %s', self.path, before, now)
        self.config.class_names = stored.get('class_names')
        self.config.import_ckpt = stored.get('import_ckpt', '')  # where its weights came from
        checkpoint.load_weights(self.net, state['net_model'], self.path)
        checkpoint.load_weights(self.ema, state['ema_model'], self.path)
        self.step = self.saved = state['sched']['last_epoch']  # pytorch-ddpm's `step` is one less, the last index
        if self.step < 0 or state['x_T'].shape[1:] != self.x_T.shape[1:]:
            raise ValueError(f'step {self.step}, x_T {list(state["x_T"].shape)}')
        lr = self.config.lr * lr_factor(self.config, self.step)
        for group in state['optim']['param_groups']:
            group.update(fused=True, foreach=None, initial_lr=self.config.lr, lr=lr)
        self.optim.load_state_dict(state['optim'])
        for parameter, moments in self.optim.state.items():  # in the parameter's layout, as the fused kernel expects
            for key in ('exp_avg', 'exp_avg_sq'):
                moments[key] = torch.empty_like(parameter).copy_(moments[key])
        self.sched.load_state_dict({**state['sched'], 'base_lrs': [self.config.lr], '_last_lr': [lr]})
        x_T = state['x_T'].to(self.device)
        self.x_T = torch.cat([x_T, self.x_T[len(x_T) :]])[: self.config.sample_size]
        # Not strict: if the checkpoint has another sampler of t, or none, this one starts afresh.
        self.trainer.t_sampler.load_state_dict(state.get('t_sampler', {}), strict=False)
