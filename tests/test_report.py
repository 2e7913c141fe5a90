"The report: what is chosen on validation, what was not examined, every kind of learner, nothing half-written"
import json
from dataclasses import replace
import numpy as np, pytest, torch
from fastai.basics import CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, accuracy
from torch.utils.data import TensorDataset
from medkit.classify import classifier, train_labels
from medkit.core import MedkitError
from medkit.loaders import image_dls
from medkit.phantom import make_sample
from medkit.report import HEADINGS, asked_again, class_sections, fewer, parts_or_why, report, threshold_section
from medkit.segment import segmenter, volume_dls
from medkit.shift import loader_for

def learner(n=80, task=None, classes=2, edge=12, seed=0, augment=False):
    rng, y = np.random.default_rng(seed), np.arange(n) % classes
    x = np.clip(rng.normal(90, 25, (n, edge, edge)) + 40*y[:, None, None], 0, 255).astype(np.uint8)
    answers = y + rng.random(n) if task == 'regression' else np.c_[y == 0, y == 1].astype(int) if task else np.array(['none', 'bleed', 'tumour'])[y]
    with torch.random.fork_rng():
        return classifier(image_dls((x, answers, np.repeat(['train', 'val', 'test'], [n-60, 24, 36])), bs=16, device='cpu', augment=augment, **(dict(task=task) if task else {})), 'simple_cnn', pretrained=False)

def text(folder, f='report.md'): return (folder/f).read_text(encoding='utf-8')

def headings(folder): return [o[3:] for o in text(folder).splitlines() if o.startswith('## ')]

def test_validation_chooses_and_the_test_set_only_judges():
    "With other truth in the test set, threshold and temperature stay as they were"
    rng = np.random.default_rng(0)
    p, vp, t, vt = *rng.dirichlet([1, 1], (2, 200)), *rng.integers(0, 2, (2, 200))
    one, two = (class_sections(p, u, vp, vt, ['none', 'bleed']) for u in (t, 1-t))
    for k in ('calibration', 'threshold'):
        a, b = (o[k][0] for o in (one, two))
        assert a == b and not one[k][1].equals(two[k][1])
    assert 'fitted on the 200 validation pictures; judged on 200 others' in one['calibration'][0] and 'bleed' in list(one['calibration'][-1])[0]
    assert list(one['calibration'][3]['map']) == ['as trained', 'temperature', 'Platt', 'isotonic']
    assert all('no others' in o[0] for o in class_sections(p, t, None, None, ['none', 'bleed']).values())

