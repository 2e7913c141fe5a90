"""Pictures a second: stock fastai (from files), medmnist's data set class in a torch DataLoader, and medkit, side by side in one process.

    OMP_NUM_THREADS=2 python tests/benchmarks/classify_speed.py --source ../shared/data/ham10000/ham7_28.npz --out result
    python tests/benchmarks/classify_speed.py --device cuda --out gpu          # with the targets for a GPU, on generated pictures of the right number

Loader alone: the batches of a training epoch, ready for the network. fastai: `ImageDataLoaders.from_folder` with `aug_transforms`, the number of workers that was
quickest; medmnist: its class and the transform of its authors' experiments (no augmentation), likewise; medkit: `image_dls` with its default augmentation, and without.
Training: the same network, optimiser and schedule in a fastai Learner for fastai and medkit, medmnist in a plain loop; and the share of the time between two steps, in which
the network waits for its batch. End to end: opening the data, training, the accuracy on the test pictures, over seeds.
"""
import argparse, contextlib, io, json, os, platform, tempfile, time, warnings
from pathlib import Path
import fastai, medmnist, numpy as np, PIL.Image, torch, torchvision
from fastai.vision.all import (Callback, CancelValidException, ImageDataLoaders, Learner, Normalize, PILImage, PILImageBW, accuracy, aug_transforms)
from torchvision import transforms
from medkit.backbones import make_model
from medkit.classify import classifier
from medkit.core import device_name, environ, seeded
from medkit.images import ImageSet, open_images
from medkit.loaders import channel_stats, image_dls

warnings.filterwarnings('ignore')

# ---------- the same pictures for each

def some(n, size, seed=0):
    "Random pictures: what a loader or a network costs does not depend on what they show"
    rng = np.random.default_rng(seed)
    splits = np.repeat(['train', 'val', 'test'], [n, max(n//10, 50), max(n//10, 50)])
    return ImageSet(rng.integers(0, 256, (len(splits), size, size, 3), np.uint8), np.arange(len(splits)) % 7, splits, list('abcdefg'), f'{n} generated')

def as_files(s, folder):
    "The set as fastai's tutorials have it: train/class/number.png"
    for i, (x, y, split) in enumerate(zip(s.images, s.labels, s.splits)):
        f = Path(folder)/split/s.classes[y]/f'{i}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(x).save(f)
    return Path(folder)

def as_npz(s, folder):
    "The set under the name and keys under which medmnist's class looks for it"
    cls = medmnist.PneumoniaMNIST if s.images.ndim == 3 else medmnist.DermaMNIST
    size = s.images.shape[1]
    name = f"{cls.flag}{'' if size == 28 else f'_{size}'}.npz"
    np.savez(Path(folder)/name, **{f'{k}_{what}': v[s.splits == k] for k in ('train', 'val', 'test') for what, v in dict(images=s.images, labels=s.labels[:,None]).items()})
    return cls, size

# ---------- the three loaders

def stock_dls(folder, a, stats, workers):
    "fastai's own way; strengths as medkit's default, so that both do the same work"
    tfms = aug_transforms(max_rotate=10., max_zoom=1.1, max_lighting=.1, max_warp=0.)
    return ImageDataLoaders.from_folder(folder, train='train', valid='val', bs=a.bs, num_workers=workers, device=torch.device(a.device), seed=42,
                                        batch_tfms=[*tfms, Normalize.from_stats(*stats)], img_cls=PILImageBW if len(stats[0]) == 1 else PILImage)

def medmnist_dl(cls, size, folder, a, workers):
    class Any(cls):
        def __len__(self): return len(self.imgs)                 # its own insists on the official number of pictures
    tfm = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean=[.5], std=[.5])])          # as in MedMNIST/experiments
    return torch.utils.data.DataLoader(Any(split='train', transform=tfm, root=str(folder), size=size), a.bs, shuffle=True, num_workers=workers)

