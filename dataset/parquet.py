"""Read images and labels from parquet files, one row group at a time, with pyarrow."""

import contextlib
import io
import json
import os
import re
from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from dataset.arrays import numbered
from dataset.files import EXTENSIONS, LOOKED_AT, DataError, file_marks, identity_of, natural, open_image, spread
from dataset.splits import warn_of_missing

CACHED_BYTES = 2**28  # the row groups that a process keeps; one is kept whatever its size
GROUP_BYTES = 2**30  # the most bytes of images in a row group, since each worker process holds at least one
BYTES, TEXT = ('binary', 'large_binary', 'binary_view'), ('string', 'large_string', 'string_view')  # types of arrow
STRUCT = re.compile(r'struct<(path: \w+, )?bytes: ')
LABELS = 'label', 'labels'  # names of columns, in small letters


class Columns(NamedTuple):
    """Says what the columns of a file hold. image, label: names; label is '' if there is none, and `why` says why."""

    names: tuple
    image: str
    label: str
    classes: tuple  # the names of the labels, if the file tells them
    why: str


class Parquet:
    """The items (PIL image, label) of the rows of parquet files, in natural order of their names.

    The column of images holds encoded images, paths relative to the folder of the parquet file, or structs {bytes,
    path}, as the package datasets writes them. If that has stored the names of the classes, they count. If not, the
    classes are the values that occur in the column label.

    Reading a row reads its row group. A process keeps the groups that it used last, up to CACHED_BYTES.

    names: the files below a folder, or that of `path`. note: what to say of them. Raise DataError if pyarrow is
    missing, if a file is damaged, if the files have different columns, or if it is not clear which holds the images.
    """

    def __init__(self, path, names, note):
        self.place, self.path = path, path if os.path.isdir(path) else os.path.dirname(path) or os.curdir
        self.files, self.columns = [], None  # files with rows
        self.kept, self.footers = OrderedDict(), {}  # row groups by number, metadata by file
        names = sorted(names, key=natural)
        warn_of_missing(path, names)
        self.groups, counts, labels = [], [0], []  # (file, index) of each row group, their numbers of rows
        for file in names:
            with self._opened(file) as opened:
                if not opened.metadata.num_rows:  # some programs write such files, whose columns tell nothing
                    continue
                self._agree(file, columns_of(opened))
                self.files.append(file)
                for group in range(opened.num_row_groups):
                    counts.append(self._checked_rows(file, opened.metadata.row_group(group)))
                    self.groups.append((file, group))
                if self.columns.label:
                    labels.append(opened.read([self.columns.label], use_threads=False).column(0))
        self.starts = np.cumsum(counts)  # the first row of each group, and the number of all rows
        if not len(self):
            raise DataError(f'{path} has no rows')
        self.classes, self.labels, self.no_classes = self._labelled(labels)
        label = f' and {self.columns.label}' * bool(self.classes)
        self.note = f', from {self.columns.image}{label} of {len(names)} file{"s"[: len(names) != 1]}{note}'

    def __getstate__(self):
        return self.__dict__ | {'kept': OrderedDict()}

    @contextlib.contextmanager
    def _opened(self, file):
        # No file stays open between two reads, so that worker processes share none. No threads: they do not fork.
        place = os.path.join(self.path, file)
        try:
            with package().ParquetFile(place, metadata=self.footers.get(file), pre_buffer=False) as opened:
                self.footers[file] = opened.metadata
                yield opened
        except (DataError, MemoryError):
            raise
        except Exception as error:  # a broken file can make pyarrow raise nearly anything
            raise DataError(f'{place} cannot be read: {" ".join(str(error).split())}') from error

    def _agree(self, file, columns):
        self.columns = self.columns or columns
        if columns != self.columns:
            pairs = zip(self.columns, columns, ('columns', 'images in', 'labels in', 'classes', ''), strict=True)
            ours, theirs, what = next(each for each in pairs if each[0] != each[1])
            ours, theirs = (value if isinstance(value, str) else ' '.join(value) or 'none' for value in (ours, theirs))
            first = self.files[0]
            raise DataError(f'{self.path}: {file} has the {what} {theirs}, {first} {ours}: name files of one kind')

    def _checked_rows(self, file, group):
        leaves = map(group.column, range(group.num_columns))
        ours = [leaf for leaf in leaves if leaf.path_in_schema.split('.')[0] == self.columns.image]
        if (size := sum(leaf.total_uncompressed_size for leaf in ours)) > GROUP_BYTES:
            raise DataError(
                f'{self.path}: {file} has a row group with {size / 2**30:.1f} GiB of images: write it anew by '
                'pyarrow.parquet.write_table(table, path, row_group_size=100)'
            )
        return group.num_rows

    def _labelled(self, columns):
        """Return (classes, labels [N], the reason if there are none)."""
        n, none = len(self), np.zeros(len(self), int)
        if not columns:
            return [], none, self.columns.why
        values = [value for column in columns for value in column.to_pylist()]
        if (missing := values.count(None)) == n:
            return [], none, f'as {self.columns.label} is empty'
        if missing:
            raise DataError(f'{self.path}: {self.name(values.index(None))} has no label, but others have one')
        kinds = {type(value).__name__ for value in values}
        known = self.columns.classes
        if len(kinds) > 1 or not kinds <= ({'int'} if known else {'int', 'bool', 'str', 'float'}):
            what = 'numbers of classes' if known else 'integers or texts'
            raise DataError(f'{self.place}: the labels are of type {" and ".join(sorted(kinds))}: they must be {what}')
        values = np.array(values)
        if not known:
            return *numbered(values, n, self.place, self.name), ''
        if (values == -1).all():  # how datasets stores labels that are withheld
            return [], none, f'as every {self.columns.label} is -1'
        wrong = (values < 0) | (values >= len(known))
        if wrong.any():
            i = int(wrong.argmax())
            raise DataError(
                f'{self.path}: {self.name(i)} has the label {values[i]}, but there are {len(known)} classes'
            )
        return list(known), values, ''

    @property
    def looked_at(self):
        """The rows of some row groups, evenly spread, since a look at one row reads its whole group."""
        groups = spread(np.flatnonzero(np.diff(self.starts)), LOOKED_AT)  # some may have no rows
        return [i for group in groups for i in range(self.starts[group], self.starts[group + 1])]

    def _find(self, i):
        return int(np.searchsorted(self.starts, i, 'right')) - 1

    def name(self, i):
        """Return the file of item i and its row there, counted from 0."""
        file, index = self.groups[self._find(i)]
        return f'{file}, row {i - self.starts[self._find(i) - index]}'

    def identity(self):
        """Return what `identity_of` does, of the parquet files and of the image files that their rows name."""
        names = [*self.files, *(name for file in self.files for name in self._named_by(file))]
        marks = [(name, *file_marks(os.path.join(self.path, name))) for name in names]
        return identity_of(self.place, len(self), marks)

    def _named_by(self, file):
        """Return the image files that the rows of a file name in place of holding the images. Read no images."""
        image = self.columns.image
        with self._opened(file) as opened:
            groups = map(opened.metadata.row_group, range(opened.num_row_groups))
            leaves = [group.column(i) for group in groups for i in range(group.num_columns)]
            column = image if str(opened.schema_arrow.field(image).type) in TEXT else f'{image}.path'
            held = [leaf.statistics for leaf in leaves if leaf.path_in_schema == f'{image}.bytes']
            holds_all = held and all(each and each.null_count == 0 for each in held)
            if holds_all or all(leaf.path_in_schema != column for leaf in leaves):
                return []
            cells = opened.read([column], use_threads=False).column(0).to_pylist()
        paths = [cell.get('path') if isinstance(cell, dict) else cell for cell in cells]
        names = [os.path.join(os.path.dirname(file), path) for path in paths if path]
        return [name for name in names if os.path.isfile(os.path.join(self.path, name))]

    def __len__(self):
        return int(self.starts[-1])

    def __getitem__(self, i):
        group = self._find(i)
        cell = self._images(group)[int(i - self.starts[group])].as_py()
        content, path = (cell.get('bytes'), cell.get('path')) if isinstance(cell, dict) else (cell, cell)
        if isinstance(content, bytes):
            return open_image(io.BytesIO(content), len(content)), self.labels[i]
        if path is None:
            raise ValueError('there is no image')
        path = os.path.join(self.path, os.path.dirname(self.groups[group][0]), path)
        return open_image(path, os.path.getsize(path)), self.labels[i]

    def _images(self, group):
        """Return the column of images of a row group, which is kept for the next call."""
        if group not in self.kept:
            file, index = self.groups[group]
            with self._opened(file) as opened:
                self.kept[group] = opened.read_row_group(index, [self.columns.image], use_threads=False).column(0)
            while len(self.kept) > 1 and sum(column.nbytes for column in self.kept.values()) > CACHED_BYTES:
                self.kept.popitem(last=False)
        self.kept.move_to_end(group)
        return self.kept[group]


