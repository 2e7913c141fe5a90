"DICOM folders as they come: equal to SimpleITK where they are whole, findings and no crash where they are not, no patient in any text."
import gzip, os, shutil, warnings, zipfile
import nibabel as nib, numpy as np, pydicom, pytest, SimpleITK as sitk
from pathlib import Path
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless
from medkit import dicom
from medkit.core import MedkitError
from medkit.dicom import *
from medkit.volumes import load_dicom, read_volume

HU, AFFINE, BLEED = head_volume((20, 24, 8), (8, 8, 16))
NAME = 'Zebedee^Quillfeather'   # the planted patient; no text of medkit may hold it

def sample(name): return Path(get_testdata_file(name, download=False))
def checks(folder, *but): return sorted({f.check for f in check_dicom(folder)} - set(but))
def rewrite(file, out=None, **tags):
    ds = pydicom.dcmread(file)
    for k, v in tags.items(): setattr(ds, k, v)
    ds.save_as(out or file); return ds

# ---- equal to SimpleITK

@pytest.mark.parametrize('turn', [(0, 0, 0), (0, 90, 90), (90, 0, 0), (17, -25, 40), (180, 0, 10)], ids='axial sagittal coronal oblique flipped'.split())
@pytest.mark.parametrize('modality', ['CT', 'MR'])
def test_equal_to_simpleitk(tmp_path, turn, modality):
    a = turned(AFFINE, turn); write_series(HU, a, tmp_path, modality, shuffled=True, slope=.5, intercept=-1000)
    ours, itks = series_image(one_series(tmp_path)), load_dicom(tmp_path)
    assert np.abs(ours.affine - itks.affine).max() < 1e-4 and np.abs(ours.get_fdata() - itks.get_fdata()).max() < 1e-4
    img = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))          # and without any code of medkit
    for ijk in ((0, 0, 0), (3, 5, 2), (19, 23, 7)):
        assert np.abs(ours.affine @ [*ijk, 1] - [*np.array(img.TransformIndexToPhysicalPoint(ijk))*(-1, -1, 1), 1]).max() < 1e-4
        assert abs(ours.get_fdata()[ijk] - img[ijk]) < 1e-4
    world = np.linalg.inv(a) @ ours.affine; back = [np.rint(world @ [*ijk, 1])[:3].astype(int) for ijk in ((3, 5, 2), (19, 0, 7))]
    assert [ours.get_fdata()[3, 5, 2], ours.get_fdata()[19, 0, 7]] == [HU[tuple(o)] for o in back]   # each value is where it was written

def test_real_series_equal_to_simpleitk(real_data):
    d = open_dicom(real_data/'dicom')
    assert [len(s) for s in d.series] == [22, 32, 35] and {f.check for f in d.findings} == {'order'}
    for s in d.series:
        ours, itks = series_image(s), load_dicom(s.folder/Path(s.files[0]).parent)
        assert np.abs(ours.affine - itks.affine).max() < 1e-4 and np.array_equal(ours.get_fdata(), itks.get_fdata())

def test_tilted_gantry_is_sheared(tmp_path):
    a = tilted(AFFINE, -13); write_series(HU, a, tmp_path, shuffled=True); s = one_series(tmp_path)
    assert abs(tilt(s) - 13) < 1e-3 and np.abs(series_affine(s) - a).max() < 1e-4 and np.abs(load_dicom(tmp_path).affine - a).max() < 1e-4
    assert checks(tmp_path, 'order') == ['gantry tilt']
    img = nib.load(dicom_to_nifti(s, tmp_path/'out'/'x.nii.gz')); assert np.abs(img.affine - a).max() < 1e-4   # the file keeps the shear

def test_slope_of_each_slice(tmp_path):
    slopes = np.linspace(.25, 3, 8); write_series(HU, AFFINE, tmp_path, slope=slopes, intercept=np.arange(8) - 1024)
    assert (np.abs(series_image(one_series(tmp_path)).get_fdata() - HU).max((0, 1)) <= slopes/2 + 1e-3).all()
    assert checks(tmp_path) == ['slopes differ']

def test_nifti_is_read_by_the_rest_of_medkit(tmp_path):
    write_series(HU, AFFINE, tmp_path/'d'); v, w = read_volume(dicom_to_nifti(tmp_path/'d', tmp_path/'x.nii.gz')), read_volume(tmp_path/'d')
    assert (v.data == w.data).all() and np.abs(v.affine - w.affine).max() < 1e-4

# ---- order and grouping

def test_sorted_by_position_not_by_name_or_number(tmp_path):
    files = write_series(HU, AFFINE, tmp_path, shuffled=True)
    d = open_dicom(tmp_path); assert [tmp_path/f for f in d.series[0].files] == files and (np.diff(d.table['position, mm']) > 0).all()
    assert d.table.file.tolist() == d.series[0].files and d.table.file.tolist() != sorted(d.table.file)
    assert [f.check for f in d.findings] == ['order']

