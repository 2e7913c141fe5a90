"Calibration against scikit-learn, closed forms, and known truth"
import json
import numpy as np, pytest
from scipy.special import logit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from medkit.core import MedkitError
from medkit.calibrate import HOWS, as_calibration, before_after, brier_parts, chance_ece, ece, fit_calibration, fit_platt, fit_temperature, plain_ece, reliability, reliability_figure

class Given(ClassifierMixin, BaseEstimator):
    "A classifier of scikit-learn that answers with what it is shown: columns of log-probabilities"
    _estimator_type = 'classifier'
    def __init__(self, c=3): self.c = c
    def fit(self, x, y): self.classes_ = np.arange(self.c); return self
    def decision_function(self, x): return x[:, 1] - x[:, 0] if self.c == 2 else x
    def predict(self, x): return x.argmax(1)

def drawn(n, c=3, seed=0):
    rng = np.random.default_rng(seed)
    p = softmax(rng.normal(0, 1.5, (n, c)), 1)
    return p, (rng.random((n, 1)) > p.cumsum(1)).sum(1).clip(max=c-1)

def sk_calibrated(method, c, p, t): return CalibratedClassifierCV(FrozenEstimator(Given(c).fit(None, None)), method=method).fit(np.log(p), t)

@pytest.mark.parametrize('method', ['sigmoid', 'isotonic', 'temperature'])
def test_two_classes_equal_scikit_learn(method):
    p, t = drawn(600, 2)
    told = softmax(2.5*np.log(p), 1)
    try: sk = sk_calibrated(method, 2, told[:400], t[:400])
    except ValueError as e: pytest.skip(f'this scikit-learn has no {method} calibration: {e}')
    ours = fit_calibration(told[:400], t[:400], {'sigmoid': 'platt'}.get(method, method))
    got, want = ours(told[400:]), sk.predict_proba(np.log(told[400:]))
    if method == 'isotonic': # interpolated over log-odds there and over probabilities here: equal where it was fitted
        got, want = ours(told[:400]), sk.predict_proba(np.log(told[:400]))
    assert np.abs(got - want).max() < 2e-3

def test_several_classes_equal_scikit_learn():
    p, t = drawn(900, 4)
    told = softmax(2*np.log(p), 1)
    try: sk = sk_calibrated('temperature', 4, told[:600], t[:600])
    except ValueError as e: pytest.skip(f'this scikit-learn has no temperature calibration: {e}')
    assert np.abs(fit_calibration(told[:600], t[:600])(told[600:]) - sk.predict_proba(np.log(told[600:]))).max() < 1e-3

def test_isotonic_one_against_the_rest():
    p, t = drawn(900, 3)
    raw = np.stack([IsotonicRegression(y_min=0, y_max=1, out_of_bounds='clip').fit(p[:600, c], t[:600] == c).predict(p[600:, c]) for c in range(3)], 1)
    assert np.allclose(fit_calibration(p[:600], t[:600], 'isotonic')(p[600:]), raw/raw.sum(1, keepdims=True))

def test_platt_of_many_equals_plain_logistic_regression():
    p, t = drawn(20_000, 2)
    z, m = logit(p[:, 1]), fit_platt(p[:, 1], t == 1)
    sk = LogisticRegression(C=1e9, tol=1e-8).fit(z[:, None], t)   # Platt's targets hardly differ from 0 and 1 here
    assert m['slope'] == pytest.approx(sk.coef_[0, 0], abs=2e-3) and m['offset'] == pytest.approx(sk.intercept_[0], abs=2e-3)

@pytest.mark.parametrize('factor', [.3, 1., 4.])
def test_known_temperature_is_found(factor):
    p, t = drawn(100_000, 7)
    assert fit_temperature(factor*np.log(p), t) == pytest.approx(factor, rel=.03)
    assert fit_temperature(factor*np.log(p) + 5, t) == pytest.approx(fit_temperature(factor*np.log(p), t), rel=1e-6)   # a constant on all logits changes nothing