def package():
    """Return pyarrow.parquet. Raise DataError if it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f'parquet needs a package: pip install -r requirements-parquet.txt ({error})') from error
    return pyarrow.parquet


def columns_of(opened):
    """Return the `Columns` of an open parquet file. Raise ValueError if there is not exactly one column of images."""
    schema = opened.schema_arrow
    features = _features(schema)
    kinds = {field.name: str(field.type) for field in schema}
    images = [name for name in kinds if features.get(name, {}).get('_type') == 'Image']
    images = images or [name for name, kind in kinds.items() if kind in BYTES or STRUCT.match(kind)]
    images = images or _paths(opened, [name for name, kind in kinds.items() if kind in TEXT])
    if len(images) != 1:
        found = ', '.join(f'{name} ({kind})' for name, kind in kinds.items())
        what = f'{len(images)} columns of images, {" ".join(images)}' if images else f'no column of images: {found}'
        raise ValueError(f'it has {what}: write it anew with one column of them')
    named = [name for name in kinds if features.get(name, {}).get('_type') == 'ClassLabel']
    labels = named or [name for name in kinds if name.lower() in LABELS]
    why = f'as {" and ".join(labels)} could be the labels' if labels else 'as no column is called label'
    label = labels[0] if len(labels) == 1 else ''
    classes = tuple(features[label].get('names') or ()) if label in named else ()
    return Columns(tuple(kinds), images[0], label, classes, '' if label else why)


def _features(schema):
    """Return the features that the package datasets has stored in a schema, {name of a column: dict}."""
    stored = (schema.metadata or {}).get(b'huggingface')
    features = json.loads(stored)['info'].get('features') if stored else None
    return {name: feature for name, feature in (features or {}).items() if isinstance(feature, dict)}


def _paths(opened, names):
    """Return which columns of texts hold paths of images, by their first values."""
    first = next(opened.iter_batches(1, columns=names, use_threads=False), None) if names else None
    values = {name: first.column(name)[0].as_py() or '' for name in names} if first else {}
    return [name for name, value in values.items() if value.lower().endswith(EXTENSIONS)]
