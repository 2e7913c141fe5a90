"""Nothing planted is left in any byte, and everything that is needed still is: pixels, geometry, references, intervals"""
import io, shutil, zipfile
import numpy as np, nibabel as nib, pydicom, pytest, SimpleITK as sitk
from datetime import datetime
from PIL import Image, PngImagePlugin
from pydicom.data import get_testdata_file
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, CTImageStorage, EncapsulatedPDFStorage, generate_uid
from medkit.core import MedkitError
from medkit.burned_in import burn_in, burned_in_text
from medkit.deidentify import annex_e, deidentify, files_of, personal_tags, phi_check, rule
from medkit.intervals import share
from medkit.phantom import head_ct

pytest.importorskip('dicomanonymizer', reason='the extra `dicom` is not installed')

TEXT = 'LO SH ST LT UT UC PN CS AE'.split()

class Planter:
    "Values that are found again: text with a running number, dates of 1957, UIDs under an arc of our own, each remembered"
    def __init__(self): self.tokens = []
    def token(self, text): self.tokens.append(text); return text
    def value(self, vr):
        n = len(self.tokens)
        if vr in TEXT: return self.token(f'ZQ{n:05d}XK')
        if vr == 'UI': return self.token(f'1.9.8765.4321.{n}')
        if vr in ('DA', 'DT'): return self.token(f'1957{1 + n % 12:02d}{1 + n % 28:02d}') + '101112'*(vr == 'DT')   # moved back, none meets another
        if vr == 'UR': return 'http://' + self.token(f'zq{n:05d}xk') + '.org'
        if vr in ('OB', 'UN'): return self.token(f'ZQ{n:05d}XK').encode() + b' '
        if vr == 'AS': return '091Y'

def plant(ds, p):
    "Every tag of Annex E that takes text, dates or UIDs, at the top and two sequences deep; private blocks; overlays and curves"
    for (g, e) in annex_e():
        tag = pydicom.tag.Tag(g, e); vr = DicomDictionary.get(tag, ('',))[0].split(' or ')[0]
        if g > 2 and (v := p.value(vr)) is not None and tag not in ds: ds.add_new(tag, vr, v)
    for k in ('EvaluatorName', 'SurfaceComments', 'TargetFrameOfReferenceUID', 'TransactionStatusComment'): setattr(ds, k, p.value(ds[k].VR if k in ds else pydicom.datadict.dictionary_VR(k)))  # not in the table
    block = ds.private_block(0x0011, p.value('LO'), create=True); block.add_new(1, 'LO', p.value('LO')); block.add_new(2, 'UN', p.value('UN'))

def planted_file(path, p, uid, study, series, frame, image_uid, day='20200304', syntax=ExplicitVRLittleEndian, k=0):
    ds = Dataset(); ds.file_meta = FileMetaDataset(); ds.preamble = (p.token('PREAMBLEZQ').encode()*20)[:128]
    ds.file_meta.TransferSyntaxUID, ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = syntax, CTImageStorage, uid
    ds.file_meta.SourceApplicationEntityTitle, ds.file_meta.ImplementationVersionName = p.value('AE'), p.value('SH')
    ds.file_meta.PrivateInformationCreatorUID, ds.file_meta.PrivateInformation = p.value('UI'), p.value('OB')
    ds.SOPClassUID, ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = CTImageStorage, uid, study, series, frame
    p.tokens += [uid, study, series, frame, day]
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.StudyDate, ds.StudyTime = p.token('Zqpatient') + '^' + p.token('Xkfirst'), p.token('HOSP471108'), p.token('19310415'), day, '101112'
    ds.Modality, ds.InstanceNumber, ds.Manufacturer, ds.ManufacturerModelName = 'CT', k + 1, 'ACME', 'of Zqpatient'
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 8, 10, 1, 'MONOCHROME2'
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.PixelSpacing, ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.SliceThickness = [.7, .8], [1, 2, 3*k], [1, 0, 0, 0, 1, 0], 3
    ds.RescaleSlope, ds.RescaleIntercept = 2, -1024
    ds.PixelData = np.arange(80, dtype='<u2').tobytes() + p.token('AFTERPIXELS').encode() + b' '
    plant(ds, p)
    deep, deeper = Dataset(), Dataset(); plant(deep, p); plant(deeper, p)
    ref = Dataset(); ref.ReferencedSOPClassUID, ref.ReferencedSOPInstanceUID = CTImageStorage, image_uid; deeper.ReferencedImageSequence = [ref]
    del deeper[0x0008, 0x1140]; deeper.add_new(0x00081140, 'SQ', [ref]); deep.add_new(0x00289145, 'SQ', [deeper]); ds.add_new(0x52009229, 'SQ', [deep])   # sequences that the table keeps
    ds.add_new(0x60000010, 'US', 8); ds.add_new(0x60000011, 'US', 10); ds.add_new(0x60000022, 'LO', p.value('LO')); ds.add_new(0x60003000, 'OB', p.value('OB')); ds.add_new(0x60004000, 'LT', p.value('LT'))
    ds.add_new(0x50000030, 'SH', p.value('SH')); ds.add_new(0xFFFCFFFC, 'OB', p.value('OB'))
    path.parent.mkdir(parents=True, exist_ok=True); ds.save_as(path, enforce_file_format=False)
    return ds

