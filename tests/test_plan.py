"""Plans over many kinds of data, and the memory that a plan predicts against the memory that training takes."""
import json, math, os, subprocess, sys
import numpy as np, pandas as pd, pytest, torch
from dataclasses import replace
from medkit.core import MedkitError
from medkit.plan import Plan, limits, plan, plan_from, plan_json, predict_memory
from medkit.training import has_bf16
from medkit.volumes import Case, VolumeSet, scan

FOUR = ((1,1,1),) + ((2,2,2),)*3

def made(shapes, spacings, modality=('MRI',), labels=2):
    "A set that is known by its fingerprint only"
    vs = VolumeSet('made', [Case(str(i), None) for i in range(len(shapes))], {i: f'l{i}' for i in range(labels)}, list(modality))
    return vs, pd.DataFrame(dict(shape=[tuple(s) for s in shapes], spacing=[tuple(s) for s in spacings]))

def check(p, lim, fp):
    "What every plan must keep"
    assert all(n % s == 0 for n,s in zip(p.patch_size + p.size, p.step*2))
    assert all(a >= b for a,b in zip(p.size, p.patch_size))
    assert 3 <= len(p.filters) == len(p.strides) == len(p.kernels) <= 6 and max(p.filters) <= 320 and 1 <= p.bs <= 8
    assert predict_memory(p, lim.bf16) <= lim.memory and math.prod(p.patch_size) <= lim.patch
    assert p.bs >= 2 or any('two do not fit' in w for w in p.why)
    assert plan_from(json.loads(plan_json(p))) == p
    assert all(len(w.splitlines())==1 for w in p.why) and {w.split()[0] for w in p.why} >= {'spacing','network','patch','size','batch','norm','epochs'}

@pytest.mark.parametrize('seed', range(40))
def test_any_fingerprint_gets_a_plan_that_fits(seed):
    rng = np.random.default_rng(seed)
    n, shape, mm = int(rng.integers(1, 60)), np.exp(rng.uniform(np.log(8), np.log(600), 3)), np.exp(rng.uniform(np.log(.3), np.log(6), 3))
    if seed % 5 == 0: shape[2] = 1
    shapes = np.maximum(1, (shape*np.exp(rng.normal(0, .1, (n,3)))).round()).astype(int).tolist()
    if seed % 5 == 0: shapes = [(a,b,1) for a,b,_ in shapes]
    vs, fp = made(shapes, (mm*np.exp(rng.normal(0, .05, (n,3)))).tolist(), ['MRI']*int(rng.integers(1, 5)), int(rng.choice([2,3,8,120])))
    memory = float(rng.choice([.6, 2, 8]))
    p = plan(vs, 'cpu', memory=memory, fingerprint=fp)
    check(p, limits('cpu', memory), fp)
    if seed % 5 == 0: assert p.step[2]==1 and all(k[2]==1 for k in p.kernels)

def test_less_memory_means_less_never_nothing_silently():
    vs, fp = made([(140,120,90)]*20, [(1,1,1)]*20, labels=60)
    little, much = (plan(vs, 'cpu', memory=m, fingerprint=fp) for m in (.3, 4))
    assert little.bs*math.prod(little.patch_size) < much.bs*math.prod(much.patch_size) and math.prod(little.spacing) >= math.prod(much.spacing)
    with pytest.raises(MedkitError, match='not even a small patch'): plan(vs, 'cpu', memory='50 MB', fingerprint=fp)

@pytest.mark.realdata
@pytest.mark.parametrize('name', ['Task04_Hippocampus', 'LA2018'])
def test_real_sets_keep_the_shape_of_the_packaged_weights(real_data, name):
    fp = scan(str(real_data/name))
    for spacing in (None, 1, 1.25, 2, 2.5):
        p = plan(str(real_data/name), 'cpu', fingerprint=fp, spacing=spacing, memory=4)
        assert (p.filters, p.strides) == ((16,32,64,128), FOUR) and p.norm == ('zscore',)
        check(p, limits('cpu', 4), fp)

def test_every_choice_can_be_made_by_the_user():
    vs, fp = made([(64,64,32)]*5, [(1,1,2)]*5, ['T1','T2'])
    asked = dict(spacing=(2,2,2), patch_size=(32,32,16), bs=3, filters=(4,8,12), strides=((1,1,1),(2,2,1),(2,2,2)), norm=['zscore', (0,10,5,2)], epochs=7, lr=1e-3)
    p = plan(vs, 'cpu', fingerprint=fp, **asked)
    for k,v in asked.items(): assert getattr(p, k) == (tuple(v) if k=='norm' else v), k
    assert sum('asked for' in w for w in p.why) >= 6
    for bad,says in ((dict(norm=['zscore']*3), '3 normalisations for 2 channels'), (dict(patch_size=30, filters=(4,8,12,16)), 'multiples of'), (dict(memory='lots'), 'are wanted'), (dict(frame=-1), 'frame=-1')):
        with pytest.raises(MedkitError, match=says) as e: plan(vs, 'cpu', fingerprint=fp, **bad)
        assert '\n' not in str(e.value)

