"""How often medkit's 95 % intervals hold the truth: worlds with known truth, drawn again and again.

    python tests/benchmarks/interval_coverage.py                    # all settings, about 8 minutes of one core
    python tests/benchmarks/interval_coverage.py --only pairs --draws 200 --out /dev/stdout

A row an interval and setting. `given`: share of draws that have such an interval (a small draw may lack a class);
`coverage`: share of those that hold the truth, with its own 95 % interval `low` to `high`, since the draws are counted, too;
`below`, `above`: shares whose interval lies wholly below or above the truth. The truth is the mean of 60 draws of 5,000 cases,
so it is off by less than a tenth of an interval's width."""
import argparse, functools, multiprocessing
import numpy as np, pandas as pd
from tqdm import tqdm
from medkit.intervals import mean_ci, share
from medkit.evaluate import class_metric, evaluate_classes, score_probs
from medkit.judge import at_threshold, compare, decision_curve, subgroups

THREE, RARE = (.5, .3, .2), (.6, .33, .07)                      # how frequent the classes are
BIG, BOOT = 5_000, 500                                          # cases of a draw that tells the truth; resamples of an interval (2,000 in use)
SCORES = 'sensitivity', 'precision', 'specificity', 'f1', 'auc', 'pr_auc'


# Worlds: probabilities and classes

def softmax(z): z = np.exp(z - z.max(-1, keepdims=True)); return z/z.sum(-1, keepdims=True)

