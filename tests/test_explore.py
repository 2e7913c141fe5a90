"""`explore` takes whatever holds data, counts exactly, names what was planted, downloads nothing, and survives damaged files."""
import json, socket, tracemalloc, zipfile
import nibabel as nib, numpy as np, pandas as pd, pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from medkit import explore as module
from medkit.catalog import medmnist_info
from medkit.core import MedkitError
from medkit.explore import explore, explore_images, outliers, plot_counts, plot_montage, plot_planes, plot_ridges
from medkit.images import ImageSet, open_images
from medkit.loaders import image_dls
from medkit.phantom import make_sample
from medkit.segment import volume_dls
from medkit.volumes import open_volumes, read_mask, read_volume, scan

rng = np.random.default_rng(0)

@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    "A connection is an error, and nobody's ~/.medmnist is seen"
    def refuse(*args, **kw): raise AssertionError('explore tried to reach the network')
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr('pathlib.Path.home', lambda: tmp_path)

def a_set(n=120, k=3, shape=(12, 10), **kw):
    y = np.arange(n) % k
    x = (rng.normal(80, 20, (n, *shape)) + 30*y.reshape(-1, *[1]*len(shape))).clip(0, 255).astype(np.uint8)
    kw = dict(labels=y, classes=[f'class {i}' for i in range(k)], task='multi-class') | kw
    return ImageSet(x, splits=np.resize(['train']*7 + ['val'] + ['test']*2, n), name='a set', **kw)

# Sources ---------------------------------------------------------------------------------------------------------

def test_published_counts():
    "Of every MedMNIST set that is not here: INFO's counts, and no download"
    info = medmnist_info(); assert info
    for name, e in info.items():
        o = explore(name)
        assert {k: o.facts[k] for k in ('train', 'val', 'test')} == e['n_samples'], name
        assert not len(o.cases) and 'was not downloaded' in o.notes[0] and e['license'] in o.facts['licence']
    assert explore('dermamnist').counts.sum().tolist() == [7007, 1003, 2005] and "explore('lesions')" in explore('DermaMNIST').notes[0]
    assert explore('pathmnist').counts.loc['cases'].tolist() == [89996, 10004, 7180]

def test_absent_volumes():
    o = explore('liver')
    assert o.facts['train'] == 131 and '27 GB' in o.notes[0] and '512 x 512' in o.facts['size'] and "explore('organ_b')" in o.notes[0]
    assert 'atriaseg2018' in explore('la2018').notes[0]

def test_official_file(tmp_path):
    "A file of the official name and shape: counted, not believed"
    i = medmnist_info()['dermamnist']; n = i['n_samples']
    np.savez(tmp_path/'dermamnist.npz', **{f'{s}_images': np.zeros((n[s], 4, 4, 3), np.uint8) for s in n}, **{f'{s}_labels': np.arange(n[s])[:, None] % 7 for s in n})
    o = explore(tmp_path/'dermamnist.npz')
    assert o.counts.sum().tolist() == [7007, 1003, 2005] and len(o.cases) == 10015 and o.facts['licence'].startswith('CC BY-NC 4.0')
    assert any('hold one grey value only' in t for t in o.notes) and o.counts.index[4] == 'melanoma'

def test_every_way_in(tmp_path, monkeypatch):
    "One set as arrays, .npz, folder, .csv, DataFrame, .tm and loaders: the same counts and grey values"
    monkeypatch.setattr(module, 'picture_figures', lambda *a: {}); s = a_set(); files = tmp_path/'folder'
    for i, (x, y, k) in enumerate(zip(s.images, s.labels, s.splits)):
        f = files/k/s.classes[y]/f'{i:03}.png'; f.parent.mkdir(parents=True, exist_ok=True); Image.fromarray(x).save(f)
    np.savez(tmp_path/'set.npz', **{f'{k}_{w}': getattr(s.part(k), w) for k in ('train', 'val', 'test') for w in ('images', 'labels')})
    df = pd.DataFrame(dict(path=[f'folder/{k}/{s.classes[y]}/{i:03}.png' for i, (y, k) in enumerate(zip(s.labels, s.splits))], label=[s.classes[y] for y in s.labels], split=s.splits))
    df.to_csv(tmp_path/'table.csv', index=False)
    with zipfile.ZipFile(tmp_path/'project.tm', 'w') as z:
        z.writestr('manifest.json', json.dumps(dict(type='image')))
        for i, (f, y) in enumerate(zip(df.path, s.labels)): z.write(tmp_path/f, f'{s.classes[y]}-!-{i}.png')
    want = s.counts().T.values.tolist()
    for source in (s, (s.images, s.labels, s.splits), tmp_path/'set.npz', files, str(files), tmp_path/'table.csv', df.assign(path=[str(tmp_path/p) for p in df.path]), image_dls(s, bs=8)):
        o = explore(source)
        assert o.counts.values.tolist() == want and len(o.cases) == 120, source
        assert o.facts['values'] == f'{s.images.min()} to {s.images.max()}' and o.facts['size'].startswith('12 x 10')
    tm = explore(tmp_path/'project.tm')
    assert tm.counts.sum(axis=1).tolist() == [40]*3 and tm.facts['values'] == o.facts['values'] and any('drawn by class' in t for t in tm.notes)
    assert str(tmp_path) not in explore(files).cases.to_csv()   # names below the set's own folder

