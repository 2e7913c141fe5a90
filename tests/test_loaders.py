"""What reaches `image_dls`: every source and task becomes batches with the right labels, every bad input one sentence before training."""
import io, warnings, zipfile
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import (BCEWithLogitsLossFlat, CrossEntropyLossFlat, Interpretation, Learner, MSELossFlat, TensorCategory, TensorMultiCategory, accuracy,
                               accuracy_multi, mae)
from PIL import Image
from medkit.core import MedkitError
from medkit.images import ImageSet, open_images
from medkit.loaders import *

rng = np.random.default_rng(0)
HALF = np.arange(40) % 2
THREE = ('train', 'val', 'test')

def pictures(n=40, shape=(8, 8)): return rng.integers(0, 256, (n, *shape), np.uint8)
def dls_of(source, **kw): return image_dls(source, device='cpu', **kw)
def said(source, **kw): # the one sentence
    with pytest.raises(MedkitError) as err: dls_of(source, **kw)
    assert '\n' not in str(err.value)
    return str(err.value)

def picture(path, mode='L', size=(16, 16)):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pictures(1, (*size, 3))[0]).convert(mode).save(path)
    return path

@pytest.fixture
def folder(tmp_path):
    "Two classes of ten pictures"
    for c in 'ab':
        for i in range(10): picture(tmp_path/f'set/{c}/{i}.png')
    return tmp_path/'set'

@pytest.fixture
def table(folder): return pd.DataFrame([dict(path=str(f), label=f.parent.name) for f in sorted(folder.rglob('*.png'))])

# Sources ---------------------------------------------------------------------------------------------------------

def test_sources_agree(folder, tmp_path, table):
    "Folder, table, csv, project, npz, dictionary and arrays with the same pictures give the same batches"
    def npz(z): np.savez(tmp_path/'x.npz', **z); return tmp_path/'x.npz'
    first = dls_of(folder).set
    split = table.assign(split=first.splits)
    split.assign(path=[Path(p).relative_to(tmp_path) for p in split.path]).to_csv(tmp_path/'x.csv', index=False)
    six = {f'{s}_{k}': v[first.splits == s] for s in THREE for k, v in dict(images=first.images, labels=first.labels).items()}
    for source in (folder, split, tmp_path/'x.csv', npz(six), six, (first.images, table.label, first.splits), first):
        dls = dls_of(source)
        for one, other in zip(dls.loaders[1:], dls_of(first).loaders[1:]):
            (x, y), (x2, y2) = one.one_batch(), other.one_batch()
            assert torch.allclose(x, x2, atol=1e-6) and (y == y2).all()

def test_project(folder, tmp_path):
    with zipfile.ZipFile(tmp_path/'x.tm', 'w') as z:
        for f in folder.rglob('*.png'): z.write(f, f'{f.parent.name}-!-{f.stem}.jpg')
        z.writestr('manifest.json', '{"type": "image"}')
    a, b = dls_of(tmp_path/'x.tm').set, dls_of(folder).set
    assert a.counts().equals(b.counts()) and sorted(i.tobytes() for i in a.images) == sorted(i.tobytes() for i in b.images)

@pytest.mark.parametrize('column', ['split', 'is_valid'])
def test_split_is_kept(table, column, capsys):
    "The table's split, row by row, whatever the seed; fastMONAI's tutorial lost its own"
    val = rng.permutation(20) < 5
    df = table.assign(split=np.where(val, 'valid', 'train')) if column == 'split' else table.assign(is_valid=val)
    for seed in (1, 2):
        dls = dls_of(df, seed=seed)
        assert (dls.set.splits == np.where(val, 'val', 'train')).all() and len(dls.loaders) == 2
        assert list(dls.valid_ds.splits[1]) == np.flatnonzero(val).tolist()
        assert np.abs(dls.valid.decode(dls.valid.one_batch())[0][:, 0].numpy() - dls.set.images[val]).max() <= 1
    assert 'drawn' not in capsys.readouterr().out

def test_given_test_is_kept(table, capsys):
    df = table.assign(split=['test']*4 + ['train']*6 + ['test']*4 + ['train']*6)
    s = dls_of(df).set
    assert ((s.splits == 'test') == (df.split == 'test')).all() and 'val drawn by class' in capsys.readouterr().out