def forms(tokens): return {t.encode(c) for t in tokens for c in ('latin-1', 'utf-8', 'utf-16-le', 'utf-16-be')}
def left(folder, tokens): return {(f.name, t) for f in files_of(folder) for data in [f.read_bytes().lower()] for t in forms({o.lower() for o in tokens}) if t in data}

@pytest.fixture(scope='module')
def clinic(tmp_path_factory):
    root, p = tmp_path_factory.mktemp('clinic'), Planter(); uids = [f'1.9.8765.1.{i}' for i in range(4)]; sets = []
    for i, uid in enumerate(uids):
        study, day = (('1.9.8765.2.1', '20200304'), ('1.9.8765.2.2', '20200410'))[i > 3]
        sets.append(planted_file(root/'Zqpatient Xkfirst'/f'HOSP471108_{i}.dcm', p, uid, study, f'1.9.8765.3.{i//2}', '1.9.8765.4.1', uids[0], day, [ExplicitVRLittleEndian, ImplicitVRLittleEndian][i % 2], i))
    return root, p, sets

@pytest.fixture(scope='module')
def cleaned(clinic, tmp_path_factory):
    out = tmp_path_factory.mktemp('out')/'new'
    return out, deidentify(clinic[0], out)

def test_nothing_planted_is_left(clinic, cleaned):
    root, p, _ = clinic; out, done = cleaned
    assert len(p.tokens) > 3000 and left(root, p.tokens[:50])      # the search finds what is there
    assert len(done.table) == 4 and not left(out, set(p.tokens))
    assert not any(t in f.as_posix() for f in files_of(out) for t in ('Zq', 'HOSP', '1.9.8765'))
    assert not any(t in o for o in (repr(done), done._repr_html_(), done.table.to_string(), done.findings.to_df().to_string()) for t in ('Zq', 'ZQ', 'HOSP', '1.9.8765'))

def test_files_belong_together_as_before(clinic, cleaned):
    root, _, sets = clinic; out, done = cleaned
    new = [pydicom.dcmread(out/n) for n in done.key.new]; old = [pydicom.dcmread(root/o) for o in done.key.old]
    for k in ('StudyInstanceUID', 'SeriesInstanceUID', 'FrameOfReferenceUID', 'SOPInstanceUID', 'TargetFrameOfReferenceUID'):
        pairs = {(str(a[k].value), str(b[k].value)) for a, b in zip(old, new)}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) and not {a for a, _ in pairs} & {b for _, b in pairs}
    for ds in new:
        inside = ds[0x52009229].value[0][0x00289145].value[0].ReferencedImageSequence[0]
        assert inside.ReferencedSOPInstanceUID == new[0].SOPInstanceUID and inside.ReferencedSOPClassUID == CTImageStorage
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID and ds.preamble == bytes(128)

