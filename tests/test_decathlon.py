"The ten Decathlon tasks by name, on drawn folders: 4D, CT, several channels, several labels; and real CT with many"
import json
import nibabel as nib, numpy as np, pytest, torch
from medkit.core import MedkitError
from medkit.catalog import DECATHLON, entry
from medkit.decathlon import RECIPES, channels, make_task, recipe
from medkit.plan import plan
from medkit.predict import predict
from medkit.segment import segmenter, volume_dls
from medkit.volumes import open_volumes, scan

SMALL = dict(device='cpu', bs=2, filters=(4,8,16))

@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    "A data folder with all ten tasks under their own folder names; read only"
    d = tmp_path_factory.mktemp('decathlon')
    for name in DECATHLON: make_task(name, d/entry(name).places[None][0])
    return d

@pytest.fixture
def here(drawn, monkeypatch): monkeypatch.setenv('MEDKIT_DATA', str(drawn)); return drawn

def voxels(img): return np.asarray(img.dataobj)

@pytest.mark.parametrize('name', DECATHLON)
def test_each_task_by_name(name, here, capsys):
    "Named, scanned, planned, loaded, trained for a step, and a case predicted on its own grid"
    e, vs = entry(name), open_volumes(name)
    assert vs.folder.parent == here and vs.modality == channels(name) and list(vs.labels.values())[1:] == list(e.classes)
    fp = scan(name)
    assert len(fp) == 4 and (fp[[c for c in fp if c.startswith('voxels ')]] > 0).all(axis=None)
    assert np.allclose(np.median(fp.spacing.tolist(), 0), e.typical[1], rtol=.11)    # in RAS, whatever the files' order
    if e.modality == 'CT': assert (fp.low < -980).all()
    p = plan(name, 'cpu', fingerprint=fp, filters=SMALL['filters'])
    assert len(p.norm) == len(p.modality) == len(channels(name)) and len(p.labels) == len(e.classes) + 1
    assert all((n == 'zscore') == (e.modality != 'CT') for n in p.norm)
    settings = recipe(name)
    assert bool(settings) == ('plan suffices' not in capsys.readouterr().out)
    dls = volume_dls(name, **SMALL, **settings)
    x, y = dls.one_batch()
    assert x.shape == (2, len(p.modality), *dls.plan.patch_size) and y.shape == (2, 1, *dls.plan.patch_size) and torch.isfinite(x).all()
    if settings: assert tuple(dls.plan.spacing) == tuple(settings['spacing'])
    learn = segmenter(dls)
    learn.fit(1)
    assert np.isfinite(learn.recorder.losses[0])
    case = dls.valid_ds.items[0]
    m, image = predict(learn, case.image), nib.load(case.image)
    assert m.shape == image.shape[:3] and np.allclose(m.affine, image.affine) and set(np.unique(voxels(m))) <= set(p.labels)

def test_drawn_tasks_can_be_learned(tmp_path):
    "A CT task with an organ and a tumour in it: a few epochs find both, so the drawn truth fits the drawn images"
    d = make_task('pancreas', tmp_path/'p', n=8, shrink=16)
    dls = volume_dls(d, device='cpu', bs=2, filters=(8,16,32))
    learn = segmenter(dls)
    with learn.no_bar(): learn.fit_one_cycle(25, 1e-2)
    m, t = learn.recorder.metric_names[3:6], learn.recorder.values[-1][2:5]
    assert min(t) > .5, dict(zip(m, t))

# ---------- files with frames

def test_frames_must_be_chosen(tmp_path):
    "Files that hold a film while dataset.json declares one channel: refused, then one frame, then all as channels"
    d = make_task('heart', tmp_path/'film', n=4, frames=3)
    with pytest.raises(MedkitError, match='3 frames'): scan(d)
    dls = volume_dls(d, frame=0, **SMALL)
    assert dls.plan.frame == 0 and dls.one_batch()[0].shape[1] == 1
    learn = segmenter(dls); learn.fit(1)
    m = predict(learn, dls.valid_ds.items[0].image)                   # the plan knows which frame
    assert m.shape == nib.load(dls.valid_ds.items[0].image).shape[:3]
    assert volume_dls(d, frame='channels', **SMALL).one_batch()[0].shape[1] == 3

