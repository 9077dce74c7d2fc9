"""The device that a config asks for, and the precision that it computes in."""

import contextlib

import torch


def device(config):
    """The torch device of --device: cpu, or a kind of accelerator, with an index or without; auto is what there is.

    Raises ValueError, which says what there is, for one that this machine does not have.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    if config.device == 'auto':
        return torch.device(found.type if found else 'cpu')
    try:
        chosen = torch.device(config.device)
    except RuntimeError:
        chosen = None
    if chosen and chosen.type == 'cpu':
        return torch.device('cpu')
    count = torch.accelerator.device_count() if found else 0
    if chosen and found and chosen.type == found.type and (chosen.index or 0) < count:
        return chosen
    there = ['auto', 'cpu', *([found.type, *(f'{found.type}:{i}' for i in range(count))] if found else [])]
    known = f'this machine has no {chosen.type.upper()} device of that name' if chosen else 'no device of torch'
    raise ValueError(f'--device={config.device}: {known}; here it is one of {", ".join(there)}')


# Kinds of device -> whether the one at hand computes in bf16. Others have to be asked to, by --precision=bf16.
NATIVE_BF16 = {
    'cuda': lambda: torch.cuda.is_bf16_supported(False),
    'cpu': lambda: torch.cpu._is_avx512_bf16_supported(),
}


def precision(config):
    """The dtype of --precision: bfloat16 where asked for or, with auto, where the hardware computes in it."""
    native = computes_bf16(device(config))
    return torch.bfloat16 if config.precision == 'bf16' or (config.precision == 'auto' and native) else torch.float32


def computes_bf16(device):
    """Whether a device computes in bfloat16 itself, rather than by way of float32, which takes many times as long."""
    return NATIVE_BF16.get(device.type, lambda: False)()


def describe(config):
    """What a run computes on and in, for its log: 'cuda (NVIDIA H100), bfloat16'."""
    where, dtype = device(config), str(precision(config)).removeprefix('torch.')
    return f'{where} ({torch.cuda.get_device_name(where)}), {dtype}' if where.type == 'cuda' else f'{where}, {dtype}'


def autocast(config):
    """The context of a training step for --precision, with weights in float32."""
    if precision(config) == torch.float32:  # torch.autocast is not there for every kind of device
        return contextlib.nullcontext()
    return torch.autocast(device(config).type, torch.bfloat16)