@pytest.mark.parametrize('how,check', [(dict(missing=[2]), 'missing slices'), (dict(missing=[1, 4, 5]), 'missing slices'), (dict(double=[3]), 'duplicate slices'), (dict(missing=[2], double=[6]), 'missing slices')])
def test_missing_and_double(tmp_path, how, check):
    write_series(HU, AFFINE, tmp_path, shuffled=True, **how); found = check_dicom(tmp_path).of(check)
    assert len(found) == 1 and found[0].items
    if check == 'missing slices':
        assert f"{len(how['missing'])} missing" in found[0].what
        with pytest.raises(MedkitError, match='missing'): dicom_to_nifti(tmp_path, tmp_path/'x.nii')
    else: assert np.array_equal(series_image(one_series(tmp_path)).get_fdata(), HU)             # equal twins: one is used

def test_two_different_slices_at_one_place(tmp_path):
    files = write_series(HU, AFFINE, tmp_path, double=[3]); rewrite(files[3], PixelData=bytes(20*24*2))
    assert [(f.check, f.severity) for f in check_dicom(tmp_path)][0] == ('duplicate slices', 'error')
    with pytest.raises(MedkitError, match='two different slices'): series_image(one_series(tmp_path))

def test_uneven(tmp_path):
    files = write_series(HU, AFFINE, tmp_path); p = [float(o) for o in pydicom.dcmread(files[4]).ImagePositionPatient]
    rewrite(files[4], ImagePositionPatient=[*p[:2], p[2] + 5]); assert checks(tmp_path) == ['uneven spacing']
    rewrite(files[4], ImagePositionPatient=[p[0] + 5, *p[1:]]); assert checks(tmp_path) == ['uneven spacing']   # sideways

def test_localizer_and_echoes_and_sizes_kept_apart(tmp_path):
    for n, t in enumerate([(0, 0, 0), (90, 0, 0), (0, 90, 0)]): write_series(HU[..., :2], turned(AFFINE, t), tmp_path/'scout'/str(n), 'MR', number=n, SeriesInstanceUID='1.2.3')
    assert [len(s) for s in open_dicom(tmp_path/'scout').series] == [2, 2, 2] and 'mixed orientations' in checks(tmp_path/'scout')
    for n in (4, 5): write_series(HU + n, AFFINE, tmp_path/'echo', 'MR', number=n, SeriesInstanceUID='1.2.4', EchoTime=str(n))
    d = open_dicom(tmp_path/'echo'); assert [len(s) for s in d.series] == [8, 8] and checks(tmp_path/'echo') == ['several volumes in a series']
    for s in d.series: assert (series_image(s).get_fdata() - HU).std() == 0                      # not a slice of the other echo
    for n, x in ((6, HU), (7, HU[:-2])): write_series(x, AFFINE, tmp_path/'size', number=n, SeriesInstanceUID='1.2.5')
    assert checks(tmp_path/'size') == ['mixed sizes']
    for i, f in enumerate(write_series(HU, AFFINE, tmp_path/'steps', number=8)): rewrite(f, AcquisitionNumber=i)   # an acquisition a slice is one volume
    assert len(open_dicom(tmp_path/'steps').series) == 1

def test_mixed_series_and_patients(tmp_path):
    write_series(HU, AFFINE, tmp_path, number=1); write_series(HU, AFFINE, tmp_path, number=2)
    assert checks(tmp_path) == ['mixed series']
    with pytest.raises(MedkitError, match=r'holds 2 series: take one.*open_dicom'): one_series(tmp_path)
    write_series(HU, AFFINE, tmp_path, number=3, seed=1, PatientID='other'); assert 'mixed patients' in checks(tmp_path)
    for n in (1, 2): write_series(HU, AFFINE, tmp_path/'apart'/str(n), number=n)
    assert checks(tmp_path/'apart') == []                                                        # a folder a series is how it should be

def test_multi_frame(tmp_path):
    hd = pytest.importorskip('highdicom')
    files = write_series(HU, turned(AFFINE, (5, 10, 0)), tmp_path/'single', slope=.5)
    sources = [pydicom.dcmread(f) for f in files]; whole = series_image(one_series(tmp_path/'single'))
    many = hd.legacy.LegacyConvertedEnhancedCTImage(sources[::-1], '1.2.3', 5, '1.2.3.4', 1); (tmp_path/'multi').mkdir(); many.save_as(tmp_path/'multi'/'x.dcm')
    d = open_dicom(tmp_path/'multi'); img = series_image(d.series[0])
    assert len(d.table) == 1 and d.findings[0].check == 'multi-frame'
    assert np.abs(img.affine - whole.affine).max() < 1e-4 and np.array_equal(img.get_fdata(), whole.get_fdata())
    y = (HU > 500).astype(np.uint8); seg = write_seg(y, d.series[0], tmp_path/'seg.dcm', {1: 'bone'})
    assert np.array_equal(read_seg(seg, d.series[0])[0].dataobj, y)

