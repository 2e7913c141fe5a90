"""Bad input of every kind gets its sentence; the real sets open with the counts that are known of them."""
import io, json, pickle, zipfile
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from medkit.core import MedkitError
from medkit.catalog import entry
from medkit.images import *

rng = np.random.default_rng(0)

def picture(path, mode='L', size=(16, 16), **kw):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).convert(mode).save(path, **kw)
    return path

@pytest.fixture
def folder(tmp_path):
    "Two classes of ten pictures"
    for c in 'ab':
        for i in range(10): picture(tmp_path/f'set/{c}/{i}.jpg')
    return tmp_path/'set'

def faults(source): # what `check_images` says of it
    with pytest.raises(MedkitError) as err: check_images(open_images(source))
    return str(err.value)

def test_own_set(folder, monkeypatch):
    "A folder in MEDKIT_DATA opens by its name"
    monkeypatch.setenv('MEDKIT_DATA', str(folder.parent))
    s = check_images(open_images('Set', 12))
    assert (s.name, s.task, s.load().images.shape) == ('set', 'binary-class', (20, 12, 12))

# Files -----------------------------------------------------------------------------------------------------------

def test_good(folder):
    s = check_images(open_images(folder))
    assert (len(s), s.classes, s.task, s.as_arrays().shape) == (20, ['a', 'b'], 'binary-class', (20, 16, 16))
    assert s.counts().T.values.tolist() == [[6, 2, 2], [6, 2, 2]]

def test_split_is_said(folder, capsys):
    s = open_images(folder)
    assert capsys.readouterr().out == 'set: val and test drawn by class, seed 42: train 12, val 4, test 4\n'
    assert (open_images(folder).splits == s.splits).all() and (open_images(folder, seed=1).splits != s.splits).any()

def test_all_faults_at_once(folder):
    (folder/'a/3.jpg').write_bytes(b'')
    (folder/'a/4.jpg').write_bytes(picture(folder/'a/4.jpg', size=(64, 64)).read_bytes()[:1500])
    (folder/'b/5.jpg').write_text('<html>404</html>')
    (folder/'c').mkdir()
    text = faults(folder)
    for part in ('4 faults', 'class c has no pictures', '3.jpg cannot be used: it is empty', '4.jpg cannot be used: image file is truncated', '5.jpg cannot be used: it is not a picture'): assert part in text
    with pytest.raises(MedkitError, match='3 of 20 pictures cannot be used'): open_images(folder).load()

def test_many_faults_are_cut_short(folder):
    for f in folder.rglob('*.jpg'): f.write_bytes(b'')
    text = faults(folder)
    assert text.count('0 bytes') == 5 and 'and 15 more' in text

@pytest.mark.parametrize('name,how,why', [
    ('16bit.png', lambda p: Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16)*16).save(p), 'from 0 to 4080, which is more than 8 bits'),
    ('32bit.tif', lambda p: Image.fromarray(np.full((9, 9), .5, np.float32)).save(p), 'more than 8 bits'),
    ('film.gif', lambda p: Image.new('L', (9, 9)).save(p, save_all=True, append_images=[Image.new('L', (9, 9), 9)]), 'holds 2 pictures'),
    ('stack.tif', lambda p: Image.new('L', (9, 9)).save(p, save_all=True, append_images=[Image.new('L', (9, 9))]*3), 'holds 4 pictures')])
def test_refused(folder, name, how, why):
    how(folder/'a'/name)
    text = faults(folder)
    assert name in text and why in text

@pytest.mark.parametrize('mode,ext', [('CMYK', 'jpg'), ('RGBA', 'png'), ('P', 'png'), ('1', 'png'), ('LA', 'png'), ('YCbCr', 'jpg')])
def test_modes(tmp_path, mode, ext):
    got = read_image(picture(tmp_path/f'x.{ext}', mode))
    assert got.dtype == np.uint8 and got.shape == ((16, 16) if mode in ('1', 'LA') else (16, 16, 3)) and got.std() > 20