def test_fastai_interface(folder):
    dls = dls_of(folder)
    assert list(dls.vocab) == ['a', 'b'] and dls.vocab.o2i['b'] == 1 and dls.c == 2 and dls.task == 'binary-class'
    new = dls.test_dl([folder/'a/0.png', dls.set.images[3], Image.fromarray(dls.set.images[4])])
    assert new.one_batch()[0].shape == (3, 1, 16, 16)
    dls.show_batch(max_n=2)

# Tasks -----------------------------------------------------------------------------------------------------------

def bright(n=160, shape=(8, 8)):
    "Pictures, each of its own light, and that light in [0,1]"
    light = rng.permutation(np.linspace(0, 1, n))
    return (light.reshape(-1, *[1]*len(shape))*200 + rng.integers(0, 40, (n, *shape))).astype(np.uint8), light

TASKS = {'multi-label, binary-class': (lambda v: np.stack([v > .3, v > .6, v < .5], 1).astype(int), 3, TensorMultiCategory, BCEWithLogitsLossFlat, accuracy_multi),
         'ordinal-regression': (lambda v: (v*3.999).astype(int), 4, TensorCategory, CrossEntropyLossFlat, accuracy),
         'regression': (lambda v: 20 + 60*v, 1, TensorNumber, MSELossFlat, mae),
         'binary-class': (lambda v: (v > .5).astype(int), 2, TensorCategory, CrossEntropyLossFlat, accuracy)}

@pytest.mark.parametrize('shape', [(8, 8), (8, 8, 3), (8, 8, 8)])
@pytest.mark.parametrize('task', TASKS)
def test_task(task, shape):
    "Each task on pictures and volumes: types, labels beside their pictures, a fastai learner from first to last"
    labels, c, kind, loss, metric = TASKS[task]
    x, light = bright(shape=shape)
    dls = dls_of((x, labels(light)), task=task, augment=False)
    assert (dls.task, dls.c, len(dls.vocab)) == (task, c, 0 if task == 'regression' else c)
    for dl in dls.loaders:
        xb, yb = dl.one_batch()
        seen = labels((dl.decode((xb, yb))[0].float().flatten(1).mean(1).numpy() - 19.5)/200)
        assert type(yb) is kind and yb.shape == (len(xb), *([c] if 'label' in task else []))
        assert np.abs(seen - yb.numpy()).mean() < (2 if task == 'regression' else .2)        # noise moves those at a border; another order gives .4 and more, or 20
    learn = Learner(dls, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(xb[0].numel(), c)), loss(), metrics=metric)
    with learn.no_bar(), learn.no_logging():
        before = learn.validate()[0]
        learn.fit_one_cycle(3, 3e-3)
        assert learn.validate()[0] < before
        preds, targs = learn.get_preds(dl=dls.test)
        assert len(preds) == len(targs) == (dls.set.splits == 'test').sum()
        decoded, *_ = learn.predict(x[0])
        learn.show_results(max_n=3)
    assert Interpretation.from_learner(learn).top_losses(2)[0].shape == (2,)
    dls.show_batch(max_n=3)
    if task == 'regression': assert abs(float(decoded)) < 100
    elif 'label' in task: assert set(decoded) <= set(dls.vocab)
    else: assert decoded in dls.vocab

def test_describe(capsys):
    x, light = bright(400)
    splits = np.repeat(THREE, [200, 100, 100])
    def line(y, **kw): dls_of((x, y, splits), **kw); return capsys.readouterr().out
    y = 20 + 60*light
    off = np.abs(y[300:] - y[:200].mean()).mean()
    assert f'mean {y[:200].mean():.4g}, SD {y[:200].std():.4g} in train. Always answering the mean is off by {off:.3g} on average in test' in line(y)
    y = np.stack([light > .9, light > .2], 1).astype(int)
    a, b = 100*y[:200].mean(0)
    assert f"2 labels, in {a:.2g}% (0) to {b:.2g}% (1) of train. Always answering no is right in {1-y[300:].mean():.0%} of test's labels" in line(y)
    y = (light*2.999).astype(int)
    assert '3 classes in the order 0 < 1 < 2. Always answering' in line(y, task='ordinal-regression')
    assert "200 train / 100 val / 100 test pictures, 8x8 grey, 3 classes. Always answering '" in line(y)