def noise(shape, each, rng):
    "Normal noise (n,c), half of its variance shared by the `each` images of a patient"
    if each == 1: return rng.normal(0, 1, shape)
    return (rng.normal(0, 1, shape) + rng.normal(0, 1, (shape[0]//each, shape[1])).repeat(each, 0))*.5**.5

def world(n, rng, part=THREE, skill=1.6, each=1):
    "(n,c) probabilities and classes of one model"
    t = rng.choice(len(part), n//each, p=part).repeat(each)
    return softmax(noise((len(t), len(part)), each, rng) + skill*np.eye(len(part))[t]), t

def pair(n, rng, part=THREE, each=1, seeds=1):
    "The same of two models that find the same images hard, (seeds,n,c) each; trainings differ in skill"
    t, c = rng.choice(len(part), n//each, p=part).repeat(each), len(part)
    hard = rng.normal(0, .8, (len(t)//each, c)).repeat(each, 0)
    def one(skill): return softmax(rng.normal(0, .6, (len(t), c)) + (skill + rng.normal(0, .1)*(seeds > 1))*np.eye(c)[t] + hard)
    return *(np.stack([one(k) for _ in range(seeds)]) for k in (1.6, 1.4)), t


# Studies: {interval: (value, low, high)} of one draw

def scored(n, rng, groups=None, boot=BOOT, **kw):
    "All that `evaluate_classes` gives, and the numbers of the last class"
    p, t = world(n, rng, **kw)
    r = evaluate_classes(p, t, range(p.shape[1]), groups=None if groups is None else np.arange(n)//groups)
    own, c = r.per_class.iloc[-1], p.shape[1] - 1
    return {m.metric: (m.value, m.low, m.high) for m in r.table.itertuples()} | {f'class {c}: {k}': tuple(own[[k, f'{k}_low', f'{k}_high']]) for k in SCORES}

def compared(n, rng, metrics=('accuracy', 'auc', 'f1', 'kappa', 'brier'), boot=BOOT, each=1, **kw):
    a, b, t = pair(n, rng, each=each, **kw)
    r = compare(a, b, t, metrics, groups=np.arange(n)//each if each > 1 else None, n_boot=boot).table
    return {f'compare: {r.metric}, {r.test}': (r.difference, r.low, r.high) for r in r.itertuples()}

def by_patient(n, rng, each=4, boot=BOOT):
    v = noise((n, 1), each, rng).ravel()
    return scored(n, rng, groups=each, each=each) | compared(n, rng, ('accuracy', 'auc'), boot, each) | {'mean_ci': mean_ci(v, groups=np.arange(n)//each, n_boot=boot)[:3]}

def trained(n, rng, seeds, boot=BOOT):
    a, _, t = pair(n, rng, seeds=seeds)
    return {f'score_probs: {m}': score_probs(a, t, m, n_boot=boot)[:3] for m in ('accuracy', 'auc')} | compared(n, rng, ('accuracy', 'auc'), boot, seeds=seeds)

def means(n, rng, boot=BOOT):
    "Normal, skewed as Dice scores are, and with one failed case in ten"
    v = {'normal': rng.normal(.8, .1, n), 'skewed': rng.beta(8, 2, n), 'one in ten fails': np.where(rng.random(n) < .1, rng.beta(2, 5, n), rng.beta(40, 5, n))}
    return {f'mean_ci: {k}': mean_ci(x, n_boot=boot)[:3] for k, x in v.items()}

def in_subgroup(n, rng, metric, boot=BOOT):
    "A subgroup of 30 % in which the model is weaker"
    by = np.where(rng.random(n) < .3, 'b', 'a')
    p, t = world(n, rng, (.7, .3), np.where(by == 'b', 1.2, 1.6)[:, None])
    def value(rows): return class_metric(metric)(np.ones((1, rows.sum()), np.float32), p[rows], t[rows])[0]
    if n == BIG: return {'value': (value(by == 'b'),), 'gap': (value(by == 'b') - value(by == 'a'),)}  # the shuffling would take its time
    r = subgroups(p, t, by, metric, n_boot=boot).table.set_index('subgroup').loc['b']
    return {'value': (r.value, r.low, r.high), 'gap': (r.gap, r.gap_low, r.gap_high)}

def acted(n, rng, boot=BOOT):
    p, t = world(n, rng, (.8, .2))
    a, d = at_threshold(p, t, .3, prevalence=.05), decision_curve(p, t, [.1, .3], n_boot=boot).table
    return {m: tuple(a.loc[m, ['value', 'low', 'high']]) for m in a.index} | {f'net benefit at {r.threshold:g}': (r.net_benefit, r.net_benefit_low, r.net_benefit_high) for r in d.itertuples()}

STUDIES = [ # name, study, its settings, sizes
    ('three classes .5 .3 .2', scored, {}, (30, 100, 300)), ('rare class .07', scored, dict(part=RARE), (100, 300)), ('nearly perfect model', scored, dict(skill=4.), (30, 100)),
    ('two classes, .1 positive', scored, dict(part=(.9, .1), skill=1.2), (100, 300)), ('4 images a patient', by_patient, {}, (80, 200, 400)), ('means', means, {}, (10, 30, 100)),
    ('pairs', compared, {}, (30, 100, 300)), ('pairs, rare class .07', compared, dict(part=RARE), (300,)), ('3 trainings', trained, dict(seeds=3), (200,)), ('5 trainings', trained, dict(seeds=5), (200,)),
    ('subgroup of 30 %: accuracy', in_subgroup, dict(metric='accuracy'), (100, 300)), ('subgroup of 30 %: auc', in_subgroup, dict(metric='auc'), (100, 300)),
    ('threshold .3, .2 positive', acted, {}, (30, 100, 300))]


# Counting

def truth_of(study, kw, seed, big=60) -> dict:
    "Each value on many cases"
    draws = [study(BIG, np.random.default_rng([seed, BIG, i]), **kw, boot=3) for i in range(big)]
    return {k: np.nanmean([d[k][0] for d in draws]) for k in draws[0]}

def count(study, kw, n, truth, draws, seed) -> list:
    "A row an interval: how many of the draws' intervals hold the truth"
    got, rows = [study(n, np.random.default_rng([seed, n, i]), **kw) for i in range(draws)], []
    for k, v in truth.items():
        low, high = np.array([g.get(k, (np.nan,)*3)[1:] for g in got], dtype=float).T
        ok = ~(np.isnan(low) | np.isnan(high))
        below, above = (high[ok] < v - 1e-9).sum(), (low[ok] > v + 1e-9).sum()
        held = share(ok.sum() - below - above, ok.sum())
        rows.append(dict(n=n, interval=k, truth=v, draws=draws, given=ok.mean(), coverage=held.value, low=held.low, high=held.high, below=below/ok.sum(), above=above/ok.sum(), width=(high - low)[ok].mean()))
    return rows

def counted(one, draws, seed) -> list:
    name, study, kw, sizes = one
    truth = truth_of(study, kw, seed)
    return [dict(setting=name, **r) for n in sizes for r in count(study, kw, n, truth, draws, seed)]


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--draws', type=int, default=1000); ap.add_argument('--seed', type=int, default=0); ap.add_argument('--jobs', type=int, default=2)
    ap.add_argument('--only', default='', help='settings whose name holds this'); ap.add_argument('--out', default='nbs/lessons/results/coverage.csv')
    o = ap.parse_args()
    todo = [s for s in STUDIES if o.only in s[0]]
    with multiprocessing.get_context('spawn').Pool(o.jobs) as pool:
        rows = []
        for r in tqdm(pool.imap(functools.partial(counted, draws=o.draws, seed=o.seed), todo), total=len(todo)):
            rows += r
            pd.DataFrame(rows).round(4).to_csv(o.out, index=False)  # what is counted is kept
