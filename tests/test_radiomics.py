"""Radiomics: IBSI's phantom from files, mirp beside our own code on real pictures, properties, leaks, damaged input"""
import logging, sys
import nibabel as nib, numpy as np, pandas as pd, pytest
from medkit.core import MedkitError
from medkit.evaluate import evaluate_classes
from medkit.images import ImageSet, open_images
from medkit.radiomics import (_mirp, classical, folds_of, importance, learner, nested_cv, radiomics, radiomics_model, together)

TEXTURE = ['first_order', 'glcm', 'glrlm', 'glszm']
rng = np.random.default_rng(0)
def picture(n=24): return rng.integers(0, 256, (n, n)).astype(np.uint8)
def same(a, b, rtol=1e-6): assert {c: (a[c], b[c]) for c in b.index if not np.isclose(a[c], b[c], rtol=rtol, atol=1e-6, equal_nan=True)} == {}
def auc(p, y): return evaluate_classes(p, y, [str(i) for i in range(p.shape[1])])['AUC, macro one-vs-rest']

@pytest.fixture
def phantom(tmp_path):
    "IBSI's digital phantom (Zwanenburg, CC BY 4.0) as NIfTI, 2 mm voxels"
    x = np.array([[[1,4,4,1,1], [1,4,6,1,1], [4,1,6,4,1], [4,4,6,4,1]], [[1,4,4,1,1], [1,1,6,1,1], [1,1,3,1,1], [4,4,6,1,1]],
                  [[1,4,4,1,1], [1,1,1,1,1], [1,1,9,1,1], [1,1,6,1,1]], [[1,4,4,1,1], [1,1,1,1,1], [1,1,1,1,1], [1,1,6,1,1]]], np.int16).transpose(2, 1, 0)
    m = np.ones(x.shape, np.uint8)
    m[0, 2, 1] = m[2, 2, 2] = 0; m[3:, 0, 2:] = 0
    save = lambda a, name: nib.save(nib.Nifti1Image(a, np.diag([2, 2, 2, 1])), tmp_path/name) or tmp_path/name
    return save(x, 'phantom.nii.gz'), save(m, 'mask.nii.gz')


# --- known values

def test_phantom_from_files_gives_ibsis_values(phantom):
    r = radiomics([phantom[0]], [phantom[1]], families=[*TEXTURE, 'ngtdm', 'ngldm', 'gldzm', 'shape'], levels=6).iloc[0]
    known = dict(first_order_mean=2.15, first_order_var=3.05, first_order_kurt=-.355, first_order_rmad=1.11, glcm_contrast=5.12, glcm_corr=.183, glcm_clust_prom=147, glcm_info_corr2=.269,
                 glrlm_lre=2.76, glrlm_rlnu=328, glszm_lze=550, glszm_zs_entr=2.32, ngtdm_busyness=6.54, ngldm_hde=109, gldzm_sde=1, shape_volume=556, shape_area_mesh=388, shape_sphericity=.843,
                 shape_diam=13.1, shape_pca_maj_axis=11.4, shape_vol_dens_conv_hull=.961)
    assert {k: float(f'{r[k]:.3g}') for k in known} == known

def test_boxes_have_the_volume_and_diameter_of_boxes():
    m = np.zeros((20, 24, 16)); m[4:14, 4:18, 4:9] = 1
    r = radiomics([m], spacing=(.5, 1, 2)).iloc[0]
    assert r.shape_vol_approx == 5*14*10 and r.shape_volume == pytest.approx(700, rel=.03)
    assert r.shape_diam == pytest.approx(np.linalg.norm((5, 14, 10)), rel=.06)               # the mesh cuts the corners
    assert r.shape_area_mesh == pytest.approx(2*(5*14 + 5*10 + 14*10), rel=.07)


# --- properties

@pytest.mark.parametrize('turn', [lambda a: a[::-1], lambda a: a.T, lambda a: np.rot90(a)])
def test_turned_pictures_have_the_same_features(turn):
    x, m = picture(), rng.random((24, 24)) < .7
    same(radiomics([turn(x)], [turn(m)]).filter(regex='first|gl|shape_(area|perim|solid)').iloc[0], radiomics([x], [m]).filter(regex='first|gl|shape_(area|perim|solid)').iloc[0])

def test_texture_does_not_depend_on_brightness_and_contrast():
    x = picture().astype(float)
    a, b = (radiomics([v], families=['glcm', 'glrlm', 'glszm', 'first_order']).iloc[0] for v in (x, 4*x + 64))
    same(b.filter(regex='^gl'), a.filter(regex='^gl'))
    assert b.first_order_mean == pytest.approx(4*a.first_order_mean + 64)