@pytest.mark.parametrize('kw,index,captions', [
    (dict(labels=(rng.random((120, 4)) < .3).astype(int), classes=list('abcd'), task='multi-label, binary-class'), list('abcd'), 'label'),
    (dict(labels=rng.normal(50, 9, 120), classes=[], task='regression'), ['all'], 'third'),
    (dict(task='ordinal-regression'), ['class 0', 'class 1', 'class 2'], 'class')])
def test_tasks(kw, index, captions):
    s = a_set(**kw); o = explore(s)
    assert o.counts.index.tolist() == index and o.counts.equals(s.counts().T) and captions in next(iter(o.figures)) and o.facts['task'] == kw['task']

def test_small_volumes():
    o = explore(a_set(shape=(9, 8, 7)))
    assert o.facts['size'] == '9 x 8 x 7 voxels' and {'depth', 'height', 'width'} <= set(o.cases) and 'middle planes' in next(iter(o.figures))

# Volumes ---------------------------------------------------------------------------------------------------------

def test_subjects_against_scan(tmp_path, monkeypatch):
    "The CSV against the fingerprint that the planner reads"
    folder = make_sample('organ_b', tmp_path/'organ_b', n=6); monkeypatch.setattr(module, 'volume_figures', lambda *a: {})
    for i, code in enumerate(('LPS', 'SAR')):                    # files turned in other ways: the same patient
        for sub in ('imagesTr', 'labelsTr'):
            f = folder/sub/f'organ_b_00{i}.nii.gz'; img = nib.load(f); data = np.asarray(img.dataobj); head = img.header
            to = nib.orientations.ornt_transform(nib.io_orientation(img.affine), nib.orientations.axcodes2ornt(tuple(code)))
            nib.save(nib.Nifti1Image(nib.orientations.apply_orientation(data, to), img.affine @ nib.orientations.inv_ornt_aff(to, img.shape)), f)
    o, fp = explore(folder), scan(folder)
    got = pd.read_csv(o.to_csv(tmp_path/'out/cases.csv'))
    assert got['item'].tolist() == fp.id.tolist()
    assert got[['x voxels', 'y voxels', 'z voxels']].values.tolist() == [list(s) for s in fp['shape']]
    np.testing.assert_allclose(got[['x spacing', 'y spacing', 'z spacing']], fp.spacing.tolist(), atol=1e-3)
    np.testing.assert_allclose(got['ml chamber']*1000, fp['voxels chamber']*np.prod(fp.spacing.tolist(), 1), rtol=1e-3)
    np.testing.assert_allclose(got[['low', 'high']], fp[['low', 'high']], rtol=1e-4, atol=1e-3)
    assert got.orientation.tolist() == fp.orientation.tolist() and any('turned in' in t for t in o.notes)

def test_planted_in_volumes(tmp_path, monkeypatch):
    "A case with other spacing, one with other brightness, a cut file, a mask on another grid: each named; on the clean set nothing is"
    folder = make_sample('organ_a', tmp_path/'organ_a', n=12); monkeypatch.setattr(module, 'volume_figures', lambda *a: {})   # the words matter here
    assert not [t for t in explore(folder).notes if 'stand out' in t or 'problem' in t]
    def change(i, f, subs=('imagesTr', 'labelsTr')):
        for sub in subs:
            p = folder/sub/f'organ_a_{i:03}.nii.gz'; img = nib.load(p); nib.save(f(np.asarray(img.dataobj), img.affine), p)
    change(2, lambda x, a: nib.Nifti1Image(x, np.diag([1, 1, 2, 1]) @ a))
    change(4, lambda x, a: nib.Nifti1Image(x*1e5, a), ['imagesTr'])
    change(6, lambda x, a: nib.Nifti1Image(x[1:], a), ['labelsTr'])
    p = folder/'imagesTr/organ_a_008.nii.gz'; p.write_bytes(p.read_bytes()[:2000])
    o = explore(folder); text = ' '.join(o.notes)
    assert 'organ_a_002: spacing in z' in text and 'organ_a_004: brightness' in text and '2 of 12 cases stand out' in text
    assert '2 of 12 cases have a problem' in text and 'organ_a_006: organ_a_006.nii.gz is not on the grid' in text and 'organ_a_008' in text and str(tmp_path) not in text
    assert o.counts.loc['with anterior', 'all'] == 10 and len(o.cases) == 12

