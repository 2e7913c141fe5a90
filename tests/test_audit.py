"The audit on what is known: planted faults, broken folders, the real sets' copies, the command"
import json, shutil
import numpy as np, pandas as pd, pytest
from dataclasses import replace
from fastai.learner import Learner
from pathlib import Path
from PIL import Image
from pydicom.data import get_testdata_file
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score
from torch import nn
from medkit.audit import audit, audit_images, check_confounders, check_duplicates, folds, look, one_hot, places, pool, tell_apart
from medkit.cli import main
from medkit.core import MedkitError
from medkit.dicom import check_dicom
from medkit.findings import SEVERITIES
from medkit.images import open_images
from medkit.loaders import image_dls
from medkit.phantom import make_sample

@pytest.fixture(scope='module')
def heads(tmp_path_factory):
    "A folder of 60 head CT slices, one of them cut in half"
    return make_sample('head_ct', tmp_path_factory.mktemp('audit')/'heads', n=60, faults=['corrupt'])

def confounders(x, y): s = open_images((x.astype(np.uint8), y, np.resize(['train', 'train', 'val', 'val'], len(x)))); return check_confounders(look(s, places(s)))

def grey(n, seed=0, size=8): return np.random.default_rng(seed).integers(0, 256, (n, size, size)).astype(np.uint8)

def test_auc_is_scikit_learns():
    rng = np.random.default_rng(0); y = rng.integers(0, 3, 240); s = open_images((grey(240), y, ['train']*160 + ['val']*80))
    z = y[:, None]*.5 + rng.normal(size=(240, 2))
    for c, e, p, score in tell_apart(z, one_hot(s), folds(s, np.arange(240))): assert e.value == pytest.approx(roc_auc_score(y == c, score)) and e.low < e.value < e.high

def test_groups_stay_in_one_fold():
    s = open_images((grey(120), np.arange(120) % 2, ['train']*80 + ['val']*40)); g = np.arange(120)//4
    for fit, ask in folds(s, np.arange(120), g): assert not set(g[fit]) & set(g[ask])

def test_the_order_of_the_files_says_nothing():
    "Class folders are read in order; a constant trait and its ties must not carry that order"
    y = np.repeat([0, 1], 60); s = open_images((np.repeat(grey(60), 2, 0), y, ['train']*40 + ['val']*20 + ['train']*40 + ['val']*20))
    meta = pd.DataFrame(dict(tied=np.r_[np.zeros(55), np.arange(10), np.zeros(55)]))
    assert not [f for f in audit_images(s, meta=meta) if 'tied' in f.what]

def test_site_is_found_and_chance_is_not():
    rng = np.random.default_rng(1); y = rng.integers(0, 2, 200); s = open_images((grey(200), y, ['train']*140 + ['val']*60))
    f = audit(s, meta=dict(site=np.where(y, 'a', 'b'), age=rng.integers(20, 90, 200)))
    assert [(o.severity, 'only site' in o.what) for o in f.of('confounder')] == [('error', True)]

def test_broken_files_are_findings(heads, tmp_path):
    odd = shutil.copytree(heads, tmp_path/'odd'); first = sorted((odd/'normal').iterdir())
    first[0].write_bytes(b''); first[1].write_text('no picture')
    Image.fromarray(np.arange(96*96, dtype=np.uint16).reshape(96, 96)).save(first[2])
    Image.fromarray(np.full((96, 96), 90, np.uint8)).save(first[3])
    Image.open(first[4]).convert('RGBA').save(first[4])
    f = audit(odd)
    cut = Path(json.loads((heads/'faults.json').read_text())['corrupt'][0]).name
    assert {Path(i).name for i in f.of('unreadable')[0].items} == {p.name for p in first[:3]} | {cut}
    assert [Path(i).name for i in f.of('constant')[0].items] == [first[3].name]
    assert all(o.severity in SEVERITIES and (o.draw is None or o.draw()) for o in f)

def test_two_sources_are_two_sites(heads, tmp_path):
    a, b = (open_images((grey(40, seed=i), np.arange(40) % 2, ['train']*30 + ['val']*10)) for i in (1, 2))
    b = replace(b, images=b.images.copy(), name='b'); b.images[5] = a.images[3]
    p = pool([replace(a, name='a'), b]); d = [f for f in check_duplicates(p) if 'across' in f.check]
    assert len(p) == 80 and set(p.splits) == {'a', 'b'} and d[0].items == ['a train 3', 'b train 5']
    with pytest.raises(MedkitError, match='no single class'): pool([open_images((grey(30), np.random.default_rng(0).normal(size=30), ['train']*20 + ['val']*10))])

def test_bad_input():
    s = open_images((grey(40), np.arange(40) % 2, ['train']*30 + ['val']*10))
    with pytest.raises(MedkitError, match='meta: 3 rows came for 40'): audit(s, meta=dict(site=[1, 2, 3]))
    with pytest.raises(MedkitError, match='groups'): audit(s, groups=[1])
    with pytest.raises(MedkitError, match='list of sources is empty'): audit([])
    with pytest.raises(MedkitError): audit('no_such_set_at_all')
    with pytest.raises(MedkitError, match='belong to one'): folds(s, np.arange(40), [1]*40)

