"""Merge flagfiles into the command line, suggest the flag that a misspelt one means, and write --help."""

import difflib
import os
import re
import shutil
import textwrap
from itertools import islice

from absl import flags

from run.config import GROUPS

# how Python and absl begin to say that a value is of another kind -> the kind
KINDS = {
    r"\('Non-boolean argument": 'true or false',
    r'invalid literal for int\(\)': 'a whole number',
    'could not convert string to float': 'a number',
}

# Names of flags in other programs -> our flag.
MEANT = {
    'batchsize': 'batch_size', 'bs': 'batch_size', 'cfg_scale': 'guidance', 'guidance_scale': 'guidance',
    'checkpoint': 'ckpt', 'resume': 'ckpt', 'class': 'labels', 'data': 'dataset', 'data_root': 'data_dir',
    'ddim_steps': 'sample_steps', 'num_inference_steps': 'sample_steps', 'timestep_respacing': 'sample_steps',
    'diffusion_steps': 'T', 'num_timesteps': 'T', 'timesteps': 'T', 'epochs': 'total_steps',
    'iterations': 'total_steps', 'num_steps': 'total_steps', 'steps': 'total_steps', 'train_steps': 'total_steps',
    'fp16': 'precision',
    'amp': 'precision', 'bf16': 'precision', 'gpu': 'device', 'image_size': 'img_size', 'resolution': 'img_size',
    'learning_rate': 'lr', 'n_samples': 'num_images', 'num_samples': 'num_images', 'output': 'out',
    'output_dir': 'out', 'save_dir': 'logdir', 'workdir': 'logdir', 'objective': 'mean_type', 'workers': 'num_workers',
}  # fmt: skip
OFF = ('=false', '=0', '=no')


def arrange(argv, known, actions):
    """Merge flagfiles and command line into the words that absl parses.

    argv: the program, then its arguments. known: names of all flags. actions: names of those that say what to do. A
    flag on the command line replaces the same flag in flagfiles, and one in a flagfile replaces it in those before; an
    action on the command line replaces all actions in flagfiles.

    Returns (words, {flag: the flagfile that sets it}, {flagfile: the actions of it that were left out}). Raises
    flags.Error if a flagfile cannot be read.
    """
    files, words = [], []
    rest = iter(argv[1:])
    for word in rest:
        name, equals, path = word.lstrip('-').partition('=')
        if word.startswith('-') and name == 'flagfile':
            files += [path] if equals else list(islice(rest, 1)) or ['']
        else:
            words.append(word)
    given = {_flag_of(word, known) for word in words if word.startswith('-')}
    has_action = any(_name(word) in actions and not word.lower().endswith(OFF) for word in words)
    lines, origins, left_out = [], {}, {}
    parts = [part for file in files for part in _parts_of(file)]
    for path, part in reversed(parts):
        kept, keep = [], True
        for line in part:
            if line.startswith('-'):  # otherwise it is the value of the flag before
                name = _flag_of(line, known)
                keep = name not in given and not (has_action and name in actions)
                if not keep and name not in given and not line.lower().endswith(OFF) and _name(line) == name:
                    left_out.setdefault(path, []).append(name)
                if keep:
                    origins[name] = path
            kept += [line] if keep else []
        lines, given = kept + lines, given | origins.keys()
    return [argv[0], *lines, *words], origins, left_out


def _name(word):
    return word.lstrip('-').partition('=')[0]


def _flag_of(word, known):
    name = _name(word)
    return name[2:] if name not in known and name.startswith('no') and name[2:] in known else name


def _parts_of(path, within=()):
    """Return [(path, lines)]: the parts of a flagfile, and between them those of the flagfiles that it names."""
    if not os.path.isfile(path):
        folder = os.path.relpath(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'config'))
        raise flags.Error(f'there is no flagfile {path}: {folder} holds {" ".join(sorted(os.listdir(folder)))}')
    if path in within:
        raise flags.Error(f'the flagfile {path} names itself')
    try:
        with open(path, encoding='utf-8-sig') as file:  # Notepad writes the signature
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise flags.Error(f'the flagfile {path} cannot be read as text in UTF-8: {error}') from error
    parts = [(path, [])]
    for line in lines:
        if _name(line) == 'flagfile' and '=' in line:
            parts += [*_parts_of(line.partition('=')[2], (*within, path)), (path, [])]
        elif line and not line.startswith(('#', '//')):
            parts[-1][1].append(line)
    return parts


def explain(error, known, origins):
    """Return the message of a flags.Error. For a flag that is not in `known`, suggest the one that may be meant."""
    if not isinstance(error, flags.UnrecognizedFlagError):
        message = str(error)
        for said, kind in KINDS.items():
            message = re.sub(f'{said}.*', f'value should be {kind}', message, flags=re.DOTALL)
        return message
    name = error.flagname
    lower = {other.lower(): other for other in known}
    near = [MEANT.get(name.lower()), *map(lower.get, difflib.get_close_matches(name.lower(), lower, n=2))]
    near = [f'--{other}' for other in dict.fromkeys(near) if other in known]
    of_file = f' in {origins[name]}' if name in origins else ''
    return f'there is no flag --{name}{of_file}: ' + (f'is it {" or ".join(near)}?' if near else '--help lists all')


def sections(argv):
    """Return the groups of flags in the order of --help: what to do, the groups of the verbs in argv, the others."""
    verbs = {_name(word) for word in argv[1:] if word.startswith('-')}
    first, *others = GROUPS
    return [first, *sorted(others, key=lambda group: not verbs.intersection(group.verbs))]


def help_text(doc, groups, flags):
    """Return the text of --help: every flag with its default and help. doc: text on top. flags: {name: absl's flag}."""
    width = max(60, min(120, shutil.get_terminal_size().columns))
    lines = [doc.strip()]
    for group in groups:
        lines += ['', f'{group.heading}:']
        for flag in group.flags:
            name, text = _described(flags[flag.name])
            lines += [f'  {name}'] if len(name) > 26 else []
            first = '' if len(name) > 26 else f'  {name}'
            lines += textwrap.wrap(text, width, initial_indent=f'{first:30}', subsequent_indent=' ' * 30)
    return '\n'.join(lines)


def flags_page(flags):
    """Return the text of docs/flags.md. flags: {name: absl's flag}."""
    lines = ['# Flags', '', '`make flags` writes this page from the declarations in `run/config.py`.']
    for group in GROUPS:
        lines += ['', f'## {group.heading}', '', '| flag | what it says |', '| --- | --- |']
        lines += ['| `{}` | {} |'.format(*_described(flags[flag.name])).replace('<', '&lt;') for flag in group.flags]
    return '\n'.join(lines) + '\n'


def _described(flag):
    """Return an absl flag as it is written with its default, and its help with the choices."""
    choices = getattr(flag.parser, 'enum_values', None)
    name = f'--[no]{flag.name}' if flag.boolean and flag.default else f'--{flag.name}'
    if not flag.boolean and flag.default not in (None, ''):
        name += '=' + re.sub(r"[' \[\]]", '', str(flag.default))
    text = re.sub(r';\s+repeat this option.*', '', flag.help)  # without what absl adds
    return name, text + (f' ({" ".join(choices)})' if choices else '')
