"""Many pictures a patient: nobody on two sides, one answer a study, kappa as scikit-learn's; MedNIST's copies stay together."""
import re, shutil
import numpy as np, pandas as pd, pytest, sklearn.metrics as skm
from PIL import Image
from medkit.core import MedkitError
from medkit.evaluate import evaluate_classes
from medkit.images import open_images, same_files
from medkit.loaders import image_dls
from medkit.studies import *

@pytest.fixture(scope='module')
def root(tmp_path_factory): return make_studies(tmp_path_factory.mktemp('mura'), patients=45, size=16)

def mura(folder, *studies):
    "A folder as Stanford's, written by hand: pictures of other sizes, lists without headings, hidden files of a Mac"
    rng = np.random.default_rng(0)
    for split in ('train', 'valid'):
        mine = [x for x in studies if x.startswith(split)]
        paths = [f'MURA-v1.1/{x}/image{i}.png' for x in mine for i in (1, 2)]
        for p in paths:
            (folder/p).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, tuple(rng.integers(20, 40, 2)), np.uint8)).save(folder/p)
            (folder/p).with_name('._' + (folder/p).name).write_bytes(b'Mac')
        (folder/f'MURA-v1.1/{split}_image_paths.csv').write_text(''.join(f'{p}\n' for p in paths), encoding='utf-8')
        (folder/f'MURA-v1.1/{split}_labeled_studies.csv').write_text(''.join(f"MURA-v1.1/{x}/,{int('positive' in x)}\n" for x in mine), encoding='utf-8')
    return folder/'MURA-v1.1'

STUDIES = [f'{split}/{part}/patient{p:05d}/study{k}_{label}' for split, ps in (('train', (1, 2, 3)), ('valid', (11185, 11186))) for p in ps
           for part, k, label in (('XR_WRIST', 1, 'positive' if p % 2 else 'negative'), ('XR_HAND', 1, 'negative'), ('XR_HAND', 2, 'positive'))]

def test_layout(tmp_path):
    "The original's layout: sizes differ, three keys name a study, training and validation as given"
    s, t = open_studies(mura(tmp_path, *STUDIES), size=24)
    assert (len(s), len(t.groupby(STUDY_KEYS)), t.patient.nunique()) == (30, 15, 5)
    assert s.load().images.shape == (30, 24, 24) and s.classes == ['negative', 'positive']
    assert set(t.patient[t.split == 'train']) == {f'patient{p:05d}' for p in (1, 2, 3)}
    assert [re.search(r'study\d_(\w+)', str(p))[1] for p in s.images] == [s.classes[y] for y in s.labels] == [('negative', 'positive')[y] for y in t.label]
    with pytest.raises(MedkitError, match='say which one you want'): image_dls(open_studies(tmp_path)[0])

def test_sides(root):
    "No patient on two sides; another seed moves patients between validation and test only"
    s, t = open_studies(root)
    other = open_studies(root, seed=1)[1]
    assert t.groupby('patient').split.nunique().max() == 1 and {'train', 'val', 'test'} == set(s.splits)
    assert ((t.split == 'train') == (other.split == 'train')).all() and (t.split != other.split).any()
    assert (open_studies(root, test=0)[1].split != 'test').all()

def test_same_seed(tmp_path):
    "Same seed, same bytes"
    a, b, c = (make_studies(tmp_path/k, patients=5, size=16, seed=seed) for k, seed in (('a', 0), ('b', 0), ('c', 1)))
    def bytes_of(r): return {p.relative_to(r).as_posix(): p.read_bytes() for p in r.rglob('*.png')}
    assert bytes_of(a) == bytes_of(b) != bytes_of(c)

@pytest.mark.parametrize('change, says', [
    (lambda r: (r/'train/XR_HAND/patient00001/study1_negative/image2.png').unlink(), 'but not here'),
    (lambda r: (r/'train_labeled_studies.csv').write_text('MURA-v1.1/train/XR_HAND/patient00001/study1_negative/,1\n'), 'is labelled 1'),
    (lambda r: shutil.copytree(r/'train/XR_HAND/patient00001', r/'valid/XR_HAND/patient00001'), 'patient00001 is in train and in valid'),
    (lambda r: shutil.move(r/'train/XR_HAND/patient00001/study1_negative', r/'train/XR_HAND/patient00001/study1'), 'does not lie as in MURA'),
    (lambda r: [shutil.rmtree(r/k) for k in ('train', 'valid')], "no pictures in MURA's layout")])
def test_faults(tmp_path, change, says):
    r = mura(tmp_path, *STUDIES)
    change(r)
    with pytest.raises(MedkitError, match=says) as e: open_studies(r)
    assert '\n' not in str(e.value)