def test_dates_move_by_one_constant(clinic, cleaned):
    out, done = cleaned; root = clinic[0]
    def day(ds, k): return datetime.strptime(ds[k].value[:8], '%Y%m%d')
    pairs = [(pydicom.dcmread(root/o), pydicom.dcmread(out/n)) for o, n in zip(done.key.old, done.key.new)]
    moves = {(day(b, k) - day(a, k)).days for a, b in pairs for k in ('StudyDate', 'SeriesDate', 'AcquisitionDateTime', 'ContentDate')}
    assert len(moves) == 1 and -4100 < moves.pop() <= -365
    assert all(b.StudyTime == '101112' and not b.PatientBirthDate and 'PatientAge' not in b for _, b in pairs)

def test_pixels_geometry_and_marks(clinic, cleaned):
    out, done = cleaned; root = clinic[0]
    for o, n in zip(done.key.old, done.key.new):
        a, b = pydicom.dcmread(root/o), pydicom.dcmread(out/n)
        assert np.array_equal(b.pixel_array.ravel(), np.arange(80))
        assert all(a[k].value == b[k].value for k in 'PixelSpacing ImagePositionPatient ImageOrientationPatient SliceThickness RescaleSlope RescaleIntercept Rows Columns InstanceNumber Modality Manufacturer'.split())
        assert a.file_meta.TransferSyntaxUID == b.file_meta.TransferSyntaxUID and 'ManufacturerModelName' in b and not b.ManufacturerModelName
        assert b.PatientIdentityRemoved == 'YES' and [c.CodeValue for c in b.DeidentificationMethodCodeSequence] == ['113100', '113107'] and b.LongitudinalTemporalInformationModified == 'MODIFIED'
        img = sitk.ReadImage(str(out/n)); assert img.GetSpacing()[:2] == (.8, .7) and sitk.GetArrayFromImage(img).ravel()[5] == 2*5 - 1024
    assert {f.check for f in phi_check(out)} <= {'faces', 'not looked into', 'text in the picture'}
    assert {'DICOM tags', 'private tags', 'file head', 'names of files'} <= {f.check for f in phi_check(root)}

def test_a_secret_gives_the_same_again_and_only_it(clinic, tmp_path):
    root, secret = clinic[0], 'sixteen letters and more'
    a, b, c = (deidentify(root, tmp_path/n, secret=s).table.new.tolist() for n, s in (('a', secret), ('b', secret), ('c', None)))
    assert a == b and not set(a) & set(c)
    assert [f.read_bytes() for f in files_of(tmp_path/'a')] == [f.read_bytes() for f in files_of(tmp_path/'b')]

def test_two_patients_move_differently(tmp_path):
    from medkit.dicom import head_volume, write_series
    vol, affine, _ = head_volume((12, 12, 3))
    for i, who in enumerate(('A-1', 'A-2')): write_series(vol, affine, tmp_path/'in'/who, PatientID=who, seed=i)
    new = [pydicom.dcmread(f) for f in files_of((deidentify(tmp_path/'in', tmp_path/'out'), tmp_path/'out')[1])]
    assert len({d.PatientID for d in new}) == 2 == len({d.StudyDate for d in new}) and all(d.PatientName == d.PatientID for d in new)

def test_what_is_not_copied(tmp_path, clinic):
    src = tmp_path/'in'; src.mkdir(); p = Planter()
    planted_file(src/'ok.dcm', p, '1.9.1', '1.9.2', '1.9.3', '1.9.4', '1.9.1')
    pdf = pydicom.dcmread(src/'ok.dcm'); pdf.SOPClassUID = pdf.file_meta.MediaStorageSOPClassUID = EncapsulatedPDFStorage; del pdf.PixelData; pdf.save_as(src/'report.dcm')
    own = pydicom.dcmread(src/'ok.dcm'); own.SOPClassUID = '1.3.12.2.1107.5.9.1'; own.SOPInstanceUID = '1.9.9'; own.save_as(src/'csa.dcm')
    hid = pydicom.dcmread(src/'ok.dcm'); del hid[0x60003000]; hid.SOPInstanceUID = '1.9.10'; hid.save_as(src/'bits.dcm')
    (src/'short.dcm').write_bytes((src/'ok.dcm').read_bytes()[:-150]); (src/'Zqpatient^Xk.txt').write_text('hello'); (src/'empty').touch()
    (src/'again.dcm').write_bytes((src/'ok.dcm').read_bytes())
    done = deidentify(src, tmp_path/'out'); said = ' '.join(f.what for f in done.findings)
    assert len(files_of(tmp_path/'out')) == len(done.table) == 1
    for words in ('no picture', "maker's own", 'unused bits', 'no DICOM', 'byte for byte'): assert words in said
    assert 'Zqpatient' not in done.findings.to_df().to_string() and any('file ' in i for f in done.findings for i in f.items)