def test_drawn_splits():
    "By quantile for numbers, by the rarest label for several: every part sees the whole range, and the rare"
    x, light = bright(400)
    s = dls_of((x, light)).set
    for split in THREE: assert abs(light[s.splits == split].mean() - .5) < .03 and np.ptp(light[s.splits == split]) > .85
    assert [(s.splits == k).sum() for k in THREE] == [280, 60, 60]
    rare = np.stack([light < 8/400, light > .2], 1).astype(int)
    s = dls_of((x, rare)).set
    assert [rare[s.splits == k, 0].sum() for k in THREE] == [6, 1, 1]

def test_medmnist_tasks(tmp_path):
    "ChestMNIST, RetinaMNIST and a 3D set by their names in the catalog, as published: labels, order, shape"
    for name, y, shape, task, c in (('chestmnist', rng.integers(0, 2, (30, 14)), (28, 28), 'multi-label, binary-class', 14), ('retinamnist', np.arange(30)[:, None] % 5, (28, 28, 3), 'ordinal-regression', 5),
                                    ('vesselmnist3d', np.arange(30)[:, None] % 2, (28, 28, 28), 'binary-class', 2)):
        y[0] = 1
        np.savez(tmp_path/f'{name}.npz', **{f'{s}_{k}': v for s in THREE for k, v in dict(images=pictures(30, shape), labels=y.astype(np.uint8)).items()})
        dls = dls_of(tmp_path/f'{name}.npz')
        assert (dls.task, dls.c, dls.set.name) == (task, c, name) and (torch.cat([b[1] for b in dls.test]).numpy() == y.reshape(30, -1).squeeze()).all()

@pytest.mark.realdata
@pytest.mark.parametrize('size', [28, 64])
def test_adrenal(real_data, size, capsys):
    "Volumes by name: the official split with its published counts"
    dls = dls_of('adrenalmnist3d', size=size)
    assert [len(dl.dataset) for dl in dls.loaders] == [1188, 98, 298] and list(dls.vocab) == ['normal', 'hyperplasia'] and dls.task == 'binary-class'
    x, y = dls.valid.one_batch()
    assert x.shape == (64, 1, size, size, size) and abs(x.mean()) < .1 and abs(x.std() - 1) < .2
    assert f'{size}x{size}x{size}, 2 classes' in capsys.readouterr().out

@pytest.mark.realdata
def test_adrenal_smaller(real_data):
    "Resized, the shapes stay where they are"
    large = open_images('adrenalmnist3d', 64).part(np.arange(99))
    small = large.load(32)
    assert small.images.shape[1:] == (32, 32, 32) and abs(small.images.mean() - large.images.mean()) < 1
    for axis in (1, 2, 3): # centres of mass
        at = [np.average((np.arange(n) + .5)/n, weights=s.images.sum(tuple({0, 1, 2, 3} - {axis}))) for s, n in ((small, 32), (large, 64))]
        assert abs(at[0] - at[1]) < .002

# Bad input: arrays -----------------------------------------------------------------------------------------------

def late(y, k): return (pictures(), y, ['train']*30 + ['val']*(10-k) + ['test']*k)

