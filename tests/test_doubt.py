"Doubt against pytorch-ood, closed forms, and known truth"
import numpy as np, pytest, torch
from medkit.core import MedkitError
from medkit.classify import classifier, load_classifier, save_classifier
from medkit.doubt import aurc, by_dropout, by_views, doubt, doubts, fit_mahalanobis, fit_neighbours, ood, order_table, selective, selective_figure, strange_logits, tell_apart
from medkit.loaders import image_dls
from medkit.phantom import lesions

def clouds(n=300, f=8, c=3, seed=0, shift=0.):
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(c), rng.integers(0, c, n-c)]
    return (rng.normal(0, 1, (n, f)) @ rng.normal(0, 1, (f, f)) + 2*np.eye(c, f)[y] + shift).astype(np.float32), y

def test_scores_equal_pytorch_ood():
    detector = pytest.importorskip('pytorch_ood.detector', reason='pytorch-ood is absent: it is in the dev extra')
    (z, y), (x, _) = clouds(), clouds(seed=1, shift=1.)
    T = torch.from_numpy
    assert np.allclose(strange_logits(x)['energy'], detector.EnergyBased(None).predict_logits(T(x)).numpy(), atol=1e-4)
    assert np.allclose(strange_logits(x)['largest probability'], detector.MaxSoftmax(None).predict_logits(T(x)).numpy(), atol=1e-5)
    assert np.allclose(fit_mahalanobis(z, y)(x), detector.Mahalanobis(None).fit_features(T(z), T(y)).predict_features(T(x)).numpy(), rtol=1e-2, atol=1e-4)
    assert np.allclose(fit_neighbours(z)(x), detector.KNN(None, k=50).fit_features(T(z), T(y)).predict_features(T(x)).numpy(), atol=1e-4)

def test_numbers_equal_pytorch_ood():
    metrics = pytest.importorskip('pytorch_ood.metrics', reason='pytorch-ood is absent: it is in the dev extra')
    rng = np.random.default_rng(0)
    own, foreign = rng.normal(0, 1, 400), rng.normal(1.5, 1, 300)
    ours = tell_apart(own, foreign, np.quantile(own, .95))
    def theirs(m, score, strange): return m.update(torch.from_numpy(score), -torch.from_numpy(strange).long()).compute()
    score, strange = np.r_[own, foreign], np.r_[np.zeros(400), np.ones(300)]
    assert ours['value'] == pytest.approx(theirs(metrics.AUROC(), score, strange)['AUROC'], abs=1e-4) and ours['low'] < ours['value'] < ours['high']
    fpr = theirs(metrics.FPRAtTPR(.95), -score, 1 - strange)['FPR95TPR']   # the paper's: one's own are the positives that pass
    assert ours['passed'] == pytest.approx(fpr, abs=.01)

def test_auroc_equals_scikit_learn_and_alarm_counts():
    from sklearn.metrics import roc_auc_score
    rng = np.random.default_rng(1)
    own, foreign = rng.normal(0, 1, 200).round(1), rng.normal(1, 1, 100).round(1)   # with ties
    r = tell_apart(own, foreign, 1.)
    assert r['value'] == pytest.approx(roc_auc_score(np.r_[np.zeros(200), np.ones(100)], np.r_[own, foreign]))
    assert r['passed'] == (foreign <= 1).mean() and r['alarms'] == (own > 1).mean() and r['n'] == 100

def judged(n=400, seed=0):
    "Probabilities whose largest tells how often it is right, and classes drawn by them"
    rng = np.random.default_rng(seed)
    p = rng.dirichlet([.5]*4, n)
    return p, (rng.random((n, 1)) > p.cumsum(1)).sum(1).clip(max=3)

def test_aurc_is_the_mean_risk():
    p, t = judged()
    order, wrong = np.argsort(-p.max(1)), p.argmax(1) != t
    a, gain = aurc(p, t)
    assert a.value == pytest.approx(np.mean(np.cumsum(wrong[order])/np.arange(1, 401)), rel=1e-4)
    assert gain.value == pytest.approx(wrong.mean() - a.value, rel=1e-3) and a.low < a.value < a.high and gain.low > 0

def test_oracle_and_chance():
    p, t = judged()
    wrong = p.argmax(1) != t
    table = order_table(p, t, doubts(p)).set_index('order')
    k, right = np.arange(1, 401), int((~wrong).sum())
    assert table.value['oracle'] == pytest.approx((np.maximum(k - right, 0)/k).mean(), rel=1e-4)
    assert table.value['random order'] == pytest.approx(wrong.mean())
    lots = [aurc(p, t, np.random.default_rng(i).random(400), n_boot=200)[1] for i in range(40)]
    assert np.mean([g.low <= 0 <= g.high for g in lots]) >= .85                      # a lot gains nothing, and the interval says so
    assert abs(np.mean([g.value for g in lots])) < .02