def medkit_dls(s, a, augment=True):
    with contextlib.redirect_stdout(io.StringIO()): return image_dls(s, bs=a.bs, augment=augment, device=a.device)

# ---------- measuring

def now(device):
    "Seconds of the clock, and of the processors for this process and its finished workers"
    if torch.device(device).type == 'cuda': torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time() + sum(os.times()[2:4])])

def epoch(dl, a):
    "Pictures, and seconds, of one pass through the training batches on the device"
    n, t = 0, now(a.device)
    for x, *_ in dl: n += len(x.to(a.device))
    return n/(now(a.device) - t)

def rates(dls, a):
    "name -> (repeats,2): pictures a second, and a processor second; all alternate"
    for dl in dls.values(): epoch(dl, a)
    out = {k: [] for k in dls}
    for _ in range(a.repeats):
        for k, dl in dls.items(): out[k].append(epoch(dl, a))
    return {k: np.array(v) for k, v in out.items()}

def quickest(make, a):
    "The loader with the best number of workers, and that number"
    dls = {w: make(w) for w in a.workers}
    speed = {w: max(epoch(getattr(d, 'train', d), a)[0] for _ in range(2)) for w, d in dls.items()}
    best = max(speed, key=speed.get)
    return dls[best], best

class Waits(Callback):
    "Seconds of each epoch's training, and of them those between two steps"
    order = -90
    def __init__(self, device): self.device = device
    def before_fit(self): self.spent = []
    def before_train(self): self.start = self.last = now(self.device)[0]; self.waited = 0.
    def before_batch(self):
        if self.training: self.waited += now(self.device)[0] - self.last
    def after_train(self): self.spent.append((now(self.device)[0] - self.start, self.waited))

class Done(Callback):
    "Tells `Waits` when a step has ended"
    order = 90
    def after_batch(self):
        if self.training: self.waits.last = now(self.waits.device)[0]

def quick(learn, a):
    "What each side may use on a GPU"
    return learn.to_bf16().to_channelslast() if torch.device(a.device).type == 'cuda' else learn

def stock_learner(dls, arch, a, seed, n_in):
    with seeded(seed): model = make_model(arch, n_in, dls.c, a.size)
    return quick(Learner(dls, model, metrics=accuracy), a)

def medkit_learner(dls, arch, a, seed):
    with contextlib.redirect_stdout(io.StringIO()): return quick(classifier(dls, arch, pretrained=False, seed=seed), a)

def fit(learn, epochs, lr, cbs=()):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr, cbs=list(cbs))
    return learn

def trained(learn, a, n):
    "Pictures a second in training, and the share of the time in which the network waits; the first epoch warms up"
    waits = Waits(a.device); done = Done(); done.waits = waits
    fit(learn, a.epochs + 1, 1e-3, [waits, done])
    t, w = np.median(np.array(waits.spent[1:]), 0)
    return dict(per_s=n/t, waits=w/t)

def plain(dl, arch, a, n_in, c):
    "The same for a plain loop, as in MedMNIST's experiments"
    with seeded(0): model = make_model(arch, n_in, c, a.size).to(a.device)
    opt, spent = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for _ in range(a.epochs + 1):
        start = last = now(a.device)[0]; waited = n = 0
        for x, y in dl:
            x, y = x.to(a.device), y[:,0].long().to(a.device)
            waited += now(a.device)[0] - last; n += len(x)
            with torch.autocast('cuda', torch.bfloat16, enabled=torch.device(a.device).type == 'cuda'): loss = torch.nn.functional.cross_entropy(model(x), y)
            opt.zero_grad(); loss.backward(); opt.step()
            last = now(a.device)[0]
        spent.append((n/(last - start), waited/(last - start)))
    return dict(zip(('per_s', 'waits'), np.median(np.array(spent[1:]), 0).tolist()))

# ---------- end to end

def accuracy_on(learn, dl):
    with learn.no_bar(): probs, y = learn.get_preds(dl=dl)
    return (probs.argmax(1) == y).float().mean().item()