def test_part_of_it(tmp_path):
    "Who unpacked the wrists only may use them"
    r = mura(tmp_path, *STUDIES)
    for p in r.glob('*/XR_HAND'): shutil.rmtree(p)
    assert open_studies(r)[1].part.unique().tolist() == ['XR_WRIST']

def test_by_study(root):
    "Equal to a loop over all three keys, for both ways; and it goes on into evaluate_classes"
    s, t = open_studies(root)
    p = np.random.default_rng(0).random(len(t))
    for how, f in dict(mean=np.mean, max=np.max).items():
        got = by_study(np.c_[1-p, p], t, how)
        keys = list(dict.fromkeys(map(tuple, t[STUDY_KEYS].values)))
        want = [f([q for q, k in zip(p, map(tuple, t[STUDY_KEYS].values)) if k == key]) for key in keys]
        assert list(map(tuple, got[STUDY_KEYS].values)) == keys and np.allclose(got.prob, want)
    assert got.images.sum() == len(t) and len(got) == t.groupby(STUDY_KEYS).ngroups > t.groupby('study').ngroups
    assert evaluate_classes(np.c_[1-got.prob, got.prob], got.label.to_numpy(), s.classes)['accuracy'].n == len(got)

@pytest.mark.parametrize('classes', [2, 3, 5])
def test_kappa(classes):
    "Point estimates are scikit-learn's"
    rng = np.random.default_rng(classes)
    for n in (5, 50, 500):
        a = rng.integers(0, classes, n)
        b = np.where(rng.random(n) < .6, a, rng.integers(0, classes, n))
        assert kappa(a, b) == pytest.approx(skm.cohen_kappa_score(a, b), abs=1e-12)

def test_bootstrap_is_by_patient():
    "Writing each row five times changes nothing if the patient owns the copies, and narrows the interval if they count as cases"
    rng = np.random.default_rng(0)
    right = rng.random(60) < .8
    five = np.repeat(right, 5)
    def width(ci): return ci.high - ci.low
    once = patient_ci(lambda i: right[i].mean(), np.arange(60))
    by_patient, by_row = (patient_ci(lambda i: five[i].mean(), who) for who in (np.repeat(np.arange(60), 5), np.arange(300)))
    assert (by_patient.n, by_row.n) == (60, 300)
    assert width(by_patient) == pytest.approx(width(once)) and width(by_row) < .55*width(once)

def test_fusion(root):
    "Age and clinic help a score that knows little; the network's own row never teaches it; what knows too much is refused"
    s, t = open_studies(root)
    people = t.merge(pd.read_csv(root/'patients.csv'), on='patient', how='left')
    assert (people.patient == t.patient).all()
    rng = np.random.default_rng(0)
    X = people[['age', 'sex', 'site']].assign(cnn=rng.normal(0, 1, len(t)) + s.labels)
    X.loc[3, 'age'] = np.nan
    model = fuse(X, s.labels, s.splits, t.patient)
    p = model.predict_proba(X[s.splits == 'test'])
    assert p.shape == ((s.splits == 'test').sum(), 2) and np.allclose(p.sum(1), 1)
    later = X[s.splits == 'test'].assign(site='C')                        # a clinic that nobody knew
    assert np.isfinite(model.predict_proba(later)).all()
    for name, column, says in (('fold', s.splits, 'fold tells the split'), ('icd', s.labels*7, 'icd tells the label'), ('id', t.patient, 'id names the patients')):
        with pytest.raises(MedkitError, match=says): fuse(X.assign(**{name: column}), s.labels, s.splits, t.patient)
    with pytest.raises(MedkitError, match='use out_of_fold'):
        fuse(X.assign(cnn=np.where(s.splits == 'train', s.labels*9. - 4, X.cnn)), s.labels, s.splits, t.patient)

def test_test_labels_teach_nothing(root):
    "Other labels in validation and test leave the fused model as it is"
    s, t = open_studies(root)
    X = pd.DataFrame(dict(cnn=np.random.default_rng(0).normal(0, 1, len(t)), age=np.random.default_rng(1).normal(0, 1, len(t))))
    turned = np.where(s.splits == 'test', 1 - s.labels, s.labels)
    a, b = (fuse(X, y, s.splits, t.patient)[-1].coef_ for y in (s.labels, turned))
    assert (a == b).all()

@pytest.mark.realdata
def test_mednist_copies(real_data):
    "The 20 pictures that MedNIST holds twice lie on one side, for every seed"
    groups = same_files(open_images('mednist').images)
    twice = np.flatnonzero(np.bincount(groups) > 1)
    assert len(twice) == 20
    for seed in range(5):
        s = open_images('mednist', seed=seed)
        assert all(len(set(s.splits[groups == g])) == 1 for g in twice)
