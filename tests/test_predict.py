"From an image on the disk to a mask on its own grid, whatever the grid; ensembles, slabs, DICOM; models as files"
import json, os, shutil, sys
import nibabel as nib, numpy as np, pytest, scipy.ndimage, torch
from dataclasses import replace
from monai.inferers import SlidingWindowInferer
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from safetensors import safe_open
from medkit import predict as predict_module
from medkit.core import MedkitError
from medkit.masks import evaluate_folder
from medkit.models import SegmentModel, load_model, network, packaged, save_model
from medkit.phantom import make_sample
from medkit.predict import largest_component, predict, probabilities, show_mask, view, volumes_ml
from medkit.training import named
from medkit.volumes import prepare, read_volume, resize, zscore

def voxels(img): return np.asarray(img.dataobj)

# ---------- geometry of a prediction

@pytest.fixture(scope='module')
def hippocampus(): return load_model('hippocampus')

@pytest.fixture(scope='module')
def scan(tmp_path_factory):
    "A case of organ_a in RAS order, with an offset and a slope as scanners write them"
    d = tmp_path_factory.mktemp('scan')
    f = make_sample('organ_a', d/'s', n=1)/'imagesTr'/'organ_a_000.nii.gz'
    ras = nib.as_closest_canonical(nib.load(f))
    return nib.Nifti1Image(ras.get_fdata(dtype='f4')[2:36,3:49,1:35], ras.affine)

def stored(img, code): return img.as_reoriented(ornt_transform(io_orientation(img.affine), axcodes2ornt(code)))

def asked(model, img, path, out):
    "The mask of `img` as it lies on the disk, after it was compared with the image's grid"
    nib.save(img, path)
    predict(model, path, out)
    m, i = nib.load(out), nib.load(path)
    assert m.shape == i.shape[:3] and np.array_equal(m.affine, i.affine) and m.get_data_dtype() == np.uint8
    assert nib.aff2axcodes(m.affine) == nib.aff2axcodes(i.affine)
    for k in ('sform_code', 'qform_code', 'xyzt_units', 'pixdim'): assert np.array_equal(m.header[k], i.header[k]), k
    assert set(np.unique(voxels(m))) <= {0,1,2} and (m.header['scl_slope'] == 1 or np.isnan(m.header['scl_slope']))
    return m

def test_any_storage_order_gives_the_same_mask(hippocampus, scan, tmp_path):
    ras = asked(hippocampus, scan, tmp_path/'RAS.nii.gz', tmp_path/'m.nii.gz')
    assert voxels(ras).any()
    for code in ('LPS', 'SAL', 'PIR', 'IRP'):
        m = asked(hippocampus, stored(scan, code), tmp_path/f'{code}.nii', tmp_path/'out'/f'{code}.nii')
        assert nib.aff2axcodes(m.affine) == tuple(code)
        assert np.array_equal(voxels(nib.as_closest_canonical(m)), voxels(ras)), code

def test_a_scaled_integer_file_gives_the_mask_of_its_values(hippocampus, scan, tmp_path):
    raw = np.round(scan.get_fdata()).astype('i2')
    scaled = nib.Nifti1Image(raw, scan.affine); scaled.header.set_slope_inter(.5, 3)
    with_slope = asked(hippocampus, scaled, tmp_path/'i.nii', tmp_path/'im.nii')
    assert nib.load(tmp_path/'i.nii').dataobj.slope == .5
    assert np.array_equal(voxels(with_slope), voxels(asked(hippocampus, nib.Nifti1Image(raw.astype('f4')*.5 + 3, scan.affine), tmp_path/'f.nii', tmp_path/'fm.nii')))

@pytest.mark.parametrize('affine', [np.diag([1.,1,2.4,1]), np.array([[1,.2,0,-9],[-.2,1,.1,4],[0,.3,1.5,7],[0,0,0,1.]]), np.diag([-3.,1,-.7,1])], ids=['anisotropic','sheared','flipped'])
def test_uneven_and_sheared_grids(hippocampus, scan, affine, tmp_path):
    img = nib.Nifti1Image(scan.get_fdata(dtype='f4')[:,:,::2], affine)
    m = asked(hippocampus, img, tmp_path/'i.nii.gz', tmp_path/'m.nii.gz')
    mirrored = nib.Nifti1Image(img.get_fdata(dtype='f4')[::-1], affine @ np.array([[-1,0,0,img.shape[0]-1],[0,1,0,0],[0,0,1,0],[0,0,0,1.]]))
    assert np.array_equal(voxels(asked(hippocampus, mirrored, tmp_path/'j.nii.gz', tmp_path/'n.nii.gz'))[::-1], voxels(m))   # same place in the world