def test_temperature_is_the_best_of_a_grid():
    p, t = drawn(300, 5, 3)
    z = 3*np.log(p)
    def loss(T): return -np.log(softmax(z/T, 1)[np.arange(300), t]).mean()
    assert loss(fit_temperature(z, t)) <= min(map(loss, np.geomspace(.2, 20, 500))) + 1e-9

def test_brier_parts_add_up_and_name_the_fault():
    p, t = drawn(4000)
    for q in (p, softmax(3*np.log(p), 1)):
        b = brier_parts(q, t)
        assert b['brier'] == pytest.approx(((q - np.eye(3)[t])**2).sum(1).mean())
        assert b['brier'] == pytest.approx(b['uncertainty'] - b['resolution'] + b['reliability'] + b['within'])
    assert brier_parts(p, t)['reliability'] < .01 < brier_parts(softmax(3*np.log(p), 1), t)['reliability']

def test_chance_alone_makes_an_ece():
    "The simulation's mean is the mean plain ECE of honest models; 95 % of them lie in its range"
    c = chance_ece(*drawn(200), n_sim=300)
    plain = np.array([plain_ece(*drawn(200, seed=i)) for i in range(100)])
    assert c.value == pytest.approx(plain.mean(), rel=.1) and c.value > .05
    assert ((c.low <= plain) & (plain <= c.high)).mean() > .85   # other pictures each time, so somewhat below 95 %

def test_ece_does_not_call_honest_models_miscalibrated():
    found = [ece(*drawn(200, seed=i), n_boot=100) for i in range(80)]
    assert np.mean([e.low == 0 for e in found]) >= .88
    assert np.mean([e.value for e in found]) < .5*np.mean([plain_ece(*drawn(200, seed=i)) for i in range(80)])

def test_float32_underflow_and_certainty():
    "Networks say exactly 0 and 1 in float32; every map stays finite and sums to 1"
    p = np.array([[1., 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0], [.2, .5, .3]]*10, np.float32)
    t = np.array([0, 1, 2, 1, 0, 1]*10)
    for how in HOWS:
        q = fit_calibration(p, t, how)(p)
        assert np.isfinite(q).all() and np.allclose(q.sum(1), 1)
    table = before_after(p, fit_calibration(p, t)(p), t).set_index(['metric', 'when'])
    assert np.isfinite(table.value).all() and table.verdict['log-loss', 'change'] == 'better'

def test_class_that_validation_lacks():
    p, t = drawn(200)
    t = np.where(t == 2, 0, t)
    for how in HOWS:
        m = fit_calibration(p, t, how)
        assert np.allclose(m(p).sum(1), 1) and np.isfinite(m(p)).all()
        assert bool(m.notes) == (how != 'temperature')

@pytest.mark.parametrize('bad, word', [(lambda p: p*np.nan, 'NaN'), (lambda p: p*2, 'sum'), (lambda p: p[:5], '5 rows'), (lambda p: p[:, 0], 'shape')])
def test_bad_probabilities(bad, word):
    p, t = drawn(50)
    for f in (ece, plain_ece, reliability, fit_calibration, reliability_figure, brier_parts):
        with pytest.raises(MedkitError, match=word): f(bad(p), t)

def test_one_class_and_few_pictures():
    p, _ = drawn(12)
    t = np.zeros(12, int)
    assert 0 <= ece(p, t).value <= 1 and ece(p[:1], t[:1]).low != ece(p[:1], t[:1]).low
    assert len(before_after(p, fit_calibration(p, t, 'isotonic')(p), t)) == 18
    reliability_figure(p[:3], t[:3])

def test_kept_as_json(tmp_path):
    p, t = drawn(100)
    for how in HOWS:
        m = fit_calibration(p, t, how, ['a', 'b', 'ü'])
        back = as_calibration(m.save(tmp_path/f'{how}.json'))
        assert back == m and np.array_equal(back(p), m(p)) and json.loads((tmp_path/f'{how}.json').read_text())['vocab'][2] == 'ü'
    with pytest.raises(MedkitError, match="lacks 'params'"): as_calibration(dict(kind='calibration', how='platt'))
