"""Stock fastMONAI against medkit in one process: loader, training, Dice after the same number of epochs.

    OMP_NUM_THREADS=2 python tests/benchmarks/segment_speed.py --out result      # result.json and result.md
    OMP_NUM_THREADS=2 python tests/benchmarks/segment_speed.py --time-to-dice 0.87 0.885

Same cases, same network (`medkit.models.network` of the plan), same patch and batch, same number of steps.
Stock is what fastMONAI's tutorials on segmentation show (11d, 11e): `MedDataBlock`, transforms a case at a time, ranger, `fit_flat_cos`.
Repeats alternate (A B A B ...), so that whatever else the machine does falls on both: read the ratios, not the seconds.
On the CPU the processor's own seconds (all threads, and the stock loader's workers) are counted beside the clock's:
on a machine with other work the clock says who was interrupted, processor seconds say who did more.
Works on CUDA too, where each measurement waits for the device.
"""
import argparse, json, os, platform, statistics as st, tempfile, time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
import nibabel as nib, numpy as np, pandas as pd, torch
import fastai, fastMONAI, monai, torchio
from fastai.callback.core import Callback, CancelFitException, CancelValidException
from fastai.callback.all import *
from fastai.basics import Learner, set_seed
from fastai.data.all import ColReader, IndexSplitter
from fastai.optimizer import ranger
from fastai.vision.data import ImageBlock
from fastMONAI.vision_augmentation import PadOrCrop, RandomAffine, ZNormalization
from fastMONAI.vision_core import MedImage, MedMask
from fastMONAI.vision_data import MedDataBlock, MedMaskBlock
from fastMONAI.vision_inference import inference
from fastMONAI.vision_loss import CustomLoss
from monai.losses import DiceCELoss
from torch.utils.flop_counter import FlopCounterMode
from medkit.augment import Augment
from medkit.models import network
from medkit.predict import predict
from medkit.segment import segmenter, volume_dls
from medkit.volumes import open_volumes

AFFINE = dict(scales=.2, degrees=15)   # where only the affine is compared: these are `Augment`'s ranges

# ---------- the two sides

def chosen(source, n_train, n_valid, seed=0):
    "Training and validation cases, drawn once for both sides"
    cases = open_volumes(source).cases
    order = np.random.default_rng(seed).permutation(len(cases))
    return [cases[i] for i in order[:n_train]], [cases[i] for i in order[n_train:n_train+n_valid]]

def stock_dls(train, valid, a, affine_only=False):
    "As in fastMONAI's tutorials; `affine_only`: each case through the affine that medkit is given too"
    df = pd.DataFrame([dict(image=c.image, label=c.label) for c in train+valid])
    affine = RandomAffine(**AFFINE, p=1) if affine_only else RandomAffine(scales=0, degrees=5, isotropic=True)
    block = MedDataBlock(blocks=(ImageBlock(cls=MedImage), MedMaskBlock), splitter=IndexSplitter(range(len(train), len(df))), get_x=ColReader('image'), get_y=ColReader('label'),
                         item_tfms=[ZNormalization(), PadOrCrop(list(a.size)), affine], apply_reorder=True, target_spacing=list(a.spacing))
    return block.dataloaders(df, bs=a.bs, device=a.device, **({} if a.workers is None else dict(num_workers=a.workers)))

def medkit_dls(train, valid, a, affine_only=False):
    "`volume_dls` with its default augmentation, or its affine only"
    with redirect_stdout(StringIO()):
        dls = volume_dls(a.source, splits=[[c.id for c in train], [c.id for c in valid]], patch_size=a.size, spacing=a.spacing, filters=a.filters, bs=a.bs, device=a.device)
    if affine_only: only_affine(dls)
    return dls

def only_affine(dls):
    "Turn and scale every patch, and nothing else"
    aug = next(t for t in dls.train.after_batch.fs if isinstance(t, Augment))
    for k in ('elastic', *aug.light): setattr(aug, k, 0)
    aug.rotate, aug.scale, aug.probs = AFFINE['degrees'], AFFINE['scales'], dict.fromkeys(aug.probs, 1)