def test_smaller_than_the_patch(hippocampus, scan, tmp_path):
    x = scan.get_fdata(dtype='f4')
    asked(hippocampus, nib.Nifti1Image(x[:9,:7,:5], scan.affine), tmp_path/'small.nii', tmp_path/'s.nii')
    asked(hippocampus, nib.Nifti1Image(x[:1], scan.affine), tmp_path/'slice.nii', tmp_path/'o.nii')

def test_sliding_over_a_large_volume_loses_no_voxel(hippocampus, scan, tmp_path):
    "A network that only compares each voxel with the mean gives, patch by patch, what one comparison gives"
    net = torch.nn.Conv3d(1, 3, 1)
    net.weight.data, net.bias.data = torch.tensor([0.,1.,-9.])[:,None,None,None,None], torch.tensor([0.,0.,-99.])
    x = np.pad(scan.get_fdata(dtype='f4'), ((40,0),(0,30),(0,0)), mode='reflect')
    assert all(n > p for n,p in zip(x.shape[:2], hippocampus.plan.patch_size))
    m = asked(SegmentModel(net, hippocampus.plan, {}), nib.Nifti1Image(x, scan.affine), tmp_path/'wide.nii', tmp_path/'w.nii')
    z = zscore(torch.tensor(x[None]))[0].numpy()
    sure = np.abs(z) > 1e-3
    assert np.array_equal(voxels(m)[sure], (z>0)[sure])

def test_a_folder_of_images(hippocampus, scan, tmp_path):
    src, out = tmp_path/'scans', tmp_path/'masks'
    src.mkdir()
    for n in ('b.nii.gz', 'a.nii', 'C.NII.GZ'): nib.save(nib.Nifti1Image(scan.get_fdata(dtype='f4')[:20,:20,:20], scan.affine), src/n)
    (src/'notes.txt').write_text('no image'); (src/'._b.nii.gz').write_bytes(b'macOS')
    assert sorted(p.name for p in predict(hippocampus, src, out)) == sorted(p.name for p in out.iterdir()) == ['C.NII.GZ', 'a.nii', 'b.nii.gz']
    for p in out.iterdir(): assert nib.load(p).shape == (20,20,20)
    with pytest.raises(MedkitError, match='would overwrite'): predict(hippocampus, src, src)
    with pytest.raises(MedkitError, match='is a file'): predict(hippocampus, src, src/'notes.txt')
    with pytest.raises(MedkitError, match='overwrite'): predict(hippocampus, src/'a.nii', src/'a.nii')

def test_a_later_bad_image_leaves_the_earlier_masks_whole(hippocampus, scan, tmp_path):
    src, out = tmp_path/'scans', tmp_path/'masks'
    src.mkdir()
    for n in 'abc': nib.save(nib.Nifti1Image(scan.get_fdata(dtype='f4')[:20,:20,:20], scan.affine), src/f'{n}.nii.gz')
    (src/'b.nii.gz').write_bytes((src/'b.nii.gz').read_bytes()[:900])
    with pytest.raises(MedkitError, match='b.nii.gz cannot be read'): predict(hippocampus, src, out)
    assert [p.name for p in out.iterdir()] == ['a.nii.gz'] and voxels(nib.load(out/'a.nii.gz')).shape == (20,20,20)

