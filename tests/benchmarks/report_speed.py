"""How long `report(learn)` takes for 2,000 test pictures: the issue asks for under 60 s on 2 cores.

    OMP_NUM_THREADS=2 python tests/benchmarks/report_speed.py ../shared/data/ham10000/ham7_28.npz --archs simple_cnn tf_efficientnet_lite0 --out report_speed

The test pictures are real ones of the set, none of them twice: where its own test split is smaller, pictures of the training split are moved there. The networks are not trained: what a report
costs does not depend on what they learned. Wall time hangs on what else the machine does, so processor seconds and the load are printed along.

Measured on 21 November 2026, two free cores of an AMD EPYC (load 1.5): simple_cnn 8.2 s wall and 11.8 processor seconds, tf_efficientnet_lite0 28.8 and 51.3."""
import argparse, contextlib, io, os, platform, time, warnings
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from medkit.all import classifier, image_dls, open_images, report

warnings.filterwarnings('ignore')

def with_test(s, n, seed=0):
    "The set with `n` test pictures, those that lack drawn from the training pictures"
    splits = s.splits.copy()
    train = np.random.default_rng(seed).permutation(np.flatnonzero(splits == 'train'))
    splits[train[:max(0, n - (splits == 'test').sum())]] = 'test'
    splits[np.flatnonzero(splits == 'test')[n:]] = 'train'
    return replace(s, splits=splits)

def measure(s, arch, folder):
    with contextlib.redirect_stdout(io.StringIO()): learn = classifier(image_dls(s, device='cpu'), arch)
    with learn.no_bar():
        wall, cpu = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()): report(learn, folder)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    size = sum(f.stat().st_size for f in Path(folder).rglob('*') if f.is_file())/1e6
    print(f'{arch}: {len(learn.dls.test.dataset)} test pictures of {s.images.shape[1]} px, {wall:.1f} s wall, {cpu:.1f} processor seconds, {torch.get_num_threads()} threads, '
          f'load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores ({platform.machine()}), {size:.1f} MB written', flush=True)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('source', help='what `open_images` takes')
    p.add_argument('--archs', nargs='+', default=['simple_cnn', 'tf_efficientnet_lite0'])
    p.add_argument('--n', type=int, default=2000)
    p.add_argument('--out', default='report_speed')
    a = p.parse_args()
    s = with_test(open_images(a.source).load(), a.n)
    for arch in a.archs: measure(s, arch, Path(a.out)/arch)
