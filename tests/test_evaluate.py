"""Evaluation and report across modules: real masks, damaged files, learners from `classify` and `segment`, the page's promises"""
import gzip, json, math, re, shutil
import nibabel as nib, numpy as np, pytest
from medkit.core import MedkitError
from medkit.masks import compare_results, evaluate_folder, evaluate_masks, hd95, score_masks
from medkit.pages import Page
from medkit.report import report


def save(m, path, affine): path.parent.mkdir(parents=True, exist_ok=True); nib.save(nib.Nifti1Image(m.astype(np.uint8), affine), path)


@pytest.fixture
def folders(tmp_path):
    "Three predictions and truths on an oblique grid with uneven spacing"
    affine = np.array([[.8, .1, 0, -30], [-.1, .8, 0, 12], [0, 0, 3., 7], [0, 0, 0, 1]])
    m = np.zeros((20, 24, 10)); m[5:12, 6:18, 3:8] = 1; m[12:15, 6:18, 3:8] = 2
    for i in range(3): save(m, tmp_path/'truth'/f'p{i}.nii.gz', affine); save(np.roll(m, i, 2), tmp_path/'pred'/f'p{i}.nii.gz', affine)
    return tmp_path/'pred', tmp_path/'truth'


def test_folder_uses_the_files_millimetres(folders):
    r = evaluate_folder(*folders)
    pc = r.per_case.set_index(['case', 'label'])
    assert (pc.dice['p0'] == 1).all() and (pc.hd95['p0'] == 0).all()
    assert pc.hd95['p2', 'label 1'] == pytest.approx(6)                                   # two slices of 3 mm
    assert pc.dice['p1', 'label 2'] == pytest.approx(.8)                                  # four of five slices in common
    assert pc.true_ml['p1', 'label 1'] == pytest.approx(7*12*5*(.8**2+.1**2)*3/1000)
    assert list(r['Dice'].n) == [3, 3, 3]


def test_every_distance_is_monai_s_on_an_oblique_uneven_grid(folders):
    import torch
    from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance, compute_surface_dice
    from medkit.masks import voxel_mm
    pc = evaluate_folder(*folders, tolerance={1: 1, 2: 3}).per_case.set_index(['case', 'label'])
    for c in ('p0', 'p1', 'p2'):
        p, t = (nib.load(f/f'{c}.nii.gz') for f in folders)
        kw = dict(include_background=True, spacing=voxel_mm(t).tolist())
        for l, tol in ((1, 1), (2, 3)):
            one = [torch.tensor(np.asarray(m.dataobj) == l)[None, None] for m in (p, t)]
            want = dict(dice=compute_dice(*one), hd95=compute_hausdorff_distance(*one, percentile=95, **kw), surface_dice=compute_surface_dice(*one, [tol], **kw),
                        assd=compute_average_surface_distance(*one, symmetric=True, **kw))
            for k, v in want.items(): assert pc.loc[(c, f'label {l}'), k] == pytest.approx(v.item(), abs=1e-6), k
    assert pc.surface_dice['p1', 'label 2'] == 1 and pc.surface_dice['p1', 'label 1'] < 1     # moved by 3 mm: within 3, not within 1


@pytest.mark.parametrize('pad', [0, 1, 7])
def test_background_round_the_masks_changes_nothing(pad):
    "Distances are measured in the box round both masks; a mask at the picture's edge has its border there"
    rng = np.random.default_rng(pad)
    p, t = (rng.random((9, 8, 7)) < .6 for _ in range(2))
    want, got = (score_masks(*m, (1, .5, 3), [1])[0] for m in ((p, t), [np.pad(x, ((pad, 0), (0, pad), (pad, pad))) for x in (p, t)]))
    assert got == want