def test_in_place_is_refused_and_nothing_half_written(tmp_path, monkeypatch):
    import medkit.deidentify as d
    src = tmp_path/'in'; planted_file(src/'ok.dcm', Planter(), '1.9.1', '1.9.2', '1.9.3', '1.9.4', '1.9.1'); before = (src/'ok.dcm').read_bytes()
    for out in (src, src/'new', tmp_path):
        with pytest.raises(MedkitError, match='inside each other'): deidentify(src, out)
    (tmp_path/'link').symlink_to(src, target_is_directory=True)
    with pytest.raises(MedkitError, match='inside each other'): deidentify(src, tmp_path/'link'/'new')
    monkeypatch.setattr(d, 'not_covered', lambda *a: 1/0)
    with pytest.raises(ZeroDivisionError): deidentify(src, tmp_path/'out')
    assert sorted(o.name for o in tmp_path.iterdir()) == ['in', 'link'] and (src/'ok.dcm').read_bytes() == before
    (tmp_path/'text').mkdir(); (tmp_path/'text'/'a.txt').write_text('x')
    with pytest.raises(MedkitError, match='nothing was written'): deidentify(tmp_path/'text', tmp_path/'out2')

def test_damaged_files_and_names_elsewhere(tmp_path, caplog, capsys):
    src, rng = tmp_path/'in', np.random.default_rng(0); src.mkdir(); ct = pydicom.dcmread(get_testdata_file('CT_small.dcm', download=False))
    ct.PatientName, ct.PatientID = 'Zqsecret^Xkname', 'HOSP998877'; ct.save_as(tmp_path/'base.dcm'); base = (tmp_path/'base.dcm').read_bytes()
    for i in range(12):
        b = np.frombuffer(base, np.uint8).copy(); b[rng.integers(132, 6000, 20)] = rng.integers(0, 256, 20); (src/f'{i}.dcm').write_bytes(b[:None if i % 3 else rng.integers(200, len(b))].tobytes())
    for uid, tags in (('1.2.3.4', dict(PatientName='Test^Patient', PatientID='')), ('1.2.3.5', dict(RedPaletteColorLookupTableData=b'OF ZQSECRET ')), ('1.2.3.6', dict(PatientName='M\u00fcller^J\u00fcrgen', SpecificCharacterSet='ISO_IR 192', Manufacturer='von M\u00dcLLER'))):
        ds = pydicom.dcmread(tmp_path/'base.dcm'); ds.SOPInstanceUID = uid
        for k, v in tags.items(): setattr(ds, k, v)
        ds.save_as(src/f'{uid}.dcm')
    done = deidentify(src, tmp_path/'out'); old = set(done.key.old); found = [phi_check(src), phi_check(tmp_path/'out')]
    assert {'1.2.3.4.dcm', '1.2.3.6.dcm'} <= old and '1.2.3.5.dcm' not in old and any('still held' in f.what for f in done.findings)
    assert not left(tmp_path/'out', ['Zqsecret', 'Xkname', 'HOSP998877', 'm\u00fcller']) and not any(f.severity == 'error' for f in found[1])
    said = caplog.text + ''.join(capsys.readouterr()) + str([f.to_df().to_string() for f in (*found, done.findings)]); assert not any(w in said for w in ('Zqsecret', 'Xkname', 'HOSP998877'))

