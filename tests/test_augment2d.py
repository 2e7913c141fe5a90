"""augment2d and resident together, through image_dls: labels stay with their pictures, seeds, memory, options"""
import numpy as np, PIL.Image, pytest, torch
from fastai.vision.all import CutMix, IntToFloatTensor, MixUp, TensorImage
from medkit.augment2d import Augment2d
from medkit.classify import classifier
from medkit.core import MedkitError, cache_dir, seeded
from medkit.images import ImageSet
from medkit.loaders import image_dls

def marked(form, n=300, size=16, labels=None):
    "Pictures whose brightness says their class, in a random order of classes"
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n) if labels is None else labels
    level = (np.asarray(y).reshape(n, -1)[:,0]*60 + 60).astype(np.uint8)
    shape = dict(grey=(size,)*2, colour=(size, size, 3), volume=(size,)*3)[form]
    x = np.broadcast_to(level.reshape(-1, *[1]*len(shape)), (n, *shape)) + rng.integers(0, 9, (n, *shape), np.uint8)
    return ImageSet(x.astype(np.uint8), y, rng.permutation(np.repeat(['train', 'val', 'test'], [n-100, 50, 50])), list('abc'), form)

def level(x): return ((x.flatten(1).mean(1)*255 - 60)/60).round().long().tolist()

@pytest.mark.parametrize('form', ['grey', 'colour', 'volume'])
def test_labels_stay_with_their_pictures(form):
    dls = image_dls(marked(form), bs=32, device='cpu', augment=dict(rotate=45, zoom=1.3, shift=.2, warp=.3, brightness=.05, contrast=.05))
    moved = dls.train.new(after_batch=dls.train.after_batch.fs[:-1])           # without Normalize
    for _ in range(2):
        for x, y in moved: assert level(x) == y.tolist()
    for part, dl in zip(('val', 'test'), dls.loaders[1:]):
        y = torch.cat([y for x, y in dl])
        assert y.tolist() == dls.set.labels[dls.set.splits == part].tolist()

@pytest.mark.parametrize('labels', ['several', 'numbers'])
def test_other_targets(labels):
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, (300,3)) if labels == 'several' else rng.random(300).astype(np.float32)
    s = marked('grey', labels=y)
    s.task, s.classes = ('multi-label, binary-class', list('abc')) if labels == 'several' else ('regression', [])
    if labels == 'numbers': s.images = (s.images*0 + (y*200 + 20).astype(np.uint8)[:,None,None])
    dls = image_dls(s, bs=50, device='cpu', augment=dict(brightness=0, contrast=0))
    moved = dls.train.new(after_batch=dls.train.after_batch.fs[:-1])
    for x, y in moved:
        assert y.is_floating_point() and y.shape[1:] == ((3,) if labels == 'several' else ())
        if labels == 'numbers': assert torch.allclose(((x*255).mean((1,2,3)) - 20)/200, y.as_subclass(torch.Tensor), atol=.01)
        else: assert torch.equal(((x.flatten(1).mean(1)*255 - 60)/60).round(), y[:,0].as_subclass(torch.Tensor))

def batches(seed, s, **kw):
    dls = image_dls(s, bs=32, device='cpu', seed=seed, **kw)
    with seeded(seed): return [(x, y) for _ in range(2) for x, y in dls.train]

def test_same_seed_same_batches():
    s = marked('colour')
    a, b, other = (batches(seed, s) for seed in (3, 3, 4))
    assert all(torch.equal(x.as_subclass(torch.Tensor), u.as_subclass(torch.Tensor)) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b))
    assert any(y.tolist() != v.tolist() for (_, y), (_, v) in zip(a, other))
    half = len(a)//2
    assert sorted(torch.cat([y for _, y in a[:half]]).tolist()) == sorted(torch.cat([y for _, y in a[half:]]).tolist())        # each epoch has all
    assert [y.tolist() for _, y in a[:half]] != [y.tolist() for _, y in a[half:]]                                             # in another order

@pytest.mark.parametrize('form', ['grey', 'colour', 'volume'])
def test_no_strength_is_no_change(form):
    none = dict(flip=0, rotate=0, zoom=1, shift=0, brightness=0, contrast=0)
    a, b = (batches(3, marked(form), augment=o) for o in (none, False))
    assert all(torch.equal(x.as_subclass(torch.Tensor), u.as_subclass(torch.Tensor)) for (x, _), (u, _) in zip(a, b))

def test_the_array_is_not_copied():
    s = marked('colour')
    dls = image_dls(s, device='cpu')
    tensors, rows = dls.train.store()
    assert tensors[0].data_ptr() == s.images.ctypes.data and len(rows) == 200
    assert dls.valid.store()[0] is tensors and dls.train.new(bs=9).store()[0] is tensors

def test_files_lie_in_the_cache(tmp_path, own_cache):
    rng = np.random.default_rng(0)
    for i in range(1000):
        f = tmp_path/'set'/('train', 'val')[i % 5 == 0]/'ab'[i % 2]/f'{i}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 256, (8,8), np.uint8)).save(f)
    first, second = (image_dls(tmp_path/'set', bs=100, device='cpu', augment=False) for _ in range(2))
    assert isinstance(second.set.images, np.memmap) and second.train.store()[0][0].data_ptr() == second.set.images.ctypes.data
    for (x, y), (u, v) in zip(first.valid, second.valid): assert torch.equal(x, u) and torch.equal(y, v)
    assert len(list(cache_dir().rglob('*.npy'))) == 1 and not list(cache_dir().rglob('.part-*'))

def test_a_new_picture_is_prepared_alike():
    s = marked('grey')
    dls = image_dls(s, device='cpu')
    want = dls.valid.one_batch()[0][:9]
    assert torch.equal(dls.test_dl([o for o in s.images[s.splits == 'val'][:9]]).one_batch()[0], want)

@pytest.mark.parametrize('blend', [MixUp, CutMix])
def test_blending_on_the_batch(blend):
    learn = classifier(image_dls(marked('colour'), device='cpu'), 'simple_cnn', cbs=blend())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)

def test_tta_sees_other_versions():
    learn = classifier(image_dls(marked('colour'), device='cpu', augment=dict(rotate=90)), 'simple_cnn')
    with learn.no_bar(), learn.no_logging(): learn.fit(1); plain, several = learn.get_preds()[0], learn.tta(n=3)[0]
    assert plain.shape == several.shape and not torch.allclose(plain, several)

@pytest.mark.parametrize('size', [28, 33, 64, 224])
@pytest.mark.parametrize('channels', [1, 3])
def test_a_uniform_picture_stays_uniform(size, channels):
    x = TensorImage(torch.full((4, channels, size, size), .5))
    y = Augment2d(dihedral=True, warp=.3, rotate=180, shift=.3, zoom=2, cutout=.5, brightness=0, contrast=.9, p=1)(x, split_idx=0)
    assert torch.allclose(y, x, atol=1e-5)                                   # reflected at its edges: no black corners

@pytest.mark.parametrize('bad', [dict(zoom=.5), dict(rotate=-3), dict(rotat=3), dict(cutout=2)])
def test_bad_strengths(bad):
    with pytest.raises(MedkitError, match=next(iter(bad))): image_dls(marked('grey'), device='cpu', augment=bad)

def test_bytes_are_refused():
    with pytest.raises(MedkitError, match='IntToFloatTensor'): Augment2d()(TensorImage(torch.zeros(2,3,8,8, dtype=torch.uint8)), split_idx=0)
    assert IntToFloatTensor.order < Augment2d.order
