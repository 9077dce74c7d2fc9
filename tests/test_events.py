"""Read TensorBoard's files as TensorBoard itself reads them."""

import pytest
import torch
from conftest import TINY
from runs import config_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from run.events import Losses, note, scores_of
from run.tensorboard import Events


def steps(folder, tag, reader=None):
    reader = reader or EventAccumulator(str(folder))
    reader.Reload()
    return [event.step for event in reader.Scalars(tag)]


def add_losses(events, *at):
    for step in at:
        events.add(step, {'loss': 1.0})
    events.flush()


def test_scores_found_later_stay_and_training_goes_on_being_read(tmp_path):
    training = Events(tmp_path)
    training.restart(0)
    add_losses(training, 1, 2)
    open_since_then = EventAccumulator(str(tmp_path))
    assert steps(tmp_path, 'loss', open_since_then) == [1, 2]
    note(config_of(), tmp_path, 2, {'FID_EMA': 3.0})  # an --eval while the training runs
    add_losses(training, 3)
    add_losses(training, 4)
    training.close()
    assert steps(tmp_path, 'loss') == [1, 2, 3, 4] and steps(tmp_path, 'FID_EMA') == [2]
    assert 4 in steps(tmp_path, 'loss', open_since_then)
    note(config_of(), tmp_path, 4, {'FID_EMA': 2.0})
    resumed = Events(tmp_path)  # from the checkpoint of step 4
    resumed.restart(5)
    add_losses(resumed, 5)
    assert steps(tmp_path, 'loss') == [1, 2, 3, 4, 5] and steps(tmp_path, 'FID_EMA') == [2, 4]


def test_flags_are_text_and_hyperparameters(tmp_path):
    events = Events(tmp_path)
    events.flags('--lr=0.1\n--ch_mult=1\n', {'lr': 0.1, 'ch_mult': [1, 2], 'cond': True, 'moments': None})
    events.close()
    reader = EventAccumulator(str(tmp_path)).Reload()
    (text,) = reader.Tensors('flags/text_summary')[0].tensor_proto.string_val
    assert text == b'    --lr=0.1\n    --ch_mult=1\n'
    content = reader.SummaryMetadata('_hparams_/session_start_info').plugin_data.content
    assert all(name in content for name in (b'lr', b'ch_mult', b'[1, 2]', b'cond'))


def test_tags_are_legal_and_name_the_weights(tmp_path, caplog):
    record = {'weights': 'net', 'FID(classifier)': 1.0, 'KID(classifier)_std': 2.0, 'IS': None, 'n': 3, 'seconds': 4}
    note(config_of(), tmp_path, None, scores_of(record))
    reader = EventAccumulator(str(tmp_path)).Reload()
    assert reader.Tags()['scalars'] == ['FID_classifier_NET', 'KID_classifier_std_NET']
    assert 'illegal' not in caplog.text


def test_the_scores_of_a_checkpoint_in_the_working_folder(tmp_path, cli, monkeypatch):
    assert cli(*TINY, '--train', f'--logdir={tmp_path}', '--track=tensorboard')[0] == 0
    monkeypatch.chdir(tmp_path)
    assert cli('--nll', '--ckpt=ckpt.pt', '--device=cpu', '--nll_steps=2')[0] == 0
    assert steps(tmp_path, 'bits_per_dim_EMA') == [4]


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    note(config_of(), tmp_path / 'missing', 1, {'FID_EMA': 1.0})
    assert 'not in tensorboard' in caplog.text


def test_the_steps_before_one_that_is_not_finite_are_given():
    losses = Losses(lambda: 'a remedy')
    for step, loss in enumerate([0.5, 0.25, torch.nan, 0.125]):
        losses.add(step, torch.tensor(loss), torch.tensor(1.0), 1e-3)
    steps = losses.read()
    assert [next(steps)[:2] for _ in range(2)] == [(0, 0.5), (1, 0.25)]
    with pytest.raises(FloatingPointError, match='step 2: loss nan, gradient norm 1.0: a remedy'):
        next(steps)
    assert list(losses.read()) == []