def test_volume_dls_splits(tmp_path):
    dls = volume_dls(make_sample('organ_a', tmp_path/'organ_a', n=8), patch_size=(16, 16, 16), filters=(8, 16, 32))
    o = explore(dls)
    assert o.counts.loc['cases'].tolist() == [len(d.dataset.items) for d in dls.loaders]
    assert set(o.cases['item'][o.cases.split == 'val']) == {c.id for c in dls.valid.dataset.items}

def test_frames_and_loose_files(tmp_path):
    "4D files say which frame is wanted; NIfTI files without dataset.json are looked at without masks"
    for i in range(5): nib.save(nib.Nifti1Image(rng.random((8, 9, 10, 3)).astype(np.float32), np.diag([1, 2, 3, 1])), tmp_path/f'{i}.nii.gz')
    (tmp_path/'notes.txt').write_text('x')
    assert 'frame=0' in ' '.join(explore(tmp_path).notes)
    o = explore(tmp_path, frame=1)
    assert o.facts['task'] == 'volumes without masks' and o.facts['extent'] == '8 x 18 x 30 mm' and len(o.figures) == 3 and (o.cases.frames == 3).all()

def test_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'AT_MOST', (10, 4*30_000))
    o = explore(make_sample('organ_a', tmp_path/'organ_a', n=10))
    read = o.cases.high.notna().sum()
    assert 3 <= read < 10 and f'voxels of {read} of them' in ' '.join(o.notes) and o.cases['x voxels'].notna().all()
    s = explore(a_set()); assert 'grey values of' in ' '.join(s.notes) and s.counts.values.sum() == 120

# Damaged and odd -------------------------------------------------------------------------------------------------

def test_damaged_files(tmp_path):
    for i in range(30):
        f = tmp_path/f'set/{"ab"[i%2]}/{i}.png'; f.parent.mkdir(parents=True, exist_ok=True); Image.fromarray(rng.integers(0, 255, (20+i%3, 30), np.uint8)).save(f)
    (tmp_path/'set/a/0.png').write_bytes(b''); (tmp_path/'set/b/1.png').write_text('<html>')
    g = tmp_path/'set/b/3.png'; g.write_bytes(g.read_bytes()[:300])              # the header is whole, the pixels are not
    Image.fromarray(np.full((20, 30), 3000, np.uint16)).save(tmp_path/'set/a/2.png')
    o = explore(tmp_path/'set')
    assert any('2 of 30 files cannot be read' in t and 'a/0.png' in t for t in o.notes) and any('4 of the 30 pictures' in t for t in o.notes) and any('3 sizes' in t for t in o.notes) and o.counts.values.sum() == 30
    assert o.cases['width'].notna().sum() == 28

def test_headers_that_lie(tmp_path):
    "A few bytes that declare gigabytes, whole files among them: named, never unpacked"
    import gzip
    x = rng.random((6, 7, 8)).astype(np.float32)
    for i in range(3): nib.save(nib.Nifti1Image(x, np.eye(4)), tmp_path/f'{i}.nii.gz')
    nib.save(nib.Nifti1Image(x, np.eye(4)), tmp_path/'short.nii'); b = bytearray((tmp_path/'short.nii').read_bytes())
    b[42:48] = np.array([30000]*3, '<i2').tobytes(); (tmp_path/'short.nii').write_bytes(b); (tmp_path/'bomb.nii.gz').write_bytes(gzip.compress(bytes(b) + bytes(1_000_000)))
    o = explore(tmp_path); text = ' '.join(o.notes)
    assert '2 of 5 cases have a problem' in text and text.count('declares more voxels than its file can hold') == 2 and o.cases.high.notna().sum() == 3

