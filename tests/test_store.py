"""Prepared volumes on disk: two processes, a kill, a full disk, damage; DICOM and 4D input; real sets."""
import errno, gc, os, pickle, shutil, signal, subprocess, sys, time, weakref
import nibabel as nib, numpy as np, pytest, SimpleITK as sitk, torch
from medkit import store as S, volumes as V
from medkit.core import MedkitError, cache_dir
from medkit.phantom import make_sample
from medkit.store import preprocess
from medkit.volumes import Case, Memo, VolumeSet, open_volumes, prepare, read_mask, read_volume, scan, write_mask

MM = (1.5, 1.5, 2.)

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    d = tmp_path_factory.mktemp('made')
    make_sample('organ_a', d/'a', n=8)
    return open_volumes(d/'a')

def files(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name != '.lock'}
def same(a, b): return torch.equal(a.image, b.image) and torch.equal(a.mask, b.mask) and torch.equal(a.points, b.points)
def clean(folder): return not list(folder.rglob('.part-*'))

# ---------- what is stored

def test_what_is_stored_is_what_prepare_makes(made):
    s = preprocess(made, MM)
    for c in made.cases:
        v = read_volume(c.image); x, y, p = s[c]
        assert torch.equal(x, prepare(v, MM).half()) and y.shape[1:] == x.shape[1:] and y.dtype == torch.uint8
        assert torch.equal(y[0][tuple(p[:,1:].T.long())].int(), p[:,0]) and len(p.unique(dim=0)) == len(p)
        n = torch.bincount(y.flatten().int(), minlength=3)[1:]
        assert torch.bincount(p[:,0], minlength=3)[1:].tolist() == n.clamp(max=500).tolist()
    assert s.nbytes == sum(len(b) for f, b in files(s.folder).items() if f.endswith('.npy'))
    assert s[made.cases[0].id].image is s[made.cases[0]].image

def test_threads_do_not_change_a_byte(made, tmp_path, monkeypatch):
    out = []
    for n in (1, 4):
        monkeypatch.setenv('MEDKIT_CACHE', str(tmp_path/str(n)))
        before = torch.get_num_threads(); torch.set_num_threads(n)
        try: out.append(files(preprocess(made, MM, workers=n).folder))
        finally: torch.set_num_threads(before)
    assert out[0] == out[1] and len(out[0]) == 8*4

def test_found_again_without_reading(made, monkeypatch):
    s = preprocess(made, MM)
    with monkeypatch.context() as m:
        m.setattr(S, 'prepare_case', None)
        again = preprocess(made, MM)
    assert again == s and all(same(s[c], again[c]) for c in made.cases)

def test_key_covers_settings_and_bytes(made, tmp_path, monkeypatch):
    s = preprocess(made, MM)
    others = [preprocess(made, (2,2,2)), preprocess(made, MM, [(0,100,50,20)])]
    monkeypatch.setattr(S, 'FORMAT', S.FORMAT+1); others.append(preprocess(made, MM)); monkeypatch.undo()
    assert len({o.folder for o in (s, *others)}) == 4

def test_a_changed_file_is_prepared_anew_and_only_that(made, tmp_path, monkeypatch):
    monkeypatch.setenv('MEDKIT_CACHE', str(tmp_path/'cache'))
    src = shutil.copytree(made.folder, tmp_path/'moved'/made.name)
    s = preprocess(made, MM)
    vs = open_volumes(src)
    assert preprocess(vs, MM) == s                               # another place, the same bytes
    i = nib.load(vs.cases[2].image); nib.save(nib.Nifti1Image(i.get_fdata(dtype='f4')[::-1].copy(), i.affine), vs.cases[2].image)
    t = preprocess(vs, MM)
    assert [k for k in s.cases if s.cases[k] != t.cases[k]] == [vs.cases[2].id]
    assert torch.equal(t[vs.cases[2]].image, prepare(read_volume(vs.cases[2].image), MM).half())

def test_nothing_reaches_the_files_and_pickles_are_small(made):
    s = preprocess(made, MM); before = files(s.folder)
    s[made.cases[0]].image.zero_()
    assert files(s.folder) == before
    assert len(pickle.dumps(s)) < 5000 and not torch.equal(pickle.loads(pickle.dumps(s))[made.cases[0]].image, s[made.cases[0]].image)