def stock_learner(dls, plan, a, seed):
    set_seed(seed)
    loss = CustomLoss(DiceCELoss(to_onehot_y=True, include_background=True, softmax=True))
    return Learner(dls, network(plan, seed).to(a.device), loss_func=loss, opt_func=ranger)

# ---------- measuring

def wait(device):
    if torch.device(device).type == 'cuda': torch.cuda.synchronize()

def now(device='cpu'):
    "Seconds of the clock, and of the processors for this process and its finished workers"
    wait(device)
    return np.array([time.perf_counter(), time.process_time() + sum(os.times()[2:4])])

def timed(f, device='cpu'):
    t = now(device); f()
    return now(device) - t

def alternate(fs:dict, repeats):
    "name -> (seconds, processor seconds) of each of `repeats` rounds through all"
    times = {k: [] for k in fs}
    for _ in range(repeats):
        for k,f in fs.items(): times[k].append(f())
    return times

def epoch(dls, a):
    "Seconds for all batches of one epoch, ready for the network"
    def run():
        for b in dls.train: pass
    return timed(run, a.device)

def rates(a):
    "Operations a second of a matrix product and of a 3x3x3 convolution, and bytes a second of a copy: the best of five each"
    m = torch.randn(1536, 1536, device=a.device)
    x, w = torch.randn(a.bs, 32, *a.size, device=a.device), torch.randn(32, 32, 3, 3, 3, device=a.device)
    big = torch.randn(2**25, device=a.device)
    def best(f): f(); return min(timed(f, a.device)[0] for _ in range(5))
    return dict(matmul=2*1536**3/best(lambda: m@m), conv=2*27*32*32*x[:,0].numel()/best(lambda: torch.conv3d(x, w, padding=1)), copy=2*4*2**25/best(big.clone))

def step_flops(plan, a):
    "Operations of the network, forward and backward, for one volume"
    net, x = network(plan, 0), torch.randn(1, len(plan.modality), *a.size)
    with FlopCounterMode(display=False) as c: net(x).sum().backward()
    return c.get_total_flops()

def loader_bytes(dls, a):
    "The least that a loader must move for one volume: read the stored crop (half + uint8), write the patch (float + uint8)"
    return 3*int(np.prod(dls.train.box)) + 5*int(np.prod(a.size))

class TrainTime(Callback):
    "Seconds and processor seconds of each epoch's training part; no validation"
    order = 99
    def before_fit(self): self.spent = []
    def before_train(self): self.start = now(self.dls.device)
    def after_train(self): self.spent.append(now(self.dls.device) - self.start)
    def before_validate(self): raise CancelValidException

# ---------- Dice, the same function for both

def file_dice(mask, truth, labels):
    "Dice of each label on the file's own grid"
    t = np.asarray(nib.load(truth).dataobj)
    return [2*((mask==l)&(t==l)).sum()/((mask==l).sum()+(t==l).sum()) for l in labels]

def stock_mask(learn, case, a):
    with learn.no_bar(): return np.asarray(inference(learn, True, list(a.spacing), fn=case.image).data[0])

def medkit_mask(learn, case, a): return np.asarray(predict(learn, case.image).dataobj)

def trained(side, dls, plan, valid, a, seed):
    "Train one side for `a.epochs`: volumes a second, and each label's mean Dice on the validation files"
    clock = TrainTime()
    with redirect_stdout(StringIO()):
        if side == 'stock':
            learn = stock_learner(dls, plan, a, seed)
            with learn.no_bar(): learn.fit_flat_cos(a.epochs, a.stock_lr, cbs=clock)
        else:
            learn = segmenter(dls, seed=seed)
            with learn.no_bar(): learn.fit_one_cycle(a.epochs, a.lr or plan.lr, cbs=clock)
    n, spent = len(dls.train)*a.bs, np.median(clock.spent[1:] or clock.spent, 0)          # the first epoch warms up
    masks = [(stock_mask if side == 'stock' else medkit_mask)(learn, c, a) for c in valid]
    dice = np.mean([file_dice(m, c.label, [l for l in plan.labels if l]) for m,c in zip(masks, valid)], 0)
    return dict(side=side, seed=seed, per_s=n/spent[0], per_cpu_s=n/max(spent[1], 1e-9), dice=dice.tolist())

