"""Judge across modules: paired tests against independent references, thresholds against scikit-learn, coverage of intervals, bad input"""
import importlib.util, math
import numpy as np, pytest
from pathlib import Path
from scipy.stats import norm
from sklearn import metrics as skm
from medkit.core import MedkitError
from medkit.intervals import share
from medkit.evaluate import CLASS_METRICS, compare_probs, evaluate_classes, score_probs
from medkit.judge import at_prevalence, at_threshold, choose_threshold, compare, decision_curve, delong, holm, mcnemar, subgroups

def answers(t, skill, rng, shared=0, c=3):
    z = rng.normal(0, 1, (len(t), c)) + skill*np.eye(c)[t] + shared
    return np.exp(z)/np.exp(z).sum(1, keepdims=True)

@pytest.fixture
def pair():
    "Two models on the same 300 cases of three classes, with ties"
    rng = np.random.default_rng(5); t = rng.choice(3, 300, p=[.6, .3, .1]); hard = rng.normal(0, 1, (300, 3))
    p, q = (answers(t, k, rng, hard).round(2) + .01 for k in (2., 1.5))
    return p/p.sum(1, keepdims=True), q/q.sum(1, keepdims=True), t

def test_delong_is_the_two_sample_jackknife(pair):
    "Variance of the difference from scikit-learn's AUC with one case left out at a time: the same to rounding"
    p, q, y = *(o[:90] for o in pair[:2]), pair[2][:90] == 0
    two = lambda o: np.c_[1-o[:, 0], o[:, 0]]
    def auc(i): k = np.delete(np.arange(90), i); return skm.roc_auc_score(y[k], p[k, 0]) - skm.roc_auc_score(y[k], q[k, 0])
    left = np.array([auc(i) for i in range(90)])
    var = sum((len(l)-1)/len(l)*((l - l.mean())**2).sum() for l in (left[y], left[~y]))
    d = delong(two(p), two(q), y)
    assert (d.high - d.low)/2/norm.ppf(.975) == pytest.approx(math.sqrt(var), rel=1e-9)
    assert d.difference == pytest.approx(skm.roc_auc_score(y, p[:, 0]) - skm.roc_auc_score(y, q[:, 0]))

def test_delong_and_bootstrap_agree(pair):
    p, q, t = pair
    d, b = delong(p, q, t), compare_probs(p, q, t, 'auc')
    assert d[:3] == pytest.approx(b[:3], abs=6e-3)

@pytest.mark.parametrize('n', [10, 60])
@pytest.mark.parametrize('groups', [False, True])
def test_a_perfect_model_beats_a_coin(n, groups):
    "DeLong's variance is 0 there; p is 1 only where the difference is 0, and nothing leaves -1 to 1"
    y = np.arange(n) % 2; p, half = np.c_[.9-.8*y, .1+.8*y], np.full((n, 2), .5)
    for q, value in ((half, .5), (1-p, 1), (p, 0)):
        r = compare(p, q, y, 'auc', groups=np.arange(n)//2 if groups else None).table.iloc[0]
        assert r.difference == value and (r.p == 1 if value == 0 else r.p < .05 if n > 10 else r.p < .5) and -1 <= r.low <= value <= r.high <= 1
        assert value == 0 or r.low < value

def test_sides_turned_round(pair):
    p, q, t = pair
    for f in (lambda a, b: delong(a, b, t), lambda a, b: mcnemar(a.argmax(1) == t, b.argmax(1) == t)):
        x, y = f(p, q), f(q, p)
        assert (x.difference, x.low, x.high, x.p) == pytest.approx((-y.difference, -y.high, -y.low, y.p))

def test_order_of_cases_changes_nothing(pair):
    p, q, t = pair; o = np.random.default_rng(0).permutation(300); who = np.arange(300)//3
    assert delong(p, q, t, who)[:3] == pytest.approx(delong(p[o], q[o], t[o], who[o])[:3])
    a, b = evaluate_classes(p, t, 'abc', groups=who).table, evaluate_classes(p[o], t[o], 'abc', groups=[f'p{i}' for i in who[o]]).table
    assert np.allclose(a[['value', 'low', 'high']], b[['value', 'low', 'high']], equal_nan=True)

def test_holm_by_hand():
    assert holm([.0001, .01, .02, .04]) == pytest.approx([.0004, .03, .04, .04]) and holm([.5, .6]).tolist() == [1, 1]

def test_thresholds_are_the_best_there_are():
    "No threshold of scikit-learn's curve does better, by any rule"
    for seed in range(3):
        rng = np.random.default_rng(seed); y = rng.random(90) < .3; s = (rng.normal(0, 1, 90) + y).round(1)
        fpr, tpr, th = skm.roc_curve(y, s, drop_intermediate=False)
        at = lambda rule: choose_threshold(s, y, rule)
        c = at('youden'); assert c.sensitivity.value + c.specificity.value - 1 == pytest.approx((tpr-fpr).max())
        c = at(('sensitivity', .9)); assert c.sensitivity.value >= .9 and 1 - c.specificity.value == pytest.approx(fpr[tpr >= .9].min())
        c = at(('specificity', .8)); assert c.specificity.value >= .8 and c.sensitivity.value == pytest.approx(tpr[fpr <= .2].max())
        cost = 5*(1-tpr)*y.sum() + fpr*(~y).sum(); c = at(('costs', 5, 1))
        assert 5*(1-c.sensitivity.value)*y.sum() + (1-c.specificity.value)*(~y).sum() == pytest.approx(cost.min())
        assert skm.f1_score(y, s >= at('macro f1').value, average='macro') == pytest.approx(max(skm.f1_score(y, s >= t, average='macro', zero_division=0) for t in th))

def test_bayes_ends_are_in_order():
    for k in range(0, 11, 2):
        for j in range(0, 11, 2):
            for e in at_prevalence(share(k, 10), share(j, 10), .03).values():
                assert math.isnan(e.value) or 0 <= e.low <= e.value + 1e-9 and e.value - 1e-9 <= e.high <= 1

def test_net_benefit_of_treating_all_and_none():
    y = np.random.default_rng(0).random(200) < .3
    d = decision_curve({'all': np.ones(200), 'none': np.zeros(200), 'perfect': y*1.}, y, [.2]).table.set_index('model').net_benefit
    assert d['all'] == pytest.approx(y.mean() - (1-y.mean())*.25) and d['none'] == 0 and d['perfect'] == pytest.approx(y.mean())

@pytest.mark.parametrize('metric', [*CLASS_METRICS, ('recall', 1)])
def test_no_interval_leaves_the_range(metric):
    "Perfect, useless and hopeless models on few cases"
    t = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2]); eye = np.eye(3)
    for p in (eye[t], eye[(t+1) % 3], np.full((9, 3), 1/3)):
        e = score_probs(p, t, metric, n_boot=200); low, high = {'kappa': (-1, 1), 'mcc': (-1, 1), 'brier': (0, 2)}.get(metric, (0, 1))
        assert math.isnan(e.low) and (e.n < 3 or math.isnan(e.value)) or low - 1e-9 <= e.low <= e.value + 1e-6 and e.value - 1e-6 <= e.high <= high + 1e-9