def test_dicom_folders(tmp_path):
    "A case a series, whatever the folders and files are called; planes as of the NIfTI that dicom_to_nifti writes"
    from medkit.dicom import dicom_to_nifti, head_volume, open_dicom, write_series
    hu, affine, _ = head_volume((16, 20, 8), (10, 10, 18))
    write_series(hu, affine, tmp_path/'in'/'Zebedee^Q', shuffled=True); write_series(hu[..., 2:], affine, tmp_path/'in'/'x', 'MR', number=2, slope=.5, intercept=-1024)
    for s in open_dicom(tmp_path/'in').series: dicom_to_nifti(s, tmp_path/'nii'/f'{s.number}.nii.gz')
    a, b = explore(tmp_path/'in'), explore(tmp_path/'nii'); same = [f'{k} {w}' for k in 'xyz' for w in ('voxels', 'spacing', 'mm')] + ['low', 'median', 'high']
    np.testing.assert_allclose(a.cases[same].astype(float), b.cases[same].astype(float), atol=1e-3)
    assert 'Zebedee' not in repr(a) + a.cases.to_csv() and len(a.figures) == 3 and len(explore(tmp_path/'in'/'x').cases) == 1

def test_nothing_to_see(tmp_path):
    with pytest.raises(MedkitError, match='no pictures'): explore(tmp_path)
    with pytest.raises(MedkitError, match='did you mean hippocampus'): explore('hipocampus')
    with pytest.raises(MedkitError, match='does not exist'): explore(tmp_path/'x.npz')
    with pytest.raises(MedkitError, match='no pictures'): explore(a_set().part(np.array([], int)))
    with pytest.raises(MedkitError, match='cannot be opened'): explore(7)
    class Loaders: loaders = []
    with pytest.raises(MedkitError, match='image_dls or volume_dls'): explore(Loaders())

def test_rotated_photograph(tmp_path):
    "A camera's picture that lies on its side is measured as it stands"
    exif = Image.Exif(); exif[274] = 6
    for c in 'ab':
        for i in range(3): f = tmp_path/c/f'{i}.jpg'; f.parent.mkdir(exist_ok=True); Image.new('RGB', (40, 20), (i*40, 0, 0)).save(f, exif=exif)
    o = explore(tmp_path)
    assert (o.cases.width == 20).all() and (o.cases.height == 40).all()

# Pages -----------------------------------------------------------------------------------------------------------

def test_page(tmp_path):
    s = a_set(classes=['<script>', 'b & c', 'd'])
    page = explore(s).save(tmp_path/'out').read_text(encoding='utf-8')
    assert '<script>' not in page and '&lt;script&gt;' in page and page.count('data:image/png') == 3 and (tmp_path/'out/cases.csv').is_file()
    assert '<script>' not in explore(s)._repr_html_()

@pytest.mark.parametrize('k', [7, 30])
def test_names_do_not_collide(k):
    "The class names beside montage, bars and histograms: drawn, none lies on another"
    s = a_set(n=k*5, k=k, classes=[f'{"a rather long name of a class " if i % 2 else "c"}{i}' for i in range(k)])
    for fig in explore(s).figures.values():
        FigureCanvasAgg(fig).draw()
        for ax in fig.axes:
            boxes = sorted((t.get_window_extent() for t in ax.get_yticklabels() if t.get_text()), key=lambda b: b.y0)
            assert all(a.y1 <= b.y0 + 1 for a, b in zip(boxes, boxes[1:])), k

def test_proportions():
    "A millimetre is as long across as it is high, in each plane"
    fig = plot_planes(rng.random((20, 30, 8)), (rng.random((20, 30, 8)) > .5).astype(int), (1, 1, 5), {1: 'x'})
    FigureCanvasAgg(fig).draw()
    for ax in fig.axes:
        box = ax.get_window_extent(); (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
        assert box.width/(x1-x0) == pytest.approx(box.height/(y1-y0), rel=.02)

def test_memory(monkeypatch):
    "What is held beside the set does not grow with it"
    def peak(n):
        s = a_set(n, shape=(28, 28)); tracemalloc.start(); explore_images(s); _, top = tracemalloc.get_traced_memory(); tracemalloc.stop()
        return top
    monkeypatch.setattr(module, 'AT_MOST', (300, 2e8)); small, large = peak(400), peak(2400)
    assert large - small < 28*28*2000    # less than the pictures that came on top

# Real ------------------------------------------------------------------------------------------------------------

@pytest.mark.realdata
def test_real(real_data, monkeypatch):
    monkeypatch.setattr(module, 'AT_MOST', (200, 3e6))      # counts and headers are of all, pixels of some
    o = explore('hippocampus')
    assert o.counts.loc['cases', 'all'] == 208 and any('several kinds of cases by brightness' in t for t in o.notes) and o.facts['spacing'] == '1 x 1 x 1 mm'
    assert explore('ham10000').counts.sum().tolist() == [4189, 597, 898]
    assert explore('mednist').counts.values.sum() == 3040 and explore('rsna_experiment4').counts.sum(axis=1).tolist() == [80]*3
    assert explore('adrenalmnist3d').counts.sum().tolist() == [1188, 98, 298]
