"Contrastive training and the table of strategies: what no notebook cell can show in a line"
import sys, hashlib
from collections import defaultdict
from dataclasses import replace
import numpy as np, pytest, torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from medkit.core import MedkitError, seeded
from medkit.images import ImageSet, open_images
from medkit.loaders import image_dls
from medkit.training import weights
from medkit import contrastive, strategies
from medkit.contrastive import contrastive_loss, few_labels, labelled_rows, linear_probe, logistic, pretrain_contrastive, raw_pixels, spread
from medkit.judge import choose_threshold
from medkit.strategies import STRATEGIES, bend, compare_strategies, one_against_rest

def picture_set(n=(96, 40, 40), classes=2, name='dots', edge=12, seed=0):
    "Noise with a brighter square whose place tells the class"
    rng, total = np.random.default_rng(seed), sum(n)
    y = np.arange(total) % classes
    x = rng.integers(0, 120, (total, edge, edge), np.uint8)
    for i, c in enumerate(y): x[i, 3*c:3*c+3, 3*c:3*c+3] += 100
    return ImageSet(x, y, np.repeat(['train', 'val', 'test'], n), [f'c{i}' for i in range(classes)], name, 'binary-class' if classes == 2 else 'multi-class')

def loaders(s, **kw): return image_dls(s, bs=32, device='cpu', **kw)

# ---------------------------------------------------------------- losses, against the definitions written as loops
def by_loops(z, groups, t):
    "Mean over anchors of the mean over their friends of -log softmax (Khosla 2020, eq. 2; with one friend each: Chen 2020, eq. 1)"
    z = z/np.linalg.norm(z, axis=1, keepdims=True)
    out = []
    for i in range(len(z)):
        total = sum(np.exp(z[i] @ z[k]/t) for k in range(len(z)) if k != i)
        out.append(np.mean([-np.log(np.exp(z[i] @ z[j]/t)/total) for j in range(len(z)) if j != i and groups[j] == groups[i]]))
    return np.mean(out)

@pytest.mark.parametrize('labels', [False, True])
@pytest.mark.parametrize('t', [.07, .5, 1.])
def test_loss_is_its_definition(labels, t):
    z, y = np.random.default_rng(1).normal(size=(20, 6)), np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    got = contrastive_loss(labels, t)(torch.tensor(z), torch.tensor(y)).item()
    assert abs(got - by_loops(z, np.tile(y if labels else np.arange(10), 2), t)) < 1e-6

def test_loss_is_pytorch_metric_learnings_nt_xent():
    from pytorch_metric_learning.losses import NTXentLoss
    z = torch.randn(32, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = torch.arange(16)
    a, b = (torch.autograd.grad(l, z)[0] for l in (contrastive_loss(False, .2)(z, y), NTXentLoss(.2)(z, y.repeat(2))))
    assert torch.allclose(a, b, atol=1e-6)

def test_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pytorch_metric_learning', None)
    with pytest.raises(MedkitError, match=r"pip install 'medkit\[contrastive\]'"): contrastive_loss()

# ---------------------------------------------------------------- who sees which labels
def body(learn): return {k: v for k, v in weights(learn.model).items() if not k.startswith(contrastive.head_of(learn.model)[0])}

def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)

def test_simclr_sees_no_label_and_supcon_sees_them():
    s = picture_set()
    other = replace(s, labels=np.random.default_rng(3).permutation(s.labels))
    for labels in (False, True):
        a, b = (body(pretrain_contrastive(loaders(q), labels=labels, epochs=1)) for q in (s, other))
        assert same(a, b) != labels

def test_supcon_with_few_labels_sees_only_those(tmp_path):
    "All other labels are turned round: the same encoder"
    s = picture_set()
    train = np.flatnonzero(s.splits == 'train')
    rows = train[labelled_rows(s.labels[train], .25, 0)]
    lied = 1 - s.labels
    lied[rows] = s.labels[rows]
    def features_of(q, folder):
        b = strategies.bench(q, None, 'simple_cnn', 1, 1, .25, True, folder, 'cpu')
        b.few = lambda seed, repeat=True: q.part(np.r_[np.resize(rows, len(train)), np.flatnonzero(q.splits != 'train')])
        return body(strategies.started(b, 'supcon', 0)[0])
    assert same(features_of(s, tmp_path/'a'), features_of(replace(s, labels=lied), tmp_path/'b'))