def test_texts_where_numbers_and_codes_belong(tmp_path):
    from pydicom.dataelem import RawDataElement
    from medkit.dicom import head_volume, write_series
    vol, affine, _ = head_volume((8, 8, 2)); token = 'Zqmisplaced '
    for i, (k, vr) in enumerate(dict(SeriesNumber='IS', WindowCenter='DS', EchoTime='LO', FlipAngle='PN', ReferencedImageSequence='LO', StudyTime='TM', StudyInstanceUID='UI').items()):
        for f in write_series(vol, affine, tmp_path/'in'/k, number=i):
            ds = pydicom.dcmread(f); t = pydicom.tag.Tag(k); ds[t] = RawDataElement(t, vr, len(token), token.encode(), 0, False, True); ds.save_as(f)
    for f in write_series(vol, affine, tmp_path/'in'/'echo', number=20, PatientName='Zqm^Jane', BodyPartExamined='JANE', ManufacturerModelName='for Jane'): pass
    assert left(tmp_path/'in', [token.strip()]); done = deidentify(tmp_path/'in', tmp_path/'out')
    assert len(done.table) >= 10 and not left(tmp_path/'out', [token.strip(), 'jane'])

def test_a_disc_with_its_index(tmp_path):
    "DICOMDIR names the patients of a disc: it is told, its names are known, and it is not copied"
    disc = tmp_path/'disc'; shutil.copytree(get_testdata_file('CT_small.dcm', download=False).replace('CT_small.dcm', 'dicomdirtests/TINY_ALPHA'), disc)
    found = phi_check(disc); assert any('PatientName' in i for i in found.of('DICOM tags')[0].items if i.startswith('DICOMDIR')) and found.of('reports')
    shutil.copy(get_testdata_file('CT_small.dcm', download=False), disc); done = deidentify(disc, tmp_path/'out'); assert not done.key.old.str.contains('DICOMDIR').any() and any('no picture' in f.what for f in done.findings)

FILES = 'CT_small.dcm MR_small.dcm MR_small_RLE.dcm MR_small_bigendian.dcm MR_small_implicit.dcm MR_small_padded.dcm JPEG2000.dcm JPEG-lossy.dcm ExplVR_BigEnd.dcm examples_palette.dcm image_dfl.dcm SC_rgb_rle_2frame.dcm liver_1frame.dcm rtdose_1frame.dcm MR_small_jp2klossless.dcm nested_priv_SQ.dcm UN_sequence.dcm color-pl.dcm'.split()

def test_pydicoms_own_files(tmp_path):
    src = tmp_path/'in'; src.mkdir(); names = [n for n in FILES + ['reportsi.dcm', 'rtplan.dcm', 'MR_truncated.dcm', 'badVR.dcm', 'waveform_ecg.dcm', 'no_meta.dcm'] if get_testdata_file(n, download=False)]
    for i, n in enumerate(names):
        (src/f'{i}').mkdir(); (src/f'{i}'/n).write_bytes(open(get_testdata_file(n, download=False), 'rb').read())
    done = deidentify(src, tmp_path/'out'); assert len(done.table) >= 8 and phi_check(tmp_path/'out').of('DICOM tags') == phi_check(tmp_path/'out').of('private tags') == []
    for o, n in zip(done.key.old, done.key.new):
        a, b = pydicom.dcmread(src/o), pydicom.dcmread(tmp_path/'out'/n)
        assert a.file_meta.TransferSyntaxUID == b.file_meta.TransferSyntaxUID and a.PixelData.startswith(b.PixelData.rstrip(b'\0')) and (o.endswith('padded.dcm') or len(a.PixelData) <= len(b.PixelData) + 1)   # some cannot be decoded here; their bytes can be compared
    assert not {'reportsi.dcm', 'rtplan.dcm', 'MR_truncated.dcm', 'badVR.dcm'} & {o.split('/')[-1] for o in done.key.old}