@pytest.mark.parametrize('source,why', [
    ((pictures(0), []), 'it has no pictures'), ((pictures(1), [0]), 'no pictures for validation (of 1 in all)'), ((pictures(2), [0, 1]), 'no pictures for validation (of 2 in all)'),
    ((pictures(), HALF*0), 'all pictures are of one class, 0'), ((pictures(), ['a']*40), 'all pictures are of one class, a'),
    ((pictures(), np.where(HALF, -1, 1)), 'labels -1 are outside of 0 to 1'), ((pictures(), HALF*10**9), 'labels up to 1000000000 for 40 pictures'), ((pictures(), HALF*2), 'class 1 has no pictures'),
    ((pictures(), None), '40 pictures came with 1 labels'), ((pictures(), np.array([{}]*40)), 'labels of shape (40,) and type object'), ((pictures(), np.array([None, 'a']*20)), 'type object'),
    ((pictures(), np.zeros((40, 2, 2))), 'labels of shape (40, 2, 2)'), (([pictures()[0], pictures(shape=(9, 9))[0]], [0, 1]), 'pictures of several sizes'),
    ((pictures()/255, HALF), 'float64 pictures'), ((pictures().astype(np.uint16), HALF), 'uint16 pictures'), ((pictures(shape=(3, 8, 8)), HALF), 'colours last'), ((pictures(shape=(8, 8, 4)), HALF), 'shape (8, 8, 4)'),
    ((pictures(shape=()), HALF), 'shape ()'), ((np.zeros((40, 0, 0), np.uint8), HALF), 'shape (0, 0)'), ((pictures(), HALF, HALF, HALF), '4 came'),
    ((pictures(), HALF, ['train']*39), '40 labels and 39 splits'), ((pictures(), HALF, ['trian']*40), "'trian': use train, val and test"), ((pictures(), HALF, [None]*40), "'None': use train"),
    ((pictures(), HALF, ['val']*40), 'no pictures for training'), (late(np.r_[HALF[:38], 2, 2], 2), 'class 2 has 2 pictures for validation and test, but none for training'),
    (late(np.c_[HALF, np.arange(40) > 34].astype(int), 5), 'class 1 has 5 pictures for validation and test, but none for training'),
    ((pictures(), np.full(40, .5)), 'all 28 training pictures have the number 0.5'), ((pictures(), np.r_[np.inf, np.linspace(0, 1, 39)]), '1 labels that are nan or infinite'),
    ((pictures(), np.eye(2, dtype=int)[HALF]), 'exactly one of 2 labels'), ((pictures(), np.c_[HALF, -HALF]), 'labels -1 are outside of 0 to 1'), ((pictures(), np.c_[HALF, HALF*.5]), 'not all are 0 or 1'),
    (dict(train_images=pictures(), train_labels=HALF), 'lacks val_images, val_labels'), ({1, 2}, 'set cannot be opened'), (None, 'NoneType cannot be opened')])
def test_bad_arrays(source, why): assert why in said(source)

@pytest.mark.parametrize('kw,why', [(dict(size=0), 'size=0'), (dict(size='64'), "size='64'"), (dict(size=(64, 64)), 'size=(64, 64)'), (dict(bs=0), 'bs=0'), (dict(task='multiclass'), 'did you mean multi-class'),
                                    (dict(task='multi-label, binary-class'), 'one label a picture'), (dict(label_col='age'), 'is no table'), (dict(labels='x'), "Unknown argument 'labels'")])
def test_bad_arguments(kw, why): assert why in said((pictures(), HALF), **kw)

def test_numbers_as_classes():
    "Ages as whole numbers look like many classes: the sentence says how to have them as numbers"
    assert "its 40 classes are numbers: if they were measured, say task='regression'" in said((pictures(), np.arange(40)))
    assert dls_of((pictures(), np.arange(40)), task='regression').c == 1
    assert "say task='multi-class' if they are classes" in said((pictures(), HALF*1.))

@pytest.mark.parametrize('change,why', [(dict(splits=np.array(['train', 'valid']*20)), 'its splits have valid: use train, val and test'), (dict(labels=HALF*.5), "its labels are float64: give class numbers, or task='regression'"),
                                        (dict(labels=HALF.astype(str)), 'its labels are <U'), (dict(images=pictures()/255), 'float64 pictures'), (dict(labels=HALF[:9]), 'it has 40 pictures, 9 labels and 40 splits'), (dict(classes=['a']), 'labels 1 are outside of 0 to 0')])
def test_bad_set(change, why):
    "An `ImageSet` is made by hand, too"
    s = ImageSet(pictures(), HALF, np.array(['train', 'val']*20), ['a', 'b'], 'x')
    assert why in said(replace(s, **change))

def test_own_volumes(tmp_path, monkeypatch):
    "Volumes of one's own, by the name of the file in the data folder"
    np.savez(tmp_path/'knees.npz', **six(shape=(12, 10, 8)))
    monkeypatch.setenv('MEDKIT_DATA', str(tmp_path))
    dls = dls_of('knees')
    assert dls.one_batch()[0].shape == (12, 1, 12, 10, 8) and dls.set.name == 'knees' and dls_of('knees', size=9).one_batch()[0].shape == (12, 1, 9, 9, 9)

# Bad input: files ------------------------------------------------------------------------------------------------

def test_one_class_one_picture(tmp_path):
    picture(tmp_path/'one/a/x.png')
    assert 'all pictures are of one class, a' in said(tmp_path/'one') and 'no pictures for validation (of 1 in all)' in said(tmp_path/'one')