# ---- pixels

@pytest.mark.parametrize('name', ['MR_small_RLE.dcm', 'MR_small_jp2klossless.dcm', 'MR_small_jpeg_ls_lossless.dcm', 'MR_small_bigendian.dcm', 'MR_small_expb.dcm', 'MR_small_implicit.dcm', 'MR_small_padded.dcm'])
def test_storage(name): assert np.array_equal(values(sample(name)), values(sample('MR_small.dcm'))) and not header(sample(name))[1]

@pytest.mark.parametrize('name', ['CT_small.dcm', '693_J2KI.dcm', 'JPEG2000.dcm', 'J2K_pixelrep_mismatch.dcm', 'image_dfl.dcm'])
def test_values_equal_to_simpleitk(name):
    assert np.array_equal(values(sample(name)), sitk.GetArrayFromImage(sitk.ReadImage(str(sample(name))))[0])

@pytest.mark.parametrize('syntax', [RLELossless, JPEG2000Lossless])
def test_compressed_series(tmp_path, syntax):
    hu = np.pad(HU, ((22, 22), (20, 20), (0, 0)))                                               # JPEG 2000 wants 32 pixels at least
    for f in write_series(hu, AFFINE, tmp_path, shuffled=True):
        ds = pydicom.dcmread(f); ds.compress(syntax, generate_instance_uid=False); ds.save_as(f)
    assert np.array_equal(series_image(one_series(tmp_path)).get_fdata(), hu) and checks(tmp_path) == ['order']

def test_deflated_and_big_endian_series(tmp_path):
    for f in write_series(HU, AFFINE, tmp_path/'deflated'):
        ds = pydicom.dcmread(f); ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian; ds.save_as(f)
    for f in write_series(HU, AFFINE, tmp_path/'big'):
        ds = pydicom.dcmread(f); ds.PixelData = ds.pixel_array.astype('>u2').tobytes(); ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        pydicom.dcmwrite(f, ds, little_endian=False, implicit_vr=False)
    for k in ('deflated', 'big'): assert np.array_equal(series_image(one_series(tmp_path/k)).get_fdata(), HU), k

def test_monochrome1_is_inverted_in_pictures_only(tmp_path):
    a, b = (write_series(HU, AFFINE, tmp_path/k, PhotometricInterpretation=k) for k in ('MONOCHROME1', 'MONOCHROME2'))
    assert np.array_equal(picture(a[4], 'brain'), 255 - picture(b[4], 'brain')) and np.array_equal(values(a[4]), values(b[4]))
    assert checks(tmp_path/'MONOCHROME1') == ['inverted greys'] and np.array_equal(series_image(one_series(tmp_path/'MONOCHROME1')).get_fdata(), HU)

@pytest.mark.parametrize('name', ['examples_palette.dcm', 'examples_rgb_color.dcm', 'examples_jpeg2k.dcm'])
def test_colour(name):
    assert np.array_equal(picture(sample(name)), sitk.GetArrayFromImage(sitk.ReadImage(str(sample(name))))[0])
    with pytest.raises(MedkitError): series_image(one_series(sample(name)))

# ---- no wrong volume

def is_whole(folder): return np.array_equal(series_image(one_series(folder)).get_fdata(), HU)

def test_one_uid_for_all_slices(tmp_path):
    files = write_series(HU, AFFINE, tmp_path/'a', SOPInstanceUID='1.2.3'); found = check_dicom(tmp_path/'a')
    assert is_whole(tmp_path/'a') and [(f.check, f.severity, len(f.items)) for f in found] == [('repeated UID', 'error', 7)]
    shutil.copy(files[3], tmp_path/'a'/'copy.dcm'); ds = pydicom.dcmread(files[5]); ds.compress(RLELossless, generate_instance_uid=False); ds.save_as(tmp_path/'a'/'packed.dcm')
    assert is_whole(tmp_path/'a') and sorted(check_dicom(tmp_path/'a').of('same file twice')[0].items) == ['copy.dcm', 'packed.dcm']   # copies all the same
    for i, f in enumerate(write_series(HU[..., :1], AFFINE, tmp_path/'b') + [tmp_path/'b'/f'{k}.dcm' for k in 'xy']): rewrite(tmp_path/'b'/'01-0001.dcm', f, PatientID=f'P{i}')
    assert len(open_dicom(tmp_path/'b').series) == 3                                             # three patients under one UID
    with pytest.raises(MedkitError, match='under one UID'): source_frames(one_series(tmp_path/'a'))