def test_what_lies_outside_of_the_mask_changes_nothing():
    x, m = picture(), np.zeros((24, 24), bool); m[5:15, 6:20] = True
    a = radiomics([x], [m], families=[*TEXTURE, 'shape']).iloc[0]
    same(radiomics([np.where(m, x, 255*(np.indices(x.shape).sum(0) % 2))], [m], families=[*TEXTURE, 'shape']).iloc[0], a)
    v, k = rng.normal(100, 9, (9, 10, 11)), np.zeros((9, 10, 11), bool); k[2:6, 2:8, 3:9] = True
    b = radiomics([v], [k]).iloc[0]
    same(radiomics([np.where(k, v, 1e4)], [k]).iloc[0], b)
    same(radiomics([np.pad(v, 4)], [np.pad(k, 4)]).iloc[0], b)                            # nor how much there is of it
    same(radiomics([np.where(k, v, np.nan)], [k]).iloc[0], b)

def test_a_colour_picture_is_described_by_channel():
    x = np.stack([picture() for _ in range(3)], -1)
    r, g = radiomics(x[None]).iloc[0], radiomics(x[None, ..., 1]).iloc[0]
    same(r.filter(regex='^green_').rename(lambda c: c[6:]), g)

def test_processes_give_the_same_table():
    x = np.stack([picture() for _ in range(6)])
    pd.testing.assert_frame_equal(radiomics(x, n_jobs=2), radiomics(x))

def test_the_columns_do_not_depend_on_which_picture_comes_first():
    x = [np.zeros((24, 24)), picture()]
    assert list(radiomics(x).columns) == list(radiomics(x[::-1]).columns)

def test_mirp_leaves_the_root_logger_alone(phantom):
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    radiomics([phantom[0]], [phantom[1]])
    assert (root.level, list(root.handlers)) == before

def test_pictures_need_no_mirp_and_volumes_say_how_to_get_it(monkeypatch, phantom):
    monkeypatch.setitem(sys.modules, 'mirp', None)
    assert len(radiomics([picture()], [picture() > 50]))
    with pytest.raises(MedkitError, match=r"phantom.nii.gz: .*pip install 'medkit\[radiomics\]'"): radiomics([phantom[0]], [phantom[1]])


# --- bad input

def test_faults_are_told_with_the_name_of_the_case(phantom, tmp_path):
    img, msk = phantom
    def saved(a, name, affine=np.diag([2, 2, 2, 1])): nib.save(nib.Nifti1Image(a, affine), tmp_path/name); return tmp_path/name
    m, x = np.asarray(nib.load(msk).dataobj), nib.load(img).get_fdata()
    nan = x.copy(); nan[3, 3, 3] = np.nan
    (tmp_path/'cut.nii.gz').write_bytes(img.read_bytes()[:60])
    for image, mask, text in [(img, saved(m*0, 'none.nii.gz'), 'phantom.nii.gz: its mask is empty'), (img, saved(m, 'moved.nii.gz', np.diag([1, 1, 1, 1])), 'another grid'),
                              (img, m[:3], 'its mask has the shape'), (saved(nan, 'nan.nii.gz'), msk, 'nan.nii.gz: it holds NaN'), (tmp_path/'cut.nii.gz', msk, 'cut.nii.gz'),
                              (tmp_path/'lost.nii.gz', msk, 'does not exist'), (saved(rng.normal(size=(4, 4, 4, 2)), '4d.nii.gz'), None, r'its shape is \(4, 4, 4, 2\)')]:
        with pytest.raises(MedkitError, match=text): radiomics([image], None if mask is None else [mask])

def test_one_voxel_and_one_grey_value_are_described_as_far_as_they_can_be():
    v, k = rng.normal(size=(6, 7, 8)), np.zeros((6, 7, 8)); k[2, 3, 4] = 1
    r = radiomics([v], [k], families=['first_order', 'glcm', 'shape']).iloc[0]
    assert r.first_order_mean == pytest.approx(v[2, 3, 4]) and r.filter(regex='glcm').isna().all() and r.shape_vol_approx == 1
    r = radiomics([np.ones((6, 7, 8))], [k + 1]).iloc[0]
    assert r.first_order_var == 0 and r.filter(regex='^gl').isna().all() and r.shape_vol_approx == 6*7*8

def test_gaps_and_infinities_reach_no_learner():
    X, y = rng.normal(size=(90, 4)), np.arange(90) % 2
    X[:, 0] += 2*y; X[::7, 0] = np.nan; X[::11, 1] = np.inf; X[:, 2] = np.nan
    for kind in ('logistic', 'forest'):
        r = classical(X, y, np.repeat(['train', 'val', 'test'], 30), kind)
        assert np.isfinite(r['test']).all() and auc(r['test'], y[60:]).value > .7


# --- learners

def test_tossed_labels_are_not_learnt():
    "Over 10 worlds of noise the mean AUC is .5: neither the setting nor the scaling has seen the held-out cases"
    a = [auc(nested_cv(np.random.default_rng(i).normal(size=(60, 30)), np.random.default_rng(-i % 97).permutation(60) % 2, folds=3, inner=2, seed=i)[0],
             np.random.default_rng(-i % 97).permutation(60) % 2).value for i in range(10)]
    assert abs(np.mean(a) - .5) < 3*np.std(a)/10**.5 + .02