def test_test_pictures_decide_nothing():
    s = picture_set()
    test = np.flatnonzero(s.splits == 'test')
    x, y = s.images.copy(), s.labels.copy()
    x[test], y[test] = 0, 1 - y[test]
    a, b = raw_pixels(s), raw_pixels(replace(s, images=x, labels=y))
    assert a['C'] == b['C'] and np.array_equal(a['val'], b['val']) and not np.array_equal(a['test'], b['test'])
    assert np.array_equal(raw_pixels(replace(s, labels=y))['test'], a['test'])

# ---------------------------------------------------------------- the probe
def test_probe_is_scikit_learns_and_its_penalty_the_best_on_validation():
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = rng.normal(size=(300, 8)) + y[:, None]*.4
    r = logistic((x[:150], y[:150]), (x[150:225], y[150:225]), x[225:])
    scale = StandardScaler().fit(x[:150])
    ref = LogisticRegression(C=r['C'], max_iter=2000).fit(scale.transform(x[:150]), y[:150])
    assert np.abs(ref.predict_proba(scale.transform(x[225:])) - r['test']).max() < .02
    def loss(c): p = LogisticRegression(C=c, max_iter=2000).fit(scale.transform(x[:150]), y[:150]).predict_proba(scale.transform(x[150:225])); return -np.log(p[range(75), y[150:225]]).mean()
    assert loss(r['C']) <= min(loss(c) for c in contrastive.PENALTIES) + 1e-3

@pytest.mark.parametrize('fraction', [.01, .1, .5])
def test_shares_are_nested_by_class_and_seeded(fraction):
    y = np.repeat([0, 1, 2], [500, 60, 1])
    rows = labelled_rows(y, fraction, 7)
    assert np.array_equal(rows, labelled_rows(y, fraction, 7)) and set(rows) <= set(labelled_rows(y, min(1, fraction*2), 7))
    assert np.bincount(y[rows]).tolist() == [max(1, round(fraction*n)) for n in (500, 60, 1)]

def test_spread_of_a_collapsed_network():
    z = torch.randn(1, 16).repeat(50, 1)*torch.rand(50, 1)
    assert spread(z) < 1e-3 and spread(torch.randn(500, 16)) > .95 and spread(torch.zeros(4, 3) + 1) < 1e-3

# ---------------------------------------------------------------- the table
def answers_with(auc_of, s, trained, fail_at=None):
    "Strategies that train nothing: scores with a known skill"
    def make(name, skill):
        def f(b, seed):
            if fail_at == (name, seed): raise KeyboardInterrupt
            trained.append((name, seed))
            rng = np.random.default_rng([seed, len(name)])
            def p(k): q = 1/(1 + np.exp(-(rng.normal(size=(s.splits == k).sum()) + skill*s.labels[s.splits == k] - skill/2))); return np.stack([1-q, q], 1)
            return dict(val=p('val'), test=p('test'), seconds=1., parameters=3)
        return f
    return {n: make(n, k) for n, k in auc_of.items()}

@pytest.fixture
def fake(monkeypatch):
    s, trained = picture_set((20, 200, 400)), []
    def use(fail_at=None, **skills): monkeypatch.setattr(strategies, 'STRATEGIES', answers_with(skills or {'simple_cnn': 1.5, 'simclr probe': 1.5, 'random encoder': .3, 'supcon probe': 4.}, s, trained, fail_at))
    use()
    return s, trained, use

def test_verdicts_of_known_skills(fake, tmp_path):
    s, trained, _ = fake
    c = compare_strategies(s, ('simclr probe', 'random encoder', 'supcon probe'), folder=tmp_path/'x', device='cpu')
    v = c.table.set_index('strategy').auc_verdict
    assert v.to_dict() == {'simple_cnn': 'baseline', 'simclr probe': 'not distinguishable', 'random encoder': 'worse', 'supcon probe': 'better'}
    with np.load(tmp_path/'x'/'runs'/'supcon-probe-1-0.npz') as z: ref = roc_auc_score(s.part('test').labels, z['test'][:, 1])
    assert abs(c.table.set_index('strategy').auc['supcon probe'] - ref) < .03 and len(trained) == 12