@pytest.mark.parametrize('at', [0, 7])
@pytest.mark.parametrize('cut', ['pixels', 'head', 'early', 'stump', 'no pixels'])
def test_first_or_last_file_is_broken(tmp_path, at, cut):
    files = write_series(HU, AFFINE, tmp_path/'d'); f, b = files[at], files[at].read_bytes(); whole = len(b)
    if cut == 'no pixels': ds = pydicom.dcmread(f); del ds.PixelData; ds.save_as(f)
    else: f.write_bytes(b[:dict(pixels=whole - 200, head=whole - 20*24*2 - 40, early=b.index(b'MONOCHROME') - 700, stump=300)[cut]])
    with pytest.raises(MedkitError, match=r'may be slices of it cannot be read \(1\)'): dicom_to_nifti(tmp_path/'d', tmp_path/'x.nii.gz')
    assert ('missing slices', 'error') in [(o.check, o.severity) for o in check_dicom(tmp_path/'d')] and not (tmp_path/'x.nii.gz').exists()
    write_series(HU, AFFINE, tmp_path/'e', number=2); assert [bool(s.lost) for s in open_dicom(tmp_path).series] == [True, False]   # another folder's series is whole

def test_what_is_no_slice_does_not_stop_a_volume(tmp_path):
    hu = np.pad(HU, ((22, 22), (20, 20), (0, 0)))
    for n in (1, 2): files = write_series(hu, AFFINE, tmp_path, number=n)
    shutil.copy(sample('CT_small.dcm').parent/'dicomdirtests'/'DICOMDIR', tmp_path); shutil.copy(sample('test-SR.dcm'), tmp_path); assert not any(s.lost for s in open_dicom(tmp_path).series)
    ds = pydicom.dcmread(files[7]); ds.compress(RLELossless, generate_instance_uid=False); ds.save_as(files[7]); files[7].write_bytes(files[7].read_bytes()[:-10])
    assert [s.lost for s in open_dicom(tmp_path).series] == [[], [files[7].name]]                # one series of the two is a file short

def test_slopes_that_are_absent_or_zero(tmp_path):
    for k, (files, bad) in enumerate(((range(3, 4), None), (range(0, 1), None), (range(8), '0'))):
        written = write_series(HU, AFFINE, tmp_path/str(k))
        for i in files: rewrite(written[i], RescaleSlope=bad) if bad else rewrite(written[i], RescaleSlope='', RescaleIntercept='')
        assert checks(tmp_path/str(k), 'slopes differ') == ['broken rescale']
        with pytest.raises(MedkitError, match='slope'): dicom_to_nifti(tmp_path/str(k), tmp_path/'x.nii.gz')
    write_series(HU, AFFINE, tmp_path/'none', RescaleSlope=None, RescaleIntercept=None); assert checks(tmp_path/'none') == ['no rescale']

def test_slopes_of_frames(tmp_path):
    hd = pytest.importorskip('highdicom'); sources = [pydicom.dcmread(f) for f in write_series(HU, AFFINE, tmp_path/'single', slope=np.linspace(.5, 1, 8))]
    (tmp_path/'m').mkdir(); hd.legacy.LegacyConvertedEnhancedCTImage(sources, '1.2.3', 5, '1.2.3.4', 1).save_as(tmp_path/'m'/'x.dcm')
    assert checks(tmp_path/'m', 'multi-frame') == ['slopes differ']

@pytest.mark.parametrize('tag', ['PatientID', 'StudyInstanceUID'])
@pytest.mark.parametrize('series', ['1.2.3', ''])
def test_two_patients_or_studies_under_one_series(tmp_path, tag, series):
    for i, f in enumerate(write_series(HU, AFFINE, tmp_path, SeriesInstanceUID=series)): rewrite(f, **{tag: f'1.{i//4}'})
    with pytest.raises(MedkitError, match='holds 2 series'): dicom_to_nifti(tmp_path, tmp_path/'x.nii.gz')
    assert checks(tmp_path) == (['mixed patients'] if tag == 'PatientID' else ['mixed series'])

def test_tilt_that_only_the_header_tells(tmp_path):
    write_series(HU, AFFINE, tmp_path/'a', GantryDetectorTilt='-12'); found = check_dicom(tmp_path/'a')
    assert [(f.check, f.severity) for f in found] == [('gantry tilt', 'warning')] and 'declares a tilt of -12.0 degrees' in found[0].what
    write_series(HU, tilted(AFFINE, 12), tmp_path/'b', GantryDetectorTilt='12'); assert 'tilted by 12.0' in check_dicom(tmp_path/'b')[0].what
    write_series(HU[..., :1], AFFINE, tmp_path/'c', GantryDetectorTilt='12'); assert checks(tmp_path/'c') == []   # one slice has no step that could show it

# ---- bad input

def test_what_an_archive_is_called(tmp_path):
    write_series(HU, AFFINE, tmp_path); dicom_to_nifti(tmp_path, tmp_path/'scan.nii.gz')
    for name in ('backup.zip', 'hidden.dcm', 'hidden'):
        with zipfile.ZipFile(tmp_path/name, 'w') as z: z.writestr('x', 'y')
    assert {f.check: sorted(f.items) for f in check_dicom(tmp_path)} == {'archive in disguise': ['hidden', 'hidden.dcm'], 'not DICOM': ['backup.zip', 'scan.nii.gz']}