def test_only_a_few_cases_are_in_memory(made, monkeypatch):
    refs, most, read, write = [], [], V.read_volume, S.write_case
    def alive(o): refs.append(weakref.ref(o)); most.append(sum(r() is not None for r in refs)); return o
    monkeypatch.setattr(S, 'read_volume', lambda *a: (lambda v: (alive(v.data), v)[1])(read(*a)))
    monkeypatch.setattr(S, 'write_case', lambda at, arrays: (alive(arrays['image']), write(at, arrays))[1])
    preprocess(made, MM, workers=2)
    gc.collect()
    assert len(refs) == 2*len(made) and max(most) <= 2*2 and not any(r() is not None for r in refs)

def test_large_cases_are_prepared_one_by_one(made, monkeypatch):
    threads = []; plain = S.in_threads
    monkeypatch.setattr(S, 'in_threads', lambda f, items, workers: (threads.append(workers), plain(f, items, workers))[1])
    monkeypatch.setattr(S, 'bytes_wanted', lambda *a: 400_000_000)
    monkeypatch.setattr(S, 'free_bytes', lambda f: 10**12)
    preprocess(made, MM)
    assert threads[-1] == 1 and set(threads[:-1]) == {4}

# ---------- two processes, a kill

WORK = '''if 1:
    import sys, time, pathlib
    from medkit import store as S
    from medkit.volumes import open_volumes
    plain = S.write_array
    def slow(path, a):
        plain(path, a)
        with open(sys.argv[2], 'a') as f: f.write(f'{path.parent.name}/{path.name}\\n')
        time.sleep(float(sys.argv[3]))
    S.write_array = slow
    S.preprocess(open_volumes(sys.argv[1]), (1.5,1.5,2.))
    print('done')'''

def start(made, log, wait): return subprocess.Popen([sys.executable, '-c', WORK, str(made.folder), str(log), str(wait)], stdout=subprocess.PIPE, text=True)

def wait_for(test, seconds=120):
    end = time.time()+seconds
    while not test(): assert time.time() < end; time.sleep(.02)

def test_two_processes_at_once(made, tmp_path, monkeypatch):
    a, b = (start(made, tmp_path/n, .03) for n in 'ab')
    outs = [p.communicate(timeout=240)[0] for p in (a, b)]
    assert (a.returncode, b.returncode) == (0, 0) and all('done' in o for o in outs)
    lines = sum(((tmp_path/n).read_text().split() for n in 'ab' if (tmp_path/n).exists()), [])
    assert len(lines) == len(set(lines)) == 3*len(made)          # each array was written once, by one of them
    monkeypatch.setattr(S, 'prepare_case', None)
    s = preprocess(made, MM)
    assert clean(s.folder) and all(torch.equal(s[c].image, prepare(read_volume(c.image), MM).half()) for c in made.cases)

@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs SIGKILL')
def test_killed_halfway(made, tmp_path, monkeypatch, capsys):
    p = start(made, tmp_path/'log', .3)
    wait_for(lambda: (tmp_path/'log').exists() and len((tmp_path/'log').read_text().split()) >= 9)
    p.kill(); p.wait()
    folder = next(f for f in (cache_dir()/'volumes').iterdir() if f.is_dir())
    assert list(folder.glob('.part-*'))                          # it was in the middle of a case
    whole = [f for f in folder.iterdir() if f.is_dir() and not f.name.startswith('.')]
    assert len(whole) < len(made) and all(S.is_whole(f, {}) for f in whole)
    s = preprocess(made, MM)
    assert s.folder == folder and clean(folder) and 'damaged' not in capsys.readouterr().out
    monkeypatch.setenv('MEDKIT_CACHE', str(tmp_path/'fresh'))
    assert files(s.folder) == files(preprocess(made, MM).folder)

# ---------- a full disk, damage

def full_after(n, monkeypatch):
    plain, calls = S.write_array, []
    def write(path, a):
        calls.append(path)
        if len(calls) > n: path.write_bytes(b'half'); raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        plain(path, a)
    monkeypatch.setattr(S, 'write_array', write)

@pytest.mark.parametrize('n', [0, 4, 22])
def test_a_disk_that_fills(made, monkeypatch, n):
    with monkeypatch.context() as m:
        full_after(n, m)
        with pytest.raises(MedkitError, match=r'volumes/.* cannot take the prepared cases of organ_a \(No space left on device\): they need [\d.,]+ MB and [\d.,]+ MB are free') as e: preprocess(made, MM)
    assert '\n' not in str(e.value) and not files(cache_dir()/'volumes')
    assert all(same(a, b) for s in [preprocess(made, MM)] for a, b in [(s[made.cases[0]], S.open_case(s.cases[made.cases[0].id]))])