# ---------- real volumes

@pytest.mark.realdata
def test_real_ct_with_many_labels(real_data, tmp_path):
    "A CT of a body in Hounsfield units and its organs, listed three times: the plan takes its grey values from the organs, and the network has an answer for each"
    ct, seg = (nib.load(real_data/'totalseg_ct'/f'example_{k}.nii.gz') for k in ('ct','seg'))
    assert np.allclose(ct.affine, seg.affine)
    x, y = np.asarray(ct.dataobj)[...,:seg.shape[2]].astype(np.int16), np.asarray(seg.dataobj)   # the mask covers the lower 30 slices
    old = np.flatnonzero(np.bincount(y.ravel()) > 300)
    new = np.zeros(y.max()+1, np.uint8); new[old] = np.arange(len(old))
    d = tmp_path/'ct'
    for sub in ('imagesTr','labelsTr'): (d/sub).mkdir(parents=True)
    pairs = [dict(image=f'imagesTr/ct_{i}.nii.gz', label=f'labelsTr/ct_{i}.nii.gz') for i in range(3)]
    for p in pairs: nib.save(nib.Nifti1Image(x, ct.affine), d/p['image']); nib.save(nib.Nifti1Image(new[y], ct.affine), d/p['label'])
    labels = {str(i): 'background' if i==0 else f'organ {o}' for i,o in enumerate(old)}
    (d/'dataset.json').write_text(json.dumps(dict(name='ct', modality={'0':'CT'}, labels=labels, training=pairs)))
    assert len(labels) > 20
    dls = volume_dls(d, device='cpu', bs=1, filters=(4,8,16), patch_size=32)
    low, high, mean, sd = dls.plan.norm[0]
    inside = x[new[y] > 0]
    assert np.allclose((low, high, mean), (*np.percentile(inside, [.5, 99.5]), inside.mean()), atol=15)   # nnU-Net's CT statistics
    learn = segmenter(dls); learn.fit(1)
    m = predict(learn, d/pairs[0]['image'])
    assert m.shape == x.shape and voxels(m).max() < len(labels)

@pytest.mark.realdata
def test_real_four_channels(real_data, tmp_path):
    "22 thick slices, four sequences in one file; no mask was drawn, so a threshold stands in for one"
    f = next((real_data/'brain_4ch').glob('*.nii.gz')); image = nib.load(f)
    x = np.asarray(image.dataobj)
    for sub in ('imagesTr','labelsTr'): (tmp_path/sub).mkdir()
    pairs = [dict(image=f'imagesTr/b_{i}.nii.gz', label=f'labelsTr/b_{i}.nii.gz') for i in range(3)]
    for p in pairs:
        (tmp_path/p['image']).write_bytes(f.read_bytes())
        nib.save(nib.Nifti1Image((x[...,2] > np.percentile(x[...,2], 90)).astype('u1'), image.affine), tmp_path/p['label'])
    modality = dict(enumerate(('T1post','T1pre','FLAIR','T2')))
    (tmp_path/'dataset.json').write_text(json.dumps(dict(name='brain', modality=modality, labels={'0':'background','1':'bright'}, training=pairs)))
    dls = volume_dls(tmp_path, device='cpu', bs=1, filters=(4,8,16), spacing=(2,2,6.5))
    assert dls.one_batch()[0].shape[1] == 4 and set(dls.plan.norm) == {'zscore'}
    learn = segmenter(dls); learn.fit(1)
    m = predict(learn, tmp_path/pairs[0]['image'])
    assert m.shape == x.shape[:3] and np.allclose(m.affine, image.affine)
