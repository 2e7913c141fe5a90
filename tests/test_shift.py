"Shift against closed forms; volumes, masks, numbers and several labels; the drop at another site; clear errors"
from dataclasses import replace
import numpy as np, pandas as pd, pytest, torch
from medkit.calibrate import calibrate
from medkit.classify import classifier, load_classifier, save_classifier
from medkit.core import MedkitError
from medkit.doubt import doubt
from medkit.intervals import Estimate, share
from medkit.images import open_images
from medkit.loaders import image_dls
from medkit.phantom import make_sample
from medkit.segment import segmenter, volume_dls
from medkit.shift import at_shares, corrupt, corrupt_volume, external_test, like_home, masks_under, robustness, two_sites

def arrays(shape=(16, 16), n=60, seed=0):
    "Noise, one class brighter; 30 test pictures"
    rng, y = np.random.default_rng(seed), np.arange(n) % 2
    x = np.clip(rng.normal(100, 25, (n, *shape)) + 60*y.reshape(-1, *[1]*len(shape)), 0, 255).astype(np.uint8)
    return x, y, np.repeat(['train', 'val', 'test'], [n-40, 10, 30])

def named(x, y, splits): return x, np.array(['dark', 'bright'])[y], splits

class Bright(torch.nn.Linear):
    "Answers 'bright' from a mean of `at` on: right on `arrays`, and what a darker camera does to it is known"
    def __init__(self, at=0.): super().__init__(1, 1); self.at = at
    def forward(self, x): m = 20*(x.flatten(1).mean(1) - self.at); return torch.stack([m, -m], 1) # the vocabulary is sorted

@pytest.fixture
def learn():
    out = classifier(image_dls(named(*arrays()), bs=8, augment=False, device='cpu'), 'simple_cnn', pretrained=False)
    out.model = Bright()
    return out

def test_change_of_two_shares_is_newcombes():
    "Method 10 of Newcombe (Statistics in Medicine 1998), its example 56/70 against 48/80"
    r = two_sites(share(48, 80), share(56, 70))
    assert r['change'] == pytest.approx(.2) and (r['change_low'], r['change_high']) == pytest.approx((.0524, .3339), abs=1e-4) and r['verdict'] == 'better'
    assert two_sites(share(5, 10), share(5, 10))['verdict'] == 'not distinguishable'
    assert two_sites(share(5, 10), Estimate(.5, np.nan, np.nan, 2))['verdict'] == 'no interval'

def test_shares_of_home_take_the_mix_out():
    "Of a model that is right in .9 of one class and .5 of the other, only the mix differs between two sites"
    def site(n0, n1): t = np.repeat([0, 1], [n0, n1]); q = np.r_[np.arange(n0) >= .9*n0, np.arange(n1) < .5*n1].astype(int); return np.eye(2)[q], t
    (p, t), (q, u) = site(100, 20), site(20, 100)
    assert at_shares(q, u, np.bincount(t)).value == pytest.approx((p.argmax(1) == t).mean()) and (q.argmax(1) == u).mean() < .6
    assert at_shares(q, u, np.array([1, 0])).value == pytest.approx(.9) and at_shares(q, u, np.bincount(t)).n == 120

def test_another_site(learn, capsys):
    x, y, s = named(*arrays(seed=3))
    d = external_test(learn, (x, y, s)).set_index('metric')
    assert d.home['accuracy'] == 1 and d.away['accuracy'] == 1 and (d.verdict == 'not distinguishable').all() and (d.away_n == 60).all()
    dark = external_test(learn, (np.maximum(x, 60) - 60, y, s)).set_index('metric')
    assert dark.verdict['accuracy'] == 'worse' and dark.away['balanced accuracy'] == pytest.approx(.5) and dark.change['accuracy'] == pytest.approx(dark.away['accuracy'] - 1)
    only = external_test(learn, (x[y == 'bright'], y[y == 'bright'], s[y == 'bright'])).set_index('metric')     # one class there
    assert 'has no dark' in capsys.readouterr().out and np.isnan(only.change['AUC, macro']) and only.verdict['AUC, macro'] == 'no interval'
    assert only.change["accuracy at home's class shares"] == pytest.approx(0)

