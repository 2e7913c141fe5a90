"""Generated sets: data/ comes from the module, each set survives its way through a file, a killed run leaves nothing."""
import json, pathlib, re, signal, subprocess, sys, time
import nibabel as nib, numpy as np, pytest
from PIL import Image
from medkit import phantom
from medkit.phantom import FAULTS, LESIONS, SETS, lesions, make_sample, organ_a, organ_b
from medkit.hounsfield import window

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT/'data'
COMMITTED = dict(organ_a=6, organ_b=4, lesions=300, head_ct=24)

def tree(folder): return sorted(f.relative_to(folder).as_posix() for f in folder.rglob('*') if f.is_file())

def arrays(file):
    "What a data file holds, whatever the compression made of it"
    if file.suffix == '.npz':
        with np.load(file, allow_pickle=False) as z: return dict(z)
    if file.suffix == '.png': return dict(image=np.asarray(Image.open(file)))
    n = nib.load(file)
    return dict(voxels=np.asarray(n.dataobj), affine=n.affine)

def assert_same(a, b, where):
    "Equal, but that another processor or NumPy may round one value in a thousand otherwise (1 HU is 4 greys in the brain window)"
    assert (a.shape, a.dtype) == (b.shape, b.dtype), where
    if a.dtype.kind in 'US': assert (a == b).all(), where; return
    assert np.mean(a != b) < 1e-3, where
    assert np.abs(a.astype(float) - b).max() <= max(4, .01*np.abs(a.astype(float)).max()), where

# --- data/

@pytest.mark.parametrize('name', SETS)
def test_data_is_made_by_the_module(name, tmp_path):
    new, old = make_sample(name, tmp_path/name, n=COMMITTED[name]), DATA/name
    assert tree(new) == tree(old)
    for f in tree(new):
        if f.endswith(('.md', '.json')): assert (new/f).read_text(encoding='utf-8') == (old/f).read_text(encoding='utf-8'), f
        else:
            a, b = arrays(new/f), arrays(old/f)
            assert list(a) == list(b)
            for k in a: assert_same(a[k], b[k], f'{f}: {k}')

def test_the_comparison_can_fail():
    a, b = (m.astype(np.uint8) for m in (organ_a(0)[1], np.roll(organ_a(0)[1], 1, 0)))
    with pytest.raises(AssertionError): assert_same(a, b, 'a mask moved by a voxel')

def test_data_is_small_and_has_cards():
    assert sum(f.stat().st_size for f in DATA.rglob('*') if f.is_file()) < 5e6
    for name, n in COMMITTED.items():
        card = (DATA/name/'README.md').read_text(encoding='utf-8')
        assert 'CC0' in card and re.search(rf'Counts\*\*: {n} ', card) and f"make_sample('{name}'" in card

# --- each set, written and read

@pytest.mark.parametrize('name, make', [('organ_a', organ_a), ('organ_b', organ_b)])
def test_organ_survives_its_file(name, make, tmp_path):
    folder = make_sample(name, tmp_path/name, n=5)
    listed = json.loads((folder/'dataset.json').read_text())
    assert listed['numTraining'] == len(listed['training']) == 5
    for i, p in enumerate(listed['training']):
        image, label = (nib.load(folder/p[k]) for k in ('image', 'label'))
        want_image, want_mask, affine = make(i)
        assert (image.get_fdata() == want_image).all() and (np.asarray(label.dataobj) == want_mask).all()
        assert np.allclose(image.affine, affine) and np.allclose(label.affine, affine)
        assert image.header.get_xyzt_units()[0] == 'mm'
        assert set(np.unique(label.dataobj)) == {int(k) for k in listed['labels']}

def test_lesions_in_both_sizes_in_one_folder(tmp_path):
    for size in (28, 64): folder = make_sample('lesions', tmp_path/'lesions', n=120, size=size)
    small, large = (arrays(folder/f) for f in ('lesions.npz', 'lesions_64.npz'))
    assert list(small) == [f'{s}_{k}' for s in ('train', 'val', 'test') for k in ('images', 'labels')]
    assert small['train_images'].shape == (84, 28, 28, 3) and large['test_images'].shape == (24, 64, 64, 3)
    for s in ('train', 'val', 'test'):
        y = small[f'{s}_labels']
        assert y.dtype == np.uint8 and y.shape[1] == 1 and set(y.ravel()) == set(range(len(LESIONS)))
        assert (y == large[f'{s}_labels']).all()
        assert np.abs(small[f'{s}_images'].mean((1, 2)) - large[f'{s}_images'].mean((1, 2))).mean() < 2   # the same lesions

def test_head_ct_pictures_are_the_hu_in_the_brain_window(tmp_path):
    folder = make_sample('head_ct', tmp_path/'ct', n=20)
    z = arrays(folder/'head_ct_hu.npz')
    for hu, y, mask, name in zip(z['hu'], z['labels'].ravel(), z['masks'], z['names']):
        picture = np.asarray(Image.open(folder/('bleed' if y else 'normal')/str(name)))
        assert (picture == window(hu)).all() and mask.any() == bool(y)
    assert len(list(folder.glob('bleed/*.png'))) == len(list(folder.glob('normal/*.png'))) == 10