def end_to_end(side, s, folder, stats, workers, a, arch, seed):
    "From the data as they lie there to a trained network: seconds, and its accuracy on the test pictures"
    t = now(a.device)[0]
    with seeded(seed):
        if side == 'fastai':
            dls = stock_dls(folder, a, stats, workers)
            learn = fit(stock_learner(dls, arch, a, seed, len(stats[0])), a.fit_epochs, a.lr)
        else:
            dls = medkit_dls(s, a)
            learn = fit(medkit_learner(dls, arch, a, seed), a.fit_epochs, a.lr)
    t = now(a.device)[0] - t
    test = dls.test if side == 'medkit' else dls.test_dl(sorted((folder/'test').rglob('*.png')), with_labels=True)
    return dict(side=side, seed=seed, seconds=t, accuracy=accuracy_on(learn, test))

# ---------- the comparison

def compare(s, a, folder):
    files, (cls, size) = as_files(s, folder/'files'), as_npz(s, folder)
    stats, train = channel_stats(s.images, np.flatnonzero(s.splits == 'train')), int((s.splits == 'train').sum())
    a.size, n_in = size, len(stats[0])
    stock, stock_workers = quickest(lambda w: stock_dls(files, a, stats, w), a)
    theirs, their_workers = quickest(lambda w: medmnist_dl(cls, size, folder, a, w), a)
    ours = medkit_dls(s, a)
    r = dict(rates={k: v.tolist() for k, v in rates({'fastai': stock.train, 'medmnist, no augmentation': theirs, 'medkit': ours.train,
                                                     'medkit, no augmentation': medkit_dls(s, a, False).train}, a).items()}, workers=dict(fastai=stock_workers, medmnist=their_workers))
    show_rates(r)
    r['training'] = {arch: {'fastai': trained(stock_learner(stock, arch, a, 0, n_in), a, train), 'medmnist': plain(theirs, arch, a, n_in, len(s.classes)),
                            'medkit': trained(medkit_learner(ours, arch, a, 0), a, train)} for arch in a.arch}
    print(json.dumps(r['training']), flush=True)
    r['end to end'] = {arch: [end_to_end(side, s, files, stats, stock_workers, a, arch, seed) for seed in range(a.seeds) for side in ('fastai', 'medkit')] for arch in a.arch}
    return r

def targets(a):
    "The aims for a GPU: seconds for 10 epochs over 7,000 pictures, and for one over 90,000"
    out = {}
    for n, epochs, bs in (7000, 10, 256), (90000, 1, 1024):
        b = argparse.Namespace(**{**vars(a), 'bs': bs, 'size': 28})
        learn = medkit_learner(medkit_dls(some(int(n*a.scale), 28), b), 'resnet18', b, 0)
        fit(learn, 1, 1e-3)                                        # the first steps choose kernels
        t = now(a.device)[0]; fit(learn, epochs, 1e-3)
        out[f'ResNet-18, 28 pixels, batches of {bs}: {epochs} epoch{"s" if epochs > 1 else ""} over {int(n*a.scale)} pictures, validation included'] = now(a.device)[0] - t
    return out

# ---------- the report

def spread(xs): return f'{np.median(xs):.3g} ({min(xs):.3g} to {max(xs):.3g})'

def show_rates(r):
    for k, v in r['rates'].items(): print(f'{k}: {spread([x[0] for x in v])} pictures a second', flush=True)

