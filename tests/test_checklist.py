"""The seven items on projects, volumes, pictures and DICOM: what a check can tell, what stays open, and what no answer mends"""
import html, json
import nibabel as nib, numpy as np, pandas as pd, pytest
from PIL import Image
from medkit.checklist import ITEMS, checklist
from medkit.core import MedkitError
from medkit.dicom import head_volume, write_series
from medkit.findings import stop_at
from medkit.images import open_images
from medkit.loaders import image_dls
from medkit.phantom import make_sample
from medkit.volumes import open_volumes

@pytest.fixture
def organs(tmp_path): make_sample('organ_a', tmp_path/'organs', n=3); return tmp_path/'organs'

def states(c): return {i.key: i.state for i in c.items}

def test_both_reports_say_the_same(organs, tmp_path):
    c = checklist(organs, tmp_path/'out', dict(atlas='none needed <yet>'))
    md, page = ((tmp_path/'out'/f'checklist-{c.day}.{e}').read_text(encoding='utf-8') for e in ('md', 'html'))
    for i in c.items:
        for line in (i.title, i.state, i.answer, *i.evidence): assert line in md and html.escape(line) in page
    assert '![' in md and 'data:image' in page and '<yet>' not in page and str(tmp_path) not in md + page
    assert {f.name for f in (tmp_path/'out').iterdir()} == {'sizes.csv', 'raw.json', 'answers.json', 'some.png', f'checklist-{c.day}.md', f'checklist-{c.day}.html'}
    df = pd.read_csv(tmp_path/'out'/'sizes.csv'); img = nib.load(open_volumes(organs).cases[0].image)
    assert len(df) == 3 and sorted(df.filter(like='spacing').iloc[0]) == pytest.approx(sorted(img.header.get_zooms()[:3]), abs=1e-3)

def test_answers_stay_and_failures_are_not_talked_away(organs, tmp_path):
    everything = {k: 'seen by me' for k in ITEMS}
    assert set(states(checklist(organs, tmp_path/'out', everything)).values()) == {'done by check', 'answered'}
    again = checklist(organs, tmp_path/'out'); assert set(states(again).values()) == {'done by check', 'answered'} and again['atlas'].answered
    img = nib.load(f := open_volumes(organs).cases[0].label); nib.save(nib.Nifti1Image(img.get_fdata().astype('f4')*.5, img.affine), f)
    c = checklist(organs, tmp_path/'out'); assert c['grid'].state == 'failed' and c['raw'].state == 'failed' and '1 have changed' in ' '.join(c['raw'].evidence)
    with pytest.raises(MedkitError, match='grid'): stop_at(c.findings)

def test_nothing_is_written_without_out(organs):
    before = sorted(organs.rglob('*')); c = checklist(organs); assert sorted(organs.rglob('*')) == before
    assert states(c) == dict(sizes='open', raw='open', grid='open', anonymisation='open', sources='open', atlas='open') | {'looked at': 'open'}

def test_a_clean_search_leaves_the_question(organs, tmp_path):
    "No program sees a face in a NIfTI file: what phi_check does not find is evidence, not an answer"
    c = checklist(organs); assert c['anonymisation'].state == 'open' and 'faces' in ' '.join(c['anonymisation'].evidence)
    assert checklist(organs, tmp_path/'out', dict(anonymisation='defaced and looked at by me'))['anonymisation'].state == 'answered'

def test_no_name_of_a_person_anywhere(tmp_path):
    "Names in folders, file names, tags and sidecars: the reports, the tables and what is printed repeat none"
    vol, affine, _ = head_volume((16, 16, 4)); bad = tmp_path/'in'
    write_series(vol, affine, bad/'Quillfeather^Zeb', PatientName='Quillfeather^Zeb', Manufacturer='for Quillfeather', InstitutionName='Quillfeather House')
    write_series(vol, affine, bad/'b', number=2, missing=[2], PatientName='Quillfeather^Zeb', PhotometricInterpretation='MONOCHROME1')
    (bad/'b'/'Quillfeather^Zeb.json').write_text('{"Manufacturer": "Quillfeather^Zeb", "PatientName": "Quillfeather"}')
    c = checklist(bad, tmp_path/'out'); said = repr(c) + c._repr_html_() + c.to_df().to_csv() + repr(c.findings)
    said += ''.join(f.read_text(encoding='utf-8') for f in (tmp_path/'out').iterdir() if f.suffix in ('.md', '.html', '.csv'))
    assert 'uillfeather' not in said and c['anonymisation'].state == 'failed' and 'deidentify' in said

