"The label-budget experiment: resumable, fair to every start, and its intervals by hand"
import json
import numpy as np, pandas as pd, pytest, torch
from medkit.budget import (Experiment, Run, all_runs, budget_summary, collect, compare_runs, crossed_mean, label_budget, matrix, step_dls, steps_to, subset_cases,
                           pretrain_masked)
from medkit.core import MedkitError
from medkit.phantom import make_sample
from medkit.models import load_model, save_model
from medkit.segment import segmenter, volume_dls
from medkit.training import named
from medkit.transfer import network_starts

SMALL = dict(spacing=4, filters=(4,8,16), bs=2, device='cpu')
ASK = dict(budgets=(2,None), subsets=2, seeds=1, steps=2, every=1, masked_steps=2, valid_pct=.2, test_pct=.3, starts=('scratch','fine-tuned','encoder frozen'), **SMALL)

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A source model and a target set; read only"
    import os
    d = tmp_path_factory.mktemp('budget'); os.environ['MEDKIT_CACHE'] = str(d/'cache')
    make_sample('organ_a', d/'a', n=6); make_sample('organ_b', d/'b', n=10)
    save_model(segmenter(volume_dls(d/'a', **SMALL)), d/'source')
    return d

@pytest.fixture(scope='module')
def whole(made): return label_budget(made/'b', made/'whole', made/'source', **ASK)

def test_a_killed_experiment_goes_on(made, whole, tmp_path, monkeypatch):
    done, run = [], Experiment.run
    def until_killed(self, r):
        if len(done)==4: raise KeyboardInterrupt
        done.append(r); return run(self, r)
    monkeypatch.setattr(Experiment, 'run', until_killed)
    with pytest.raises(KeyboardInterrupt): label_budget(made/'b', tmp_path/'out', made/'source', **ASK)
    assert len(list((tmp_path/'out'/'runs').iterdir())) == 4
    stamps = {f: f.stat().st_mtime_ns for f in (tmp_path/'out'/'runs').iterdir()}
    monkeypatch.setattr(Experiment, 'run', run)
    again = label_budget(made/'b', tmp_path/'out', made/'source', **ASK)
    for f,t in stamps.items(): assert f.stat().st_mtime_ns == t                 # not repeated
    for a,b in ((again.table, whole.table), (again.curves, whole.curves)): pd.testing.assert_frame_equal(a, b)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'out'/'table.csv'), whole.table)

def test_a_finished_experiment_computes_nothing(made, whole, monkeypatch):
    def never(self, r): raise AssertionError(r)
    monkeypatch.setattr(Experiment, 'run', never)
    pd.testing.assert_frame_equal(label_budget(made/'b', made/'whole', made/'source', **ASK).table, whole.table)

def test_other_settings_are_refused(made, whole, tmp_path):
    for change,key in ((dict(steps=4), 'steps'), (dict(lr=1e-3), 'lr'), (dict(seed=1), 'seed, test'), (dict(spacing=5), 'plan')):
        with pytest.raises(MedkitError, match=f'other settings .*{key}'): label_budget(made/'b', made/'whole', made/'source', **{**ASK, **change})
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'notes.txt').write_text('x')
    with pytest.raises(MedkitError, match='holds other files'): label_budget(made/'b', tmp_path/'mine', made/'source', **ASK)
    with pytest.raises(MedkitError, match='budget of 99'): label_budget(made/'b', tmp_path/'n', made/'source', **{**ASK, 'budgets': (99,)})
    with pytest.raises(MedkitError, match='Unknown start'): label_budget(made/'b', tmp_path/'n', made/'source', **{**ASK, 'starts': ('frozn',)})
    assert not (tmp_path/'n').exists()

def test_every_start_sees_the_same(made, whole):
    t = whole.table
    for _,g in t.groupby(['budget','subset','seed']):
        cases = g.groupby('start').case.apply(tuple)
        assert cases.nunique()==1 and set(cases.index)==set(ASK['starts'])
    assert set(t.case) == set(whole.record['settings']['test'])
    assert not set(whole.record['settings']['test']) & set(whole.record['settings']['train'] + whole.record['settings']['valid'])
    for s in ASK['starts']: assert subset_cases(20, Run(4,1,0,s), 42) == subset_cases(20, Run(4,1,7,'scratch'), 42)