def test_nested_probabilities_are_those_of_models_that_saw_other_cases():
    X, y = rng.normal(size=(60, 5)), np.arange(60) % 3
    p, t = nested_cv(X, y, folds=3, inner=2)
    k, (tr, te) = 1, folds_of(y, n=3)[1]
    again = learner('logistic', logisticregression__C=t.C[k]).fit(X[tr], y[tr]).predict_proba(X[te])
    np.testing.assert_allclose(p[te], again)
    X2 = X.copy(); X2[te] += 100                                                           # held-out cases move: the choice does not
    assert nested_cv(X2, y, folds=3, inner=2)[1].C[k] == t.C[k]

def test_patients_are_never_divided():
    who, y = np.repeat(np.arange(30), rng.integers(1, 6, 30)), None
    y = (np.arange(30) % 3)[who]
    for tr, te in folds_of(y, who, 5): assert not set(who[tr]) & set(who[te]) and set(y[tr]) == {0, 1, 2}
    with pytest.raises(MedkitError, match='Class 0 has 3 groups: too few for 5 folds'): folds_of(np.arange(30) % 3, np.arange(30) % 3 + 3*(np.arange(30) % 9 // 3), 5)

def test_labels_may_be_words():
    X, y = rng.normal(size=(60, 3)), np.array(['benign', 'malignant'])[np.arange(60) % 2]
    X[:, 0] += 3*(y == 'malignant')
    assert ((nested_cv(X, y, folds=3)[0].argmax(1) == 1) == (y == 'malignant')).mean() > .8

def test_a_column_that_the_model_does_not_use_has_no_importance():
    X = pd.DataFrame(rng.normal(size=(300, 3)), columns=list('abc'))
    X['a2'] = -X.a**3                                                                      # same ranks, turned round
    y = (X.a + .3*rng.normal(size=300) > 0).astype(int)
    assert together(X) == [['a', 'a2'], ['b'], ['c']]
    X['b'] = 0
    m = classical(X.assign(b=0.), y, np.repeat(['train', 'val', 'test'], 100))['model']
    t = importance(m, X[200:], y[200:]).set_index('features')
    assert t.importance['a, a2'] > .2 and abs(t.importance['b']) < 1e-12 and t.low['a, a2'] > 0

def test_a_set_without_validation_or_with_other_tasks():
    x, y = np.stack([picture(12) for _ in range(90)]), np.arange(90) % 2
    x[y == 1] //= 4
    s = ImageSet(x, y, np.repeat(['train', 'test'], [60, 30]), ['a', 'b'], 'noise')
    r = radiomics_model(s)
    assert r['val'].shape == (0, 2) and auc(r['test'], y[60:]).value > .95 and r['n_features'] == r['X'].shape[1]
    for task, labels, classes in [('multi-label, binary-class', np.eye(2)[y], ['a', 'b']), ('regression', y*.5, [])]:
        with pytest.raises(MedkitError, match='one class a picture'): radiomics_model(ImageSet(x, labels, s.splits, classes, 'odd', task))


# --- real data

@pytest.mark.realdata
@pytest.mark.parametrize('file', ['medmnist/pneumoniamnist_rebuilt.npz', 'ham10000/ham7_28.npz'])
def test_ours_and_mirps_agree_on_real_pictures(real_data, file):
    x = np.load(real_data/file)['test_images'][:6]
    x = x if x.ndim == 3 else x[..., 1]
    for a in x:
        for m in (np.ones(a.shape, bool), a > np.median(a)):
            same(radiomics([a], [m], families=TEXTURE).iloc[0], pd.Series(_mirp(a[..., None].astype(float), m[..., None], TEXTURE, (1, 1, 1), 32)), rtol=2e-4)

@pytest.mark.realdata
def test_hippocampus_cases_from_their_files(real_data):
    files = sorted((real_data/'Task04_Hippocampus'/'labelsTr').glob('hippo*'))[:3]
    t = radiomics([real_data/'Task04_Hippocampus'/'imagesTr'/f.name for f in files], files)
    voxels = [np.count_nonzero(np.asarray(nib.load(f).dataobj)) for f in files]
    assert list(t.shape_vol_approx) == voxels and t.notna().all(axis=None)                 # spacing 1 mm
    assert (abs(t.shape_volume/voxels - 1) < .05).all() and list(t.index) == [f.name for f in files]

@pytest.mark.realdata
def test_adrenal_masks_have_a_shape(real_data):
    x = np.load(real_data/'medmnist'/'adrenalmnist3d.npz')['test_images'][:4]
    t = radiomics(x)
    assert all(c.startswith('shape') for c in t) and list(t.shape_vol_approx) == [(a > 0).sum() for a in x]

@pytest.mark.realdata
def test_pneumonia_is_told_from_radiomics_alone(real_data):
    s = open_images(real_data/'medmnist'/'pneumoniamnist_rebuilt.npz').part(np.r_[0:400, 4708:4908, 5232:5532])
    r = radiomics_model(s)
    assert auc(r['test'], s.part('test').labels).low > .75
