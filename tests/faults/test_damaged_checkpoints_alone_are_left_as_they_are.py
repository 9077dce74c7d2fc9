"""If every checkpoint is damaged, one line names them, nothing is overwritten and nothing starts from scratch."""

import pytest
from conftest import TINY
from runs import one_line


@pytest.mark.parametrize('mode', ['--train', '--sample', '--eval'])
def test_all_of_them_bad(tmp_path, cli, mode):
    (tmp_path / 'ckpt.pt').write_bytes(b'')
    (tmp_path / 'ckpt.prev.pt').write_bytes(b'PK\3\4 half of it')
    status, _, error = cli(*TINY, mode, f'--logdir={tmp_path}')
    assert status == 1
    assert 'ckpt.pt is damaged' in one_line(error) and 'ckpt.prev.pt is damaged' in one_line(error)
    assert (tmp_path / 'ckpt.pt').read_bytes() == b''
    assert (tmp_path / 'ckpt.prev.pt').read_bytes() == b'PK\3\4 half of it'
    assert not (tmp_path / 'ckpt.bad.pt').exists()