def test_phi_check_finds_each_place(tmp_path):
    img = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)); img.header['descrip'] = b'Doe^Jane'; nib.save(img, tmp_path/'a.nii.gz')
    clean = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)); clean.header['descrip'] = b'FSL5.0'; nib.save(clean, tmp_path/'b.nii.gz')
    (tmp_path/'a.json').write_text('{"PatientName": "Doe", "EchoTime": 0.004}'); (tmp_path/'b.json').write_text('{"EchoTime": 0.004, "Manufacturer": "ACME"}')
    info = PngImagePlugin.PngInfo(); info.add_text('Author', 'Jane Doe'); page = np.full((80, 200), 30, np.uint8)
    Image.fromarray(page).save(tmp_path/'c.png', pnginfo=info); Image.fromarray(burn_in(page, 'DOE JANE 1957', size=14, value=255)).save(tmp_path/'d.png'); Image.fromarray(page).save(tmp_path/'e.png')
    clean.header.extensions += [nib.nifti1.Nifti1Extension(6, b'voxels are cubes')]; nib.save(clean, tmp_path/'h.nii.gz')
    (tmp_path/'19570312').mkdir(); (tmp_path/'19570312'/'f.csv').write_text('id\n1\n'); (tmp_path/'g.bin').write_bytes(b'\0'*9)
    found = phi_check(tmp_path); at = {f.check: f.items for f in found}
    assert at['NIfTI header'] == ['a.nii.gz: descrip may hold a name'] and at['sidecar'] == ['a.json: PatientName'] and at['picture data'] == ['c.png: Author']
    assert [i.split(':')[0] for i in at['text in the picture']] == ['d.png'] and len(at['names of files']) == 1 and at['not looked into'] == ['g.bin: .bin']
    assert [i.split(':')[0] for i in at['NIfTI extension']] == ['h.nii.gz'] and found.of('NIfTI extension')[0].severity == 'note'
    assert '1957' not in found.to_df().to_string() and 'Doe' not in found.to_df().to_string()

def ct_small(path, **tags):
    ds = pydicom.dcmread(get_testdata_file('CT_small.dcm', download=False))
    for k, v in tags.items(): setattr(ds, k, v)
    path.parent.mkdir(parents=True, exist_ok=True); ds.save_as(path); return ds

def test_no_slice_is_lost_where_a_uid_is_repeated(tmp_path):
    src = tmp_path/'in'
    for k in range(6): old = ct_small(src/f'{k}.dcm', ImagePositionPatient=[-158, -179, -75 + 5*k], InstanceNumber=k + 1)
    for k, c in enumerate(('John', 'Jane')): ct_small(src/f'planted{k}.dcm', PatientComments=c)     # the same number, too
    ref = Dataset(); ref.ReferencedSOPClassUID, ref.ReferencedSOPInstanceUID = old.SOPClassUID, old.SOPInstanceUID
    ct_small(src/'refers.dcm', SOPInstanceUID='1.2.3', ReferencedImageSequence=[ref]); shutil.copy(src/'0.dcm', src/'copy.dcm')
    done = deidentify(src, tmp_path/'out', secret='sixteen letters and more'); new = {o: pydicom.dcmread(tmp_path/'out'/n) for o, n in zip(done.key.old, done.key.new)}
    assert len(new) == 9 == len({d.SOPInstanceUID for d in new.values()}) and len({d.SeriesInstanceUID for d in new.values()}) == 1
    assert all(new[f'{k}.dcm'].ImagePositionPatient[2] == -75 + 5*k for k in range(6)) and new['refers.dcm'].ReferencedImageSequence[0].ReferencedSOPInstanceUID == new['0.dcm'].SOPInstanceUID
    assert [len(f.items) for f in done.findings if f.check == 'repeated UID'] == [7] and [f.items for f in done.findings if 'byte for byte' in f.what] == [['copy.dcm']]
    assert set(deidentify(src, tmp_path/'again', secret='sixteen letters and more').table.new) == set(done.table.new)