def test_a_disk_that_fills_leaves_what_was_there_before(made, monkeypatch):
    few = preprocess(VolumeSet(made.name, made.cases[:3], made.labels, made.modality), MM); before = files(few.folder)
    with monkeypatch.context() as m:
        full_after(5, m)
        with pytest.raises(MedkitError, match='No space left'): preprocess(made, MM)
    assert files(few.folder) == before

def test_too_little_space_is_told_before_the_first_case(made, monkeypatch):
    usage = shutil.disk_usage(made.folder)
    with monkeypatch.context() as m:
        m.setattr(S.shutil, 'disk_usage', lambda p: usage._replace(free=200_000)); m.setattr(S, 'prepare_case', None)
        with pytest.raises(MedkitError, match='too little space.* 0.2 MB are free'): preprocess(made, MM)
    s = preprocess(made, MM)
    wanted = sum(S.bytes_wanted(c, made, MM) for c in made.cases)
    assert s.nbytes < wanted < s.nbytes*1.3 + 60_000*len(made)

def test_a_cache_that_is_a_file(made, tmp_path, monkeypatch):
    (tmp_path/'f').write_text('x'); monkeypatch.setenv('MEDKIT_CACHE', str(tmp_path/'f'))
    with pytest.raises(MedkitError, match='cannot take the prepared cases'): preprocess(made, MM)

def spoil(s, case, how):
    at = s.cases[case.id]
    if how=='cut': f = at/'image.npy'; f.write_bytes(f.read_bytes()[:-100])
    if how=='flip': b = bytearray((at/'mask.npy').read_bytes()); b[200] ^= 1; (at/'mask.npy').write_bytes(b)
    if how=='gone': (at/'points.npy').unlink()
    if how=='empty info': (at/'info.json').write_text('')
    if how=='odd info': (at/'info.json').write_text('[1]')

@pytest.mark.parametrize('how', ['cut', 'flip', 'gone', 'empty info', 'odd info'])
def test_damage_is_mended(made, capsys, how):
    s = preprocess(made, MM); before = files(s.folder)
    for c in made.cases[1:3]: spoil(s, c, how)
    capsys.readouterr()
    assert preprocess(made, MM) == s and files(s.folder) == before
    said = [l for l in capsys.readouterr().out.splitlines() if 'damaged' in l]
    assert len(said) == 1 and made.cases[1].id in said[0] and made.cases[2].id in said[0]

def test_a_store_that_was_removed(made):
    s = preprocess(made, MM); shutil.rmtree(s.folder)
    with pytest.raises(MedkitError, match='call preprocess again'): s[made.cases[0]]
    with pytest.raises(MedkitError, match="Unknown case 'organ_a_00': did you mean"): s['organ_a_00']

def test_damaged_memos_cost_time_only(made):
    fp = scan(made)
    for n in ('digests', 'rows'): Memo(n).file.write_text('{"a": ')
    assert scan(made).equals(fp)

def test_a_bad_case_stops_at_once(made, tmp_path):
    src = shutil.copytree(made.folder, tmp_path/'s'); vs = open_volumes(src)
    vs.cases[1].image.write_bytes(b'')
    with pytest.raises(MedkitError, match='organ_a_001.nii.gz cannot be read'): preprocess(vs, MM)
    with pytest.raises(MedkitError, match='organ_a_001.nii.gz cannot be read'): scan(vs)
    for bad in ((1,1), (0,1,1), (1,1,float('nan'))):
        with pytest.raises(MedkitError, match='three numbers above zero'): preprocess(made, bad)

# ---------- scan

def test_rows_are_remembered_by_content(made, tmp_path, monkeypatch):
    fp = scan(made); read = []
    plain = V.load_nifti; monkeypatch.setattr(V, 'load_nifti', lambda p: (read.append(p), plain(p))[1])
    assert scan(made).equals(fp) and not read
    vs = open_volumes(shutil.copytree(made.folder, tmp_path/'s'))
    assert scan(vs).equals(fp) and not read
    i = nib.load(vs.cases[3].label); y = np.asarray(i.dataobj).copy(); y[y==2] = 1
    nib.save(nib.Nifti1Image(y, i.affine), vs.cases[3].label)
    new = scan(vs)
    assert new['voxels posterior'][3] == 0 < fp['voxels posterior'][3] and {p.name for p in read} == {vs.cases[3].label.name} and len(read) == 2
    assert scan(VolumeSet('other', vs.cases, {0:'b', 1:'x', 2:'y'}, ['MRI'])).columns[-1] == 'voxels y'