def table(r):
    "The result as Markdown"
    base = np.array(r['rates']['fastai'])
    rows = [['loader alone', 'pictures a second', 'times fastai', 'times fastai, a processor second'], ['---']*4]
    rows += [[k, spread(v[:,0]), spread(v[:,0]/base[:,0]), spread(v[:,1]/base[:,1])] for k, v in ((k, np.array(v)) for k, v in r['rates'].items())]
    out = [rows]
    for arch, t in r.get('training', {}).items():
        out.append([[f'training, {arch}', 'pictures a second', 'times fastai', 'share of the time without a batch'], ['---']*4] +
                   [[k, f"{v['per_s']:.3g}", f"{v['per_s']/t['fastai']['per_s']:.2f}", f"{v['waits']:.1%}"] for k, v in t.items()])
    for arch, runs in r.get('end to end', {}).items():
        by = {side: [x for x in runs if x['side'] == side] for side in ('fastai', 'medkit')}
        ratio = [f['seconds']/m['seconds'] for f, m in zip(by['fastai'], by['medkit'])]
        diff = [m['accuracy'] - f['accuracy'] for f, m in zip(by['fastai'], by['medkit'])]
        out.append([[f'end to end, {arch}', 'seconds', 'test accuracy', 'n seeds'], ['---']*4] + [[k, spread([x['seconds'] for x in v]), spread([x['accuracy'] for x in v]), str(len(v))] for k, v in by.items()] +
                   [['fastai / medkit; medkit - fastai', spread(ratio), spread(diff), str(len(ratio))]])
    if 'targets' in r: out.append([['target', 'seconds'], ['---']*2] + [[k, f'{v:.2f}'] for k, v in r['targets'].items()])
    return '\n\n'.join('\n'.join('| ' + ' | '.join(row) + ' |' for row in t) for t in out) + '\n\n' + r['about'] + '\n'

def about(s, a, r):
    v = dict(torch=torch.__version__, torchvision=torchvision.__version__, fastai=fastai.__version__, medmnist=medmnist.__version__, python=platform.python_version())
    return (f"{s.name}: {int((s.splits == 'train').sum())} training pictures of {'x'.join(map(str, s.images.shape[1:3]))} pixels, batches of {a.bs}; median (least to most) of {a.repeats} alternating epochs, "
            f"training of {a.epochs} epochs after one, end to end of {a.fit_epochs} epochs and {a.seeds} seeds. Workers: {r['workers']}. Always naming the largest class is right in "
            f"{np.bincount(s.labels[s.splits == 'test']).max()/(s.splits == 'test').sum():.1%} of the test pictures. {device_name(a.device)}, {os.cpu_count()} cores; " + ', '.join(f'{k} {x}' for k, x in v.items()) + '.')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--source', default='lesions', help='what open_images takes'); p.add_argument('--size', type=int); p.add_argument('--n', type=int, help='only so many pictures of each split')
    p.add_argument('--bs', type=int, default=128, help="MedMNIST's own"); p.add_argument('--repeats', type=int, default=5); p.add_argument('--arch', nargs='*', default=['simple_cnn', 'resnet18'])
    p.add_argument('--epochs', type=int, default=2, help='of the timed training'); p.add_argument('--fit-epochs', type=int, default=10, help='of the training end to end')
    p.add_argument('--lr', type=float, default=3e-3); p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--workers', type=int, nargs='+', default=sorted({0, min(os.cpu_count(), 16)}), help='of fastai and medmnist, to choose from')
    p.add_argument('--targets', action='store_true', help='also on a CPU'); p.add_argument('--scale', type=float, default=1., help="share of the targets' pictures, to try the script")
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu'); p.add_argument('--out', help='name without ending for the JSON and Markdown files')
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as d, environ(MEDKIT_CACHE=d):
        with contextlib.redirect_stdout(io.StringIO()): s = open_images(a.source, a.size).load()
        if a.n: s = s.part(np.concatenate([np.flatnonzero(s.splits == k)[:a.n] for k in ('train', 'val', 'test')]))
        r = compare(s, a, Path(d))
        if a.targets or torch.device(a.device).type == 'cuda': r['targets'] = targets(a)
    r['about'] = about(s, a, r)
    text = table(r)
    if a.out: Path(f'{a.out}.json').write_text(json.dumps(r, indent=1), encoding='utf-8'); Path(f'{a.out}.md').write_text(text, encoding='utf-8')
    print('\n' + text)

if __name__ == '__main__': main()