def test_what_is_left_out_is_not_called_by_its_name(tmp_path):
    src = tmp_path/'in'/'Zqmuster_Xkanna'; ct_small(src/'1.dcm', PatientName='Zqmuster^Xkanna')
    (src/'Zqmuster_cut.dcm').write_bytes((src/'1.dcm').read_bytes()[:9000]); (src/'befund_Zqmuster.txt').write_text('x'); (src/'Zqmuster_Xkanna.nii.gz').write_bytes(b'x')
    done = deidentify(tmp_path/'in', tmp_path/'out'); said = repr(done) + done._repr_html_() + done.findings.to_df().to_string()
    assert len([i for f in done.findings for i in f.items if i.startswith('file ')]) == 3 and 'Zqmuster' not in said and 'Xkanna' not in said

ECHOES = dict(short=dict(PatientName='Kim^Ho', ManufacturerModelName='KIM', ContentDescription='Mr Ho'), cjk=dict(SpecificCharacterSet='ISO_IR 192', PatientName='山田^太郎', ContentDescription='山田様'),
              code=dict(PatientName='Doe^John', ImageType=['ORIGINAL', 'PRIMARY', 'DOE JOHN'], BodyPartExamined='DOE'), birth=dict(PatientBirthDate='19610203', ContentDescription='born 19610203', ConvolutionKernel='03.02.1961'))

@pytest.mark.parametrize('kind', ECHOES)
def test_echoes_of_every_kind_are_dropped(tmp_path, kind):
    ct_small(tmp_path/'in'/'a.dcm', **ECHOES[kind]); done = deidentify(tmp_path/'in', tmp_path/'out'); ds = pydicom.dcmread(tmp_path/'out'/done.table.new[0])
    assert done.table.echoes[0] == 2 - (kind == 'cjk') and not any(str(ds.get(k, '')) for k in ('ManufacturerModelName', 'ContentDescription', 'ConvolutionKernel', 'BodyPartExamined') if k in ECHOES[kind]) and ds.Modality == 'CT'
    assert 'DOE' not in str(ds.ImageType) and ds.ImageType[0] == 'ORIGINAL'

def test_bytes_where_the_standard_has_none_are_removed(tmp_path):
    ds = ct_small(tmp_path/'in'/'a.dcm'); ds.add_new(0x00189ff0, 'OB', b'John Doe'); ds.add_new('CTAdditionalXRaySourceSequence', 'OB', b'John Doe'); ds.PatientBirthDateInAlternativeCalendar = 'S36'; ds.save_as(tmp_path/'in'/'a.dcm')
    deidentify(tmp_path/'in', tmp_path/'out'); assert left(tmp_path/'in', ['John Doe']) and not left(tmp_path/'out', ['John Doe', 'S36'])

@pytest.mark.parametrize('number', ('10008', '12345', '25000', '101112'))
def test_a_number_by_chance_elsewhere_costs_no_slice(tmp_path, number):
    from medkit.dicom import head_volume, write_series
    vol, affine, _ = head_volume((8, 8, 3)); write_series(vol, affine, tmp_path/'in', PatientID=number, RepetitionTime='25000', ImageOrientationPatient=['0.999123456', '0.0418613', '0', '-0.0418613', '0.999123456', '0'])
    done = deidentify(tmp_path/'in', tmp_path/'out'); assert len(done.table) == 3
    ct_small(tmp_path/'text'/'a.dcm', PatientID=number, ManufacturerModelName=f'for {number}.', StudyTime='')     # where it is a text, it goes
    done = deidentify(tmp_path/'text', tmp_path/'out2'); assert done.table.echoes[0] == 1
    ct_small(tmp_path/'bytes'/'a.dcm', PatientID=number, StudyTime='', RedPaletteColorLookupTableData=f'id {number} '.encode())
    with pytest.raises(MedkitError, match='a name is left'): deidentify(tmp_path/'bytes', tmp_path/'out3')