# ---------- the comparison

def spread(xs): return f'{st.median(xs):.3g} ({min(xs):.3g} to {max(xs):.3g})'

def compare(a):
    train, valid = chosen(a.source, a.cases, a.valid)
    sides = {f'{side}, {what}': (stock_dls if side == 'stock' else medkit_dls)(train, valid, a, what == 'affine only')
             for what in ('affine only', 'default') for side in ('stock', 'medkit')}
    plan = sides['medkit, default'].plan
    n = len(sides['medkit, default'].train)*a.bs
    r = dict(rates=[rates(a)], device=str(a.device), threads=torch.get_num_threads(), cores=os.cpu_count(), cases=len(train), valid=len(valid), bs=a.bs, epochs=a.epochs,
             versions={m.__name__: m.__version__ for m in (torch, fastai, monai, torchio)} | dict(fastMONAI=fastMONAI.__version__, python=platform.python_version()),
             flops=step_flops(plan, a), bytes=loader_bytes(sides['medkit, default'], a), filters=plan.filters, size=a.size, spacing=a.spacing)
    for dls in sides.values(): epoch(dls, a)                     # caches and files are warm for both
    r['loader'] = {k: dict(per_s=[n/s[0] for s in v], per_cpu_s=[n/max(s[1], 1e-9) for s in v]) for k,v in alternate({k: lambda d=d: epoch(d, a) for k,d in sides.items()}, a.repeats).items()}
    print({k: {u: np.round(x, 1).tolist() for u,x in v.items()} for k,v in r['loader'].items()}, flush=True)
    r['training'] = []
    for seed in range(a.seeds):
        for side in ('stock', 'medkit'):
            r['training'].append(trained(side, sides[f'{side}, default'], plan, valid, a, seed))
            print(f"{side} seed {seed}: {r['training'][-1]['per_s']:.2f} volumes/s, {r['training'][-1]['per_cpu_s']:.2f} a processor second, Dice {np.round(r['training'][-1]['dice'], 3)}", flush=True)
        r['rates'].append(rates(a))
    return r

def table(r):
    "The result as Markdown"
    best = {k: max(x[k] for x in r['rates']) for k in r['rates'][0]}
    ld, by = r['loader'], lambda side, what: [t[what] for t in r['training'] if t['side'] == side]
    ratio = lambda x, y: spread([q/p for p,q in zip(x, y)])
    def row(name, get, bound): return name, *(spread(get(s, 'per_s')) for s in ('stock', 'medkit')), *(ratio(get('stock', k), get('medkit', k)) for k in ('per_s', 'per_cpu_s')), bound
    rows = [row(f'loader, {w}', lambda s, k: ld[f'{s}, {w}'][k], f"{best['copy']/r['bytes']:.0f} (copy)") for w in ('affine only', 'default')]
    rows += [row('training', by, f"{best['matmul']/r['flops']:.1f} (matmul), {best['conv']/r['flops']:.1f} (conv)")]
    dice = {s: np.array(by(s, 'dice')) for s in ('stock', 'medkit')}
    for i in range(dice['stock'].shape[1]):
        x, y = dice['stock'][:,i], dice['medkit'][:,i]
        rows.append((f"Dice, label {i+1}, {r['epochs']} epochs", spread(x), spread(y), 'difference ' + spread(y-x), '', ''))
    lines = ['| | stock | medkit | ratio | ratio per processor second | bound |', '|---|---|---|---|---|---|', *('| ' + ' | '.join(x) + ' |' for x in rows)]
    about = (f"Volumes of {'x'.join(map(str, r['size']))} at {r['spacing'][0]:g} mm a second: median (least to most) of {len(ld['stock, default']['per_s'])} alternating repeats, for training of {len(by('stock', 'dice'))} seeds. "
             f"{r['cases']} training and {r['valid']} validation cases, batches of {r['bs']}, filters {r['filters']}; {r['device']}, {r['threads']} threads on {r['cores']} cores; "
             + ', '.join(f'{k} {v}' for k,v in r['versions'].items()) + f". One volume takes {r['flops']/1e9:.1f} GFLOP forward and backward and at least {r['bytes']/1e6:.2f} MB in the loader; "
             f"the machine's best: {best['matmul']/1e9:.0f} GFLOP/s in a matrix product, {best['conv']/1e9:.0f} in a 3x3x3 convolution, {best['copy']/1e9:.1f} GB/s in a copy.")
    return '\n'.join(lines) + '\n\n' + about + '\n'

