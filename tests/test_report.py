"The report: what is chosen on validation, what was not examined, every kind of learner, nothing half-written"
import json
from dataclasses import replace
import numpy as np, pytest, torch
from fastai.basics import CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, accuracy
from torch.utils.data import TensorDataset
from medkit.classify import classifier
from medkit.core import MedkitError
from medkit.loaders import image_dls
from medkit.phantom import make_sample
from medkit.report import class_sections, report
from medkit.segment import segmenter, volume_dls
from medkit.shift import loader_for

def learner(n=80, task=None, classes=2, edge=12, seed=0):
    rng, y = np.random.default_rng(seed), np.arange(n) % classes
    x = np.clip(rng.normal(90, 25, (n, edge, edge)) + 40*y[:, None, None], 0, 255).astype(np.uint8)
    answers = y + rng.random(n) if task == 'regression' else np.c_[y == 0, y == 1].astype(int) if task else np.array(['none', 'bleed', 'tumour'])[y]
    with torch.random.fork_rng():
        return classifier(image_dls((x, answers, np.repeat(['train', 'val', 'test'], [n-60, 24, 36])), bs=16, device='cpu', augment=False, **(dict(task=task) if task else {})), 'simple_cnn', pretrained=False)

def text(folder, f='report.md'): return (folder/f).read_text(encoding='utf-8')

def headings(folder): return [o[3:] for o in text(folder).splitlines() if o.startswith('## ')]

def test_validation_chooses_and_the_test_set_only_judges():
    "With other truth in the test set, threshold and temperature stay as they were"
    rng = np.random.default_rng(0)
    p, vp, t, vt = *rng.dirichlet([1, 1], (2, 200)), *rng.integers(0, 2, (2, 200))
    one, two = (class_sections(p, u, vp, vt, ['none', 'bleed']) for u in (t, 1-t))
    for k in ('calibration', 'threshold'):
        a, b = (o[k][1][0] for o in (one, two))
        assert a == b and not one[k][1][1].equals(two[k][1][1])
    assert 'fitted on the 200 validation pictures; judged on 200 others' in one['calibration'][1][0] and 'bleed' in list(one['calibration'][1][2])[0]

def test_two_classes(tmp_path):
    learn = learner()
    r = report(learn, tmp_path/'r')
    assert headings(tmp_path/'r') == ['Are its probabilities true?', 'Which answers belong to a human?', 'Where to draw the line', 'What worse pictures do to it', 'Model card']
    card = text(tmp_path/'r', 'model_card.md')
    for word in ('### Data', 'Licence of the data', '### Intended use', 'Not a medical device', '### Numbers', 'n = 36', '### Limits', 'Not examined: subgroups of patients, another site, pictures of another kind, leaks', 'check_explanations'): assert word in card, word
    assert json.loads(text(tmp_path/'r', 'metrics.json'))['kind'] == 'classes' and str(tmp_path) not in text(tmp_path/'r', 'report.html') and '400.0' not in text(tmp_path/'r')
    assert f"{r['accuracy'].value:.3f}" in card and 'on 36 of those judged' in text(tmp_path/'r')

@pytest.mark.parametrize('task, told', [('regression', 'Regression'), ('multi-label, binary-class', 'Classification')])
def test_numbers_and_labels(tmp_path, task, told):
    report(learner(task=task), tmp_path/'r')
    assert text(tmp_path/'r').startswith(f'# {told}') and 'What worse pictures do to it' in headings(tmp_path/'r') and ('Are its probabilities true?' in headings(tmp_path/'r')) == (task != 'regression')
    assert 'another training' in text(tmp_path/'r', 'model_card.md') and 'probabilities are true' not in text(tmp_path/'r', 'model_card.md')

def test_a_plain_learner_without_test_set_and_names(tmp_path):
    def points(n): y = torch.arange(n) % 3; return TensorDataset(torch.randn(n, 2) + 2*torch.eye(3, 2)[y], y)
    dls = DataLoaders(*[DataLoader(points(n), bs=32, device='cpu') for n in (60, 90)], device='cpu')
    learn = Learner(dls, torch.nn.Linear(2, 3), loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=tmp_path)
    report(learn, tmp_path/'r')
    assert headings(tmp_path/'r') == ['Model card'] and 'optimistic' in text(tmp_path/'r') and 'Not examined: whether its probabilities are true, worse pictures' in text(tmp_path/'r', 'model_card.md')

def test_masks(tmp_path):
    make_sample('organ_a', tmp_path/'a', n=5)
    seg = segmenter(volume_dls(tmp_path/'a', device='cpu', spacing=(4, 4, 4), filters=(4, 8, 16), bs=2), seed=0)
    report(seg, tmp_path/'r')
    assert headings(tmp_path/'r') == ['What worse pictures do to it', 'Model card'] and 'Measured: Dice' in text(tmp_path/'r') and 'probabilities' not in text(tmp_path/'r', 'model_card.md')

@pytest.mark.parametrize('how, word', [(dict(by=[0, 1]), '2'), (dict(groups=['a']), '1 groups'), (dict(away='no_such_site'), 'no_such_site'), (dict(outside=['x']), 'foreign names'), (dict(outside={'x': []}), 'no pictures')])
def test_nothing_is_half_written(tmp_path, how, word):
    with pytest.raises(MedkitError, match=word): report(learner(), tmp_path/'r', **how)
    assert not (tmp_path/'r').exists()

def test_nan_is_told():
    learn = learner()
    with torch.no_grad(): next(iter(learn.model.parameters())).fill_(torch.nan)
    with pytest.raises(MedkitError, match='NaN'): report(learn)

def test_one_class_is_told(tmp_path):
    "Pictures of one class have no AUC and no specificity, and the page says so"
    learn = learner()
    only = learn.dls.set.part('test'); keep = only.labels == 1
    r = report(learn, tmp_path/'r', dl=loader_for(learn.dls, replace(only, images=only.images[keep], labels=only.labels[keep], splits=only.splits[keep])))
    assert np.isnan(r['AUC, macro one-vs-rest'].value) and any('none' in o for o in r.notes)
    assert 'Where to draw the line' in headings(tmp_path/'r') and 'nan' not in text(tmp_path/'r')