@pytest.mark.parametrize('name', ['mask', 'mask.png', 'folder.nii'])
def test_a_mask_needs_a_nifti_name(hippocampus, scan, tmp_path, name):
    nib.save(nib.Nifti1Image(scan.get_fdata(dtype='f4')[:12,:12,:12], scan.affine), tmp_path/'i.nii')
    (tmp_path/'folder.nii').mkdir()
    with pytest.raises(MedkitError, match='no name for a mask'): predict(hippocampus, tmp_path/'i.nii', tmp_path/name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['folder.nii', 'i.nii']

def test_nobody_elses_file_is_overwritten(hippocampus, scan, tmp_path):
    images, truth = tmp_path/'images', tmp_path/'truth'
    for folder in (images, truth): folder.mkdir()
    for n in 'ab': nib.save(nib.Nifti1Image(scan.get_fdata(dtype='f4')[:16,:16,:16], scan.affine), images/f'{n}.nii.gz')
    nib.save(nib.Nifti1Image(np.ones((16,16,16), 'u1'), scan.affine), truth/'b.nii.gz')
    drawn = (truth/'b.nii.gz').read_bytes()
    with pytest.raises(MedkitError, match='b.nii.gz exists and is no mask of medkit'): predict(hippocampus, images, truth)
    assert (truth/'b.nii.gz').read_bytes() == drawn and not (truth/'a.nii.gz').exists()     # told before the first case
    for _ in range(2): assert len(predict(hippocampus, images, tmp_path/'masks')) == 2      # its own it replaces

# ---------- the packaged weights

def test_packaged_weights():
    for name, f in packaged().items():
        assert f.stat().st_size < 5e6 and {p.suffix for p in f.parent.iterdir() if p.stem==name} == {'.safetensors','.json','.md'}
        info, m = json.loads(f.with_suffix('.json').read_text()), load_model(name)
        assert {'format','kind','name','plan','data','record','recipe'} <= set(info) and info['data']['licence'] and info['record']['versions']['torch']
        with safe_open(f, 'pt') as t: assert set(t.keys()) == set(named(m.net))
        assert not set(info['data']['cases']['train']) & set(info['data']['cases']['valid'])

@pytest.mark.realdata
def test_packaged_weights_on_cases_they_did_not_see(hippocampus, real_data, tmp_path):
    src = real_data/'Task04_Hippocampus'
    ids = hippocampus.info['data']['cases']['valid']
    assert len(ids) == 42
    for sub in ('images', 'truth', 'few'): (tmp_path/sub).mkdir()
    for i in ids:
        shutil.copy(src/'imagesTr'/f'{i}.nii.gz', tmp_path/'images'); shutil.copy(src/'labelsTr'/f'{i}.nii.gz', tmp_path/'truth')
    predict(hippocampus, tmp_path/'images', tmp_path/'masks')
    def dice(masks, truth): return evaluate_folder(masks, truth).per_case.groupby('label').dice.mean().tolist()
    a, b = dice(tmp_path/'masks', tmp_path/'truth')
    assert a >= .88 and b >= .86, (a, b)
    for i in ids[:4]: predict(SegmentModel(network(hippocampus.plan, seed=0), hippocampus.plan, {}), tmp_path/'images'/f'{i}.nii.gz', tmp_path/'few'/f'{i}.nii.gz')
    for i in ids[4:]: (tmp_path/'truth'/f'{i}.nii.gz').unlink()
    assert max(dice(tmp_path/'few', tmp_path/'truth')) < .3     # random weights


# ---------- slabs, mirrors, ensembles

def pointwise(labels, seed=0):
    "A network of one voxel's view: what it answers is known without windows"
    net = torch.nn.Conv3d(1, labels, 1)
    g = torch.Generator().manual_seed(seed)
    net.weight.data, net.bias.data = torch.randn(net.weight.shape, generator=g), torch.randn(labels, generator=g)
    return net

def model(net, plan, **change): return SegmentModel(net, replace(plan, **change), {'name': 'made here'})

@pytest.fixture
def exact(monkeypatch): monkeypatch.setattr(predict_module, 'has_bf16', lambda device: False)

@pytest.fixture
def wide(scan, tmp_path):
    "Four times the training size along an axis"
    x = np.tile(scan.get_fdata(dtype='f4'), (4,1,1))
    nib.save(nib.Nifti1Image(x, scan.affine), tmp_path/'wide.nii')
    return tmp_path/'wide.nii'

@pytest.fixture(scope='module')
def tiny(hippocampus):
    "An untrained network, fast, which answers something everywhere"
    p = replace(hippocampus.plan, filters=(4,8,16), strides=(), patch_size=(24,24,24))
    return SegmentModel(network(p, seed=1), p, {'name': 'tiny'})

class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    "Bytes of the largest tensor that any torch operation made"
    most = 0
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        self.most = max([self.most, *(t.untyped_storage().nbytes() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out

@pytest.mark.parametrize('spacing', [1, .8, 2.5])
def test_slabs_give_what_the_whole_gives(tiny, wide, spacing):
    m = model(tiny.net, tiny.plan, spacing=(spacing,)*3)
    whole = voxels(predict(m, wide))
    assert np.array_equal(voxels(predict(m, wide, memory=0)), whole) and len(np.unique(whole)) > 1

@pytest.mark.parametrize('dim', [0, 1, 2])
def test_memory_does_not_grow_with_labels_times_voxels(hippocampus, tmp_path, dim):
    shape = [64,64,64]; shape[dim] = 160
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=shape).astype('f4'), np.eye(4)), tmp_path/'i.nii')
    m = model(pointwise(30), hippocampus.plan, labels={i: f'organ {i}' for i in range(30)}, patch_size=(16,16,16))
    with Largest() as small: a = voxels(predict(m, tmp_path/'i.nii', memory=20_000_000, overlap=.25))
    with Largest() as large: b = voxels(predict(m, tmp_path/'i.nii', overlap=.25))
    assert np.array_equal(a, b) and len(np.unique(a)) > 2
    assert small.most <= 20_000_000 < 30*160*64*64*4 <= large.most

def test_mirrors_of_a_symmetric_network(hippocampus, scan, exact, tmp_path):
    nib.save(scan, tmp_path/'i.nii'); v = read_volume(tmp_path/'i.nii')
    m = model(pointwise(3), hippocampus.plan)
    assert torch.allclose(probabilities(m, v, mirror=(0,1,2)), probabilities(m, v), atol=1e-6)

def test_the_mirrored_image_gets_the_mirrored_answer(hippocampus, scan, exact, tmp_path):
    nib.save(scan, tmp_path/'i.nii'); v = read_volume(tmp_path/'i.nii')
    for axes in ((0,), (1,2)):
        for a in axes:
            turned = replace(v, data=v.data.flip(1+a))
            assert torch.allclose(probabilities(hippocampus, turned, mirror=axes).flip(1+a), probabilities(hippocampus, v, mirror=axes), atol=1e-4)
    assert not torch.allclose(probabilities(hippocampus, v, mirror=(0,1,2)), probabilities(hippocampus, v), atol=1e-2)
    trained = SegmentModel(hippocampus.net, hippocampus.plan, hippocampus.info | dict(mirror=[0]))        # as a model trained with Augment(flip=(0,))
    assert torch.equal(probabilities(trained, v, mirror=True), probabilities(hippocampus, v, mirror=(0,)))
    with pytest.raises(MedkitError, match='met no mirrored images'): probabilities(model(hippocampus.net, hippocampus.plan), v, mirror=True)
    with pytest.raises(MedkitError, match='some of the axes'): probabilities(hippocampus, v, mirror=(0,4))

def test_monais_own_inferer(hippocampus, scan, exact, tmp_path):
    nib.save(scan, tmp_path/'i.nii'); v = read_volume(tmp_path/'i.nii')
    m = model(hippocampus.net, hippocampus.plan, patch_size=(16,24,16), spacing=(.9,.9,.9))
    with torch.no_grad(): want = SlidingWindowInferer((16,24,16), 1, .5, 'gaussian')(prepare(v, (.9,.9,.9))[None], lambda x: m.net(x).softmax(1))[0]
    assert torch.allclose(probabilities(m, v), resize(want, v.shape), atol=1e-5)

def test_ensembles(hippocampus, scan, exact, tmp_path):
    nib.save(scan, tmp_path/'i.nii'); v = read_volume(tmp_path/'i.nii')
    assert torch.equal(probabilities([hippocampus]*2, v), probabilities(hippocampus, v))
    other = model(network(replace(hippocampus.plan, filters=(4,8,16), strides=()), seed=3), hippocampus.plan, spacing=(1.7,1.5,2), patch_size=(16,16,16))
    mean = (probabilities(hippocampus, v) + probabilities(other, v))/2
    assert torch.allclose(probabilities([hippocampus, other], v), mean, atol=1e-6)
    assert np.array_equal(voxels(predict([hippocampus, other], tmp_path/'i.nii')), voxels(predict([other, hippocampus], tmp_path/'i.nii')))
    for k,odd in (('labels', {0: 'background', 1: 'Posterior', 2: 'Anterior'}), ('modality', ['CT']), ('frame', 1)):
        with pytest.raises(MedkitError, match=f'made here was trained with {k}'): predict([hippocampus, model(hippocampus.net, hippocampus.plan, **{k: odd})], tmp_path/'i.nii')

def test_a_gpu_without_room_leaves_the_sums_to_the_cpu(hippocampus, scan, exact, monkeypatch, capsys):
    plain, asked = predict_module.sliding_window_inference, []
    def full(*args, device, **kwargs):
        asked.append(device.type)
        if device.type=='cuda' or len(asked)>9: raise torch.OutOfMemoryError('CUDA out of memory')
        return plain(*args, device=device, **kwargs)
    monkeypatch.setattr(predict_module, 'sliding_window_inference', full)
    x = torch.randn(1,40,40,40)
    with torch.no_grad(): y = predict_module.slide(hippocampus, x, [()], .5, torch.device('cuda'))
    assert asked == ['cuda', 'cpu'] and y.shape == (3,40,40,40) and capsys.readouterr().out.count('\n') == 1
    asked += ['']*9
    with pytest.raises(MedkitError, match='no memory for two windows'): predict_module.slide(hippocampus, x, [()], .5, torch.device('cpu'))

# ---------- frames and DICOM

def test_the_frame_that_the_plan_names(hippocampus, scan, tmp_path):
    x = scan.get_fdata(dtype='f4')
    nib.save(scan, tmp_path/'3d.nii'); nib.save(nib.Nifti1Image(np.stack([x[::-1], x], -1), scan.affine), tmp_path/'4d.nii')
    m = predict(model(hippocampus.net, hippocampus.plan, frame=1), tmp_path/'4d.nii')
    assert m.shape == x.shape and np.array_equal(voxels(m), voxels(predict(hippocampus, tmp_path/'3d.nii')))
    with pytest.raises(MedkitError, match='4d.nii'): predict(hippocampus, tmp_path/'4d.nii')      # never silently one of them

def test_a_dicom_series_gives_a_nifti_mask(hippocampus, scan, tmp_path):
    sitk = pytest.importorskip('SimpleITK')
    nib.save(nib.Nifti1Image(np.round(scan.get_fdata()*10).astype('i2'), scan.affine), tmp_path/'i.nii')
    img = sitk.ReadImage(tmp_path/'i.nii')
    (tmp_path/'series').mkdir(); w = sitk.ImageFileWriter(); w.KeepOriginalImageUIDOn()
    for k in range(img.GetDepth()):
        s = img[:,:,k]
        for tag,value in {'0020|000e': '1.2.826.0.1.3680043.2.1125.1', '0020|000d': '1.2.826.0.1.3680043.2.1125.2', '0008|0060': 'MR', '0020|0013': str(k), '0008|0018': f'1.2.826.0.1.3680043.2.1125.3.{k}',
            '0020|0032': '\\'.join(map(str, img.TransformIndexToPhysicalPoint((0,0,k)))), '0020|0037': '\\'.join(str(img.GetDirection()[i]) for i in (0,3,6,1,4,7))}.items(): s.SetMetaData(tag, value)
        w.SetFileName(str(tmp_path/'series'/f'{k:03d}.dcm')); w.Execute(s)
    m = predict(hippocampus, tmp_path/'series', tmp_path/'mask.nii.gz')
    want = predict(hippocampus, tmp_path/'i.nii')
    assert np.allclose(m.affine @ [0,0,0,1], nib.load(tmp_path/'mask.nii.gz').affine @ [0,0,0,1]) and voxels(want).any()
    there = nib.as_closest_canonical(nib.load(tmp_path/'mask.nii.gz')); here = nib.as_closest_canonical(want)
    assert np.allclose(there.affine, here.affine, atol=1e-3) and np.array_equal(voxels(there), voxels(here))
    with pytest.raises(MedkitError, match='no name for a mask'): predict(hippocampus, tmp_path/'series', tmp_path/'mask.dcm')

@pytest.mark.realdata
def test_real_dicom_series(tiny, real_data, tmp_path):
    sitk = pytest.importorskip('SimpleITK')
    for folder in (f for f in sorted((real_data/'dicom').rglob('*')) if f.is_dir() and any(p.is_file() for p in f.iterdir())):
        m = predict(model(tiny.net, tiny.plan, spacing=(2,2,2)), folder, tmp_path/f'{folder.name}.nii.gz')
        r = sitk.ImageSeriesReader(); r.SetFileNames(r.GetGDCMSeriesFileNames(str(folder)))
        img, mask = r.Execute(), sitk.ReadImage(tmp_path/f'{folder.name}.nii.gz')
        assert mask.GetSize() == img.GetSize() and np.allclose(mask.GetOrigin(), img.GetOrigin(), atol=1e-2) and np.allclose(mask.GetDirection(), img.GetDirection(), atol=1e-4)
        assert np.allclose(mask.GetSpacing(), img.GetSpacing(), rtol=1e-4) and voxels(m).any()

# ---------- what the mask says

def test_largest_component(hippocampus, scan, tmp_path):
    y = torch.tensor(scipy.ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(20,30,30,30)), (0,1,1,1)).argmax(0), dtype=torch.uint8)
    kept = largest_component(y)
    for l in (1, 2):
        parts, n = scipy.ndimage.label(y==l, np.ones((3,3,3)))
        assert n > 1 and np.array_equal(kept==l, parts == 1 + np.bincount(parts.ravel())[1:].argmax())
    nib.save(scan, tmp_path/'i.nii')
    plain, clean = (predict(hippocampus, tmp_path/'i.nii', largest=b) for b in (False, True))
    assert np.array_equal(voxels(clean), largest_component(torch.tensor(voxels(plain))).numpy())