# ---------- time to a Dice

class Until(Callback):
    "Training seconds (validation left out) until the validation's mean Dice reaches each target; then stop"
    order = 99
    def __init__(self, targets): self.targets,self.reached = sorted(targets),{}
    def before_fit(self): self.spent = 0.
    def before_train(self): self.start = now(self.dls.device)
    def after_train(self): self.spent += (now(self.dls.device) - self.start)[0]
    def after_epoch(self):
        dice = self.recorder.log[self.recorder.metric_names.index('dice')]
        print(f'epoch {self.epoch}: {self.spent:.1f} s, Dice {dice:.4f}', flush=True)
        for t in self.targets:
            if dice >= t: self.reached.setdefault(t, dict(seconds=self.spent, epoch=self.epoch+1, dice=dice))
        if len(self.reached) == len(self.targets): raise CancelFitException

def time_to_dice(a):
    "Train on four fifths of all cases until the others' mean Dice is reached"
    t = time.perf_counter()
    dls = volume_dls(a.source, test_pct=0, device=a.device)
    ready, until = time.perf_counter() - t, Until(a.time_to_dice)
    learn = segmenter(dls, ema=True)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(a.epochs, a.lr or dls.plan.lr, cbs=until)
    return dict(device=str(a.device), threads=torch.get_num_threads(), epochs=a.epochs, seconds_to_prepare=ready, reached={str(k): v for k,v in until.reached.items()}, not_reached=[t for t in a.time_to_dice if t not in until.reached])

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--source', default='hippocampus'); p.add_argument('--out', help='name without ending for the JSON and Markdown files')
    p.add_argument('--cases', type=int, default=56); p.add_argument('--valid', type=int, default=24); p.add_argument('--bs', type=int, default=4)
    p.add_argument('--epochs', type=int, default=8); p.add_argument('--seeds', type=int, default=3); p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--lr', type=float, help="medkit's; the plan's unless given"); p.add_argument('--stock-lr', type=float, default=1e-2)
    p.add_argument('--size', type=int, nargs=3, default=(40,56,40)); p.add_argument('--spacing', type=float, default=1., help='mm'); p.add_argument('--filters', type=int, nargs='+', help="the plan's unless given")
    p.add_argument('--workers', type=int, help="of the stock loader; fastai's default unless given")
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu'); p.add_argument('--time-to-dice', type=float, nargs='+')
    a = p.parse_args(); a.spacing, a.size, a.filters = (a.spacing,)*3, tuple(a.size), a.filters and tuple(a.filters)
    with tempfile.TemporaryDirectory() as d:
        os.environ['MEDKIT_CACHE'] = d                           # what medkit prepares is prepared here, and counted as warm-up
        r = time_to_dice(a) if a.time_to_dice else compare(a)
    if a.out: Path(a.out).with_suffix('.json').write_text(json.dumps(r, indent=1))
    text = json.dumps(r, indent=1) if a.time_to_dice else table(r)
    if a.out: Path(a.out).with_suffix('.md').write_text(text)
    print(text)

if __name__ == '__main__': main()
