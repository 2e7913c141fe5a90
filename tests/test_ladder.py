"""The ladder across modules: what a step may change, trainings that are kept, seeds, sentences, bad input"""
import json
import numpy as np, pytest
from dataclasses import replace
from medkit.core import MedkitError
from medkit.images import ImageSet
from medkit.ladder import AUGMENTS, BASE, OPTIMISERS, Step, climb, ladder, run_ladder

TINY = dict(seeds=(0, 1), epochs=1, bs=32, device='cpu')


def discs(n=180, size=16, seed=0):
    "Light and dark discs: two thirds of one class; a network sees the difference at once"
    rng = np.random.default_rng(seed)
    y = (np.arange(n) % 3 == 0).astype(int)
    x = rng.integers(0, 60, (n, size, size, 3), dtype=np.uint8)
    x[:, 4:12, 4:12] += (100*y + 50)[:, None, None, None].astype(np.uint8)
    return ImageSet(x, y, np.repeat(['train', 'val', 'test'], n//3), ['naevus', 'mel'], 'discs', 'multi-class', size)


def steps():
    s = climb([Step('slow', BASE | dict(opt='Adam', lr=1e-6))], 'quick', 'slow', 'a thousand times', lr=3e-3)
    s = climb(s, 'turned', 'quick', 'views', augment='all')
    return climb(s, 'views', 'turned', 'averaged', views=3)


def test_every_step_changes_one_setting():
    s = {x.name: x for x in ladder()}
    assert len(s) == len(ladder()) and set(s['v1'].settings) == set(BASE)
    for x in s.values():
        if x.before: assert [k for k in BASE if x.settings[k] != s[x.before].settings[k]] == list(x.change)
        assert x.settings['augment'] in AUGMENTS and x.settings['opt'] in OPTIMISERS
    assert [s[f'v{i}'].before for i in range(2, 8)] == [f'v{i}' for i in range(1, 7)] and s['v4 augmented'].before == 'v4'
    assert s['v4 augmented'].settings['augment'] == s['v7'].settings['augment'] and s['v4 augmented'].settings['arch'] == 'cnn4'


def test_a_better_step_is_called_better(tmp_path):
    r = run_ladder(discs(), steps(), epochs=6, seeds=(0, 1), bs=16, folder=tmp_path, device='cpu')
    v = r.comparisons.set_index(['step', 'metric'])
    assert v.verdict['quick', 'AUC'] == 'better' and v.difference['quick', 'AUC'] > .2
    assert len(r.statements) == 3 and r.statements[0].startswith('quick (lr = 0.003) against slow: accuracy')
    s = r.scores.set_index(['step', 'metric'])
    assert s.value['the largest class', 'accuracy'] == pytest.approx(2/3) and s.value['the largest class', 'recall of mel'] == 0 and s.value['the largest class', 'AUC'] == .5
    assert (s.low.dropna() <= s.value[s.low.notna()]).all() and list(r.table.index) == ['the largest class', 'slow', 'quick', 'turned', 'views']
    assert r.compare('quick', r.probs['slow'], 'auc').difference == pytest.approx(v.difference['quick', 'AUC'])
    with pytest.raises(MedkitError, match='Unknown step'): r.compare('quik', 'slow')


def test_trainings_are_kept_and_tests_asked_last(tmp_path):
    run_ladder(discs(), steps()[:1], folder=tmp_path, **TINY)
    r = run_ladder(discs(), steps(), folder=tmp_path, **TINY)
    names = sorted(f.name for f in tmp_path.iterdir())
    assert sum(n.endswith('.safetensors') for n in names) == 3*2 and not any('test' in n for n in names)         # views shares its training
    for f in tmp_path.glob('*.npy'): f.unlink()                                                                   # as after an interruption: the weights answer again
    again = run_ladder(discs(), steps(), folder=tmp_path, **TINY)
    for k in r.probs: assert np.allclose(r.probs[k], again.probs[k], atol=1e-6), k
    final = run_ladder(discs(), steps(), folder=tmp_path, test=True, **TINY)
    assert final.part == 'test' and sum('test' in f.name for f in tmp_path.iterdir()) == 4*2
    rec = json.loads(next(tmp_path.glob('*.json')).read_text(encoding='utf-8'))
    assert rec['seconds'] > 0 and rec['record']['seed'] in (0, 1) and rec['settings']['opt'] == 'Adam'


def test_other_data_or_epochs_are_other_trainings(tmp_path):
    one = steps()[:1]
    run_ladder(discs(), one, folder=tmp_path, **TINY)
    run_ladder(discs(seed=1), one, folder=tmp_path, **TINY)
    run_ladder(discs(), one, folder=tmp_path, **TINY | dict(epochs=2))
    assert len(list(tmp_path.glob('*.safetensors'))) == 6


def test_seeds_repeat_and_differ(tmp_path):
    a, b = (run_ladder(discs(), steps()[1:2], folder=tmp_path/k, **TINY) for k in 'ab')
    assert np.array_equal(a.probs['quick'], b.probs['quick']) and not np.allclose(a.probs['quick'][0], a.probs['quick'][1])


def test_two_sizes_of_the_same_cases(tmp_path):
    small, large = discs(), discs(size=24)
    s = climb(steps()[1:2], 'larger', 'quick', 'more pixels', pixels=64)
    assert run_ladder({28: small, 64: large}, s, folder=tmp_path, **TINY).probs['larger'].shape == (2, 60, 2)
    with pytest.raises(MedkitError, match='pictures of 64 pixels'): run_ladder(small, s, folder=tmp_path)
    with pytest.raises(MedkitError, match='other labels or splits'): run_ladder({28: small, 64: large.part(np.arange(180)[::-1])}, s, folder=tmp_path)


@pytest.mark.parametrize('bad, text', [
    (dict(steps=[]), 'at least one step'), (dict(seeds=()), 'one seed'), (dict(recall_of='bcc'), 'Unknown class'),
    (dict(steps=[Step('x', BASE | dict(opt='Adm'))]), 'did you mean Adam'), (dict(steps=[Step('x', BASE | dict(augment='al'))]), 'did you mean all'),
    (dict(steps=[Step('x', BASE | dict(schedule='cosine'))]), 'Unknown schedule')])
def test_bad_input(tmp_path, bad, text):
    with pytest.raises(MedkitError, match=text): run_ladder(**dict(source=discs(), steps=steps(), folder=tmp_path, **TINY) | bad)


def test_no_test_pictures(tmp_path):
    s = discs()
    with pytest.raises(MedkitError, match='no test pictures'): run_ladder(s.part(np.flatnonzero(s.splits != 'test')), steps()[:1], test=True, folder=tmp_path, **TINY)


def test_pretrained_is_never_swapped_for_scratch(tmp_path, monkeypatch):
    "Without weights a step that promises them stops, and says what to install"
    monkeypatch.setattr('medkit.ladder.can_pretrain', lambda arch: (False, 'from scratch: its weights are not in the cache'))
    with pytest.raises(MedkitError, match=r'medkit\[weights\]'): run_ladder(discs(), [Step('x', BASE | dict(arch='tf_efficientnet_lite0'))], folder=tmp_path, **TINY)