def test_bomb(tmp_path, monkeypatch):
    picture(tmp_path/'x.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    with pytest.raises(MedkitError, match='x.png cannot be used: .*decompression bomb'): read_image(tmp_path/'x.png')

def test_grey_and_colour(folder, capsys):
    picture(folder/'a/c.png', 'RGB')
    assert open_images(folder, 8).as_arrays().shape == (21, 8, 8, 3)
    assert '20 of 21 pictures are grey' in capsys.readouterr().out

def test_sizes(folder):
    picture(folder/'a/wide.png', size=(16, 40))
    with pytest.raises(MedkitError, match=r'2 sizes, from \(16, 16\) to \(16, 40\): say which one you want, as in size=64'): open_images(folder).load()
    assert '2 sizes, from (16, 16) to (16, 40)' in faults(folder)
    assert check_images(open_images(folder, 12)).load().images.shape == (21, 12, 12)

# Folders ---------------------------------------------------------------------------------------------------------

def test_empty_folder(tmp_path):
    with pytest.raises(MedkitError, match='make one folder for each class'): open_images(tmp_path)
    picture(tmp_path/'x.png')
    with pytest.raises(MedkitError, match='make one folder for each class'): open_images(tmp_path)

def test_one_class(tmp_path):
    for i in range(9): picture(tmp_path/f'a/{i}.png')
    assert 'all pictures are of one class, a' in faults(tmp_path)

def test_unseen_class(folder):
    for split, classes in dict(train='ab', valid='ab', test='abc').items():
        for c in classes: picture(folder/f'{split}/{c}/x.png')
    assert 'class c has 1 pictures for validation and test, but none for training' in faults(folder)

def test_only_train_and_test(tmp_path, capsys):
    for split in ('training', 'testing'):
        for c in 'ab':
            for i in range(10): picture(tmp_path/f's/{split}/{c}/{i}.png')
    s = open_images(tmp_path/'s')
    assert check_images(s).counts().sum(axis=1).tolist() == [16, 4, 20] and 'val drawn by class' in capsys.readouterr().out
    assert all('testing' in str(f) for f in s.part('test').images)                       # the makers' test set is kept

def test_copies_stay_together(folder, capsys):
    for c in 'ab':
        for i in range(10): (folder/c/f'copy{i}.jpg').write_bytes((folder/c/f'{i}.jpg').read_bytes())
    s = open_images(folder)
    side = {f.read_bytes(): set() for f in s.images}
    for f, split in zip(s.images, s.splits): side[f.read_bytes()].add(split)
    assert all(len(v) == 1 for v in side.values()) and '20 groups of identical files' in capsys.readouterr().out

def test_volumes(tmp_path):
    (tmp_path/'dataset.json').write_text('{}')
    with pytest.raises(MedkitError, match='holds volumes'): open_images(tmp_path)

# .npz ------------------------------------------------------------------------------------------------------------

def npz(path, labels=None, n=6, shape=(8, 8), **other):
    z = {f'{s}_images': rng.integers(0, 255, (n, *shape), np.uint8) for s in ('train', 'val', 'test')}
    z |= {f'{s}_labels': np.arange(n)[:, None] % 2 if labels is None else labels for s in ('train', 'val', 'test')}
    np.savez(path, **z | other)
    return path

def test_labels_out_of_range(tmp_path):
    assert 'labels 3, 9 are outside of 0 to 1' in faults(npz(tmp_path/'pneumoniamnist.npz', np.array([[0], [1], [1], [0], [3], [9]])))

def test_multi_label(tmp_path):
    y = rng.integers(0, 2, (40, 14)); y[0] = 1
    s = check_images(open_images(npz(tmp_path/'chestmnist.npz', y, 40)))
    assert (s.task, s.labels.shape, len(s.classes)) == ('multi-label, binary-class', (120, 14), 14)
    assert s.counts().loc['train'].tolist() == y.sum(0).tolist()
    assert '5 labels a picture and 14 classes' in faults(npz(tmp_path/'chestmnist.npz', y[:, :5], 40))
    assert 'labels 7 are outside of 0 to 1' in faults(npz(tmp_path/'chestmnist.npz', y*7, 40))

def test_ordinal(tmp_path):
    s = check_images(open_images(npz(tmp_path/'retinamnist_64.npz', np.arange(10)[:, None] % 5, 10, (64, 64, 3))))
    assert (s.task, s.classes, s.name) == ('ordinal-regression', list('01234'), 'retinamnist')

@pytest.mark.parametrize('data,why', [(b'', 'damaged'), (b'no npz', 'run code|damaged'), (pickle.dumps({'a': 1}), 'run code'), ('cut', 'damaged')])
def test_broken_npz(tmp_path, data, why):
    good = npz(tmp_path/'x.npz').read_bytes()
    (tmp_path/'x.npz').write_bytes(good[:len(good)//2] if data == 'cut' else data)
    with pytest.raises(MedkitError, match=f'x.npz was not opened, since .*({why})'): open_images(tmp_path/'x.npz')

def test_npz_does_not_run_code(tmp_path):
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path/'evil'), 'w'))
    npz(tmp_path/'x.npz', train_labels=np.array([Evil()], dtype=object))
    with pytest.raises(MedkitError, match='could run code'): open_images(tmp_path/'x.npz')
    assert not (tmp_path/'evil').exists()