def test_an_interruption_costs_one_run(fake, tmp_path):
    s, trained, use = fake
    use(fail_at=('simclr probe', 1))
    with pytest.raises(KeyboardInterrupt): compare_strategies(s, ('simclr probe', 'random encoder'), folder=tmp_path/'x', device='cpu')
    before = list(trained)
    assert before and not list((tmp_path/'x').rglob('.part-*'))
    use()
    compare_strategies(s, ('simclr probe', 'random encoder'), folder=tmp_path/'x', device='cpu')
    assert len(trained) == len(set(trained)) == 9 and trained[:len(before)] == before

def test_other_data_or_settings_are_refused(fake, tmp_path):
    s, _, _ = fake
    compare_strategies(s, ('random encoder',), seeds=(0,), folder=tmp_path/'x', device='cpu')
    turned = s.images.copy(); turned[-1, 0, 0] ^= 1                      # one bit of one test picture
    for q, kw in ((replace(s, images=turned), {}), (s, dict(epochs=3)), (s, dict(augment=False))):
        with pytest.raises(MedkitError, match='other settings'): compare_strategies(q, ('random encoder',), seeds=(0,), folder=tmp_path/'x', device='cpu', **kw)

def test_pathmnist_as_two_classes(tmp_path):
    "The file under its official name, nine tissues, to the question of one against all else"
    y = np.arange(90)[:, None] % 9
    np.savez(tmp_path/'pathmnist.npz', **{f'{k}_{w}': v for k in ('train', 'val', 'test') for w, v in (('images', np.zeros((90, 28, 28, 3), np.uint8)), ('labels', y))})
    s = open_images(tmp_path/'pathmnist.npz')
    two = one_against_rest(s, 'colorectal adenocarcinoma epithelium')
    assert len(s.classes) == 9 and two.name.startswith('pathmnist, ') and two.counts().iloc[:, 1].tolist() == [10, 10, 10]

def test_the_shift_of_pathmnist_is_named(fake, tmp_path):
    s, _, _ = fake
    c = compare_strategies(replace(s, name='pathmnist, tumour against the rest'), ('random encoder',), folder=tmp_path/'x', device='cpu')
    assert any('another hospital' in o for o in c.statements)
    assert not any('another hospital' in o for o in compare_strategies(s, ('random encoder',), folder=tmp_path/'y', device='cpu').statements)

def test_what_cannot_be_compared(fake, tmp_path):
    s, _, _ = fake
    many = replace(s, labels=np.eye(2, dtype=int)[s.labels], task='multi-label, binary-class')
    for q, text in ((many, 'one class each'), (s.part(np.flatnonzero(s.splits != 'test')), 'no test pictures')):
        with pytest.raises(MedkitError, match=text): compare_strategies(q, ('random encoder',), folder=tmp_path/'x', device='cpu')
    with pytest.raises(MedkitError, match='Unknown strategy'): compare_strategies(s, ('magic',), folder=tmp_path/'x')
    with pytest.raises(MedkitError, match='fraction=0'): compare_strategies(s, ('random encoder',), fraction=0, folder=tmp_path/'x', device='cpu')

def test_bending_keeps_the_order():
    rng = np.random.default_rng(0)
    p = rng.random(500).round(2); t = choose_threshold(p, (rng.random(500) < p**2).astype(int), "macro f1").value
    b = bend(np.stack([1-p, p], 1), t)[:, 1]
    assert (np.diff(b[np.argsort(p)]) >= 0).all() and len(np.unique(b)) == len(np.unique(p)) and ((b > .5) == (p > t)).all() and 0 <= b.min() <= b.max() <= 1

def test_one_against_rest_of_three():
    s = one_against_rest(picture_set(classes=3), 'c1')
    assert s.classes == ['not c1', 'c1'] and (s.labels == (picture_set(classes=3).labels == 1)).all() and (s.splits == picture_set().splits).all()

# ---------------------------------------------------------------- real pictures
@pytest.mark.realdata
def test_mednists_copies_are_on_one_side(real_data):
    s, where = open_images('mednist'), defaultdict(set)
    for f, k in zip(s.images, s.splits): where[hashlib.md5(f.read_bytes()).digest()].add(k)
    assert len(where) < len(s) and all(len(k) == 1 for k in where.values())

@pytest.mark.realdata
def test_controls_on_real_pneumonia(real_data):
    "A regression on pixels is far above chance on chest films: whoever leaves this control out may praise a network for it"
    s = open_images(real_data/'medmnist'/'pneumoniamnist_rebuilt.npz')
    r = raw_pixels(s, fraction=.1)
    assert roc_auc_score(s.part('test').labels, r['test'][:, 1]) > .8