def changed(made, tmp_path, f, n=4):
    "The first `n` cases with `f(i, image, mask)` done to each"
    cases = []
    for i, c in enumerate(made.cases[:n]):
        x, y = nib.load(c.image), nib.load(c.label)
        for o, p in zip(f(i, nib.Nifti1Image(x.get_fdata(dtype='f4'), x.affine), nib.Nifti1Image(np.asarray(y.dataobj), y.affine)), ('x','y')): nib.save(o, tmp_path/f'{i}{p}.nii')
        cases.append(Case(f'case{i}', tmp_path/f'{i}x.nii', tmp_path/f'{i}y.nii'))
    return VolumeSet('changed', cases, made.labels, made.modality)

def scaled(k): return lambda i, x, y: [nib.Nifti1Image(np.asarray(o.dataobj), o.affine @ np.diag([*(k if i==1 else (1,1,1)),1])) for o in (x, y)]

def test_spacing_of_one_case(made, tmp_path, capsys):
    with pytest.raises(MedkitError, match=r"1 of 4 cases .*\ncase1 has a spacing of .* the others' median is .*: mend its header"): scan(changed(made, tmp_path, scaled((.1,.1,.1))))
    assert len(scan(changed(made, tmp_path, scaled((2,2,2))))) == 4
    assert [l for l in capsys.readouterr().out.splitlines()] and len(scan(changed(made, tmp_path, scaled((1,1,2))))) == 4
    assert 'Is this meant?' not in capsys.readouterr().out

def test_a_label_that_no_mask_holds(made, tmp_path):
    def f(i, x, y): return x, nib.Nifti1Image(np.where(np.asarray(y.dataobj)==2, 1, np.asarray(y.dataobj)), y.affine)
    vs = changed(made, tmp_path, f)
    with pytest.raises(MedkitError, match="declares the label 'posterior', which none of its 4 masks holds"): scan(vs)
    def one(i, x, y): return f(i, x, y) if i else (x, y)
    assert scan(changed(made, tmp_path, one))['voxels posterior'].tolist()[1:] == [0,0,0]        # one case has it: fine
    with pytest.raises(MedkitError, match=r'labels \[2\], which dataset.json does not declare'): scan(VolumeSet('v', vs.cases[:0]+made.cases[:2], {0:'b', 1:'anterior'}, ['MRI']))

def test_one_slice(made, tmp_path):
    def f(i, x, y): return [nib.Nifti1Image(np.asarray(o.dataobj)[:,12:13] if i==2 else np.asarray(o.dataobj), o.affine) for o in (x, y)]
    with pytest.raises(MedkitError, match='2x.nii is one slice thick .*take the whole series'): scan(changed(made, tmp_path, f))

def test_without_masks_the_statistics_are_nan(made):
    fp = scan(VolumeSet('bare', [Case(c.id, c.image) for c in made.cases], made.labels, made.modality))
    assert np.isnan(fp.fg_mean[0]).all() and len(fp.fg_mean[0]) == 1
    s = preprocess(VolumeSet('bare', [Case(c.id, c.image) for c in made.cases], made.labels, made.modality), MM)
    assert s[made.cases[0]].mask is None and s[made.cases[0]].points.shape == (0,4)

# ---------- 4D

def films(made, tmp_path, n=3, k=4):
    for i, c in enumerate(made.cases[:n]):
        x = nib.load(c.image); nib.save(nib.Nifti1Image(np.stack([x.get_fdata(dtype='f4')*(j+1) for j in range(k)], -1), x.affine), tmp_path/f'{c.id}.nii.gz')
    return VolumeSet('films', [Case(c.id, tmp_path/f'{c.id}.nii.gz', c.label) for c in made.cases[:n]], made.labels, ['MRI'])