def test_what_a_marked_file_may_still_hold(tmp_path):
    from medkit.dicom import head_volume, write_series
    vol, affine, _ = head_volume((8, 8, 2)); write_series(vol, affine, tmp_path/'in', missing=[1]); done = deidentify(tmp_path/'in', tmp_path/'out'); clean = tmp_path/'out'/done.table.new[0]
    assert {f.check for f in phi_check(clean)} <= {'faces'}
    for i, (check, tags) in enumerate((('text', dict(ContentDescription='John Doe')), ('text', dict(BodyPartExamined='DOE JOHN')), ('DICOM tags', dict(LongitudinalTemporalInformationModified='REMOVED')), ('text', dict(PixelData=pydicom.dcmread(clean).PixelData + b'John Doe')))):
        ds = pydicom.dcmread(clean)
        for k, v in tags.items(): setattr(ds, k, v)
        ds.save_as(tmp_path/f'{i}.dcm'); found = phi_check(tmp_path/f'{i}.dcm'); assert found.of(check) and 'Doe' not in found.to_df().to_string()
    ds = pydicom.dcmread(clean); ds.ManufacturerModelName, code = 'Magnetom Skyra', Dataset(); code.CodeValue, code.CodingSchemeDesignator = '85756007', 'SCT'; ds.AnatomicRegionSequence = [code]; ds.save_as(tmp_path/'in2.dcm'); assert not phi_check(tmp_path/'in2.dcm').of('text')

def test_one_file(tmp_path):
    ct_small(tmp_path/'a.dcm', PatientName='Zqmuster^Xk'); (tmp_path/'b.txt').write_text('x'); done = deidentify(tmp_path/'a.dcm', tmp_path/'out')
    assert done.key.old.tolist() == ['a.dcm'] and len(files_of(tmp_path/'out')) == 1 and phi_check(tmp_path/'a.dcm').of('DICOM tags')
    with pytest.raises(MedkitError, match='no folder and no file'): phi_check(tmp_path/'none')

def test_every_annex_e_tag_is_told():
    missed = []
    for (g, e) in annex_e():
        tag = pydicom.tag.Tag(g, e); vr = DicomDictionary.get(tag, ('',))[0].split(' or ')[0]; p = Planter()
        if g > 2 and vr in (*TEXT, 'DA', 'DT', 'UI'):
            ds = Dataset(); ds.add_new(tag, vr, p.value(vr)); missed += [] if personal_tags(ds) else [keyword_for_tag(tag)]
    assert not missed

def test_text_is_found_at_every_size_and_rarely_where_none_is():
    hu = head_ct(60, seed=21)[0]; x = np.clip((hu + 10)*2.5, 0, 255).astype(np.uint8); big = np.kron(x, np.ones((2, 2), np.uint8))
    hits = sum(bool(burned_in_text(burn_in(big[i], 'MUELLER ANNA 1957', (4, 4), s))) for i in range(10) for s in (8, 12, 18))
    assert share(hits, 30).low > .7 and share(sum(bool(burned_in_text(o)) for o in x), 60).high < .15

@pytest.mark.realdata
def test_real_series(real_data, tmp_path):
    src = tmp_path/'in'; src.mkdir()
    for f in files_of(real_data/'dicom'/'Study1'/'12-T1post-05670')[::4]: shutil.copy(f, src)
    done = deidentify(src, tmp_path/'out')
    assert len(done.table) == len([f for f in files_of(src) if f.suffix == '.dcm']) and not [f for f in phi_check(tmp_path/'out') if f.severity == 'error']
    for o, n in list(zip(done.key.old, done.key.new)):
        a, b = (sitk.ReadImage(str(f)) for f in (src/o, tmp_path/'out'/n))
        assert a.GetOrigin() == b.GetOrigin() and a.GetSpacing() == b.GetSpacing() and a.GetDirection() == b.GetDirection() and np.array_equal(*map(sitk.GetArrayFromImage, (a, b)))

@pytest.mark.realdata
def test_real_pictures_without_text_stay_quiet(real_data):
    with zipfile.ZipFile(real_data/'rsna_tm'/'experiment4.tm') as z: pics = [np.array(Image.open(io.BytesIO(z.read(n)))) for n in z.namelist()[1:240:5] if n.endswith('.jpg')]
    quiet = share(sum(not burned_in_text(p) for p in pics), len(pics)); assert quiet.low > .85