def test_ct_is_scaled_by_its_organs_and_only_ct():
    vs, fp = made([(64,64,64)]*3, [(1,1,1)]*3, ['CT','PET'])
    for k,v in dict(fg_low=-50., fg_high=200., fg_mean=90., fg_sd=40.).items(): fp[k] = [(v, 1.)]*3
    assert plan(vs, 'cpu', fingerprint=fp).norm == ((-50.,200.,90.,40.), 'zscore')

def test_spacings_that_differ_wildly_are_told():
    vs, fp = made([(64,64,64)]*4, [(1,1,1)]*3 + [(1,1,9)])
    assert any(w.startswith('note: spacings go from') for w in plan(vs, 'cpu', fingerprint=fp).why)

# Memory: one process that forks for each plan, trains it for two steps as `segmenter` does, and reads its peak above where it began.
TRAIN = """
import json, os, sys, torch
from contextlib import nullcontext
from monai.losses import DiceCELoss
from medkit.models import network
from medkit.plan import plan_from
def status(key): return next(int(l.split()[1])*1024 for l in open('/proc/self/status') if l.startswith(key))
def cuda_peak(): return torch.cuda.max_memory_allocated()
def train(d, bf16, device):
    p, loss = plan_from(d), DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    net = network(p, 0).to(device); opt = torch.optim.Adam(net.parameters())
    for i in range(2):
        x, y = torch.randn(p.bs, len(p.modality), *p.patch_size, device=device), torch.randint(len(p.labels), (p.bs,1,*p.patch_size), dtype=torch.uint8, device=device)
        with torch.autocast(device, torch.bfloat16) if bf16 else nullcontext(): pred = net(x)
        loss(pred.float(), y.long()).backward(); opt.step(); opt.zero_grad(); del pred
for d,bf16 in json.loads(sys.argv[2]):
    if sys.argv[1] == 'cuda':
        torch.cuda.reset_peak_memory_stats(); train(d, bf16, 'cuda'); print(cuda_peak(), flush=True); torch.cuda.empty_cache(); continue
    if not (child := os.fork()):
        start = status('VmRSS'); train(d, bf16, 'cpu'); print(status('VmHWM')-start, flush=True); os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""

def peaks(plans, device):
    "Peak bytes in training of each (plan, bf16)"
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', TRAIN, device, json.dumps([(json.loads(plan_json(p)), b) for p,b in plans])],
                         capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert out.returncode==0, out.stderr[-2000:]
    return [int(l) for l in out.stdout.split()]

def small(patch, bs, labels, channels, filters, strides=(), spacing=(1,1,1)):
    return Plan(spacing, patch, patch, bs, {i: f'l{i}' for i in range(labels)}, [f'c{i}' for i in range(channels)], filters, strides)

PLANS = dict(hippocampus=small((40,56,40), 4, 3, 1, (16,32,64,128)),
             thick_slices=small((96,96,8), 2, 4, 4, (16,32,64,128), ((1,1,1),(2,2,1),(2,2,1),(2,2,2)), (.7,.7,5.)),
             many_labels=small((40,40,40), 2, 40, 1, (16,32,64,128)),
             wide=small((40,40,40), 2, 2, 1, (32,64,128)),
             one_slice=small((192,192,1), 4, 3, 1, (16,32,64,128,256), ((1,1,1),)+((2,2,1),)*4))

def compare(device, plans):
    def again(plans): return np.array(peaks([o[1:] for o in plans], device))/1e6
    found, want = again(plans), np.array([predict_memory(p, b)/1e6 for _,p,b in plans])
    odd = np.flatnonzero((found/want < .75) | (found/want > 1.1))   # the allocator's holes differ by up to 17 % between runs: a mean of three decides
    if len(odd): found[odd] = (found[odd] + again([plans[i] for i in odd]) + again([plans[i] for i in odd]))/3
    rows = {o[0]: (m, w) for o,m,w in zip(plans, found, want)}
    told = '\n'.join(f'{n}: measured {m:.0f} MB, predicted {q:.0f} MB, {m/q:.2f}' for n,(m,q) in rows.items())
    print(told)
    for m,q in rows.values(): assert .75 <= m/q <= 1.1, told

@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='the peak is read from /proc, which only Linux has')
def test_predicted_memory_is_what_training_takes_on_the_cpu():
    both = [False] + [True]*has_bf16('cpu')
    compare('cpu', [(f'{n} {"bf16" if b else "fp32"}', p, b) for n,p in PLANS.items() for b in both])

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device here')
def test_predicted_memory_is_what_training_takes_on_cuda():
    compare('cuda', [(n, replace(p, bs=4*p.bs), has_bf16('cuda')) for n,p in PLANS.items()])