def test_ties_do_not_follow_the_order_of_files():
    "All answers equally sure, the mistakes all at the end of the set: nothing is gained by referring"
    p, t = np.tile([.9, .1], (2000, 1)), np.repeat([0, 1], 1000)
    assert selective(p, t, refer=[.5]).value[0] == pytest.approx(.5, abs=.05)
    assert aurc(p, t)[0].value == pytest.approx(.5, abs=.06)

def test_handing_over_what_is_wrong_leaves_nothing():
    p, t = judged()
    wrong = (p.argmax(1) != t).astype(float)
    s = selective(p, t, wrong, refer=[0, .6])
    assert s.value[1] == 0 and s.fall[1] == pytest.approx(wrong.mean()) and s.n[1] == 160
    assert s.fall_low[0] == pytest.approx(0, abs=1e-6) and s.low[0] < wrong.mean() < s.high[0]
    assert selective_figure(p, t).axes[0].get_xlabel() == 'share kept, of 400'

def test_mutual_information_splits_the_entropy():
    rng = np.random.default_rng(0)
    q = rng.dirichlet([1]*5, (12, 50))
    d = doubts(q)
    own = -(q*np.log(q)).sum(2).mean(0)
    assert np.allclose(d['mutual information'], d['entropy'] - own) and (d['mutual information'] > 0).all()
    assert np.allclose(doubts(np.repeat(q[:1], 4, 0))['mutual information'], 0, atol=1e-9)

@pytest.mark.parametrize('bad, word', [(lambda p, t: (p*np.nan, t), 'NaN'), (lambda p, t: (p[:3], t), '3 rows'), (lambda p, t: (p, t, p), 'finite number'), (lambda p, t: (p, t, np.full(400, np.nan)), 'finite number')])
def test_bad_input(bad, word):
    for f in (aurc, selective):
        with pytest.raises(MedkitError, match=word): f(*bad(*judged()))

def test_few_pictures_and_no_mistake():
    p, t = np.array([[.9, .1], [.2, .8], [.7, .3]]), np.array([0, 1, 0])
    assert aurc(p, t)[0].value == 0 and (selective(p, t, refer=[0, .5]).value == 0).all()
    assert np.isnan(aurc(p[:2], 1-t[:2])[1].low) and aurc(p, t)[0].high > .5    # no mistake in three is no proof of none
    selective_figure(p, t)

@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('MEDKIT_CACHE', str(tmp_path_factory.mktemp('doubt')))
        learn = classifier(image_dls(lesions(200, seed=1), device='cpu'), 'simple_cnn')
        learn.model.insert(len(learn.model)-1, torch.nn.Dropout(.3))
        yield learn

def test_batch_norm_stays_in_prediction(learn):
    "With its last dropout alone, the answers about a picture do not depend on its batch, and the running means do not move"
    norm = next(m for m in learn.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    before = norm.running_mean.clone()
    by_dropout(learn, learn.dls.test, 3)
    assert torch.equal(before, norm.running_mean)
    learn.model[-2].p = 0.
    with pytest.raises(MedkitError, match='no dropout layer that is on'): by_dropout(learn, learn.dls.test)
    learn.model[-2].p = .3

def test_same_seed_same_doubt(learn):
    one, two = (f(learn, learn.dls.test, n=3, seed=7) for f in (by_views, by_dropout))
    for how, q in (('views', one), ('dropout', two)): assert np.array_equal(doubt(learn, how, n=3, seed=7).probs, q)
    assert not np.array_equal(one, by_views(learn, learn.dls.test, n=3, seed=8))

def test_sources_of_strangers(learn, tmp_path):
    "An array, a folder of grey files of another size, a set, a loader: the same pictures get the same scores"
    import PIL.Image
    x = np.random.default_rng(0).integers(0, 255, (12, 28, 28, 3), dtype=np.uint8)
    for i, im in enumerate(x): PIL.Image.fromarray(im).save(tmp_path/f'{i:02}.png')
    PIL.Image.fromarray(np.zeros((40, 30), np.uint8)).save((tmp_path/'grey').with_suffix('.png'))
    found = ood(learn, {'array': x, 'folder': tmp_path, 'loader': learn.dls.test_dl(list(x))})
    for m in found.limits:
        assert np.allclose(found.scores['array'][m], found.scores['folder'][m][:12], atol=1e-5) and np.allclose(found.scores['array'][m], found.scores['loader'][m], atol=1e-5)
    assert found.table.set_index(['against', 'method']).n['folder', 'energy'] == 13
    assert len(found.figure().axes) == 12

def test_a_loaded_model_has_no_training_pictures(learn, tmp_path):
    saved = classifier(learn.dls, 'simple_cnn')
    back = load_classifier(save_classifier(saved, tmp_path/'m'), 'cpu')
    with pytest.raises(MedkitError, match='no training pictures'): ood(back, {'a': np.zeros((3, 28, 28, 3), np.uint8)})
    back.dls = learn.dls
    assert len(ood(back, {'a': np.zeros((3, 28, 28, 3), np.uint8)}).table) == 4