def test_mirrored_and_turned_masks_score_the_same():
    rng = np.random.default_rng(0)
    p, t, sp = rng.random((9, 8, 7)) < .2, rng.random((9, 8, 7)) < .2, (1, .5, 3)
    want = score_masks(p, t, sp, [1])[0]
    for got in (score_masks(p[::-1, :, ::-1], t[::-1, :, ::-1], sp, [1])[0], score_masks(p.transpose(2, 0, 1), t.transpose(2, 0, 1), (3, 1, .5), [1])[0]):
        assert {k: v for k, v in got.items() if isinstance(v, float)} == pytest.approx({k: v for k, v in want.items() if isinstance(v, float)}, abs=1e-6)
    swapped = score_masks(t, p, sp, [1])[0]
    assert all(swapped[k] == pytest.approx(want[k], abs=1e-6) for k in ('dice', 'hd95', 'assd', 'surface_dice')) and swapped['error_ml'] == -want['error_ml']


def test_the_perfect_mask_that_scored_1_35(folders):
    "Labels 0 and 2, or probabilities, are no binary masks: refused, not scored above 1"
    from medkit.masks import dice, surface_dice
    m = np.zeros((6, 6, 6)); m[2:4, 2:4, 2:4] = 2
    for f in (lambda: dice(m, m), lambda: surface_dice(m/4, m/2, (1, 1, 1)), lambda: hd95(m, m, (1, 1, 1))):
        with pytest.raises(MedkitError, match='only 0 and 1'): f()
    with pytest.raises(MedkitError, match='unknown label 2'): score_masks(m, m, (1, 1, 1), [1])
    assert score_masks(m, m, (1, 1, 1), [2])[0]['dice'] == 1


def test_one_voxel_each():
    m = np.zeros((5, 5, 5), int); n = m.copy(); m[0, 0, 0] = n[0, 0, 4] = 1
    row = score_masks(m, n, (1, 1, 3), [1], tolerance=12)[0]
    assert (row['dice'], row['hd95'], row['assd'], row['surface_dice']) == (0, 12, 12, 1) and row['error_pct'] == 0


def test_results_side_by_side(folders):
    r = evaluate_folder(*folders)
    same = compare_results(r, r)
    assert (same.difference.dropna() == 0).all() and set(same.verdict) == {'not distinguishable'} and set(same.label) == {'label 1', 'label 2', 'all labels'}
    worse = evaluate_masks(r.per_case.assign(dice=r.per_case.dice - [.1, .1, .2, .2, .3, .3], error_ml=-r.per_case.error_ml - 1))
    c = compare_results(r, worse).set_index(['metric', 'label'])
    assert c.difference['Dice', 'label 1'] == pytest.approx(.2) and c.verdict['Dice', 'label 1'] == 'better'
    assert c.verdict['size of volume error (ml)', 'label 2'] == 'better'                       # 1 ml off against 0
    with pytest.raises(MedkitError, match='scored in one result only'): compare_results(r, evaluate_masks(r.per_case[2:]))


def test_orientation_of_the_file_does_not_matter(folders):
    pred, truth = folders
    want = evaluate_folder(pred, truth).table
    for f in (pred/'p2.nii.gz', truth/'p2.nii.gz'):
        img = nib.load(f); turned = img.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
        save(np.asarray(turned.dataobj), f, turned.affine)
    got = evaluate_folder(pred, truth).table
    assert np.allclose(got[['value', 'low', 'high']], want[['value', 'low', 'high']], atol=1e-5)


@pytest.mark.parametrize('damage', [lambda b: b[:60], lambda b: b'', lambda b: gzip.compress(b'no volume'), lambda b: b[:-40] + bytes(40)])
def test_damaged_file_is_named(folders, damage):
    f = folders[0]/'p1.nii.gz'; f.write_bytes(damage(f.read_bytes()))
    with pytest.raises(MedkitError, match='p1.nii.gz'): evaluate_folder(*folders)