def test_unseen_class(folder):
    for split, classes in dict(train='ab', valid='ab', test='abc').items():
        for c in classes: picture(folder/f'{split}/{c}/x.png')
    assert 'class c has 1 pictures for validation and test, but none for training' in said(folder)

def test_broken_files(folder):
    (folder/'a/0.png').write_bytes(b'')
    (folder/'a/1.png').write_bytes((folder/'a/1.png').read_bytes()[:100])
    (folder/'b/2.png').write_text('<html>')
    Image.fromarray(np.full((16, 16), 4000, np.uint16)).save(folder/'b/16bit.png')
    text = said(folder)
    for part in ('4 faults', '0.png cannot be used: it is empty (0 bytes)', '1.png cannot be used: image file is truncated', '2.png cannot be used: it is not a picture', '16bit.png cannot be used: its grey values run from 4000'):
        assert part in text

def test_modes_and_sizes(folder, capsys):
    for mode, ext in (('CMYK', 'jpg'), ('RGBA', 'png'), ('P', 'png'), ('1', 'png'), ('LA', 'png')): picture(folder/f'a/{mode}.{ext}', mode)
    assert dls_of(folder).one_batch()[0].shape[1:] == (3, 16, 16) and 'pictures are grey, the others in colour' in capsys.readouterr().out
    picture(folder/'b/wide.png', size=(16, 40))
    assert 'the pictures have 2 sizes, from (16, 16) to (16, 40)' in said(folder)
    assert dls_of(folder, size=12).one_batch()[0].shape[1:] == (3, 12, 12)

def test_bad_tables(table, folder):
    def with_path(i, p): return table.assign(path=table.path.where(table.index != i, p))
    other = str(folder/'b'/'..'/'a'/'0.png')
    assert '0.png is listed 2 times, for train and val' in said(pd.concat([table.assign(split=['train', 'val']*10), table[:1].assign(split='val')]))
    assert '0.png is listed 2 times' in said(pd.concat([table, table[:1].assign(path=other)]))                            # another way to write it
    assert 'gone.png cannot be used: it is not there' in said(with_path(3, 'gone.png'))
    assert '1 rows without path or label, the first at index 3' in said(with_path(3, None))
    for why, df in {'has the columns path: label missing': table[['path']], 'no rows': table[:0], "is_valid has 'maybe'": table.assign(is_valid='maybe'), "'trian': use train": table.assign(split='trian'),
                    'columns split and is_valid': table.assign(split='train', is_valid=True), 'column label twice': pd.concat([table, table.label], axis=1),
                    'class c has no pictures': table.assign(label=pd.Categorical(table.label, list('abc')))}.items(): assert why in said(df)
    for why, kw in {'age missing': dict(label_col='age'), 'names no column': dict(label_col=[]), 'label that is no number': dict(task='regression'), 'not all are 0 or 1': dict(label_col=['label', 'path'])}.items():
        assert why in said(table, **kw)

def test_table_labels(table):
    words = ['effusion;mass', 'mass', '', None]*5
    a = dls_of(table.assign(label=words), label_delim=';').set
    b = dls_of(table.assign(effusion=[1, 0, 0, 0]*5, mass=[1, 1, 0, 0]*5), label_col=['effusion', 'mass']).set
    assert (a.labels == b.labels).all() and a.classes == b.classes == ['effusion', 'mass'] and (a.splits == b.splits).all()
    age = dls_of(table.assign(age=np.linspace(20.5, 80, 20)), label_col='age')
    assert age.task == 'regression' and age.set.labels[0] == 20.5
    grade = dls_of(table.assign(label=pd.Categorical(['severe', 'mild']*10, ['mild', 'severe'], ordered=True)))
    assert grade.task == 'ordinal-regression' and list(grade.vocab) == ['mild', 'severe']
    with warnings.catch_warnings():
        warnings.simplefilter('error')                                                                                       # no word of torch's about pandas' arrays
        for label in (pd.array([0, 1]*10, dtype='Int64'), pd.array(['x', 'y']*10, dtype='string'), [True, False]*10): assert dls_of(table.assign(label=label)).c == 2