def test_millilitres_of_a_ball():
    r = np.linalg.norm(np.indices((60,60,30)).T * [1,1,2] - 30, axis=-1).T
    turned = np.array([[0,-1,0,5],[1,0,0,5],[0,0,2,5],[0,0,0,1.]])      # turned a quarter, voxels of 2 mm³
    table = volumes_ml(nib.Nifti1Image((r<20).astype('u1'), turned), {0: 'background', 1: 'ball', 2: 'none'})
    assert table.label.tolist() == ['ball', 'none'] and table.ml[0] == pytest.approx(4/3*np.pi*20**3/1000, rel=.01) and table.ml[1] == 0

def test_pictures(hippocampus, scan, tmp_path, monkeypatch):
    nib.save(stored(scan, 'LPS'), tmp_path/'i.nii')
    predict(hippocampus, tmp_path/'i.nii', tmp_path/'m.nii')
    assert len(show_mask(tmp_path/'i.nii', tmp_path/'m.nii')) == 3
    monkeypatch.setitem(sys.modules, 'ipyniivue', None)
    with pytest.raises(MedkitError, match=r'pip install "medkit\[view\]"'): view(tmp_path/'i.nii')
    monkeypatch.undo()
    niivue = pytest.importorskip('ipyniivue')
    assert len(view(tmp_path/'i.nii', tmp_path/'m.nii').volumes) == 2

