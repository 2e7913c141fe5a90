"""How long `medkit.duplicates.copies` takes, and how much memory, for 64,000 drawn pictures with planted copies.

    OMP_NUM_THREADS=1 python tests/benchmarks/duplicates_speed.py --n 64000 --edge 64 --like fields

`fields` are random pictures; `heads` are drawn head CT slices, which are all alike: the hardest case, and slow to draw.
"""
import argparse, os, resource, time
import numpy as np, torch
from scipy.ndimage import gaussian_filter
from medkit.duplicates import copies
from medkit.phantom import _brain_window, head_slice

def heads(n, edge, seed=0):
    "Drawn head CT slices, uint8 (n,edge,edge)"
    return np.stack([_brain_window(head_slice(np.random.default_rng([seed, i]), i % 2, edge)[0]) for i in range(n)])

def fields(n, edge, seed=0):
    "Smooth random pictures with detail, uint8 (n,edge,edge)"
    rng, out = np.random.default_rng(seed), np.empty((n, edge, edge), np.uint8)
    for k in range(0, n, 4096):
        m = min(4096, n - k)
        x = sum(w*gaussian_filter(rng.standard_normal((m, edge, edge), dtype=np.float32), (0, s, s))*s for w, s in ((1, 1), (2, 4)))
        out[k:k+m] = np.clip(128 + 30*x, 0, 255)
    return out

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=64000)
    p.add_argument('--edge', type=int, default=64)
    p.add_argument('--like', choices=['fields', 'heads'], default='fields')
    a = p.parse_args()
    torch.set_num_threads(1)   # threads of our own, one a core
    x, k = dict(fields=fields, heads=heads)[a.like](a.n, a.edge), max(1, a.n//100)
    x[-k:] = x[:k, :, ::-1]    # one in a hundred is another, mirrored
    before, t, c = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024, time.perf_counter(), time.process_time()
    _, pairs = copies((x, np.arange(a.n) % 2, ['train']*(a.n - 2) + ['val', 'test']))
    found = sum(j - i == a.n - k for i, j in zip(pairs.a, pairs.b))
    print(f'{a.n} {a.like} of {a.edge} px: {time.perf_counter()-t:.0f} s, {time.process_time()-c:.0f} processor seconds on {os.cpu_count()} cores, '
          f'load {os.getloadavg()[0]:.1f}, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024 - before:.0f} MB more; {found} of {k} copies found, {len(pairs) - found} other pairs')