def test_values_of_another_representation(tmp_path):
    from medkit.dicom import HEADS
    for k in ('Modality', 'BodyPartExamined', 'ImageType', 'Manufacturer', 'ConvolutionKernel', 'PhotometricInterpretation', 'LossyImageCompression', 'WindowCenter', 'KVP', 'SliceThickness'):
        for vr, v in (('PN', 'Quillon^Jo'), ('DA', '19610203')):
            f, = write_series(HU[..., :1], AFFINE, tmp_path/k/vr); ds = pydicom.dcmread(f); ds.add_new(k, vr, v); ds.save_as(f)
            d = open_dicom(f); text = repr(d) + d.table.to_csv() + d.overview.to_csv()
            assert 'Quillon' not in text and '1961' not in text and d.findings.of('wrong VR') and HEADS[k] not in d.table, (k, vr)
    f, = write_series(HU[..., :1], AFFINE, tmp_path/'n'); ds = pydicom.dcmread(f); ds.add_new('SliceThickness', 'FD', 2.5); ds.save_as(f)
    assert open_dicom(f).table.loc[0, 'slice thickness, mm'] == 2.5                             # a number of another kind is a number

def test_table_tells_what_is_wrong(tmp_path, capsys):
    write_series(HU, AFFINE, tmp_path/'a', missing=[2], double=[4], PatientName=NAME, PatientID='Zebedee-77'); t = dicom_table(tmp_path/'a'); out = capsys.readouterr().out
    assert out.splitlines() == [f"2 findings above a note: missing slices, duplicate slices. check_dicom(folder) shows them."]
    assert [f['check'] for f in t.attrs['findings']] == ['missing slices', 'duplicate slices'] and 'ebedee' not in str(t.attrs)
    import json, pickle; json.dumps(t.attrs); assert pickle.loads(pickle.dumps(t)).attrs == t.attrs and t.sort_values('series').equals(t)
    write_series(HU, AFFINE, tmp_path/'b', shuffled=True); assert dicom_table(tmp_path/'b').attrs['findings'] and not capsys.readouterr().out   # a note is not printed

def test_pictures_that_are_not_to_be_had(tmp_path):
    f, = write_series(HU[..., :1], AFFINE, tmp_path)
    bad = rewrite(f, tmp_path/'words.dcm') and tmp_path/'words.dcm'; ds = pydicom.dcmread(bad); ds[0x00281053] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag('RescaleSlope'), 'DS', 6, b'Muster', 0, False, True); ds.save_as(bad)
    for read in (picture, values):
        for path, says in [(sample('test-SR.dcm'), 'without pixels'), (sample('rtplan.dcm'), 'without pixels'), (sample('MR_truncated.dcm'), 'shorter than'), (sample('CT_small.dcm').parent/'dicomdirtests'/'DICOMDIR', 'without pixels'),
                           (tmp_path/'nofile.dcm', 'is no file'), (tmp_path, 'is no file'), (None, 'NoneType'), (bad, 'RescaleSlope that is no number'), (sample('examples_ybr_color.dcm'), 'frame=0')]:
            with pytest.raises(MedkitError, match=says) as e: read(path)
            assert 'pip' not in str(e.value) and 'Muster' not in str(e.value)
        for frame in (99, -1, 'a'):
            with pytest.raises(MedkitError, match='no frame'): read(f, frame=frame)
    assert picture(sample('examples_ybr_color.dcm'), frame=3).shape == (240, 320, 3)
    for odd in (None, 3, [f]):
        with pytest.raises(MedkitError, match='was given'): dicom_table(odd)