def test_names_fail_the_item_and_are_not_repeated(tmp_path):
    (tmp_path/'in').mkdir()
    for i, n in enumerate(('Doe^Jane', 'b')): nib.save(nib.Nifti1Image(np.random.default_rng(i).random((8, 8, 8), 'f4'), np.diag([1, 1, 1 + i, 1])), tmp_path/'in'/f'{n}.nii.gz')
    c = checklist(tmp_path/'in', tmp_path/'out'); said = repr(c) + c._repr_html_() + ''.join(f.read_text(encoding='utf-8') for f in (tmp_path/'out').glob('*.[hmc]*'))
    assert c['anonymisation'].state == 'failed' and c['grid'].state == 'open' and 'spacing' in ' '.join(c['grid'].evidence)
    assert 'Doe' not in said and 'Jane' not in said

def test_dicom_of_two_scanners(tmp_path):
    vol, affine, _ = head_volume((16, 16, 4))
    for i, model in enumerate(('ACME one', 'Other two')): write_series(vol, affine, tmp_path/'in'/f's{i}', ManufacturerModelName=model, seed=i)
    c = checklist(tmp_path/'in', tmp_path/'out')
    assert c['sources'].state == 'done by check' and '4 files: medkit, Other two, 120 kV.' in ' '.join(c['sources'].evidence) and c['anonymisation'].state == 'failed'
    assert len(pd.read_csv(tmp_path/'out'/'sizes.csv')) == 2 and 'Invented' not in repr(c)

def test_pictures_loaders_and_arrays(tmp_path):
    for c in 'ab':
        (tmp_path/'in'/c).mkdir(parents=True)
        for i in range(4): Image.fromarray(np.random.default_rng(i).integers(0, 255, (24, 24), np.uint8)).save(tmp_path/'in'/c/f'{i}.png')
    c = checklist(tmp_path/'in', tmp_path/'out'); assert c['grid'].state == 'done by check' and c['sizes'].state == 'done by check'
    s = open_images(tmp_path/'in'); assert checklist(s, tmp_path/'out2')['raw'].evidence[0].startswith('8 files')
    assert checklist(open_images(tmp_path/'in').load(24))['raw'].state == 'open'

@pytest.mark.parametrize('source, words', [('none', 'does not exist'), ('empty', 'no volumes'), (3, 'neither a folder')])
def test_bad_sources(tmp_path, source, words):
    (tmp_path/'empty').mkdir()
    with pytest.raises(MedkitError, match=words): checklist(tmp_path/source if isinstance(source, str) else source)

def test_bad_answers_and_places(organs, tmp_path):
    with pytest.raises(MedkitError, match='did you mean anonymisation'): checklist(organs, answers=dict(anonymization='x'))
    with pytest.raises(MedkitError, match='inside the data'): checklist(organs, organs/'report')
    bad = tmp_path/'out'; bad.mkdir(); (bad/'answers.json').write_text('{"atlas": ')
    with pytest.raises(MedkitError, match='answers.json'): checklist(organs, bad)

@pytest.mark.realdata
def test_hippocampus(real_data, tmp_path):
    from dataclasses import replace
    vs = open_volumes(real_data/'Task04_Hippocampus'); vs = replace(vs, cases=vs.cases[:6], folder=None)
    c = checklist(vs, tmp_path/'out'); assert c['grid'].state == 'done by check' and c['sizes'].state == 'done by check' and c['anonymisation'].state == 'open'

def test_one_grid_is_of_one_place(tmp_path):
    "Equal sizes and spacings are no registration: the grids must lie in one place"
    for i in range(3): nib.save(nib.Nifti1Image(np.random.default_rng(i).random((8, 8, 8), 'f4'), np.eye(4)), tmp_path/f'{i}.nii.gz')
    assert 'share one grid' in checklist(tmp_path)['atlas'].evidence[0]
    far = np.eye(4); far[:3, 3] = 500, 300, -200; nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), 'f4'), far), tmp_path/'2.nii.gz')
    assert 'several places' in checklist(tmp_path)['atlas'].evidence[0]

def test_loaders_know_their_folder(tmp_path):
    for i in range(40): (f := tmp_path/'in'/'ab'[i % 2]/f'{i:02}.png').parent.mkdir(parents=True, exist_ok=True); Image.fromarray(np.random.default_rng(i).integers(0, 255, (24, 24), np.uint8)).save(f)
    c = checklist(image_dls(tmp_path/'in', device='cpu'), tmp_path/'out')
    assert c['raw'].evidence[0] == '40 files in in.' and set(pd.read_csv(tmp_path/'out'/'sizes.csv')['item']) == {f'{"ab"[i % 2]}/{i:02}.png' for i in range(40)}

def test_one_file_of_pictures(tmp_path):
    "A folder as `make_sample` leaves it: its pictures are in one file"
    c = checklist(make_sample('lesions', tmp_path/'packed', 100))
    assert c['sizes'].evidence[0] == '100 pictures: width 28, height 28.'
    assert checklist(tmp_path/'packed'/'lesions.npz')['sizes'].evidence == c['sizes'].evidence