def test_patients_reach_every_section():
    "Twenty patients copied ten times: what is said of them is less sure than of 200 pictures"
    rng = np.random.default_rng(0)
    p, t = rng.dirichlet([1, 1], 20).repeat(10, 0), rng.integers(0, 2, 20).repeat(10)
    one, all_ = (class_sections(p, t, p, t, ['none', 'bleed'], groups=g) for g in (np.arange(200)//10, None))
    for k in ('calibration', 'threshold'):
        width = [(o[k][1].iloc[0].filter(like='high').iloc[0] - o[k][1].iloc[0].filter(like='low').iloc[0]) for o in (one, all_)]
        assert width[0] > 1.3*width[1]

def test_views_and_dropout_are_asked_where_there_are_any():
    learn = learner(augment=True); learn.model = torch.nn.Sequential(learn.model, torch.nn.Dropout(.5))
    t = asked_again(learn, learn.dls.test)[1]
    assert list(t.groupby('asked', sort=False).size()) == [3, 5, 5] and set(t.n) == {36} and 'MC dropout' in t.asked.iloc[-1]

def test_fewer_training_pictures():
    learn = learner(); dls = learn.dls
    with fewer(learn, 7): assert len(learn.dls.train.dataset) == len(train_labels(learn.dls)) == 7 and learn.dls.valid is dls.valid and len(next(iter(learn.dls.train))[0]) == 7
    assert learn.dls is dls

def test_one_class_in_validation_costs_one_section():
    p, t = np.random.default_rng(0).dirichlet([1, 1], 40), np.arange(40) % 2
    parts = parts_or_why(threshold_section, p, t, p, 0*t, ['none', 'bleed'])
    assert parts == ['Not examined: all validation pictures are none, and a threshold is chosen between two classes.']

def test_two_classes(tmp_path):
    learn = learner()
    r = report(learn, tmp_path/'r')
    page = text(tmp_path/'r')
    assert headings(tmp_path/'r') == [*HEADINGS.values(), 'Model card']
    for word in ('Confusion matrix', 'Reliability', 'Decision curve', 'Platt', 'Views: not examined', 'Dropout: not examined', 'at severities 1 to 5', 'near: camera', 'far: drawn skin', 'give `by`', 'give `away`'): assert word in page, word
    card = text(tmp_path/'r', 'model_card.md')
    for word in ('### Data', 'Licence of the data', '### Intended use', 'Not a medical device', '### Numbers', 'n = 36', '### Limits', 'Not examined: subgroups of patients, another site, leaks', 'check_explanations'): assert word in card, word
    kept = json.loads(text(tmp_path/'r', 'metrics.json'))
    assert kept['kind'] == 'classes' and {o['title']: len(o['tables']) for o in kept['sections']} == dict(zip(headings(tmp_path/'r'), [2, 2, 1, 0, 1, 0, 1, 0]))
    assert str(tmp_path) not in text(tmp_path/'r', 'report.html') and '400.0' not in text(tmp_path/'r')
    assert f"{r['accuracy'].value:.3f}" in card and 'on 36 of those judged' in text(tmp_path/'r')

@pytest.mark.parametrize('task, told', [('regression', 'Regression'), ('multi-label, binary-class', 'Classification')])
def test_numbers_and_labels(tmp_path, task, told):
    report(learner(task=task), tmp_path/'r')
    assert text(tmp_path/'r').startswith(f'# {told}') and headings(tmp_path/'r') == [HEADINGS[k] for k in ([] if task == 'regression' else ['calibration']) + ['robust']] + ['Model card']
    assert 'another training' in text(tmp_path/'r', 'model_card.md') and 'probabilities are true' not in text(tmp_path/'r', 'model_card.md')

def test_a_plain_learner_without_test_set_and_names(tmp_path):
    def points(n): y = torch.arange(n) % 3; return TensorDataset(torch.randn(n, 2) + 2*torch.eye(3, 2)[y], y)
    dls = DataLoaders(*[DataLoader(points(n), bs=32, device='cpu') for n in (60, 90)], device='cpu')
    learn = Learner(dls, torch.nn.Linear(2, 3), loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=tmp_path)
    report(learn, tmp_path/'r')
    assert text(tmp_path/'r').count('Not examined: ') == 7 and 'optimistic' in text(tmp_path/'r') and 'risk against coverage' not in text(tmp_path/'r') and 'Not examined: whether its probabilities are true, worse pictures' in text(tmp_path/'r', 'model_card.md')

def test_masks(tmp_path):
    make_sample('organ_a', tmp_path/'a', n=5)
    seg = segmenter(volume_dls(tmp_path/'a', device='cpu', spacing=(4, 4, 4), filters=(4, 8, 16), bs=2), seed=0)
    report(seg, tmp_path/'r')
    assert headings(tmp_path/'r') == [HEADINGS['robust'], 'Model card'] and 'Measured: Dice' in text(tmp_path/'r') and 'probabilities' not in text(tmp_path/'r', 'model_card.md')

@pytest.mark.parametrize('how, word', [(dict(by=[0, 1]), 'by .subgroup.: 2'), (dict(by='sex'), 'by .subgroup.'), (dict(by={'sex': [None]*36}), 'by .sex.'), (dict(groups=['a']), '1 groups'), (dict(away='no_such_site'), 'no_such_site'),
    (dict(outside=['x']), 'outside names'), (dict(outside={'x': []}), 'no pictures'), (dict(out='file'), 'is a file'), (dict(out='file/x'), 'file is a file'), (dict(out='theirs'), 'holds run.json and no earlier report'), (dict(out=3), 'dl=')])
def test_nothing_is_half_written(tmp_path, monkeypatch, how, word):
    "What does not fit is told before the first prediction"
    monkeypatch.chdir(tmp_path); (tmp_path/'file').touch(); (tmp_path/'theirs').mkdir(); (tmp_path/'theirs'/'run.json').touch()
    learn = learner(); learn.model.forward = None
    with pytest.raises(MedkitError, match=word): report(learn, **how)
    assert sorted(o.name for o in tmp_path.rglob('*')) == ['file', 'run.json', 'theirs']

def test_where_it_is_written(tmp_path, monkeypatch, capsys):
    "`report` in the working directory unless told; an earlier report is replaced, None writes nothing"
    monkeypatch.chdir(tmp_path); learn = learner(task='regression')
    report(learn, None); assert not list(tmp_path.iterdir())
    capsys.readouterr(); report(learn); report(learn)
    assert [o.name for o in tmp_path.iterdir()] == ['report'] and capsys.readouterr().out.split() == ['Report:', 'report/report.html']*2

@pytest.mark.parametrize('what', [None, np.ones((3, 2)), torch.nn.Linear(2, 2)])
def test_it_wants_a_learner(what):
    with pytest.raises(MedkitError, match='wants a trained learner'): report(what)

def test_names_cannot_become_markup(tmp_path):
    learn = learner(task='multi-label, binary-class')
    learn.dls.train.dataset.vocab[0] = '<script>alert(1)</script>'
    report(learn, tmp_path/'r')
    for f in ('report.md', 'model_card.md', 'report.html'): assert 'script' in text(tmp_path/'r', f) and '<script' not in text(tmp_path/'r', f)

def test_nan_is_told():
    learn = learner()
    with torch.no_grad(): next(iter(learn.model.parameters())).fill_(torch.nan)
    with pytest.raises(MedkitError, match='NaN'): report(learn, None)

@pytest.mark.filterwarnings('error::RuntimeWarning')
def test_one_class_is_told(tmp_path):
    "Pictures of one class have no AUC and no specificity, and the page says so"
    learn = learner()
    only = learn.dls.set.part('test'); keep = only.labels == 1
    r = report(learn, tmp_path/'r', outside={'noise': np.random.default_rng(0).integers(0, 256, (9, 12, 12), dtype=np.uint8)}, dl=loader_for(learn.dls, replace(only, images=only.images[keep], labels=only.labels[keep], splits=only.splits[keep])))
    assert '| noise | Mahalanobis |' in text(tmp_path/'r') and 'near:' not in text(tmp_path/'r')
    assert np.isnan(r['AUC, macro one-vs-rest'].value) and any('none' in o for o in r.notes)
    assert HEADINGS['threshold'] in headings(tmp_path/'r') and 'nan' not in text(tmp_path/'r')