def test_films(made, tmp_path):
    vs = films(made, tmp_path)
    with pytest.raises(MedkitError, match=r"3 of 3 cases .*\n.*4 frames or channels, dataset.json declares 1: say frame=0 .* or frame='channels'"): scan(vs)
    one, four = scan(vs, frame=1), scan(vs, frame='channels')
    assert len(one.fg_mean[0]) == 1 and len(four.fg_mean[0]) == 4 and np.isclose(four.fg_mean[0][1], one.fg_mean[0][0]) and np.isclose(four.fg_mean[0][3], 2*one.fg_mean[0][0])
    assert preprocess(vs, MM, frame=1)[vs.cases[0]].image.shape[0] == 1 and preprocess(vs, MM, frame='channels')[vs.cases[0]].image.shape[0] == 4
    declared = VolumeSet('films', vs.cases, made.labels, list('abcd'))
    assert len(scan(declared).fg_mean[0]) == 4
    assert open_volumes(declared, 2).modality == ['c'] and torch.equal(preprocess(declared, MM, frame=2)[vs.cases[0]].image, preprocess(declared, MM)[vs.cases[0]].image[2:3])
    shorter = nib.load(vs.cases[2].image); nib.save(shorter.slicer[...,:3], vs.cases[2].image)
    with pytest.raises(MedkitError, match='1 of 3 cases(.|\n)*has 3 channels, the set has 4'): scan(vs, frame='channels')

@pytest.mark.realdata
def test_four_channel_brain(real_data, tmp_path):
    f = next((real_data/'brain_4ch').glob('*.nii.gz')); x = nib.load(f)
    with pytest.raises(MedkitError, match='4 frames or channels'): read_volume(f)
    v = read_volume(f, channels=4)
    assert v.data.shape[0] == 4 and torch.equal(read_volume(f, frame=2).data, v.data[2:3]) and sorted(v.shape) == sorted(x.shape[:3])
    s = preprocess(VolumeSet('brain', [Case('b', f)], {0:'background'}, list('abcd')), (1.2,1.2,6.5))
    assert s['b'].image.shape[0] == 4 and s['b'].image.isfinite().all()

# ---------- DICOM

@pytest.mark.realdata
@pytest.mark.parametrize('series', ['Study1/12-T1post-05670', 'Study1/13_HCropVolume', 'Study2/14_HCropVolume'])
def test_real_series(real_data, tmp_path, series):
    folder = real_data/'dicom'/series
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    r = sitk.ImageSeriesReader(); r.SetFileNames(names); itk = r.Execute()
    for path in (folder, sorted(folder.iterdir())[-1]):
        v = read_volume(path)
        assert v.file.shape == itk.GetSize() and np.array_equal(v.file.get_fdata().T, sitk.GetArrayFromImage(itk))
        for ijk in np.random.default_rng(0).integers(0, itk.GetSize(), (20,3)).tolist():
            assert np.allclose((v.file.affine @ (*ijk,1))[:3] * (-1,-1,1), itk.TransformIndexToPhysicalPoint(ijk), atol=1e-4)
    mask = (v.data[0] > v.data.mean()).byte()
    write_mask(mask, v, tmp_path/'m.nii.gz')
    assert torch.equal(read_mask(tmp_path/'m.nii.gz', v, [0,1])[0], mask)
    back = sitk.ReadImage(str(tmp_path/'m.nii.gz'))                # SimpleITK sees it on the series' own grid
    assert np.allclose(back.GetOrigin(), itk.GetOrigin(), atol=1e-3) and np.allclose(back.GetDirection(), itk.GetDirection(), atol=1e-4) and np.allclose(back.GetSpacing(), itk.GetSpacing(), atol=1e-4)
    assert np.array_equal(sitk.GetArrayFromImage(back) > 0, sitk.GetArrayFromImage(itk) > v.data.mean().item())

@pytest.mark.realdata
def test_real_series_with_faults(real_data, tmp_path):
    src = real_data/'dicom'/'Study1'/'13_HCropVolume'
    gap = shutil.copytree(src, tmp_path/'gap'); sorted(gap.iterdir())[10].unlink()
    with pytest.raises(MedkitError, match='uneven positions: 2.00 mm from .* 1.00 mm between most'): read_volume(gap)
    both = shutil.copytree(src, tmp_path/'both')
    for f in (real_data/'dicom'/'Study2'/'14_HCropVolume').iterdir(): shutil.copy(f, both/f'other_{f.name}')
    with pytest.raises(MedkitError, match=r'holds 2 series: name one file .*\(32 files\).*\(35 files\)|holds 2 series: name one file .*\(35 files\).*\(32 files\)'): read_volume(both)
    assert torch.equal(read_volume(both/next(src.iterdir()).name).data, read_volume(src).data)
    cut = shutil.copytree(src, tmp_path/'cut'); f = sorted(cut.iterdir())[5]; f.write_bytes(f.read_bytes()[:-600])
    with pytest.raises(MedkitError, match='cut'): read_volume(cut)
    with pytest.raises(MedkitError, match='holds no DICOM files'): read_volume(real_data/'dicom'/'Study1')