# Teachable Machine -----------------------------------------------------------------------------------------------

def tm(path, names, manifest='{"type": "image"}'):
    b = io.BytesIO(); Image.new('L', (8, 8)).save(b, 'jpeg')
    with zipfile.ZipFile(path, 'w') as z:
        for n in names: z.writestr(n, b.getvalue() + n.encode())
        if manifest is not None: z.writestr('manifest.json', manifest)
    return path

PAIR = [f'{c}-!-{i}.jpg' for c in ('no bleed', 'bleed') for i in range(10)]

def test_tm(tmp_path):
    s = check_images(open_images(tm(tmp_path/'x.tm', PAIR)))
    assert s.classes == ['bleed', 'no bleed'] and s.load(4).images.shape == (20, 4, 4)
    assert [p.name for p in tmp_path.iterdir()] == ['x.tm']                               # nothing was unpacked

@pytest.mark.parametrize('names,manifest,why', [
    (['a/b-!-0.jpg'], '{"type": "image"}', 'no slashes'), (['..\\b-!-0.jpg'], '{"type": "image"}', 'leads out'), (['/etc/b-!-0.jpg'], '{"type": "image"}', 'leads out'),
    (['picture.jpg'], '{"type": "image"}', 'is not named'), (['-!-0.jpg'], '{"type": "image"}', 'is not named'), (PAIR, None, 'no readable manifest'),
    (PAIR, 'no json', 'no readable manifest'), (PAIR, '[]', 'of type None'), (PAIR, '{"type": "pose"}', "of type 'pose'")])
def test_bad_tm(tmp_path, names, manifest, why):
    with pytest.raises(MedkitError, match=why): open_images(tm(tmp_path/'x.tm', names, manifest))

def test_tm_broken(tmp_path):
    (tmp_path/'x.tm').write_text('no zip')
    with pytest.raises(MedkitError, match='x.tm is not a Teachable Machine project'): open_images(tmp_path/'x.tm')
    with zipfile.ZipFile(tm(tmp_path/'y.tm', PAIR), 'a') as z: z.writestr('bleed-!-99.jpg', b'')
    assert '99.jpg cannot be used: it is empty' in faults(tmp_path/'y.tm')
    assert 'it has no pictures' in faults(tm(tmp_path/'z.tm', []))

# Tables ----------------------------------------------------------------------------------------------------------

def table(folder): return pd.DataFrame([dict(path=str(f), label=f.parent.name) for f in sorted(folder.rglob('*.jpg'))])

def test_table(folder):
    df = table(folder)
    s = check_images(open_images(df.assign(is_valid=df.index % 5 == 0)))
    assert (s.splits == np.where(df.index % 5 == 0, 'val', 'train')).all() and s.classes == ['a', 'b']
    assert check_images(open_images(df)).counts().sum(axis=1).tolist() == [12, 4, 4]