def test_dicom_and_volumes_go_to_their_own_checks(tmp_path):
    for name in ('CT_small.dcm', 'MR_small.dcm'): shutil.copy(get_testdata_file(name), tmp_path/name)
    assert audit(tmp_path).of('mixed patients') and audit(tmp_path).to_df().equals(check_dicom(tmp_path).to_df())
    with pytest.raises(MedkitError, match='belong to pictures'): audit(tmp_path, groups='x')
    (tmp_path/'nifti').mkdir(); (tmp_path/'nifti/case.nii.gz').write_bytes(b'')
    with pytest.raises(MedkitError, match='without a dataset.json'): audit(tmp_path/'nifti')

def test_organs_are_notes_and_a_ruler_is_not():
    "Where the middle tells the classes without fail, edges that differ are a note, and a warning if they never fail either; where it leaves doubt, ticks at the edge are a mark"
    rng = np.random.default_rng(0); y = np.arange(240) % 2; x = rng.integers(90, 110, (240, 32, 32))
    def ticks(x, rows): x = x.copy(); x[rows, ::4, :4] = 250; return x
    most = (y == 1) & (rng.random(240) < .9); organ = x.copy(); organ[y == 1, 10:22, 10:22] += 100
    severity = [{o.severity for o in confounders(a, y) if 'marks at the edges' in o.what} for a in (ticks(organ, most), ticks(organ, y == 1), ticks(x, most))]
    assert severity == [{'note'}, {'warning'}, {'error'}]

def test_blur_in_one_class_is_a_warning():
    rng = np.random.default_rng(0); y = np.arange(240) % 2; x = rng.integers(0, 256, (240, 32, 32))
    x[y == 1] = gaussian_filter(x[y == 1], (0, .5, .5))
    assert [(o.check, o.severity) for o in confounders(x, y) if 'sharpness tells' in o.what] == [('confounder', 'warning')]

def test_a_table_in_another_order(tmp_path):
    "Rows go by the name of the file, in whatever column it is; a table without names is refused"
    for i, x in enumerate(grey(60)): (f := tmp_path/'ab'[i % 2]/f'{i:02}.png').parent.mkdir(exist_ok=True); Image.fromarray(x).save(f)
    t = pd.DataFrame(dict(filename=[f'{i:02}.png' for i in range(60)], scanner=[*'ab']*30)).sample(frac=1, random_state=0)
    assert [o.severity for o in audit(tmp_path, meta=t).of('confounder') if 'only scanner' in o.what] == ['error']
    with pytest.raises(MedkitError, match='no column names the pictures'): audit(tmp_path, meta=t[['scanner']])
    with pytest.raises(MedkitError, match='groups=5'): audit(tmp_path, groups=5)
    with pytest.raises(MedkitError, match='inside the data'): audit(tmp_path, out=tmp_path/'page')

def test_loaders_and_learners_name_the_files(tmp_path):
    for i, x in enumerate(grey(24, size=32)): (f := tmp_path/'ab'[i % 2]/f'{i:02}.png').parent.mkdir(exist_ok=True); Image.fromarray(x if i != 9 else np.full((32, 32), 9, np.uint8)).save(f)
    dls = image_dls(tmp_path, size=24, device='cpu'); whole = audit(tmp_path)
    assert whole.of('constant')[0].items == [str(tmp_path/'b'/'09.png')]
    assert audit(Learner(dls, nn.Identity(), nn.CrossEntropyLoss())).to_df().equals(whole.to_df())

def test_same_seed_same_findings():
    s = open_images((grey(100), np.arange(100) % 2, ['train']*70 + ['val']*30))
    assert audit(s, seed=3).to_df().equals(audit(s, seed=3).to_df())

def test_command(heads, tmp_path, capsys):
    assert main(['audit', str(heads), '--out', str(tmp_path/'page')]) == 0
    assert '[error] unreadable' in capsys.readouterr().out and (tmp_path/'page/audit.html').is_file()
    assert main(['audit', str(heads), '--strict']) == 1
    rows = [dict(path=p.name, scanner=p.parent.name, patient=i//2) for i, p in enumerate(sorted(heads.rglob('*.png')))]
    pd.DataFrame(rows).to_csv(tmp_path/'meta.csv', index=False); capsys.readouterr()
    assert main(['audit', str(heads), '--meta', str(tmp_path/'meta.csv'), '--groups', 'patient']) == 0
    out = capsys.readouterr().out; assert 'sees only scanner' in out and '[error] same group' in out and 'only patient' not in out
    assert main(['audit', str(tmp_path/'nowhere')]) == 2

@pytest.mark.realdata
def test_shared_bleeds_of_the_rsna_projects(real_data):
    "Experiments 1 and 4 share four bleeds, encoded anew; the normals of 4 and 5 are the same pictures"
    p = pool([open_images(real_data/f'rsna_tm/experiment{i}.tm') for i in (1, 4)])
    across = [f for f in check_duplicates(p) if 'across' in f.check]
    assert sum(len({i for i in f.items if 'experiment1' in i}) for f in across) == 4
