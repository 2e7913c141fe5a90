"""The checks of the exercises in lessons 31 to 35: what a student would type, right and wrong"""
import functools, json, pathlib
from types import SimpleNamespace as Has
from unittest.mock import MagicMock
import nibabel as nib, numpy as np, pandas as pd, pydicom, pytest
from medkit.calibrate import *
from medkit.dicom import *
from medkit.doubt import *
from medkit.explore import explore
from medkit.intervals import share
from medkit.judge import *
from numbers import Real

LESSONS = pathlib.Path(__file__).resolve().parent.parent/'nbs'/'lessons'

def cell(lesson, text):
    "The one code cell of a lesson that holds `text`"
    one, = [s for c in json.loads(next(LESSONS.glob(f'{lesson}_*.ipynb')).read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code' and text in (s := ''.join(c['source']))]
    return one

def judge(capsys, lesson, exercise, **known):
    "What the check of an exercise says to an answer: the print of a right one, the sentence of a wrong one"
    ns = globals() | dict(in_test=lambda: False) | known
    try: exec(cell(lesson, f"'Exercise {exercise}: not done yet'"), ns)
    except AssertionError as e: return f'wrong: {e}'
    return capsys.readouterr().out

def judged(capsys, lesson, exercise, name, right, wrong, undone=..., **known):
    assert 'not done yet' in judge(capsys, lesson, exercise, **known, **{name: undone})
    for o in right: assert f'Exercise {exercise}: right' in judge(capsys, lesson, exercise, **known, **{name: o}), o
    for o in wrong: assert len(judge(capsys, lesson, exercise, **known, **{name: o}).partition('wrong: ')[2]) > 20, o

def test_data_pile(capsys):
    judged(capsys, 31, 1, 'missing', [371, 371., np.int64(371)], [370, 372, 318, 370.67, 371.5, '371', None, float('nan')], derma=explore('dermamnist'))
    ids = [f'organ_a_{i:03}' for i in range(12)]
    some = dict(hippo=pathlib.Path(), explore=lambda _: Has(notes=['organ_a_002: ... organ_a_007: ...', 'more']), open_volumes=lambda _: Has(cases=[Has(id=i) for i in ids]))
    some |= {k: MagicMock() for k in ('read_volume', 'display', 'plot_planes')} | dict(read_mask=lambda *_: (0, 0))
    judged(capsys, 31, 2, 'found', [{'organ_a_007', 'organ_a_002'}, ['organ_a_002', 'organ_a_007'], {'organ_a_002': 'y spacing', 'organ_a_007': 'z voxels'}],
           [{'organ_a_002'}, {'organ_a_002', 'organ_a_007', 'organ_a_009'}, 'organ_a_002', 'organ_a_002, organ_a_007', {2, 7}, 2, None, set(), ['organ_a_2', 'organ_a_7']], **some)
    judged(capsys, 31, 3, 'answer', [('val', 'brighter'), ['val', 'brighter'], 'VAL, brighter', ('brighter', 'validation')],
           [('test', 'darker'), ('train', 'darker'), ('val', 'darker'), ('test', 'brighter'), 'val', ('val', 'test', 'brighter'), ('val', 'dark'), None, 12], strange='val', way='brighter', means=dict(train=150., val=180., test=149.))

def test_inside_dicom(capsys, tmp_path):
    judged(capsys, 32, 1, 'answer', [41, 41., 2130*.5 - 1024, np.float32(41)], [1106, 2089, -1024, '41', 'brain', (41, 'brain'), None])
    hu, affine, bleed = head_volume()
    judged(capsys, 32, 3, 'voxel', [[32, 24, 11], np.array([33., 24, 11]), np.array([32, 24, 11])],
           [[14, 31, 11], [32.5, 24, 10.93], [32, 24, 11, 1], [11, 24, 32], '32, 24, 11', ['32', '24', '11'], [-36, 14, 10], [400, 24, 11], 32, None], img=nib.Nifti1Image(hu, affine), bleed=bleed)
    order = np.random.default_rng(3).permutation(4)
    truth = [['duplicate slices', 'nothing', 'missing slices', 'gantry tilt'][i] for i in order]
    judged(capsys, 32, 4, 'verdict', [truth, tuple(truth), np.array(truth)], [truth[::-1], truth[:3], 'nothing', ['nothing']*4, dict(enumerate(truth)), ['tilt', *truth[1:]], 4, None], order=order)
    known = dict(globals(), folder=tmp_path, hu=hu, affine=affine)
    exec(cell(32, 'shuffled=True, number=3'), known)
    tag, series = functools.cache(functools.partial(pydicom.dcmread, stop_before_pixels=True)), one_series(tmp_path/'sagittal')
    def axes(f): return np.reshape(tag(f).ImageOrientationPatient, (2, 3)).astype(float)
    def here(f): return np.array(tag(f).ImagePositionPatient, float)
    def by_hand(f): (a, b, c), (d, e, g) = axes(f); return sum(x*y for x, y in zip((b*g - c*e, c*d - a*g, a*e - b*d), here(f)))
    right = [lambda f: np.cross(*axes(f)) @ here(f), lambda f: float(np.dot(here(f), np.cross(*axes(f)))), by_hand]
    wrong = [lambda f: here(f)[2], lambda f: here(f)[0], lambda f: here(f)[1], lambda f: np.cross(*axes(f)[::-1]) @ here(f), lambda f: np.linalg.norm(here(f)), lambda f: int(tag(f).InstanceNumber), lambda f: f.name, lambda f: np.cross(*axes(f))*here(f)]
    judged(capsys, 32, 2, 'place', right, wrong, known['place'], folder=tmp_path, shuffled=known['shuffled'], one_series=lambda _: series)

def test_what_is_hiding(capsys):
    some = dict(s=range(6), replace=MagicMock(), look=MagicMock(), images=np.zeros((6, 2, 2, 3)), labels=np.array([0, 4, 5, 5, 4, 1]))
    judged(capsys, 33, 1, 'severity', ['note', 'Note', "note "], ['error', 'warning', 'appearance', 2, None], check_confounders=lambda _: [Has(severity='note', what='x')], **some)
    t = pd.DataFrame([{'candidate': 'site', 'class': 'mel', 'value': .74, 'low': .7, 'high': .78}])
    judged(capsys, 33, 2, 'expected', [.75, 3/4, np.float64(.5 + .5*.5)], [.5, .25, .8, .7, 1, 75, '.75', None], screen=lambda *_: t, **some)

def test_is_it_really_better(capsys):
    k = next(k for k in range(1540, 2005) if difference(share(k, 2005), share(1540, 2005)).low > 0)
    judged(capsys, 34, 1, 'k', [k, float(k), np.int64(k)], [k-1, k+1, 1545, 2100, k/2005, 0, -1, 'k', None])
    known = dict(globals()); exec(cell(34, 'def p_of_pair'), known)
    judged(capsys, 34, 2, 'lost', [-1, -1., np.int64(-1)], [0, 5, 100, 2.5, -2, 'never', None], p_of_pair=known['p_of_pair'])
    rng = np.random.default_rng(0)
    y = {k: rng.integers(0, 2, 200) for k in ('val', 'test')}
    val, a = (np.c_[p, 1-p] for p in (np.clip(.3*(1-y[k]) + .7*rng.random(200), 0, 1) for k in y))
    s, alarm = val[:, 0], 1 - y['val']
    judged(capsys, 34, 3, 'cut', [choose_threshold(s, alarm, ('costs', *c)) for c in ((20, 1), (20., 1.), (40, 2))],
           [1/21, choose_threshold(s, alarm), choose_threshold(s, alarm, ('costs', 1, 20)), choose_threshold(val[:, 1], y['val'], ('costs', 20, 1)), choose_threshold(a[:, 0], 1 - y['test'], ('costs', 20, 1)), choose_threshold(s, alarm, ('costs', 20, 1)).value, ('costs', 20, 1), None], val=val, y=y, a=a)

def test_born_to_deploy(capsys):
    judged(capsys, 35, 1, 'answer', [.75, 3/4, np.sqrt(.9)/(np.sqrt(.9) + np.sqrt(.1))], [.9, .5, .949, .988, 75, '.75', (.75, .25), None])
    rng, n = np.random.default_rng(0), 400
    p = rng.dirichlet([.4]*3, n); t = np.array([rng.choice(3, p=x) for x in p])
    old, new = np.bincount(t)/n, np.array([.7, .2, .1])
    i = rng.choice(n, n, p=(w := (new/old)[t])/w.sum())
    known = dict(clinic=lambda _: (p[i], t[i]), names=list('abc'), mel=0, home=Has(labels=t, splits=np.full(n, 'train')))
    def rows(q): return q/q.sum(1, keepdims=True)
    def changes(q, old, new): q *= new/old; q /= q.sum(1, keepdims=True); return q
    right = [lambda q, old, new: rows(q*new/old), changes, lambda q, old, new: [[x*b/a/sum(x*b/a for x, a, b in zip(r, old, new)) for x, a, b in zip(r, old, new)] for r in q]]
    wrong = [lambda *_: None, lambda q, old, new: q*new/old, lambda q, old, new: rows(q*old/new), lambda q, old, new: rows(q*new), lambda q, *_: q, lambda q, old, new: (q*new/old)/(q*new/old).sum(0), lambda q, old, new: new]
    judged(capsys, 35, 2, 'adapt', right, wrong, lambda *_: ..., **known)
    sure = np.linspace(.99, .4, 400); q, u = np.c_[sure, 1-sure], (rng.random(400) < (1-sure)).astype(int)
    home = np.repeat([[.9, .1]], 100, 0); truth = (np.arange(100) < 15).astype(int)
    share_ = next(r for r in np.arange(20)/20 if selective(q, u, refer=[r], n_boot=100).value[0] <= .15)
    assert .1 < share_ < .9
    judged(capsys, 35, 3, 'referred', [share_, float(share_), np.arange(0, 1, .05)[round(share_*20)]], [share_ - .05, share_ + .05, share_ + .02, share_*100, f'{share_:.0%}', 1, 0, None], q=q, u=u, p=home, t=truth)