def test_strangers_in_the_folder(tmp_path):
    write_series(HU, AFFINE, tmp_path, number=1, PatientName=NAME)
    (tmp_path/'notes.txt').write_text('hello'); (tmp_path/'empty.dcm').touch(); (tmp_path/'noise.dcm').write_bytes(np.random.default_rng(0).bytes(5000)); (tmp_path/'.DS_Store').write_text('x')
    with zipfile.ZipFile(tmp_path/'bomb.dcm', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('x', bytes(10_000_000))
    (tmp_path/'bomb2.dcm').write_bytes(gzip.compress(bytes(10_000_000)))
    d = open_dicom(tmp_path); by = {f.check: sorted(f.items) for f in d.findings}
    assert by == {'archive in disguise': ['bomb.dcm', 'bomb2.dcm'], 'not DICOM': ['empty.dcm', 'noise.dcm', 'notes.txt']}
    assert len(d.table) == 8 and np.array_equal(series_image(d.series[0]).get_fdata(), HU)       # the series is whole all the same

def test_bombs(tmp_path, monkeypatch):
    f, = write_series(HU[..., :1], AFFINE, tmp_path); ds = pydicom.dcmread(f)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian; ds.add_new(0x00091001, 'OB', bytes(3 << 20)); ds.save_as(tmp_path/'deflated.dcm'); f.unlink()
    assert (tmp_path/'deflated.dcm').stat().st_size < 20_000 and checks(tmp_path) == []
    monkeypatch.setattr(dicom, 'LARGEST', 1 << 20); seen = []; monkeypatch.setattr(pydicom, 'dcmread', lambda *a, **k: seen.append(a))
    assert checks(tmp_path) == ['bomb'] and not seen                                             # refused before pydicom inflates it
    with pytest.raises(MedkitError, match='cannot be read'): values(tmp_path/'deflated.dcm')

def test_declared_sizes(tmp_path):
    f, = write_series(HU[..., :1], AFFINE, tmp_path); ds = pydicom.dcmread(f); ds.compress(RLELossless, generate_instance_uid=False); ds.Rows = ds.Columns = 60000; ds.NumberOfFrames = 90; ds.save_as(f)
    assert checks(tmp_path) == ['bomb']
    with pytest.raises(MedkitError): values(f)
    ds.Rows = ds.Columns = 1; ds.NumberOfFrames = 2_000_000_000; ds.save_as(f); assert checks(tmp_path) == ['bomb']   # no list of two thousand million frames
    ds.Rows = 0; ds.save_as(f); assert checks(tmp_path) == ['unreadable']

def test_truncated_everywhere(tmp_path):
    whole = write_series(HU[..., :1], AFFINE, tmp_path/'a', PatientName=NAME)[0].read_bytes(); (tmp_path/'b').mkdir()
    for cut in range(0, len(whole) - 1, 53):
        (tmp_path/'b'/'x.dcm').write_bytes(whole[:cut]); d = open_dicom(tmp_path/'b')
        assert not d.series and d.findings[0].check in ('not DICOM', 'unreadable', 'truncated', 'no picture', 'no preamble', 'wrong VR'), cut
        assert 'Zebedee' not in repr(d) + d.table.to_string()
    assert header(sample('MR_truncated.dcm'))[1] == ['truncated']

def test_flipped_bytes_never_crash(tmp_path):
    whole = write_series(HU[:6, :6, :1], AFFINE, tmp_path/'a', PatientName=NAME)[0].read_bytes(); rng = np.random.default_rng(0); (tmp_path/'b').mkdir()
    for _ in range(80):
        b = bytearray(whole)
        for i in rng.integers(132, len(whole), rng.integers(1, 6)): b[i] = rng.integers(256)
        (tmp_path/'b'/'x.dcm').write_bytes(b); d = open_dicom(tmp_path/'b'); assert 'Zebedee' not in repr(d) + d.table.to_string()
        for s in d.series:
            try: series_image(s)
            except MedkitError as e: assert 'Zebedee' not in str(e)

def test_no_pixels_and_wrong_vr(tmp_path):
    files = write_series(HU[..., :4], AFFINE, tmp_path)
    ds = pydicom.dcmread(files[0]); del ds.PixelData; ds.save_as(files[0])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore'); ds = pydicom.dcmread(files[1]); ds[0x00200032] = pydicom.DataElement(0x00200032, 'LO', f'at\\{NAME}'); ds.save_as(files[1])
    rewrite(files[2], out=tmp_path/'copy.dcm')
    d = open_dicom(tmp_path); by = {f.check: f.items for f in d.findings}
    assert by['no picture'] == ['01-0001.dcm'] and by['wrong VR'] == ['01-0002.dcm'] and len(by['same file twice']) == 1
    assert 'Zebedee' not in repr(d) and len(d.table) == 5
    assert header(sample('test-SR.dcm'))[1] == ['no picture'] and checks(sample('rtplan.dcm')) == ['no picture']

def test_senseless_places_and_values(tmp_path):
    files = write_series(HU, AFFINE, tmp_path/'a')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for f, (k, v) in zip(files, dict(ImagePositionPatient=['nan', '0', '0'], ImageOrientationPatient=['1', '0', '0', '1', '0', '0'], PixelSpacing=['0', '1']).items()): rewrite(f, **{k: v})
    assert len(check_dicom(tmp_path/'a').of('wrong VR')[0].items) == 3 and sorted(len(s) for s in open_dicom(tmp_path/'a').series) == [1, 1, 1, 5]
    for f in write_series(HU, AFFINE, tmp_path/'b', number=2): rewrite(f, RescaleSlope='1e300')
    with pytest.raises(MedkitError, match='not finite'): series_image(one_series(tmp_path/'b'))

def test_packaged_folder_of_every_oddity_is_described():
    d = open_dicom(sample('CT_small.dcm').parent)
    assert len(d.table) > 100 and {'truncated', 'not DICOM', 'no picture', 'unreadable', 'wrong VR', 'multi-frame', 'colour'} <= {f.check for f in d.findings}
    assert 'zipMR.gz' in d.findings.of('not DICOM')[0].items                                     # an archive that says so
    assert d.table.file.is_unique and 'colour' in {f.check for f in d.findings} and repr(d) and d._repr_html_()

def test_missing_folder_and_empty(tmp_path):
    for p in (tmp_path, tmp_path/'nowhere'):
        with pytest.raises(MedkitError, match='holds no files'): open_dicom(p)
    (tmp_path/'a.txt').write_text('x')
    with pytest.raises(MedkitError, match='holds no DICOM picture'): dicom_to_nifti(tmp_path, tmp_path/'x.nii.gz')
    with pytest.raises(MedkitError, match='no name for a NIfTI'): dicom_to_nifti(tmp_path, tmp_path/'x.dcm')

def test_polyglot(tmp_path):
    f, = write_series(HU[..., :1], AFFINE, tmp_path); f.write_bytes(b'MZ' + f.read_bytes()[2:])
    assert checks(tmp_path) == ['program in the preamble'] and np.array_equal(values(f).T, HU[..., 0])

def test_no_patient_in_table_findings_or_errors(tmp_path, capsys, recwarn, caplog):
    phi = dict(PatientName=NAME, PatientID='Zebedee-77', PatientBirthDate='19330303', ReferringPhysicianName='Zebedee^Doc', InstitutionName='Zebedee Hospital', StudyDescription='Zebedee head',
               SeriesDescription='Zebedee', ProtocolName='Zebedee', AccessionNumber='Zebedee1', OperatorsName='Zebedee', PatientComments='Zebedee', ImageComments='Zebedee', StudyID='Zebedee')
    files = write_series(HU, AFFINE, tmp_path, missing=[2], double=[4], **phi); pydicom.config.settings.reading_validation_mode = pydicom.config.WARN
    with warnings.catch_warnings():
        warnings.simplefilter('ignore'); ds = pydicom.dcmread(files[0]); ds[0x00180050] = pydicom.DataElement(0x00180050, 'LO', 'Zebedee'); ds.save_as(files[0])
    recwarn.clear(); d = open_dicom(tmp_path); text = repr(d) + d._repr_html_() + d.table.to_csv() + d.overview.to_csv()
    with pytest.raises(MedkitError) as e: series_image(d.series[0])
    out = capsys.readouterr(); text += str(e.value) + out.out + out.err + ''.join(str(w.message) for w in recwarn) + caplog.text
    assert 'Zebedee' not in text and '1933' not in text and '20200304' not in text
    assert e.value.__cause__ is None

def test_texts_of_the_wrong_kind_and_echoes_of_the_name(tmp_path, recwarn, caplog):
    from pydicom.dataelem import RawDataElement
    files = write_series(HU, AFFINE, tmp_path, PatientName='Zebedee^Q', Manufacturer='for zebedee', BodyPartExamined='ZEBEDEE', ImageType=['ORIGINAL', 'Zebedee'])
    for f in files:
        ds = pydicom.dcmread(f)
        for k, vr in dict(SeriesNumber='IS', WindowCenter='DS', BitsStored='IS', KVP='DS').items(): t = pydicom.tag.Tag(k); ds[t] = RawDataElement(t, vr, 8, b'Quillon ', 0, False, True)
        ds.save_as(f)
    recwarn.clear(); caplog.clear(); d = open_dicom(tmp_path); text = repr(d) + d.table.to_csv()
    try: write_seg(BLEED, tmp_path, tmp_path/'x.dcm', {1: 'a'})
    except MedkitError as e: text += str(e)
    text += ''.join(str(w.message) for w in recwarn) + caplog.text
    assert 'ebedee' not in text.lower() and 'Quillon' not in text and len(d.findings.of('wrong VR')[0].items) == 8

def test_what_many_series_share_is_said_once(tmp_path):
    for i in range(5): write_series(HU, AFFINE, tmp_path/str(i), number=i, seed=i, shuffled=True, PhotometricInterpretation='MONOCHROME1')
    found = check_dicom(tmp_path); assert [f.check for f in found] == ['inverted greys', 'order'] and found[0].what.startswith('Series 0, 1, 2, 3, 4: ') and 'of 35 neighbours' in found[1].what

def test_index_of_a_disc_is_no_fault():
    found = check_dicom(sample('CT_small.dcm').parent/'dicomdirtests'/'TINY_ALPHA'); assert not [f for f in found if f.severity == 'error'] and any('DICOMDIR' in i for i in found.of('no picture')[0].items)

# ---- quiet on clean data, loud on planted faults

def test_twelve_clean_and_twelve_faulty(tmp_path):
    rng, plant = np.random.default_rng(5), ['missing slices', 'duplicate slices', 'gantry tilt', 'mixed series']
    for i in range(12):
        a = turned(AFFINE, rng.uniform(-40, 40, 3)); a[:3, 3] += rng.normal(0, 50, 3); clean = tmp_path/f'c{i}'; bad = tmp_path/f'b{i}'; kind = plant[i % 4]
        write_series(HU, a, clean, ['CT', 'MR'][i % 2], seed=i)
        write_series(HU, tilted(a, rng.choice([-1, 1])*rng.uniform(1, 30)) if kind == 'gantry tilt' else a, bad, seed=i, missing=[int(rng.integers(1, 7))] if kind == 'missing slices' else (), double=[int(rng.integers(8))] if kind == 'duplicate slices' else ())
        if kind == 'mixed series': write_series(HU, a, bad, seed=i, number=2)
        assert checks(clean) == [] and checks(bad) == [kind], (i, kind)

# ---- segmentations

def test_seg_geometry(tmp_path):
    hd = pytest.importorskip('highdicom')
    write_series(HU, turned(AFFINE, (10, 20, 30)), tmp_path/'d', shuffled=True, PatientBirthDate=None, StudyDate=None, AccessionNumber=None); s = one_series(tmp_path/'d'); img = series_image(s)
    y = BLEED + 2*(HU > 600).astype(np.uint8)*(BLEED == 0)
    f = write_seg(nib.Nifti1Image(y, img.affine), s, tmp_path/'seg.dcm', {1: 'bleed', 2: 'rest'}, codes={1: 'Hemorrhage'}, colours={1: (1, 0, 0)})
    back, names = read_seg(f, tmp_path/'d'); assert np.array_equal(back.dataobj, y) and np.abs(back.affine - img.affine).max() < 1e-4 and names == {1: 'bleed', 2: 'rest'}
    v = hd.seg.segread(f).get_volume(combine_segments=True)                                       # highdicom's own geometry, slices first
    for label in (1, 2):
        theirs = (v.affine @ [*np.argwhere(v.array == label).mean(0), 1])*(-1, -1, 1, 1); ours = img.affine @ [*np.argwhere(y == label).mean(0), 1]
        assert np.abs(theirs - ours).max() < 1e-3
    ds = pydicom.dcmread(f); refs = {r.ReferencedSOPInstanceUID for r in ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert refs == {pydicom.dcmread(s.folder/o).SOPInstanceUID for o in s.files} and ds.Modality == 'SEG'
    one = ds.SegmentSequence[0]; assert one.SegmentedPropertyTypeCodeSequence[0].CodeValue == '50960005' and ds.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == 'Tissue'
    lab = hd.color.CIELabColor.from_dicom_value(one.RecommendedDisplayCIELabValue) if hasattr(hd.color.CIELabColor, 'from_dicom_value') else None
    assert lab is None or np.abs(np.subtract(lab.to_rgb(), (255, 0, 0))).max() <= 2
    assert 'segmentation' in checks(f)

def test_seg_refuses(tmp_path):
    pytest.importorskip('highdicom'); write_series(HU, AFFINE, tmp_path/'d'); write_series(HU, AFFINE, tmp_path/'gap', number=2, missing=[3])
    for y, labels, says in [(BLEED*0, {1: 'a'}, 'all background'), (BLEED, {2: 'a'}, 'without a gap'), (BLEED*3, {1: 'a'}, r'holds \[3\]'), (BLEED[1:], {1: 'a'}, 'shape'), (BLEED, 'bleed', 'as in {1: "bleed"}')]:
        with pytest.raises(MedkitError, match=says): write_seg(y, tmp_path/'d', tmp_path/'x.dcm', labels)
    with pytest.raises(MedkitError, match='missing'): write_seg(BLEED[..., 1:], tmp_path/'gap', tmp_path/'x.dcm', {1: 'a'})
    assert not (tmp_path/'x.dcm').exists()


def test_inverted_numbers_are_refused_where_simpleitk_reads(tmp_path):
    from medkit.explore import explore
    from medkit.volumes import read_volume
    hu, affine, _ = head_volume()
    write_series(hu, affine, tmp_path/'m1', PhotometricInterpretation='MONOCHROME1')
    with pytest.raises(MedkitError, match='MONOCHROME1.*dicom_to_nifti'): read_volume(tmp_path/'m1')
    write_series(hu, affine, tmp_path/'m2', number=2)
    np.testing.assert_allclose(read_volume(tmp_path/'m2').data.sum(), series_image(one_series(tmp_path/'m1')).get_fdata().sum(), rtol=1e-5)
    o = explore(tmp_path/'m2'); assert o.facts['size'] == '48 x 56 x 20 voxels' and len(o.figures) >= 3
    assert 'MONOCHROME1' in ' '.join(explore(tmp_path/'m1').notes)

def test_a_dose_among_the_slices(tmp_path):
    "Folders of radiotherapy hold doses, at which SimpleITK gives up"
    for f in ('CT_small.dcm', 'rtdose_1frame.dcm'): shutil.copy(sample(f), tmp_path)
    with pytest.raises(MedkitError, match='dicom_to_nifti'): load_dicom(tmp_path/'CT_small.dcm')
    assert np.ptp(nib.load(dicom_to_nifti(tmp_path/'CT_small.dcm', tmp_path/'out.nii.gz')).get_fdata()) > 1000