def experiment(made, seen=None):
    dls = volume_dls(made/'b', valid_pct=.2, test_pct=.3, **SMALL)
    return Experiment(dls, [], network_starts(named(load_model(made/'source').net)), steps=3, every=3, lr=1e-2, seed=42, out=None)

def test_frozen_stays_frozen_and_batches_are_the_same(made):
    e, r = experiment(made), Run(2,0,0,'')
    source, before = named(load_model(made/'source').net), named(segmenter(e.dls, seed=r.number).model)
    before = {k: v.clone() for k,v in before.items()}
    encoder = [k for k in before if k.startswith(('input_block','downsamples','bottleneck'))]
    for start,kept in (('encoder frozen', source), ('random encoder frozen', before)):
        after = named(e.train(r._replace(start=start)).model)
        for k in encoder: assert torch.equal(after[k], kept[k]), k
        assert not any(torch.equal(after[k], before[k]) for k in after if k.startswith('upsamples') and after[k].ndim>1)
    after = named(e.train(r._replace(start='fine-tuned')).model)
    assert not any(torch.equal(after[k], source[k]) for k in encoder)

def test_steps_are_steps_whatever_the_budget(made):
    e = experiment(made)
    for b in (1, 2, None):
        assert e.train(Run(b,0,0,'scratch')).train_iter == 3

def test_masks_are_not_read_for_the_masked_source(made, tmp_path):
    dls = volume_dls(made/'b', **SMALL)
    from dataclasses import replace
    cases = [replace(c, label=tmp_path/'there is none') for c in dls.train_ds.items]
    a, b = (pretrain_masked(cases, dls.plan, steps=2, seed=3) for _ in range(2))
    assert all(torch.equal(v, b[k]) for k,v in a.items())

def test_the_paired_summary_by_hand(made, whole):
    s = budget_summary(whole).set_index(['budget','start'])
    t = whole.table.set_index(['budget','start','subset','seed','case']).dice
    for b in whole.table.budget.unique():
        for o in ('fine-tuned','encoder frozen'):
            assert s.loc[(b,o),'difference'] == pytest.approx((t[b][o]-t[b]['scratch']).mean(), abs=1e-9)
            assert s.loc[(b,o),'dice'] == pytest.approx(t[b][o].mean(), abs=1e-9)
            assert s.loc[(b,o),'verdict'] == 'not distinguishable'           # two runs at most

def grid(x): return pd.DataFrame(x, index=pd.MultiIndex.from_product([range(3), range(3)], names=['subset','seed']))

def test_pairing_takes_out_what_is_shared():
    rng = np.random.default_rng(0)
    shared = .7 + rng.normal(0,.1,(9,1)) + rng.normal(0,.1,(1,12))            # luck of the runs and hardness of the cases
    a, b = (grid(shared + g + rng.normal(0,.003,(9,12))) for g in (.01, 0))
    c = compare_runs(a, b)
    assert c.verdict=='better' and .005 < c.low < .01 < c.high < .015 and c.n==12
    assert compare_runs(b, a).verdict=='worse' and compare_runs(a, a+rng.normal(0,.05,(9,12))).verdict=='not distinguishable'
    assert crossed_mean(a.to_numpy(), a.index.get_level_values('subset')).low < crossed_mean(b.to_numpy(), b.index.get_level_values('subset')).high

def test_without_a_share_of_runs_the_interval_is_that_of_the_cases():
    x = np.repeat(np.random.default_rng(1).normal(.8,.05,(1,400)), 30, 0)       # all runs alike, many of them
    e = crossed_mean(x, np.repeat(range(10), 3))
    half = 1.96*x[0].std()/400**.5
    assert e.low == pytest.approx(x.mean()-half, abs=.1*half+1e-3) and e.high == pytest.approx(x.mean()+half, abs=.1*half+1e-3)

def test_a_missing_pair_is_left_out():
    a = grid(np.random.default_rng(0).normal(.8,.05,(9,12))); b = a.drop((2,2)) - .1
    c = compare_runs(a, b)
    assert c.difference == pytest.approx(.1) and c.verdict=='better'