# ---------- models as files

def test_a_pickle_under_another_name_is_not_opened(hippocampus, tmp_path):
    class Bad:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'opened'),)
    save_model(hippocampus, tmp_path/'m')
    torch.save(dict(a=Bad()), tmp_path/'m.safetensors')
    with pytest.raises(MedkitError, match='cannot be read'): load_model(tmp_path/'m')
    assert not (tmp_path/'opened').exists()

def test_any_json_loads_or_is_refused_in_a_sentence(hippocampus, tmp_path):
    f = save_model(hippocampus, tmp_path/'m').with_suffix('.json')
    good = json.loads(f.read_text())
    assert good['record'] == hippocampus.info['record'] and good['data']['licence']
    bad = [{}, [], None, 3, dict(good, format='2'), dict(good, format=None), dict(good, format=3), dict(good, arch='os.system'), dict(good, arch=['UNet']), dict(good, kind='classifier'), dict(good, plan=None)]
    bad += [dict(good, plan={k: v for k,v in good['plan'].items() if k!=gone}) for gone in ('spacing', 'labels', 'modality', 'patch_size')]
    bad += [dict(good, plan=good['plan'] | {k: v}) for k,v in (('labels', {}), ('labels', {'a': 'b'}), ('modality', []), ('modality', ['T1','T2']), ('filters', [16,32]), ('filters', [8,16,32,64]), ('spacing', [0,1,1]),
            ('spacing', 'abc'), ('strides', [[1,1,1]]), ('strides', [[1,1,1]]+[[3,3,3]]*3), ('norm', ['CT']), ('norm', [[1,2]]), ('patch_size', [40,56]), ('run', 'rm'))]
    for b in bad:
        f.write_text(json.dumps(b))
        with pytest.raises(MedkitError) as e: load_model(tmp_path/'m')
        assert '\n' not in str(e.value), b
    f.write_text(json.dumps(good)); load_model(tmp_path/'m')
