"""Volumes: faults that the notebook does not plant, each in a set of its own, and what must stay quiet."""
import json
import nibabel as nib, numpy as np, pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from medkit.findings import Findings
from medkit.phantom import make_sample
from medkit.volumes import open_volumes
from medkit.volume_checks import check_sides_of, check_volumes, islands, look_at, unlike

@pytest.fixture
def folder(tmp_path): return make_sample('organ_a', tmp_path/'a', n=6, seed=3)

def change(folder, kind, i, f):
    "Replace the image or mask of case `i` by `f(array, affine)`"
    file = folder/kind/f'organ_a_{i:03}.nii.gz'
    img = nib.load(file)
    x, affine = f(np.asarray(img.dataobj), img.affine.copy())
    nib.save(nib.Nifti1Image(x, affine), file)
    return str(file)

def checks(folder): return {f.check: f for f in check_volumes(folder) if f.severity != 'note'}

def test_a_clean_set_is_quiet(folder): assert checks(folder) == {}

@pytest.mark.parametrize('kind,check,f', [
    ('imagesTr', 'not finite', lambda x, a: (np.where(np.arange(x.size).reshape(x.shape) == 99, np.nan, x).astype('f4'), a)),
    ('imagesTr', 'constant', lambda x, a: (np.full_like(x, 7), a)),
    ('labelsTr', 'mask of fractions', lambda x, a: (x.astype('f4')*.7, a)),
    ('labelsTr', 'mask off its image', lambda x, a: (x[:-1], a)),
    ('labelsTr', 'unusual volume', lambda x, a: (x*(np.cumsum(x > 0).reshape(x.shape) < .03*(x > 0).sum()).astype(x.dtype), a)),
    ('labelsTr', 'label missing', lambda x, a: (np.minimum(x, 1), a))])
def test_one_fault(folder, kind, check, f):
    file = change(folder, kind, 2, f)
    found = checks(folder)
    assert check in found and any(file.split('/')[-1].split('\\')[-1] in i for i in found[check].items), Findings(found.values())

def test_a_copy_in_another_orientation_and_scale(folder):
    "The voxels of case 0, turned, times three plus five, under the name of case 4"
    src = nib.load(folder/'imagesTr/organ_a_000.nii.gz')
    turn = ornt_transform(io_orientation(src.affine), axcodes2ornt('SPL'))
    other = src.as_reoriented(turn)
    change(folder, 'imagesTr', 4, lambda x, a: ((np.asarray(other.dataobj)*3. + 5).astype('f4'), other.affine))
    found = checks(folder)['copies']
    assert sorted(i[-10:-7] for i in found.items) == ['000', '004'] and found.severity == 'error'

def test_findings_draw(folder):
    change(folder, 'labelsTr', 1, lambda x, a: (x*0, a))
    fig = checks(folder)['empty mask'].draw()
    assert len(fig.axes) == 3

def test_islands_against_a_distance_by_hand():
    m = np.zeros((40, 10, 10), bool)
    m[:10], m[22:24, 2:4, 2:4] = True, True
    assert islands(m, (2, 1, 1)) == (8, 26.) and islands(m[:10], (1, 1, 1)) == (0, 0.)

def test_unlike_says_nothing_of_three(): assert not unlike([1, 1, 100], 1).any()

@pytest.mark.realdata
def test_hippocampus(real_data):
    "Hippocampus: no errors, no copies; the intensity scale is noted, and slipped masks cannot be told from right ones"
    folder = real_data/'Task04_Hippocampus'
    if not folder.is_dir(): pytest.skip('hippocampus absent')
    s = open_volumes(folder)
    s.cases = s.cases[:70]
    found = {f.check: f for f in check_volumes(s)}
    assert all(f.severity != 'error' for f in found.values())
    assert {'intensity scale', 'mask position not judged'} <= set(found) and not {'copies', 'mask has slipped', 'mask is mirrored'} & set(found)

@pytest.mark.realdata
def test_left_and_right_exchanged(real_data, name='Task04_Hippocampus'):
    "In two images and two other masks of a real set: all four are named against the rest, and nobody else; nobody where nothing was exchanged"
    if not (real_data/name).is_dir(): pytest.skip(f'{name} absent')
    s = open_volumes(real_data/name)
    rows = [look_at(c, s.labels, 1) for c in s.cases[:16]]
    assert check_sides_of(rows) == []
    for key, cases in (('coarse', (3, 8)), ('coarse mask', (5, 11))):
        for i in cases: rows[i][key] = rows[i][key][::-1]
    found, = check_sides_of(rows)
    assert set(found.items) == {str(s.cases[i].label) for i in (3, 5, 8, 11)} and found.what.startswith('In 4 of 16 cases')

def test_images_of_the_test_list_are_read(folder):
    "A training image that lies in imagesTs as well, once as it is and once mirrored; a listed file that is absent or outside is passed over"
    (folder/'imagesTs').mkdir()
    src = nib.load(folder/'imagesTr/organ_a_002.nii.gz')
    nib.save(src, folder/'imagesTs/t1.nii.gz'); nib.save(nib.Nifti1Image(np.asarray(src.dataobj)[::-1], src.affine), folder/'imagesTs/t2.nii.gz')
    d = json.loads((folder/'dataset.json').read_text())
    (folder/'dataset.json').write_text(json.dumps(d | dict(test=['./imagesTs/t1.nii.gz', {'image': 'imagesTs/t2.nii.gz'}, 'imagesTs/none.nii.gz', '../../x.nii.gz'])))
    found = checks(folder)
    assert set(found) == {'copies'} and '3 pairs' in found['copies'].what and '2 in training and test' in found['copies'].what
    assert sorted(i.replace('\\', '/').split('/')[-1] for i in found['copies'].items) == ['organ_a_002.nii.gz', 't1.nii.gz', 't2.nii.gz']
