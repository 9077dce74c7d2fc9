"""The device and the precision that a config asks for."""

import contextlib

import torch


def device(config):
    """Return the torch device of --device: cpu, or an accelerator with or without index; auto prefers an accelerator.

    Raises ValueError, listing the devices of this machine, if it does not have that one.
    """
    accel = torch.accelerator.current_accelerator(check_available=True)
    if config.device == 'auto':
        return torch.device(accel.type if accel else 'cpu')
    try:
        chosen = torch.device(config.device)
    except RuntimeError:
        chosen = None
    if chosen and chosen.type == 'cpu':
        return torch.device('cpu')
    count = torch.accelerator.device_count() if accel else 0
    if chosen and accel and chosen.type == accel.type and (chosen.index or 0) < count:
        return chosen
    available = ['auto', 'cpu', *([accel.type, *(f'{accel.type}:{i}' for i in range(count))] if accel else [])]
    problem = f'this machine has no {chosen.type.upper()} device of that name' if chosen else 'no device of torch'
    raise ValueError(f'--device={config.device}: {problem}; here it is one of {", ".join(available)}')


# Kinds of device -> whether this machine's computes in bf16. Other kinds do so only with --precision=bf16.
NATIVE_BF16 = {
    'cuda': lambda: torch.cuda.is_bf16_supported(False),
    'cpu': lambda: torch.cpu._is_avx512_bf16_supported(),
}


def precision(config):
    """Return the dtype of --precision: bfloat16 if asked for or, with auto, if the hardware computes in it."""
    native = computes_bf16(device(config))
    return torch.bfloat16 if config.precision == 'bf16' or (config.precision == 'auto' and native) else torch.float32


def computes_bf16(device):
    """Return whether a device computes in bfloat16 itself. Going through float32 takes many times as long."""
    return NATIVE_BF16.get(device.type, lambda: False)()


def describe(config):
    """Return the device and dtype of a run, for its log: 'cuda (NVIDIA H100), bfloat16'."""
    where, dtype = device(config), str(precision(config)).removeprefix('torch.')
    return f'{where} ({torch.cuda.get_device_name(where)}), {dtype}' if where.type == 'cuda' else f'{where}, {dtype}'


def autocast(config):
    """Return the context of a training step for --precision; weights stay in float32."""
    if precision(config) == torch.float32:  # not every kind of device has torch.autocast
        return contextlib.nullcontext()
    return torch.autocast(device(config).type, torch.bfloat16)