def test_two_writes_give_the_same_bytes_and_another_seed_others(tmp_path):
    for name in SETS:
        a, b, c = (make_sample(name, tmp_path/f'{name}{i}', n=dict(lesions=100).get(name, 3), seed=s) for i, s in enumerate((0, 0, 1)))
        data = [f for f in tree(a) if not f.endswith(('.md', '.json'))]
        assert all((a/f).read_bytes() == (b/f).read_bytes() for f in tree(a))
        assert all((a/f).read_bytes() != (c/f).read_bytes() for f in data if (c/f).exists())

# --- through medkit's own loaders, as real data go

def test_organs_through_the_volume_loader(tmp_path):
    from medkit.volumes import scan
    a = scan(make_sample('organ_a', tmp_path/'a', n=4))
    b = scan(make_sample('organ_b', tmp_path/'b', n=4))
    assert len(a) == len(b) == 4 and (a[['voxels anterior', 'voxels posterior']] > 300).all().all() and (b['voxels chamber'] > 5000).all()
    assert set(a.spacing) == {(1, 1, 1)} and all(s[:2] == (1.25, 1.25) and s[2] > 1.25 for s in b.spacing)   # in RAS, whatever the file's order
    assert len({*a.orientation, *b.orientation}) > 1

def test_the_volume_loader_names_the_corrupt_file(tmp_path):
    from medkit.volumes import scan
    folder = make_sample('organ_a', tmp_path/'a', n=3, faults=['corrupt'])
    name = json.loads((folder/'faults.json').read_text())['corrupt'][0].split('/')[-1]
    with pytest.raises(phantom.MedkitError, match=name): scan(folder)

def test_pictures_through_the_image_loader(tmp_path):
    from medkit import images
    s = images.open_images(make_sample('lesions', tmp_path/'lesions', n=100)/'lesions.npz')
    assert len(s.labels) == 100 and set(s.splits) == {'train', 'val', 'test'}
    images.check_images(s)
    s = images.open_images(make_sample('head_ct', tmp_path/'head_ct', n=40))
    assert len(s.labels) == 40 and sorted(s.classes) == ['bleed', 'normal']
    images.check_images(s)

# --- faults

@pytest.mark.parametrize('name', SETS)
def test_all_faults_at_once_are_recorded(name, tmp_path):
    faults = [f for f in [*FAULTS, 'corrupt'] if f != 'confounder' or name in ('lesions', 'head_ct')]
    folder = make_sample(name, tmp_path/'bad', n=dict(lesions=200, head_ct=40).get(name, 6), faults=faults)
    truth = json.loads((folder/'faults.json').read_text())
    assert sorted(truth) == sorted(faults) and all(len(v) for v in truth.values())
    with pytest.raises(Exception):
        for k, v in arrays(folder/truth['corrupt'][0]).items(): np.asarray(v)

def test_a_set_without_faults_has_no_copies():
    d = lesions(300)
    seen = [im.tobytes() for s in ('train', 'val', 'test') for im in d[f'{s}_images']]
    assert len(set(seen)) == len(seen) and 'faults' not in d

def test_faults_of_head_ct_lie_where_recorded(tmp_path):
    clean, bad = (make_sample('head_ct', tmp_path/str(len(f)), n=60, faults=f) for f in ([], FAULTS))
    truth, where = json.loads((bad/'faults.json').read_text()), {f.name: f for f in bad.glob('*/*.png')}
    for p in truth['duplicates']: assert where[p['copy']].read_bytes() == where[p['original']].read_bytes()
    noise = {p['at']: ('normal', 'bleed')[p['true']] for p in truth['label_noise']}
    for f in clean.glob('*/*.png'):
        assert where[f.name].parent.name != f.parent.name if f.name in noise else where[f.name].parent.name == f.parent.name
        changed = where[f.name].read_bytes() != f.read_bytes()
        assert changed == (f.name in truth['confounder'] or f.name in [p['copy'] for p in truth['duplicates']])

# --- whole or absent

@pytest.mark.skipif(sys.platform == 'win32', reason='SIGKILL is POSIX')
def test_a_killed_run_leaves_nothing_that_looks_whole(tmp_path):
    code = f"from medkit.phantom import make_sample; make_sample('organ_b', {str(tmp_path/'b')!r}, n=500)"
    p = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT)
    deadline = time.time() + 60
    while not list(tmp_path.glob('.part-*/set/imagesTr/*.nii.gz')) and time.time() < deadline: time.sleep(.05)
    p.send_signal(signal.SIGKILL); p.wait()
    assert list(tmp_path.glob('.part-*/set/imagesTr/*.nii.gz')), 'it was killed before it wrote anything'
    assert not (tmp_path/'b').exists()
    assert tree(make_sample('organ_b', tmp_path/'b', n=1)) == ['README.md', 'dataset.json', 'imagesTr/organ_b_000.nii.gz', 'labelsTr/organ_b_000.nii.gz']

def test_what_stands_there_is_not_overwritten(tmp_path):
    folder = make_sample('organ_a', tmp_path/'a', n=1)
    before = (folder/'dataset.json').read_bytes()
    with pytest.raises(phantom.MedkitError, match='already holds'): make_sample('organ_a', folder, n=2)
    assert (folder/'dataset.json').read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ['a']