def test_missing_partner_and_empty_folder(folders, tmp_path):
    (folders[0]/'p1.nii.gz').unlink()
    r = evaluate_folder(*folders)
    assert '1 truth masks have no prediction and are not scored: p1.' in r.notes and r['Dice'].n.max() == 2 and r.table.low.isna().all()
    (tmp_path/'none').mkdir()
    with pytest.raises(MedkitError, match='No file name occurs in both'): evaluate_folder(tmp_path/'none', folders[1])
    with pytest.raises(MedkitError, match='does not exist|No file|two folders'): evaluate_folder(tmp_path/'nowhere', folders[1])


def test_all_truth_empty(folders):
    for f in folders[1].iterdir(): img = nib.load(f); save(np.zeros(img.shape), f, img.affine)
    with pytest.raises(MedkitError, match='Every truth mask is empty, the first is p0.nii.gz'): evaluate_folder(*folders)
    r = evaluate_folder(*folders, labels=[1, 2])
    assert (r.per_case.dice == 0).all() and r.per_case.hd95.isna().all() and any('made up 6' in n for n in r.notes)


def test_report_of_a_classifier(tmp_path):
    "From generated pictures to the page: test set used, numbers equal to the learner's own"
    from medkit.loaders import image_dls
    from medkit.classify import classifier
    from medkit.phantom import make_sample
    make_sample('lesions', tmp_path/'lesions', n=120)
    dls = image_dls(next((tmp_path/'lesions').rglob('*.npz'), tmp_path/'lesions'), device='cpu')
    learn = classifier(dls, 'simple_cnn', pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        r = report(learn, tmp_path/'out')
        p, t = learn.get_preds(dl=dls[2])
    assert r['accuracy'].value == pytest.approx((p.argmax(1) == t).float().mean().item(), abs=1e-6)
    assert r['accuracy'].n == len(dls[2].dataset) and 'test set' in r.notes[0]
    assert {'metrics.json', 'report.html', 'report.md', 'run.json'} <= {f.name for f in (tmp_path/'out').iterdir()}
    page = (tmp_path/'out'/'report.html').read_text(encoding='utf-8')
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and '<script' not in page
    assert json.loads((tmp_path/'out'/'metrics.json').read_text(encoding='utf-8'))['table'][0]['n'] == r['accuracy'].n


def test_names_cannot_become_markup(tmp_path):
    import pandas as pd
    evil = '"><img src=x onerror=alert(1)>'
    page = Page(evil, evil).text(evil).note(evil).table(pd.DataFrame({evil: [evil]})).fold(evil, '').record({evil: evil}).save(tmp_path/'p.html').read_text(encoding='utf-8')
    assert '<img' not in page


@pytest.mark.realdata
def test_real_masks(real_data, tmp_path):
    "Real hippocampi against themselves moved by one voxel; MONAI's own Dice as the reference"
    import torch
    from monai.metrics import compute_dice
    files = sorted((real_data/'Task04_Hippocampus'/'labelsTr').glob('*.nii.gz'))[:5]
    for f in files:
        (tmp_path/'truth').mkdir(exist_ok=True); shutil.copy(f, tmp_path/'truth')
        img = nib.load(f); save(np.roll(np.asarray(img.dataobj), 1, 0), tmp_path/'pred'/f.name, img.affine)
    r = evaluate_folder(tmp_path/'pred', tmp_path/'truth', {1: 'anterior', 2: 'posterior'})
    assert r.per_case.hd95.between(0, 1.5).all() and r.per_case.error_ml.abs().max() < 1e-9
    for f in files:
        t = torch.tensor(np.asarray(nib.load(f).dataobj).astype(int))
        for l, name in ((1, 'anterior'), (2, 'posterior')):
            ref = compute_dice((torch.roll(t, 1, 0) == l)[None, None], (t == l)[None, None]).item()
            assert r.per_case.set_index(['case', 'label']).dice[f.name[:-7], name] == pytest.approx(ref, abs=1e-6)


@pytest.mark.realdata
def test_real_spacing(real_data):
    "A left atrium at 0.625 mm: moved by four voxels it is at most 2.5 mm off"
    f = sorted((real_data/'LA2018_full').rglob('labels*/*.nii.gz'))[0]
    img = nib.load(f); m = np.asarray(img.dataobj).astype(int)
    row = score_masks(np.roll(m, 4, 0), m, nib.affines.voxel_sizes(img.affine), sorted(set(np.unique(m)) - {0}), case=f.name)[0]
    assert 1.2 < row['hd95'] <= 2.5 + 1e-4 and .8 < row['dice'] < 1
    assert row['hd95'] == hd95(np.roll(m, 4, 0) == 1, m == 1, (.625,)*3)


def ranked(rng, n=250, c=4, seeds=3):
    "True classes, one of them rare, and the answers of `seeds` trainings with many ties"
    t = rng.choice(c, n, p=[.6, .25, .12, .03][:c])
    z = rng.normal(0, 1, (seeds, n, c)) + 1.5*np.eye(c)[t]
    p = np.exp(z)/np.exp(z).sum(-1, keepdims=True)
    p = p.round(1) + 1e-3
    return p/p.sum(-1, keepdims=True), t


def class_fixtures():
    "Usual answers, a class without images, one never called, nothing but ties, always wrong, two classes"
    p, t = ranked(np.random.default_rng(0)); p = p[0]
    mute = p*[1, 1, 1, 1e-3]; two = p[:, :2]/p[:, :2].sum(1, keepdims=True)
    return {'usual': (p, t), 'absent': (p, np.where(t == 2, 0, t)), 'never called': (mute/mute.sum(1, keepdims=True), t), 'ties': (np.full_like(p, .25), t),
            'always wrong': (np.eye(4)[(t+1) % 4], t), 'two classes': (two, t > 0)}


@pytest.mark.parametrize('kind', class_fixtures())
def test_every_number_is_scikit_learn_s(kind):
    "Means over classes are over those that occur, as scikit-learn's with `labels`"
    from sklearn import metrics as skm
    from medkit.evaluate import CLASS_METRICS, class_metric, evaluate_classes, score_probs
    from medkit.pages import confusion
    p, t = class_fixtures()[kind]; t = t.astype(int); q, c = p.argmax(1), p.shape[1]
    r, own = evaluate_classes(p, t, 'abcd'[:c]), np.unique(t)
    there, one, n = [t == k for k in own], p[:, own].T, np.bincount(t)[own]
    auc, ap = ([f(y, s) for y, s in zip(there, one)] for f in (skm.roc_auc_score, skm.average_precision_score))
    f1 = skm.f1_score(t, q, labels=own, average=None, zero_division=0)
    want = {'accuracy': skm.accuracy_score(t, q), 'balanced accuracy': skm.recall_score(t, q, labels=own, average='macro', zero_division=0), 'macro F1': f1.mean(),
            'AUC, macro one-vs-rest': np.mean(auc), 'AUC, weighted one-vs-rest': np.average(auc, weights=n), 'PR AUC, macro one-vs-rest': np.mean(ap), 'PR AUC, weighted one-vs-rest': np.average(ap, weights=n),
            'kappa': skm.cohen_kappa_score(t, q), 'Brier score': skm.brier_score_loss(t, p[:, 1]) if c == 2 else skm.brier_score_loss(t, p, labels=range(c))}
    for k, v in want.items(): assert r[k].value == pytest.approx(v, abs=1e-9) and r[k].n == len(t), k
    if len(np.unique(q)) > 1: assert r['MCC'].value == pytest.approx(skm.matthews_corrcoef(t, q))
    else: assert math.isnan(r['MCC'].value)                                      # 0/0; scikit-learn says 0
    pc = r.per_class.iloc[own]
    for k, v in {'sensitivity': skm.recall_score(t, q, labels=own, average=None), 'f1': f1, 'auc': auc, 'pr_auc': ap, 'specificity': [skm.recall_score(~y, q != k) for y, k in zip(there, own)],
                 'precision': skm.precision_score(t, q, labels=own, average=None, zero_division=np.nan)}.items(): np.testing.assert_allclose(pc[k], v, atol=1e-9, err_msg=k)
    assert (confusion(p, t, 'abcd'[:c]) == skm.confusion_matrix(t, q, labels=range(c))).all()
    for m in CLASS_METRICS:                                                      # the bootstrap's metrics are the same numbers
        assert float(class_metric(m)(np.ones((1, len(t))), p, t)[0]) == pytest.approx(score_probs(p, t, m).value, abs=1e-9, nan_ok=True), m
    t_ = r.table.dropna(); assert (t_.low <= t_.value + 1e-9).all() and (t_.value <= t_.high + 1e-9).all()
    if c == 4: assert any('Fewer than 30 images of' in s and 'd' in s for s in r.notes)


@pytest.mark.parametrize('seed', range(2))
def test_comparisons_are_scikit_learn_s(seed):
    from sklearn import metrics as skm
    from medkit.evaluate import compare_probs
    p, t = ranked(np.random.default_rng(seed))
    fs = {'accuracy': lambda p: skm.accuracy_score(t, p.argmax(1)), 'balanced accuracy': lambda p: skm.balanced_accuracy_score(t, p.argmax(1)), 'auc': lambda p: skm.roc_auc_score(t, p, multi_class='ovr'),
          'f1': lambda p: skm.f1_score(t, p.argmax(1), average='macro'), ('recall', 3): lambda p: skm.recall_score(t, p.argmax(1), average=None)[3]}
    flat = np.full_like(p[0], .25)
    for m, f in fs.items():
        c = compare_probs(p, flat, t, m, n_boot=50)
        assert c.difference == pytest.approx(np.mean([f(o) for o in p]) - f(flat), abs=1e-6) and c.low <= c.difference <= c.high and c.n == len(t)


@pytest.mark.parametrize('t', [[0]*40, [0]*39 + [1], [0, 1], [0, 0, 1]])
def test_too_few_for_a_number(t):
    "One class, one positive, two or three images: a number where there is one, no interval where there is none, and a sentence"
    from medkit.evaluate import evaluate_classes, score_probs
    t = np.array(t); p = np.random.default_rng(0).dirichlet([2, 2], len(t)); r = evaluate_classes(p, t, ['no', 'yes'])
    assert not math.isnan(r['accuracy'].low) and math.isnan(r['AUC, macro one-vs-rest'].low)
    assert any('one class' in n or 'One image only of' in n for n in r.notes) and any('Fewer than 30' in n for n in r.notes) == (0 < np.bincount(t, minlength=2).min() < 30 or len(t) < 30)
    assert math.isnan(score_probs(p, t, 'auc').low) and 'nan' not in repr(r)


@pytest.mark.parametrize('bad, text', [(lambda p, t: (p*1.5, t), 'sums to 1.5'), (lambda p, t: (np.where(np.arange(9)[:, None] == 4, np.nan, p), t), 'NaN or infinity in 1 rows, the first is 4'),
                                       (lambda p, t: (p - .5, t), 'smallest'), (lambda p, t: (np.log(p), t), 'softmax'), (lambda p, t: (p, t + 1), 'from 0 to 1'), (lambda p, t: (p, t*1.5), 'whole numbers'),
                                       (lambda p, t: (p, np.where(t, np.nan, 0)), 'nan'), (lambda p, t: (p[:, :1], t), 'at least two'), (lambda p, t: (p, t[:5]), '9 rows'), (lambda p, t: (p[:0], t[:0]), '0 rows'),
                                       (lambda p, t: (p, np.eye(2)[t]), 'one true class'), (lambda p, t: (p, np.array(list('ababababa'))), 'whole numbers'), (lambda p, t: (p, t.astype(str)), "the text '0'"),
                                       (lambda p, t: (p.astype(str).tolist()[:8] + [['a', 'b']], t), 'no number'), (lambda p, t: ([[1, 0], [1]], t), 'unequal lengths'), (lambda p, t: (None, t), 'shape'), (lambda p, t: (p, None), r'shape \(\)')])
def test_bad_predictions_are_refused(bad, text):
    from medkit.evaluate import compare_probs, evaluate_classes, score_probs
    rng = np.random.default_rng(0); p, t = rng.dirichlet([1, 1], 9), np.arange(9) % 2
    with pytest.raises(MedkitError, match=text): evaluate_classes(*bad(p, t), 'ab')
    for f in (lambda: score_probs(*bad(p, t)), lambda: compare_probs(bad(p, t)[0], p, bad(p, t)[1])):
        with pytest.raises(MedkitError): f()


def test_a_loaded_model_is_not_judged_on_its_placeholder(tmp_path):
    from medkit.classify import classifier, load_classifier, save_classifier
    from medkit.evaluate import class_probs, pick_dl
    from medkit.images import ImageSet
    from medkit.loaders import set_dls
    x = np.random.default_rng(0).integers(0, 255, (24, 28, 28), dtype=np.uint8)
    dls = set_dls(ImageSet(x, np.arange(24) % 2, np.array(['train', 'val', 'test']*8), ['a', 'b']), (.5, .5), device='cpu')
    learn = classifier(dls, 'simple_cnn'); back = load_classifier(save_classifier(learn, tmp_path/'m'), 'cpu')
    with pytest.raises(MedkitError, match='a loaded model brings none'): pick_dl(back)
    assert pick_dl(learn)[0] is dls.test and pick_dl(back, dls.test)[0] is dls.test
    with back.no_bar():
        assert class_probs(back, dls.test)[0].shape == (8, 2)
        with pytest.raises(MedkitError, match='without labels'): class_probs(back, dls.test_dl(list(range(3))))
    back.dls = dls; assert pick_dl(back)[0] is dls.test


def test_order_of_cases_and_seeds_does_not_decide():
    "The estimate ignores the order of rows; a relabelled class changes nothing; another resampling seed changes little"
    from medkit.evaluate import compare_probs
    rng = np.random.default_rng(0)
    p, t = ranked(rng); q, _ = ranked(rng)
    at, order = compare_probs(p, q, t, 'auc', n_boot=200), rng.permutation(len(t))
    assert compare_probs(p[::-1, order], q[:, order], t[order], 'auc', n_boot=200).difference == pytest.approx(at.difference, abs=1e-6)
    assert compare_probs(p[..., ::-1], q[..., ::-1], 3-t, 'auc', n_boot=200)[:3] == pytest.approx(at[:3], abs=1e-6)
    assert compare_probs(p, q, t, 'auc', n_boot=200) == at != compare_probs(p, q, t, 'auc', n_boot=200, seed=1)


def test_comparison_refuses_what_cannot_be_paired():
    from medkit.evaluate import compare_probs
    p, t = ranked(np.random.default_rng(0))
    for a, b, targs, text in [(p, p[..., :3]/p[..., :3].sum(-1, keepdims=True), t % 3, '4 classes and the other 3'), (p[:, :9], p, t, '9 rows'), (p*2, p, t, 'sums to 2'),
                              (p[0, 0], p, t, 'shape'), (p, p, np.where(t == 3, 7, t), 'targs'), (p[:0], p, t, 'give')]:
        with pytest.raises(MedkitError, match=text): compare_probs(a, b, targs)
    with pytest.raises(MedkitError, match='auc or accuracy'): compare_probs(p, p, t, 'acc')
    assert compare_probs(p[:, :2], p[:, :2], t[:2]).verdict == 'not distinguishable'
