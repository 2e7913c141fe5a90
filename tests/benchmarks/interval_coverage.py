"""How often medkit's 95 % intervals hold the truth. Worlds with known truth, drawn again and again:

    python tests/benchmarks/interval_coverage.py --draws 1000 --out nbs/lessons/results/coverage.csv

A row an interval and setting: `given` is the share of draws with an interval (a class may be missing in a small draw),
`coverage` the share of those that hold the truth, `below` and `above` the shares whose interval lies wholly below or above it.
The truth is the metric on 300,000 cases, so it is off by less than a tenth of an interval's width."""
import argparse, math
import numpy as np, pandas as pd
from medkit.evaluate import class_metric, evaluate_classes, mean_ci, score_probs
from medkit.judge import at_threshold, compare, decision_curve, subgroups

THREE, RARE, BIG = np.array([.5, .3, .2]), np.array([.6, .33, .07]), 20_000


def softmax(z): z = np.exp(z - z.max(-1, keepdims=True)); return z/z.sum(-1, keepdims=True)

def world(n, rng, part=THREE, skill=1.6, each=1, noise=1., shared=None):
    "(n,c) probabilities and classes; `each` images a patient share the class and half of the noise"
    g, c = max(n//each, 1), len(part)
    t = rng.choice(c, g, p=part).repeat(each)
    z = rng.normal(0, noise, (g*each, c))*(.5**.5 if each > 1 else 1) + (rng.normal(0, noise, (g, c)).repeat(each, 0)*.5**.5 if each > 1 else 0)
    return softmax(z + skill*np.eye(c)[t] + (0 if shared is None else shared)), t

def pair(n, rng, part=THREE, each=1):
    "Two models that find the same images hard"
    g, c = n//each, len(part)
    hard, t = rng.normal(0, .8, (g, c)).repeat(each, 0), rng.choice(c, g, p=part).repeat(each)
    return *(softmax(rng.normal(0, .6, (g*each, c)) + k*np.eye(c)[t] + hard) for k in (1.6, 1.4)), t

def rows_of(r, c):
    "{name: (value, low, high)} of a `Result`, and those of class c"
    own = r.per_class.to_dict('records')[c]
    return {m.metric: (m.value, m.low, m.high) for m in r.table.itertuples()} | {f'class {c}: {k}': tuple(own[x] for x in (k, f'{k}_low', f'{k}_high')) for k in ('sensitivity', 'precision', 'specificity', 'f1', 'auc', 'pr_auc')}

def judged(o, metrics, groups=None, n_boot=300):
    t = compare(*o, metrics, groups=groups, n_boot=n_boot).table
    return {f'compare: {r.metric}, {r.test}': (r.difference, r.low, r.high) for r in t.itertuples()}

def gaps(n, rng, metric, n_boot=300):
    "A subgroup of 30 % in which the model is weaker"
    by = np.where(rng.random(n) < .3, 'b', 'a')
    p, t = world(n, rng, skill=np.where(by == 'b', 1.2, 1.6)[:, None], part=np.array([.7, .3]))
    if n == BIG: return {'subgroups: value, ' + metric: (one := value_of(metric, p[by == 'b'], t[by == 'b']),), 'subgroups: gap, ' + metric: (one - value_of(metric, p[by == 'a'], t[by == 'a']),)}
    r = subgroups(p, t, by, metric, n_boot=n_boot).table.set_index('subgroup').loc['b']
    return {f'subgroups: value, {metric}': (r.value, r.low, r.high), f'subgroups: gap, {metric}': (r.gap, r.gap_low, r.gap_high)}

def value_of(metric, p, t): return class_metric(metric)(np.ones((1, len(t)), np.float32), p, t)[0]

def acted(n, rng, n_boot=300):
    p, t = world(n, rng, np.array([.8, .2]))
    a, d = at_threshold(p, t, .3, prevalence=.05), decision_curve(p, t, [.1, .3], n_boot=n_boot).table
    return {f'at threshold: {m}': tuple(a.loc[m, ['value', 'low', 'high']]) for m in a.index} | {f'net benefit at {r.threshold:g}': (r.net_benefit, r.net_benefit_low, r.net_benefit_high) for r in d.itertuples()}

def trained(n, rng, seeds, n_boot=300):
    "Several trainings of differing skill"
    t, hard = rng.choice(3, n, p=THREE), rng.normal(0, .8, (n, 3))
    a, b = (np.stack([softmax(rng.normal(0, .6, (n, 3)) + (k + rng.normal(0, .1))*np.eye(3)[t] + hard) for _ in range(seeds)]) for k in (1.6, 1.4))
    out = {f'{seeds} trainings: {m}': tuple(score_probs(a, t, m, n_boot=n_boot)[:3]) for m in ('accuracy', 'auc')}
    return out | {f'{seeds} trainings: {k}': v for k, v in judged((a, b, t), ('accuracy', 'auc'), n_boot=n_boot).items()}

def drawn(n, rng, metrics, n_boot=300):
    p, t = world(n, rng)
    return {f'score_probs: {m}': tuple(score_probs(p, t, m, n_boot=n_boot)[:3]) for m in metrics}

def by_patient(n, rng, each, n_boot=300):
    p, t = world(n, rng, each=each)
    who = np.arange(len(t))//each
    e = mean_ci((p.argmax(1) == t) + p.max(1), groups=who, n_boot=n_boot)
    return rows_of(evaluate_classes(p, t, 'abc', groups=who), 2) | {'mean_ci': tuple(e[:3])} | judged(pair(n, rng, each=each), ('accuracy', 'auc'), np.arange(n)//each, n_boot)

def means(n, rng, n_boot=500): return {k: tuple(mean_ci(v, n_boot=n_boot)[:3]) for k, v in {'mean_ci, skewed (beta 8, 2)': rng.beta(8, 2, n), 'mean_ci, normal': rng.normal(.8, .1, n)}.items()}

def three(n, rng, part=THREE, skill=1.6, n_boot=0): return rows_of(evaluate_classes(*world(n, rng, part, skill), 'abc'), 2)
def two(n, rng, n_boot=0): return rows_of(evaluate_classes(*world(n, rng, np.array([.9, .1]), 1.2), 'ab'), 1)
def compared(n, rng, part=THREE, n_boot=300): return judged(pair(n, rng, part), ('accuracy', 'auc', 'f1', 'kappa', 'brier'), n_boot=n_boot)

SCORED = ('accuracy', 'balanced accuracy', 'f1', 'auc', 'pr auc', 'kappa', 'mcc', 'brier')
SETTINGS = ([('three classes .5 .3 .2', three, {}, n) for n in (30, 100, 300)] + [('rare class .07', three, dict(part=RARE), n) for n in (100, 300)] +
            [('nearly perfect model', three, dict(skill=4.), n) for n in (30, 100)] + [('two classes, .1 positive', two, {}, n) for n in (100, 300)] +
            [('4 images a patient', by_patient, dict(each=4), n) for n in (80, 200, 400)] + [('1 image a patient', by_patient, dict(each=1), 100)] +
            [('means', means, {}, n) for n in (10, 30, 100)] + [('bootstrap', drawn, dict(metrics=SCORED), n) for n in (30, 100, 300)] +
            [('pairs', compared, {}, n) for n in (30, 100, 300)] + [('pairs, rare class .07', compared, dict(part=RARE), 300)] +
            [('3 trainings', trained, dict(seeds=3), 200), ('5 trainings', trained, dict(seeds=5), 200)] +
            [(f'subgroup of 30 %', gaps, dict(metric=m), n) for m in ('accuracy', 'auc') for n in (100, 300)] + [('threshold .3, .2 positive', acted, {}, n) for n in (30, 100, 300)])


def truth_of(f, kw, seed=7):
    "The values on many cases: the mean of 15 large draws"
    big = [f(BIG, np.random.default_rng([seed, i]), **kw, n_boot=3) for i in range(15)]
    return {k: np.nanmean([b[k][0] for b in big]) for k in big[0]}

def coverage(name, f, kw, n, draws=1000, seed=0) -> list:
    "A row an interval of one setting"
    truth = truth_of(f, kw)
    got = [f(n, np.random.default_rng([seed, n, i]), **kw) for i in range(draws)]
    rows = []
    for k, v in truth.items():
        low, high = np.array([g.get(k, (np.nan,)*3)[1:] for g in got], dtype=float).T
        ok = ~(np.isnan(low) | np.isnan(high))
        below, above = (high[ok] < v - 1e-9).mean(), (low[ok] > v + 1e-9).mean()
        rows.append(dict(setting=name, n=n, interval=k, truth=v, draws=draws, given=ok.mean(), coverage=1 - below - above, below=below, above=above, width=(high - low)[ok].mean()))
    return rows


if __name__ == '__main__':
    ap = argparse.ArgumentParser(); ap.add_argument('--draws', type=int, default=1000); ap.add_argument('--out', default='nbs/lessons/results/coverage.csv')
    ap.add_argument('--only', default=''); o = ap.parse_args()
    rows = []
    for s in SETTINGS:
        if any(k in s[0] for k in o.only.split(',')):
            rows += coverage(*s, draws=o.draws); print(s[0], s[3], {r['interval']: round(r['coverage'], 3) for r in rows if r['setting'] == s[0] and r['n'] == s[3]}, flush=True)
            pd.DataFrame(rows).round(4).to_csv(o.out, index=False)
