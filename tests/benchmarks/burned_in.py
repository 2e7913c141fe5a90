"""How often `burned_in_text` finds a line of text that was written into real pictures, and how often it sees one where none was written.

    python tests/benchmarks/burned_in.py ../shared/data --out burned_in

The thresholds were chosen on other pictures of the same sets (MedNIST and HAM10000: other draws; the RSNA projects: the files at even places). A picture that
shows text of its own (the side marker of a hand) counts as a false alarm here. Contrast is that of the letters to the median of the rows behind them, as a share of 0 to 255
(or of the range of Hounsfield units); dark letters where bright ones would leave the range."""
import argparse, io, random, zipfile
from pathlib import Path
import matplotlib, numpy as np, pandas as pd
from PIL import Image
from medkit.core import run_record, save_json
from medkit.burned_in import burn_in, burned_in_text
from medkit.intervals import share
from medkit.phantom import head_ct

FONTS = [None, *(str(Path(matplotlib.get_data_path())/'fonts/ttf'/f'{f}.ttf') for f in ('DejaVuSans', 'DejaVuSansMono', 'DejaVuSerif'))]
TEXTS = 'DOE JANE 1957', 'MUELLER ANNA', '1957-03-12', 'ID 4711-0815', 'Smith^Peter', 'City Hospital', '12/03/1999'

def tm(path):
    with zipfile.ZipFile(path) as z: return [np.array(Image.open(io.BytesIO(z.read(n)))) for n in z.namelist() if n.endswith('.jpg')][1::2]

def drawn(files, n, seed=7): files = sorted(files); random.Random(seed).shuffle(files); return [np.array(Image.open(f)) for f in files[:n]]

def pictures(root):
    sets = {f'head CT, {p.stem}, 224 px': tm(p) for p in sorted((root/'rsna_tm').glob('*.tm'))}
    sets |= {f'MedNIST {d.name}, 64 px': drawn(d.iterdir(), 150) for d in sorted((root/'MedNIST').iterdir())}
    return sets | {'HAM10000, 64 px': drawn((root/'ham10000'/'jpeg64').rglob('*.jpg'), 500), 'generated head CT in HU, 96 px': list(head_ct(200, seed=11)[0])}

def written(x, rng, size, contrast, font):
    "The picture with a line of text at its upper or lower edge"
    low, high = (0, 255) if x.dtype == np.uint8 else np.percentile(x, (.5, 99.5)); h, w = x.shape[:2]
    top = int(rng.choice([1, h - size - 4])); back = np.median(x[top:top + size]); step = contrast*(high - low)
    value = back + step if back + step <= high or high - back >= back - low else back - step
    return burn_in(x, str(rng.choice(TEXTS))[:int(w/size/.62)], (top, 2), size, float(np.clip(value, low, high)), font)

def main(root, out, n=60):
    sets, rng = pictures(Path(root)), np.random.default_rng(5)
    false = pd.DataFrame([dict(set=k, **share(sum(bool(burned_in_text(x)) for x in v), len(v))._asdict()) for k, v in sets.items()])
    def found(v, size, c): return share(sum(bool(burned_in_text(written(v[i % len(v)], rng, size, c, FONTS[i % 4]))) for i in range(n)), n)
    some = {k: v for k, v in sets.items() if any(o in k for o in ('experiment4', 'CXR', 'Hand', 'HAM', 'HU'))}
    hits = pd.DataFrame([dict(set=k, size=s, contrast=c, **found(v, s, c)._asdict()) for k, v in some.items() for s in ((8, 10, 12) if '224' not in k else (8, 10, 12, 16, 24, 36)) for c in (.3, .5, .8)])
    print(false.round(3).to_string(index=False)); print(hits.round(2).to_string(index=False))
    save_json(dict(run=run_record(5), false_alarms=false.to_dict('records'), found=hits.to_dict('records')), Path(out).with_suffix('.json'))

if __name__ == '__main__':
    p = argparse.ArgumentParser(); p.add_argument('data'); p.add_argument('--out', default='burned_in'); a = p.parse_args()
    main(a.data, a.out)