def test_bad_csv(tmp_path, table):
    for text, why in ((b'', 'cannot be read as a table'), (b'\xff\xfe\x00', 'cannot be read as a table'), (b'path,label\n', 'no rows'), (b'path;label\na.png;1\n', 'semicolons'), (b'path,label\na.png,x\nb.png,y\n', 'b.png cannot be used: it is not there')):
        (tmp_path/'x.csv').write_bytes(text)
        assert why in said(tmp_path/'x.csv')

PAIR = [f'{c}-!-{i}.jpg' for c in ('no', 'yes') for i in range(10)]
def project(path, names=PAIR, manifest='{"type": "image"}'):
    with zipfile.ZipFile(path, 'w') as z, warnings.catch_warnings():
        warnings.simplefilter('ignore')                                                                                      # of a name that comes twice
        for n in names:
            b = io.BytesIO(); Image.fromarray(pictures(1)[0]).save(b, 'jpeg'); z.writestr(n, b.getvalue())
        if manifest: z.writestr('manifest.json', manifest)
    return path

@pytest.mark.parametrize('kw,why', [(dict(names=PAIR + ['../x-!-0.jpg']), 'leads out'), (dict(names=PAIR + ['..-!-0.jpg']), 'rename the class'), (dict(names=PAIR + PAIR[:1]), 'no-!-0.jpg is listed 2 times'), (dict(manifest=None), 'no readable manifest'),
                                    (dict(manifest='{'), 'no readable manifest'), (dict(manifest=b'\xff\xfe'), 'no readable manifest'), (dict(manifest='[]'), 'of type None'), (dict(manifest='{"type": "audio"}'), "of type 'audio'"),
                                    (dict(names=PAIR[:10]), 'all pictures are of one class, no'), (dict(names=[]), 'it has no pictures'), (dict(names=PAIR + ['x.jpg']), 'is not named')])
def test_bad_projects(tmp_path, kw, why): assert why in said(project(tmp_path/'x.tm', **kw))

def test_damaged_project(tmp_path):
    data = bytearray(project(tmp_path/'x.tm').read_bytes())
    data[100:140] = bytes(40)
    (tmp_path/'x.tm').write_bytes(data)
    assert 'no-!-0.jpg cannot be used: Bad CRC-32' in said(tmp_path/'x.tm')
    (tmp_path/'x.tm').write_bytes(data[:300])
    assert 'is not a Teachable Machine project' in said(tmp_path/'x.tm')

def six(n=12, shape=(8, 8), **other):
    z = {f'{s}_images': pictures(n, shape) for s in THREE} | {f'{s}_labels': np.arange(n)[:, None] % 2 for s in THREE}
    return {k: v for k, v in (z | other).items() if v is not None}

@pytest.mark.parametrize('name,z,why', [
    ('x', six(val_labels=None), 'lacks val_labels'), ('x', six(val_labels=np.array([{}]*12)), 'could run code'), ('x', six(val_images=np.array([{}]*12)), 'could run code'), ('x', six(train_labels=np.array(3)), '12 pictures and 1 labels'),
    ('x', six(train_labels=np.zeros((12, 3), int)), 'labels of shape (1,) for val, but (3,) for train'), ('x', six(test_images=pictures(12, (9, 9))), 'images of shape (9, 9) for test'),
    ('x', six(train_labels=np.full((12, 1), -1)), 'labels -1 are outside'), ('pneumoniamnist', six(test_labels=np.full((12, 1), 7)), 'labels 7 are outside of 0 to 1'),
    ('breastmnist', six(**{f'{s}_labels': np.arange(12) % 2*.5 for s in THREE}), 'labels that are not their numbers'), ('breastmnist', six(**{f'{s}_labels': np.array(['a', 'b']*6) for s in THREE}), 'labels that are not their numbers')])
def test_bad_npz(tmp_path, name, z, why):
    np.savez(tmp_path/f'{name}.npz', **z)
    assert why in said(tmp_path/f'{name}.npz')

def test_damaged_npz(tmp_path):
    np.savez(tmp_path/'x.npz', **six())
    data = bytearray((tmp_path/'x.npz').read_bytes())
    for bad in (b'', data[:700], data[:400] + b'\xff'*40 + data[440:]):
        (tmp_path/'x.npz').write_bytes(bad)
        assert 'x.npz was not opened, since it is damaged' in said(tmp_path/'x.npz')
