"""Copies across files, formats and real sets: what is known to be there is found, and clean sets stay quiet."""
import io
import numpy as np, pandas as pd, pytest
from PIL import Image
from medkit.core import MedkitError
from medkit.duplicates import check_duplicates, copies, nearest, places, same_group, unit
from medkit.images import open_images
from medkit.phantom import _brain_window, head_ct, lesions

@pytest.fixture
def heads(): return _brain_window(head_ct(40, 1)[0])

def as_set(x): return open_images((x, np.arange(len(x)) % 2, ['train']*(len(x) - 2) + ['val', 'test']))

def test_nearest_is_exact_for_any_number_of_rows():
    "Against the full table; slabs and stretches whose last one is not full"
    for n in (2, 5, 64, 65, 300):
        d = unit(np.random.default_rng(n).standard_normal((n, 12)).astype(np.float32))
        full = d @ d.T - 3*np.eye(n)
        assert (nearest(d, 4, rows=37) == np.argsort(-full, 1)[:, :min(4, n - 1)]).all()

def test_files_of_several_sizes_and_formats(tmp_path, heads):
    "The same head as PNG, as a smaller JPEG and in colour; places are the files; one file cannot be read"
    for c in 'ab': (tmp_path/'s'/c).mkdir(parents=True)
    for i, x in enumerate(heads): Image.fromarray(x).save(tmp_path/'s'/'ab'[i % 2]/f'{i:02}.png')
    Image.fromarray(heads[0]).resize((72, 72)).save(tmp_path/'s'/'b'/'small.jpg', quality=85)
    Image.fromarray(heads[1]).convert('RGB').save(tmp_path/'s'/'b'/'colour.png')
    (tmp_path/'s'/'a'/'broken.png').write_bytes(b'no picture')
    s = open_images(tmp_path/'s')
    _, pairs = copies(s)
    names = {frozenset(places(s)[i].rsplit('/', 1)[-1].rsplit('\\', 1)[-1] for i in ab) for ab in zip(pairs.a, pairs.b)}
    assert names == {frozenset(p) for p in (('00.png', 'small.jpg'), ('01.png', 'colour.png'))}
    assert any(f.check == 'copies that disagree' and len(f.items) == 2 for f in check_duplicates(s))

def test_constant_and_few_pictures():
    "Black pictures are no copies of each other; one or two pictures are a set too"
    assert len(copies(as_set(np.zeros((6, 28, 28), np.uint8)))[1]) == 0
    x = np.random.default_rng(0).integers(0, 255, (3, 28, 28), np.uint8)
    x[2] = x[0]
    groups, pairs = copies(as_set(x))
    assert pairs[['a', 'b', 'kind']].values.tolist() == [[0, 2, 'exact']] and groups[0] == groups[2] != groups[1]

def test_volumes(heads):
    "Equal volumes are found; near copies are sought in the middle planes"
    v = np.stack([np.stack([h[::3, ::3]]*8 + [heads[i - 1][::3, ::3]]*8) for i, h in enumerate(heads[:12])])
    pairs = copies(as_set(np.concatenate([v, v[:1]])))[1]
    assert pairs[pairs.kind == 'exact'][['a', 'b']].values.tolist() == [[0, 12]]

def test_several_labels_and_numbers():
    "Copies disagree when any of several labels differs, and when measured numbers differ"
    x = lesions(100)['train_images'][:20].copy()
    x[19] = x[0]
    for y in (np.eye(20, dtype=int)[:, [1, 2, 19]] + [1, 0, 0] > 0, np.arange(20.)):
        found = check_duplicates(open_images((x, np.asarray(y, float if y.ndim == 1 else int), ['train']*18 + ['val', 'test'])))
        assert [f.check for f in found if f.severity == 'error'] == ['copies across splits', 'copies that disagree']

def test_groups_by_column_and_by_name():
    names = [f'patient{i//2:02}_{i}.png' for i in range(8)]
    s = open_images(pd.DataFrame(dict(path=names, label=list('ab')*4, split=['train']*3 + ['val'] + ['test']*4)))
    by_name, by_column = same_group(s, r'(patient\d+)'), same_group(s, [i//2 for i in range(7)] + [None])
    assert by_name[0].items == by_column[0].items == names[2:4] and by_name[0].severity == 'error'
    assert 'patient01' not in by_name[0].what + by_name[0].todo
    for bad in ('(', 'patient', r'(study\d+)', [1, 2]):
        with pytest.raises(MedkitError): same_group(s, bad)

@pytest.mark.realdata
def test_mednist_has_its_twenty_groups(real_data):
    s = open_images(real_data/'MedNIST')
    _, pairs = copies(s)
    exact = pairs[pairs.kind == 'exact']
    assert exact.a.nunique() == 20

@pytest.mark.realdata
def test_teachable_machine_projects(real_data):
    "Normals of experiment4 are those of experiment5, coloured; 4 bleeds of experiment1 are in experiment4"
    e1, e4, e5 = (open_images(real_data/'rsna_tm'/f'experiment{k}.tm').load(96).images for k in (1, 4, 5))
    x = np.concatenate([a if a.ndim == 4 else np.repeat(a[..., None], 3, 3) for a in (e1, e4, e5)])
    g = copies(as_set(x))[0]
    g1, g4, g5 = np.split(g, [len(e1), len(e1) + len(e4)])
    assert np.isin(g4, g1).sum() == 4
    assert np.isin(g4, g5).sum() >= 175          # 182 by details at 64 pixels of every pair