def test_table_faults(folder):
    df = table(folder).assign(is_valid=lambda d: d.index % 5 == 0)
    df.loc[3, 'path'] = str(folder/'gone.jpg')
    df.loc[4, 'path'] = df.loc[6, 'path']
    text = faults(df)
    assert 'gone.jpg cannot be used: it is not there' in text and '6.jpg is listed 2 times, for train' in text
    none = open_images(table(folder))
    none.splits[:] = 'train'
    assert 'no pictures for validation' in faults(none)

def test_csv(folder):
    df = table(folder); df['path'] = [str(Path(p).relative_to(folder)) for p in df['path']]
    df.to_csv(folder/'list.csv', index=False)
    assert check_images(open_images(folder/'list.csv', 8)).load().images.shape == (20, 8, 8)
    for data in (b'', b'\xff\xfe\x00\x81'):
        (folder/'list.csv').write_bytes(data)
        with pytest.raises(MedkitError, match='list.csv cannot be read as a table'): open_images(folder/'list.csv')

# The generated and the real sets ----------------------------------------------------------------------------------

def test_generated():
    s = check_images(open_images('lesions'))
    assert s.images.shape[1:] == (28, 28, 3) and s.classes == list(entry('lesions').classes) and s.name == 'lesions'
    s = check_images(open_images('head_ct'))
    assert s.classes == ['bleed', 'normal'] and s.name == 'head_ct'

def test_corrupt_sample(tmp_path):
    from medkit.phantom import make_sample
    make_sample('head_ct', tmp_path/'head_ct', n=40, faults=['corrupt'])
    bad, = json.loads((tmp_path/'head_ct'/'faults.json').read_text())['corrupt']
    assert Path(bad).name in faults(tmp_path/'head_ct')

@pytest.mark.realdata
@pytest.mark.parametrize('size', [None, 64])
def test_ham10000(real_data, size):
    s = check_images(open_images('ham10000', size))
    assert [int((s.splits == p).sum()) for p in ('train', 'val', 'test')] == [4189, 597, 898]
    assert s.as_arrays().shape == (5684, size or 28, size or 28, 3) and s.classes == list(entry('dermamnist').classes) or s.classes == list(entry('ham10000').classes)

@pytest.mark.realdata
def test_ham10000_twice(real_data):
    "The .npz and the folder hold the same lesions in the same split and classes"
    assert open_images('ham10000').counts().equals(open_images('ham10000', 64).counts())

@pytest.mark.realdata
def test_mednist(real_data, capsys):
    s = check_images(open_images('mednist'))
    assert len(s) == 3040 and s.classes == list(entry('mednist').classes) and s.as_arrays().shape == (3040, 64, 64)
    assert '20 groups of identical files stay together' in capsys.readouterr().out

@pytest.mark.realdata
@pytest.mark.parametrize('i,n,k', [(1, 60, 2), (4, 240, 3), (5, 240, 3)])
def test_rsna(real_data, i, n, k):
    s = check_images(open_images(f'rsna_experiment{i}'))
    assert (len(s), len(s.classes), s.as_arrays().shape) == (n, k, (n, 224, 224, 3)) and s.classes == list(entry(f'rsna_experiment{i}').classes)

@pytest.mark.realdata
def test_pneumonia(real_data):
    s = check_images(open_images('pneumoniamnist_rebuilt'))
    assert s.images.shape == (5856, 28, 28) and s.counts().sum(axis=1).tolist() == [4708, 524, 624] and s.task == 'binary-class'

@pytest.mark.realdata
def test_real_volumes(real_data):
    with pytest.raises(MedkitError, match='set of volumes with masks'): open_images('hippocampus')
    s = open_images(real_data/'medmnist/adrenalmnist3d.npz')
    assert s.images.shape == (1584, 28, 28, 28) and s.counts().sum(axis=1).tolist() == [1188, 98, 298] and s.task == 'binary-class'