def test_a_loaded_model_has_no_pictures(learn, tmp_path):
    "Two black pictures stand in their place: nothing is judged on those, and a loader can be given"
    x, y, s = arrays(seed=3)
    back = load_classifier(save_classifier(classifier(learn.dls, 'simple_cnn', pretrained=False), tmp_path/'m'), 'cpu')
    for f in (robustness, lambda l: external_test(l, (x, y, s)), doubt, calibrate):
        with pytest.raises(MedkitError, match='no pictures'): f(back)
    with pytest.raises(MedkitError, match='too few'): calibrate(back, dl=learn.dls.test)
    assert (external_test(back, (x, y, s), learn.dls.test).home_n == 30).all()

def test_numbers_are_homes_classes(learn):
    "Sorted, 'bright' is number 0 at home"
    x, y, s = arrays(seed=3)
    assert external_test(learn, (x, 1-y)).away[0] == 1 and external_test(learn, (x, y)).away[0] == 0

@pytest.mark.parametrize('site, word', [(lambda x, y, s: (x, np.array(['dark', 'grey'])[(y == 'dark')*1], s), "class 'grey'"), (lambda x, y, s: (x, np.linspace(0, 1, len(y)), s), 'compare sites on one question'),
                                         (lambda x, y, s: 'no_such_folder', 'no_such_folder')])
def test_sites_that_do_not_fit(learn, site, word):
    with pytest.raises(MedkitError, match=word): external_test(learn, site(*named(*arrays(seed=3))))

def test_robustness_is_what_the_metric_says_by_hand(learn):
    r = robustness(learn, kinds=['gamma', 'noise'], severities=(2, 5), metric='accuracy', seed=4)
    test = learn.dls.set.part('test')
    m = corrupt(test.images, 'gamma', 5, 4).reshape(30, -1).mean(1)
    mean = learn.dls.set.images[learn.dls.set.splits == 'train'].mean()
    right = ((m > mean) == (np.array(test.classes)[test.labels] == 'bright')).mean()
    assert r.table.set_index(['corruption', 'severity']).value['gamma', 5] == pytest.approx(right, abs=1/30)
    assert r.summary.corruption[0] == 'gamma' and r.summary.set_index('corruption').change['noise'] == 0 and set(r.table.n) == {30}
    assert 'n = 30' in r.figure()._supxlabel.get_text()

def test_volumes_numbers_and_labels():
    x, y, s = arrays((10, 12, 11))
    vol = classifier(image_dls((x, y, s), bs=8, device='cpu'), 'simple_cnn', pretrained=False)
    assert set(robustness(vol, kinds=['noise', 'spacing'], severities=(1,), n=12).table.n) == {12}
    with pytest.raises(MedkitError, match='corruption'): robustness(vol, kinds=['jpeg'])
    x, y, s = arrays()
    number = classifier(image_dls((x, y + np.linspace(0, 1, 60), s), task='regression', device='cpu'), 'simple_cnn', pretrained=False)
    r = robustness(number, kinds=['gamma'], severities=(5,))
    assert r.metric == 'mean absolute error' and r.summary.worst[0] >= r.table.value.min()
    many = classifier(image_dls((x, np.c_[y, 1-y], s), task='multi-label, binary-class', device='cpu'), 'simple_cnn', pretrained=False)
    assert robustness(many, kinds=['blur'], severities=(1,)).metric == 'labels right'

def test_masks_get_an_artefact_of_their_own(tmp_path):
    make_sample('organ_a', tmp_path/'a', n=5)
    seg = segmenter(volume_dls(tmp_path/'a', device='cpu', spacing=(4, 4, 4), filters=(4, 8, 16), bs=2, augment=False), seed=0)
    seen, cases = [], list(seg.dls[2].dataset.items)
    masks_under(seg, cases, lambda x, sp: seen.append((x, sp)) or x)
    assert len(seen) == len(cases) and all(len(sp) == 3 for _, sp in seen)
    r = robustness(seg, kinds=['noise'], severities=(1,), n=2)
    assert r.metric == 'Dice' and set(r.table.n) <= {1, 2}
    v = torch.rand(1, 8, 8, 8)
    assert not torch.equal(corrupt_volume(v, 'noise', 3, seed=0), corrupt_volume(v, 'noise', 3, seed=1))
    with pytest.raises(MedkitError, match='external_test compares classes'): external_test(seg, 'lesions')

def test_bad_input(learn):
    for call, word in ((lambda: robustness(learn, metric='acuracy'), 'accuracy'), (lambda: robustness(learn, severities=()), '1 to 5'), (lambda: corrupt(np.zeros((2, 8, 8, 4), np.uint8), 'blur', 1), 'uint8'), (lambda: corrupt(np.zeros((0, 8, 8), np.uint8), 'blur', 1), 'no pictures')):
        with pytest.raises(MedkitError, match=word): call()