@pytest.mark.realdata
def test_a_series_is_a_case_like_any_other(real_data, tmp_path):
    src = shutil.copytree(real_data/'dicom'/'Study1'/'13_HCropVolume', tmp_path/'series')
    v = read_volume(src); write_mask((v.data[0] > v.data.mean()).byte(), v, tmp_path/'y.nii.gz')
    vs = VolumeSet('s', [Case('a', src, tmp_path/'y.nii.gz')], {0:'background', 1:'bright'}, ['MRI'])
    fp, s = scan(vs), preprocess(vs, (1,1,1))
    assert fp['voxels bright'][0] == s['a'].mask.sum() and s['a'].image.shape[1:] == v.shape
    by_file = VolumeSet('s', [Case('a', next(src.iterdir()), tmp_path/'y.nii.gz')], vs.labels, ['MRI'])
    assert preprocess(by_file, (1,1,1)) == s and scan(by_file).equals(fp)
    (src/'extra.txt').write_text('a note'); assert preprocess(vs, (1,1,1)).folder == s.folder

def test_all_slices_in_one_file(tmp_path):
    itk = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 200, (7,8,9)).astype(np.uint8)); itk.SetSpacing((.8,.9,3))
    sitk.WriteImage(itk, str(tmp_path/'all.dcm')); itk = sitk.ReadImage(str(tmp_path/'all.dcm'))
    v = read_volume(tmp_path/'all.dcm')
    assert np.array_equal(v.file.get_fdata().T, sitk.GetArrayFromImage(itk)) and np.allclose((v.file.affine @ (8,7,6,1))[:3]*(-1,-1,1), itk.TransformIndexToPhysicalPoint((8,7,6)), atol=1e-4)

def test_a_tilted_gantry(tmp_path):
    "Slices that move sideways as they go up: the affine is sheared, as the positions say"
    w = sitk.ImageFileWriter(); w.KeepOriginalImageUIDOn()
    for i in range(6):
        s = sitk.GetImageFromArray(np.full((8,9), i, np.int16))
        for k, t in {'0020|000d': '1.4', '0020|000e': '1.5', '0008|0018': f'1.5.{i+1}', '0008|0060': 'CT', '0020|0032': f'1\\{2+.5*i}\\{3*i}', '0020|0037': '1\\0\\0\\0\\1\\0'}.items(): s.SetMetaData(k, t)
        w.SetFileName(str(tmp_path/f'{i}.dcm')); w.Execute(s)
    v = read_volume(tmp_path)
    assert np.allclose(v.file.affine[:3,2], (0,-.5,3), atol=1e-5) and v.file.get_fdata()[0,0].tolist() == list(range(6))

# ---------- real sets

@pytest.mark.realdata
def test_hippocampus(real_data, monkeypatch):
    vs = open_volumes('hippocampus')
    fp, s = scan(vs), preprocess(vs, (1,1,1))
    assert len(s) == len(fp) == 208 and s.nbytes < 60e6
    for c, (_, row) in list(zip(vs.cases, fp.iterrows()))[::23]:
        x, y, p = s[c]
        assert y.shape[1:] == row['shape'] and torch.bincount(y.flatten().int())[1:].tolist() == [row['voxels Anterior'], row['voxels Posterior']]
        assert abs(x.float().mean()) < 1e-2 and abs(x.float().std()-1) < 1e-2
    for f in ('prepare_case',): monkeypatch.setattr(S, f, None)
    monkeypatch.setattr(V, 'scan_case', None)
    assert preprocess(vs, (1,1,1)) == s and scan(vs).equals(fp)

@pytest.mark.realdata
def test_ct_window(real_data):
    f = next(p for p in (real_data/'totalseg_ct').rglob('*.nii*') if np.asarray(nib.load(p).dataobj).min() < -500)
    x = preprocess(VolumeSet('ct', [Case('a', f)], {0:'b'}, ['CT']), read_volume(f).spacing, [(-160,240,40,100)])['a'].image
    assert torch.allclose(x.float(), (read_volume(f).data.clamp(-160,240)-40)/100, atol=2e-3)