def test_bad_input_has_a_sentence(pair):
    p, q, t = pair; y = t == 0
    bad = [(lambda: compare(p, q[:9], t), '9 rows'), (lambda: compare(p*np.nan, q, t), 'NaN'), (lambda: compare(p*2, q, t), 'sums to 2'), (lambda: compare(p, q, t, 'acc'), 'did you mean'),
           (lambda: compare(p, q, t, groups=t[:5]), '5 groups'), (lambda: delong(p, q, t*0), 'two of each'), (lambda: choose_threshold(p[:, 0], y & False), '0 positive'),
           (lambda: choose_threshold(p[:, 0], np.arange(300) == 7), '1 positive'), (lambda: choose_threshold(p, t), '3 columns'), (lambda: at_threshold(p[:, 0], y, .5, 0), 'prevalence 0'),
           (lambda: subgroups(p, t, [None]*300), 'Case 0 has no group'), (lambda: decision_curve(p[:, 0]*3, y), 'needs probabilities'), (lambda: evaluate_classes(p, t, 'abc', groups=[1]), '1 groups')]
    for f, text in bad:
        with pytest.raises(MedkitError, match=text): f()

def test_one_class_only(pair):
    p, q, _ = pair; t = np.zeros(300, int)
    r = compare(p, q, t).table.set_index('metric')
    assert r.verdict['auc'] == 'no interval' and math.isnan(r.difference['auc']) and not math.isnan(r.p['accuracy'])
    assert any('one class' in n for n in evaluate_classes(p, t, 'abc', groups=np.arange(300)//2).notes)
    a = at_threshold(p[:, 0], t, .5); assert math.isnan(a.value['sensitivity']) and a.n['specificity'] == 300

def test_intervals_hold_the_truth():
    "A small, seeded count of the coverage of paired bootstraps (notebook 30 counts those of single metrics); the large one is in nbs/lessons/results/coverage.csv"
    spec = importlib.util.spec_from_file_location('interval_coverage', Path(__file__).parent/'benchmarks'/'interval_coverage.py')
    ic = importlib.util.module_from_spec(spec); spec.loader.exec_module(ic); ic.BIG = 4000
    kw = dict(metrics=('f1', 'kappa', 'brier'))
    rows = ic.count(lambda n, rng: ic.compared(n, rng, boot=200, **kw), {}, 60, ic.truth_of(ic.compared, kw, 0, big=5), draws=60, seed=0)
    low = {r['interval']: r['coverage'] for r in rows if r['coverage'] < .85}                           # 60 draws of .95: .85 is over three standard errors away
    assert not low and np.mean([r['coverage'] for r in rows]) > .9, low

def test_p_and_interval_of_the_bootstrap_agree():
    "p is below .05 where the interval leaves out 0, whatever the size: also with few cases, where both are read further out"
    for n in (12, 100):
        for seed in range(8):
            rng = np.random.default_rng([n, seed]); t = rng.choice(3, n); hard = rng.normal(0, 1, (n, 3))
            r = compare(answers(t, 2.2, rng, hard), answers(t, 1.5, rng, hard), t, 'f1', n_boot=999).table.iloc[0]
            assert (r.p < .05) == (r.low > 0 or r.high < 0) or abs(r.p - .05) < .01, (n, seed, r.p)
